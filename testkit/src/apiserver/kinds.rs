//! The resources that the server has.

use serde_json::{Value, json};

/// A resource of the API.
#[derive(PartialEq, Eq, Debug)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version of the group.
    pub version: &'static str,
    /// Name in paths: `services`.
    pub plural: &'static str,
    /// Name in objects: `Service`.
    pub kind: &'static str,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
    /// Whether `status` is written by a subresource of its own.
    pub status: bool,
    /// Whether its objects count changes of their content in `metadata.generation`.
    pub generation: bool,
    /// Fields that can be selected, beside name and namespace, as paths in the object.
    pub fields: &'static [&'static str],
}

const fn core(plural: &'static str, kind: &'static str) -> Kind {
    Kind {
        group: "",
        version: "v1",
        plural,
        kind,
        namespaced: true,
        status: false,
        generation: false,
        fields: &[],
    }
}

/// Every resource.
pub static KINDS: [Kind; 10] = [
    Kind {
        status: true,
        fields: &["spec.clusterIP", "spec.type"],
        ..core("services", "Service")
    },
    Kind {
        namespaced: false,
        status: true,
        fields: &["spec.unschedulable"],
        ..core("nodes", "Node")
    },
    Kind {
        status: true,
        fields: &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        ..core("pods", "Pod")
    },
    core("endpoints", "Endpoints"),
    Kind {
        namespaced: false,
        status: true,
        fields: &["status.phase"],
        ..core("namespaces", "Namespace")
    },
    core("configmaps", "ConfigMap"),
    Kind {
        group: "discovery.k8s.io",
        generation: true,
        ..core("endpointslices", "EndpointSlice")
    },
    Kind {
        group: "networking.k8s.io",
        namespaced: false,
        status: true,
        ..core("servicecidrs", "ServiceCIDR")
    },
    Kind {
        group: "events.k8s.io",
        fields: &["reason", "type", "reportingController"],
        ..core("events", "Event")
    },
    Kind {
        group: "coordination.k8s.io",
        ..core("leases", "Lease")
    },
];

impl Kind {
    /// The kind named `Service` or `services`.
    pub fn named(name: &str) -> Option<&'static Self> {
        KINDS.iter().find(|k| k.kind == name || k.plural == name)
    }

    /// The kind at a path.
    pub(super) fn at(group: &str, version: &str, plural: &str) -> Option<&'static Self> {
        KINDS
            .iter()
            .find(|k| (k.group, k.version, k.plural) == (group, version, plural))
    }

    /// Its place in [`KINDS`].
    pub(super) fn index(&self) -> usize {
        KINDS.iter().position(|k| k == self).unwrap_or(KINDS.len())
    }

    /// `v1`, `discovery.k8s.io/v1`.
    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// Path of the collection, of one namespace or of all.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = match self.group {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        };
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{root}/namespaces/{namespace}/{}", self.plural),
            None => format!("{root}/{}", self.plural),
        }
    }

    /// An object of this kind with a version and no content, as bookmarks carry.
    pub(super) fn blank(&self, version: u64) -> Value {
        let mut object = json!({
            "kind": self.kind,
            "apiVersion": self.api_version(),
            "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null},
        });
        // What the server's types print although it is empty.
        let rest: &[(&str, Value)] = match self.kind {
            "Service" => &[("spec", json!({})), ("status", json!({"loadBalancer": {}}))],
            "Node" => &[
                ("spec", json!({})),
                (
                    "status",
                    json!({"daemonEndpoints": {"kubeletEndpoint": {"Port": 0}}, "nodeInfo": {}}),
                ),
            ],
            "EndpointSlice" => &[
                ("addressType", json!("")),
                ("endpoints", Value::Null),
                ("ports", Value::Null),
            ],
            _ => &[],
        };
        for (field, value) in rest {
            object[*field] = value.clone();
        }
        object
    }
}
