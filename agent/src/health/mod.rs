//! The health check node ports of Services: where load balancers ask whether
//! this node has ready endpoints (KP-51).
//!
//! The loop tells [`Ports`] what it knows. [`Book`] makes of it which ports should be
//! open and what they say (pure), as a [`Board`]; the thread of `server.rs` opens and
//! closes sockets after that and answers from it: no client ever asks the loop.

mod answer;
mod bind;
mod board;
mod book;
mod clients;
mod listeners;
mod ports;
mod server;

pub use answer::{Answer, PATIENCE};
pub use bind::addresses;
pub use board::{Beat, Board, Probe};
pub use book::Book;
pub use ports::{News, Ports};
