//! From the API's types to ours, one object at a time. A value that the API
//! server would refuse rejects its object; a value that it takes and that
//! means nothing to us is left out and noted.

mod exposed;
mod node;
mod pod;
mod service;
mod service_cidr;
mod slice;

pub use node::node;
pub use pod::pod;
pub use service::service;
pub use service_cidr::service_cidr;
pub use slice::{CAUSE, cause, slice};

use super::shared::shared;
use super::{Fault, NamespacedName, Protocol};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// A converted object and what was left out of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Converted<T> {
    /// The object.
    pub object: T,
    /// Parts that have no effect, each with its mend.
    pub notes: Vec<Fault>,
}

impl<T> Converted<T> {
    /// The same of an object that is made of this one.
    pub(crate) fn map<U>(self, make: impl FnOnce(T) -> U) -> Converted<U> {
        Converted {
            object: make(self.object),
            notes: self.notes,
        }
    }
}

fn namespaced(meta: &ObjectMeta) -> Result<NamespacedName, Fault> {
    let namespace = meta.namespace.as_deref().unwrap_or("default");
    check_name("metadata.namespace", namespace)?;
    Ok(NamespacedName::new(shared(namespace), name(meta)?))
}

fn name(meta: &ObjectMeta) -> Result<&str, Fault> {
    let name = meta.name.as_deref().unwrap_or_default();
    check_name("metadata.name", name)?;
    Ok(name)
}

/// Names reach terminals and logs, so they hold nothing but what RFC 1123 allows.
fn check_name(field: &str, name: &str) -> Result<(), Fault> {
    if name.is_empty() {
        return Err(Fault::new(field, "is missing", "give the object a name"));
    }
    let fits = name.len() <= 253
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
    if fits {
        return Ok(());
    }
    Err(Fault::new(
        field,
        format!("{name:?} is not a name"),
        "use at most 253 lower-case letters, digits, '-' and '.'",
    ))
}

fn check_port_name(field: &str, name: &str) -> Result<(), Fault> {
    let fits = name.len() <= 63
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fits {
        return Ok(());
    }
    Err(Fault::new(
        field,
        format!("{name:?} is not a port name"),
        "use at most 63 lower-case letters, digits and '-'",
    ))
}

fn protocol(field: &str, text: Option<&str>) -> Result<Protocol, Fault> {
    match text {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(Fault::new(
            field,
            format!("{other:?} is not a protocol"),
            "write TCP, UDP or SCTP",
        )),
    }
}

fn port_fault(field: &str, number: i32) -> Fault {
    Fault::new(
        field,
        format!("{number} is not a port"),
        "write a number from 1 to 65535",
    )
}
