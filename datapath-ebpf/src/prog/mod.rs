//! One file for each program.

mod nic_in;
mod nic_out;
mod pod_from;
mod pod_to;
mod xdp;
