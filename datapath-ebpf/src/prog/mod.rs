//! One file for each program.

mod nic_in;
mod pod_from;
mod pod_to;
mod xdp;
