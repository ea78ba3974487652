//! One file for each program, and one for what all of them do with ICMP errors.

mod errors;
mod nic_in;
mod nic_out;
mod pod_from;
mod pod_to;
mod xdp;
