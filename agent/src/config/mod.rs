//! What the agent is told besides its own options: a file, and kube-proxy's flags.
//!
//! A file's fields are the options of `run` by other names ([`own`]), or those of kube-proxy
//! ([`kube_proxy`]); both become words of the command line ([`resolve`]), so that there is one
//! definition of every option, one check and one default. What the command line or the
//! environment says counts first, then kube-proxy's flags, then the file, Tulle's own
//! document before kube-proxy's.

mod file;
mod follow;
mod kube_proxy;
mod options;
mod own;
mod resolve;
mod said;
pub mod schema;
pub mod show;
mod tree;

pub use follow::{Changed, Follow};
pub use own::{API_VERSION, KIND};
pub use resolve::{Problem, Resolved, command, resolve};

#[cfg(test)]
mod tests;
