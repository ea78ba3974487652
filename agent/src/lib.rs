//! Tulle's node agent: `source` (objects) → `model` (cluster state) → `plan`
//! (tables, pure) → `kernel` (maps and programs), beside `net` (the slow path).
//! `run` joins them in one loop, as `args` and `config` say; `admin` answers for it on a socket, `http` to probes and Prometheus.

pub mod admin;
pub mod args;
pub mod clean;
pub mod config;
pub mod health;
pub mod http;
pub mod kernel;
pub mod metrics;
pub mod model;
pub mod net;
pub mod plan;
pub mod run;
pub mod source;
pub mod takeover;
