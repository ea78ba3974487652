//! What a frontend's address is of its object.

/// In the order in which contested frontends are given: an exact address beats
/// a NodePort (KP-38), and what the cluster allotted beats what the author of
/// any Service may write (KP-25, KP-185).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// A ClusterIP.
    ClusterIp,
    /// An address of a load balancer (KP-41).
    Vip,
    /// An external IP (KP-31).
    ExternalIp,
    /// An address of the node, at the node port (KP-33).
    NodePort,
    /// An address of the node, at a Pod's host port.
    HostPort,
}

impl Kind {
    /// The field of the object that asks for the frontend.
    pub const fn field(self) -> &'static str {
        match self {
            Self::ClusterIp => "spec.clusterIPs",
            Self::Vip => "status.loadBalancer.ingress",
            Self::ExternalIp => "spec.externalIPs",
            Self::NodePort => "spec.ports[*].nodePort",
            Self::HostPort => "spec.containers[*].ports[*].hostPort",
        }
    }

    /// What to do where somebody else has the frontend.
    pub(super) const fn mend(self) -> &'static str {
        match self {
            Self::ClusterIp => "give each Service a ClusterIP of its own, or another port",
            Self::Vip => "give each Service a load balancer address of its own, or another port",
            Self::ExternalIp => "give each Service an external IP of its own, or another port",
            Self::NodePort => "give each Service a nodePort of its own",
            Self::HostPort => {
                "give the container another hostPort, or a hostIP of its own; a nodePort goes before a hostPort"
            }
        }
    }
}
