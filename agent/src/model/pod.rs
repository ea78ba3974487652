//! Pods, as far as their host ports are concerned.

use std::net::IpAddr;
use std::sync::Arc;

use super::{NamespacedName, Protocol};

/// A Pod. One that is done, or that uses the node's own network, has no host
/// ports: nobody answers, or its processes do so themselves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// Namespace and name.
    pub name: NamespacedName,
    /// Name of its node, once it has one.
    pub node: Option<String>,
    /// At most one address of each family.
    pub ips: Vec<IpAddr>,
    /// What of it is reached at the node's addresses.
    pub host_ports: Vec<HostPort>,
}

/// A container's port that the node answers on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HostPort {
    /// The node's address; `None` for all of them.
    pub addr: Option<IpAddr>,
    /// Port on the node.
    pub port: u16,
    /// Port of the container.
    pub container_port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// What tells the owner of a Pod's frontends from a Service.
const PREFIX: &str = "pod/";

impl Pod {
    /// The name under which its frontends are planned, among those of Services:
    /// no object's name holds a `/`.
    pub fn owner(&self) -> NamespacedName {
        owner(&self.name)
    }

    /// Name of the Pod whose [`Pod::owner`] this is, in the same namespace; `None` if it is a
    /// Service's.
    pub fn owned(owner: &NamespacedName) -> Option<&str> {
        owner.name.strip_prefix(PREFIX)
    }
}

/// [`Pod::owner`] of the Pod of this name.
pub(super) fn owner(pod: &NamespacedName) -> NamespacedName {
    NamespacedName::new(Arc::clone(&pod.namespace), format!("{PREFIX}{}", pod.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_names_the_namespace_once() {
        let owner = owner(&NamespacedName::new("apps", "web"));
        assert_eq!(owner.to_string(), "apps/pod/web");
        assert_eq!(Pod::owned(&owner), Some("web"));
        assert_eq!(Pod::owned(&NamespacedName::new("apps", "web")), None);
    }
}
