//! A small HTTP/1.1 server (RFC 9112) that answers with its pod's name, and
//! clients that count who answered.

mod client;
mod load;
mod server;

pub(crate) use client::seen;
pub use client::{FailureKind, RequestError, Response, get, get_here};
pub use load::{Load, LoadOptions, LoadReport, Request};
pub use server::HttpServer;
pub(crate) use server::{accept, listen, stop_listening};
