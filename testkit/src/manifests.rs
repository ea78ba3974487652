//! The cluster's state as a directory of Kubernetes YAML, written as an
//! operator would write it, and edited as editors do: whole files, by rename.

mod exposure;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::cluster::{Cluster, Node, Pod};
use crate::error::{Context, Error, Result};

pub use exposure::Exposure;

/// Services in each file of [`StateDir::write_services`].
const SERVICES_PER_FILE: usize = 500;
/// Most services that [`many_services`] makes: what 10.96.0.0/16 has room for.
const MANY_MAX: usize = 60_000;

/// A directory of manifests.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
}

/// Transport protocol of a service port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port of a [`Service`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Name, unique within the service.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the service address.
    pub port: u16,
    /// Port of the endpoints.
    pub target: u16,
    /// Port of the nodes' addresses, if it has one.
    pub node_port: Option<u16>,
}

/// A pod as an endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Its addresses, of either family.
    pub ips: Vec<IpAddr>,
    /// Node that it runs on.
    pub node: String,
    /// Name of the pod.
    pub pod: String,
    /// Condition `ready`.
    pub ready: bool,
    /// Condition `serving`.
    pub serving: bool,
    /// Condition `terminating`.
    pub terminating: bool,
}

/// A Service with the `EndpointSlices` of its pods.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Service addresses, the primary family first.
    pub ips: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Pods behind it.
    pub endpoints: Vec<Endpoint>,
    /// Where else it is reached, and policies.
    pub exposure: Exposure,
    /// Annotations of the Service.
    pub annotations: BTreeMap<String, String>,
}

impl StateDir {
    /// Makes the directory if it is not there.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        std::fs::create_dir_all(&path).trying(|| format!("make {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file at once: readers see the old content or the new. Returns
    /// the moment of the change.
    pub fn put(&self, file: &str, text: &str) -> Result<SystemTime> {
        let (path, temporary) = (self.path.join(file), self.path.join(format!(".{file}.new")));
        let what = || format!("write {}", path.display());
        std::fs::write(&temporary, text).trying(what)?;
        let now = SystemTime::now();
        std::fs::rename(&temporary, &path).trying(what)?;
        Ok(now)
    }

    /// Removes a file.
    pub fn remove(&self, file: &str) -> Result<SystemTime> {
        let path = self.path.join(file);
        let now = SystemTime::now();
        std::fs::remove_file(&path).trying(|| format!("remove {}", path.display()))?;
        Ok(now)
    }

    /// Writes the cluster's nodes to `nodes.yaml`.
    pub fn write_nodes(&self, cluster: &Cluster) -> Result<SystemTime> {
        self.write_returning_nodes(cluster, &[])
    }

    /// The same with the families, such as `IPv4,IPv6`, of which nodes answer clients of other
    /// nodes' services themselves: of as many nodes as are said.
    pub fn write_returning_nodes(
        &self,
        cluster: &Cluster,
        returning: &[&str],
    ) -> Result<SystemTime> {
        let families = returning.iter().copied().chain(std::iter::repeat(""));
        let nodes = cluster.nodes().iter().zip(families);
        let nodes: Vec<String> = nodes.map(|(node, of)| node_yaml(node, of)).collect();
        self.put("nodes.yaml", &nodes.join("---\n"))
    }

    /// Writes a service and its endpoint slices to `<name>.yaml`.
    pub fn write_service(&self, service: &Service) -> Result<SystemTime> {
        self.put(&service.file(), &service.to_string())
    }

    /// Removes `<name>.yaml`.
    pub fn remove_service(&self, service: &Service) -> Result<SystemTime> {
        self.remove(&service.file())
    }

    /// Writes many services into few files, `<prefix>-<n>.yaml`. Returns the
    /// files' names.
    pub fn write_services(&self, prefix: &str, services: &[Service]) -> Result<Vec<String>> {
        let mut files = Vec::new();
        for (n, part) in services.chunks(SERVICES_PER_FILE).enumerate() {
            let file = format!("{prefix}-{}.yaml", n + 1);
            let texts: Vec<String> = part.iter().map(Service::to_string).collect();
            self.put(&file, &texts.join("---\n"))?;
            files.push(file);
        }
        Ok(files)
    }
}

impl Endpoint {
    /// A pod that is ready.
    pub fn of(node: &Node, pod: &Pod) -> Self {
        Self {
            ips: pod.ips(),
            node: node.name().to_owned(),
            pod: pod.name().to_owned(),
            ready: true,
            serving: true,
            terminating: false,
        }
    }
}

impl Service {
    /// A service in the namespace `default` without ports and endpoints.
    pub fn new(name: &str, ips: &[IpAddr]) -> Self {
        Self {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            ips: ips.to_vec(),
            ports: Vec::new(),
            endpoints: Vec::new(),
            exposure: Exposure::default(),
            annotations: BTreeMap::new(),
        }
    }

    /// A dual-stack service: 10.96.0.`host`, and `fd96::` with the same digits.
    pub fn dual_stack(name: &str, host: u8) -> Self {
        let (v4, v6) = (Ipv4Addr::new(10, 96, 0, host), format!("fd96::{host}"));
        let v6 = v6.parse::<Ipv6Addr>().map(IpAddr::V6); // decimal digits are hexadecimal ones
        let ips: Vec<IpAddr> = std::iter::once(IpAddr::V4(v4)).chain(v6.ok()).collect();
        Self::new(name, &ips)
    }

    /// Adds a port, named after its protocol and number.
    #[must_use]
    pub fn port(mut self, protocol: Protocol, port: u16, target: u16) -> Self {
        let name = format!("{}-{port}", protocol.name().to_ascii_lowercase());
        self.ports.push(ServicePort {
            name,
            protocol,
            port,
            target,
            node_port: None,
        });
        self
    }

    /// Adds an endpoint for each pod.
    #[must_use]
    pub fn endpoints<'a>(mut self, pods: impl IntoIterator<Item = (&'a Node, &'a Pod)>) -> Self {
        self.endpoints
            .extend(pods.into_iter().map(|(node, pod)| Endpoint::of(node, pod)));
        self
    }

    /// Takes a pod's endpoint away.
    pub fn remove_endpoint(&mut self, pod: &str) -> Result<Endpoint> {
        let at = self
            .endpoints
            .iter()
            .position(|endpoint| endpoint.pod == pod);
        let at = at.ok_or_else(|| {
            Error::Invalid(format!(
                "service {} has no endpoint for pod {pod}",
                self.name
            ))
        })?;
        Ok(self.endpoints.remove(at))
    }

    /// Its file in a [`StateDir`].
    pub fn file(&self) -> String {
        format!("{}.yaml", self.name)
    }

    fn write_service(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ips: Vec<String> = self.ips.iter().map(|ip| quoted(*ip)).collect();
        let families: Vec<&str> = self.ips.iter().map(|ip| family(*ip)).collect();
        let policy = if self.ips.len() > 1 {
            "RequireDualStack"
        } else {
            "SingleStack"
        };
        writeln!(f, "apiVersion: v1\nkind: Service")?;
        writeln!(
            f,
            "metadata:\n  name: {}\n  namespace: {}",
            self.name, self.namespace
        )?;
        if !self.annotations.is_empty() {
            writeln!(f, "  annotations:")?;
        }
        for (name, value) in &self.annotations {
            writeln!(f, "    {name}: {value:?}")?;
        }
        writeln!(f, "spec:")?;
        self.write_exposure(f)?;
        if let Some(first) = ips.first() {
            writeln!(
                f,
                "  clusterIP: {first}\n  clusterIPs: [{}]",
                ips.join(", ")
            )?;
            writeln!(
                f,
                "  ipFamilies: [{}]\n  ipFamilyPolicy: {policy}",
                families.join(", ")
            )?;
        }
        writeln!(f, "  selector:\n    app: {}\n  ports:", self.name)?;
        for ServicePort {
            name,
            protocol,
            port,
            target,
            node_port,
        } in &self.ports
        {
            writeln!(f, "    - name: {name}\n      protocol: {}", protocol.name())?;
            writeln!(f, "      port: {port}\n      targetPort: {target}")?;
            if let Some(node_port) = node_port {
                writeln!(f, "      nodePort: {node_port}")?;
            }
        }
        self.write_status(f)
    }

    fn write_slice(&self, f: &mut fmt::Formatter<'_>, v6: bool) -> fmt::Result {
        let kind = if v6 { "IPv6" } else { "IPv4" };
        writeln!(
            f,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice"
        )?;
        writeln!(
            f,
            "metadata:\n  name: {}-{}",
            self.name,
            kind.to_ascii_lowercase()
        )?;
        writeln!(f, "  namespace: {}\n  labels:", self.namespace)?;
        writeln!(f, "    kubernetes.io/service-name: {}", self.name)?;
        writeln!(f, "addressType: {kind}\nports:")?;
        for ServicePort {
            name,
            protocol,
            target,
            ..
        } in &self.ports
        {
            writeln!(
                f,
                "  - name: {name}\n    protocol: {}\n    port: {target}",
                protocol.name()
            )?;
        }
        let mut endpoints = String::new();
        for endpoint in &self.endpoints {
            for ip in endpoint.ips.iter().filter(|ip| ip.is_ipv6() == v6) {
                endpoint.write(&mut endpoints, *ip)?;
            }
        }
        match endpoints.as_str() {
            "" => writeln!(f, "endpoints: []"),
            some => write!(f, "endpoints:\n{some}"),
        }
    }
}

impl Endpoint {
    fn write(&self, out: &mut String, ip: IpAddr) -> fmt::Result {
        writeln!(
            out,
            "  - addresses: [{}]\n    nodeName: {}",
            quoted(ip),
            self.node
        )?;
        writeln!(
            out,
            "    conditions: {{ready: {}, serving: {}, terminating: {}}}",
            self.ready, self.serving, self.terminating
        )?;
        writeln!(out, "    targetRef: {{kind: Pod, name: {}}}", self.pod)
    }
}

/// The Service and a slice for each of its families, as YAML documents.
impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_service(f)?;
        for v6 in [false, true] {
            if self.ips.iter().any(|ip| ip.is_ipv6() == v6) {
                self.write_slice(f, v6)?;
            }
        }
        Ok(())
    }
}

impl Protocol {
    /// As Kubernetes writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// `n` dual-stack services `<prefix>-00001` … with TCP port 80, beginning at
/// 10.96.16.0 and `fd96::1:0`, each with two of the endpoints in turn.
pub fn many_services(prefix: &str, n: usize, endpoints: &[Endpoint]) -> Result<Vec<Service>> {
    if n > MANY_MAX {
        return Err(Error::Invalid(format!(
            "{n} services: ask for at most {MANY_MAX}"
        )));
    }
    let service = |index: usize| {
        let v4 = Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 16, 0).to_bits() + index as u32);
        let v6 = Ipv6Addr::from_bits(
            Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 1, 0).to_bits() + index as u128,
        );
        let name = format!("{prefix}-{:05}", index + 1);
        let mut service =
            Service::new(&name, &[v4.into(), v6.into()]).port(Protocol::Tcp, 80, 8080);
        let mut chosen: Vec<Endpoint> = endpoints
            .iter()
            .cycle()
            .skip(index * 2 % endpoints.len().max(1))
            .take(2)
            .cloned()
            .collect();
        chosen.dedup();
        service.endpoints = chosen;
        service
    };
    Ok((0..n).map(service).collect())
}

/// A Node as YAML.
fn node_yaml(node: &Node, returning: &str) -> String {
    let annotations = if returning.is_empty() {
        String::new()
    } else {
        format!("  annotations:\n    tulle.io/direct-return: {returning}\n")
    };
    let mut out = format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {}\n{annotations}spec:\n  podCIDR: {}\n  podCIDRs:\n    - {}\n",
        node.name(),
        node.pod_cidr4(),
        node.pod_cidr4()
    );
    if let Some(cidr) = node.pod_cidr6() {
        out.extend(["    - ", &cidr.to_string(), "\n"]);
    }
    out += "status:\n  addresses:\n";
    let ips = std::iter::once(IpAddr::V4(node.ip4())).chain(node.ip6().map(IpAddr::V6));
    for ip in ips {
        out.extend([
            "    - type: InternalIP\n      address: ",
            &ip.to_string(),
            "\n",
        ]);
    }
    out.extend(["    - type: Hostname\n      address: ", node.name(), "\n"]);
    out
}

/// Within brackets a colon needs quotes.
fn quoted(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("\"{ip}\""),
    }
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv6() { "IPv6" } else { "IPv4" }
}
