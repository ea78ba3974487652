//! One file for each program or kind of them, one for what all of them do with ICMP errors, and
//! one for what those at ingress do with fragments.

mod direct;
mod errors;
mod fragments;
mod nic_in;
mod nic_out;
mod pod_from;
mod pod_to;
mod sockets;
mod xdp;
