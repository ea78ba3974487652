//! What the agent tells over its Unix socket, and a client for it.
//!
//! One request per line, one answer per line, both JSON:
//!
//! ```text
//! → {"version":1,"request":"status"}
//! ← {"version":1,"response":{"status":{"agent_version":"0.1.0","pid":4711,…}}}
//! ```
//!
//! [`VERSION`] changes when an old reader would misread a new line. New fields
//! do not change it: every reader ignores fields that it does not know, and
//! fields added later are optional. The server decodes with [`decode_request`]
//! and answers with [`encode_response`], whatever its I/O is; [`Client`] is the
//! other half over a blocking stream.
#![forbid(unsafe_code)]

mod client;
mod types;
mod wire;

pub use client::{Client, ClientError, DEFAULT_TIMEOUT};
pub use types::{
    BackendServices, Feature, FrontendAddress, LinkAttachment, MapFault, ObjectCounts, Overlay,
    Peer, Protocol, RowRound, Service, Status, Warning,
};
pub use wire::{
    MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, Refusal, RefusalKind, Request, Response, VERSION,
    WireError, decode_request, decode_response, encode_request, encode_response,
};

/// File name of the socket inside the agent's run directory.
pub const SOCKET_NAME: &str = "agent.sock";
