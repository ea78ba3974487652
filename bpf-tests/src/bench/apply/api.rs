//! A large cluster as an API server has it: objects with all that others write into them, which
//! the agent has no use for.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use testkit::agent::{AgentOptions, Source};
use testkit::apiserver::ApiServer;
use testkit::manifests::StateDir;
use testkit::{Cluster, ClusterBuilder};

use super::objects::Shape;
use super::real::Host;

/// Nodes of the cluster, besides the agent's own.
pub const NODES: u32 = 5000;
/// Addresses of a node's pods.
const POD_PREFIX: u8 = 26;
/// The first node's pod network; the others follow.
const PODS_FROM: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 0);
/// The first node in the underlay; the others follow.
const NODES_FROM: Ipv4Addr = Ipv4Addr::new(172, 24, 0, 1);

/// A server with the objects, which lives no longer than the cluster of hosts.
pub struct Api {
    _server: ApiServer,
    /// How the agent reaches it.
    pub options: AgentOptions,
    /// The hosts.
    pub cluster: Cluster,
}

impl Api {
    /// A server with Nodes, Services and slices, for an agent with this program.
    pub fn start(binary: &Path, shape: Shape) -> Result<Self> {
        let cluster = ClusterBuilder::unique("benchapi")
            .nodes(1)
            .pods_per_node(1)
            .build()?;
        let server = ApiServer::for_cluster(&cluster)?;
        let state = StateDir::create(cluster.directory().join("state"))?;
        state.write_nodes(&cluster)?;
        let own = std::fs::read_to_string(state.path().join("nodes.yaml"))?;
        for document in serde_norway::Deserializer::from_str(&own) {
            server.apply(serde::Deserialize::deserialize(document)?)?;
        }
        server.apply_many((0..NODES).map(node))?;
        for number in 0..shape.services {
            server.apply_many(service(shape, number)?)?;
        }
        let kubeconfig = server.kubeconfig(&cluster.directory().join("api"))?;
        let options = AgentOptions::of(binary, Source::Kubeconfig(kubeconfig.path));
        Ok(Self {
            _server: server,
            options: Host::sized(options),
            cluster,
        })
    }
}

/// A Service and its slice, as clients and controllers leave them.
pub fn service(shape: Shape, number: u32) -> Result<Vec<Value>> {
    let mut service = shape.service(number, shape.endpoints);
    for (at, endpoint) in service.endpoints.iter_mut().enumerate() {
        let number = number * shape.endpoints + u32::try_from(at)?;
        // Spread over all nodes, as a scheduler does.
        let (node, pod) = (number % NODES, number / NODES);
        endpoint.node = name(node);
        endpoint.ips = vec![Ipv4Addr::from_bits(pods(node).to_bits() + 2 + pod).into()];
    }
    let mut objects = Vec::new();
    for document in serde_norway::Deserializer::from_str(&service.to_string()) {
        let object: Value =
            serde::Deserialize::deserialize(document).context("a manifest of the test kit")?;
        objects.push(dressed(object));
    }
    Ok(objects)
}

/// With what Tulle has no use for.
fn dressed(mut object: Value) -> Value {
    let manager = |name: &str| {
        json!({
            "manager": name,
            "operation": "Update",
            "apiVersion": "v1",
            "time": "2026-01-01T00:00:00Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": { "f:metadata": { "f:annotations": { "f:a": {}, "f:b": {} } }, "f:spec": {
                "f:ports": { "k:{\"port\":80,\"protocol\":\"TCP\"}": { ".": {}, "f:name": {}, "f:port": {} } },
                "f:selector": {}, "f:type": {}, "f:internalTrafficPolicy": {} } },
        })
    };
    let metadata = &mut object["metadata"];
    metadata["managedFields"] = json!([manager("kubectl"), manager("kube-controller-manager")]);
    metadata["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] =
        Value::from("{\"apiVersion\":\"v1\",\"kind\":\"Service\"}".repeat(12));
    metadata["labels"]["app.kubernetes.io/managed-by"] = json!("Helm");
    metadata["labels"]["helm.sh/chart"] = json!("shop-4.2.0");
    object
}

fn name(node: u32) -> String {
    format!("ip-172-24-{}-{}.compute.internal", node / 256, node % 256)
}

fn pods(node: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(PODS_FROM.to_bits() + (node << (32 - POD_PREFIX)))
}

/// A Node with conditions and images, of some 10 kB.
fn node(number: u32) -> Value {
    let network = format!("{}/{POD_PREFIX}", pods(number));
    let address = Ipv4Addr::from_bits(NODES_FROM.to_bits() + number);
    let images: Vec<Value> = (0..40)
        .map(|image| {
            let digest = format!("{image:064x}");
            json!({
                "names": [
                    format!("registry.example/team-{image}/service@sha256:{digest}"),
                    format!("registry.example/team-{image}/service:1.{image}.0"),
                ],
                "sizeBytes": 100_000_000 + image,
            })
        })
        .collect();
    let conditions = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"].map(|kind| {
        json!({
            "type": kind,
            "status": "True",
            "reason": "KubeletHasSufficientMemory",
            "message": "kubelet has sufficient memory available",
            "lastHeartbeatTime": "2026-01-01T00:00:00Z",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    });
    dressed(json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": name(number), "labels": { "topology.kubernetes.io/zone": "zone-a" } },
        "spec": { "podCIDR": network, "podCIDRs": [network] },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": address.to_string() }],
            "conditions": conditions,
            "images": images,
        },
    }))
}
