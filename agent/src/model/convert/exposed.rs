//! The parts of v1/Service that say where beside its ClusterIPs it is reached,
//! by whom, and where its clients go.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as api;

use crate::model::address::{not_unicast, parse_ip, parse_net};
use crate::model::{Family, Fault, Policy};

use super::port_fault;

/// What `clientIP.timeoutSeconds` is unless it is written (KP-95).
const AFFINITY_SECS: i32 = 10_800;
/// A day, the longest that the API takes (KP-95).
const AFFINITY_SECS_MAX: i32 = 86_400;

/// `spec.externalIPs`, as far as they can be served.
pub(super) fn external_ips(
    spec: &api::ServiceSpec,
    cluster_ips: &[IpAddr],
    notes: &mut Vec<Fault>,
) -> Vec<IpAddr> {
    let listed = spec.external_ips.iter().flatten().enumerate();
    let named = listed.map(|(i, text)| (format!("spec.externalIPs[{i}]"), text.as_str()));
    addresses(named, cluster_ips, notes)
}

/// The addresses of load balancers that deliver packets with the address as it
/// is. With `ipMode: Proxy` they connect themselves; nodes do not take their part (KP-42).
pub(super) fn vips(
    from: &api::Service,
    cluster_ips: &[IpAddr],
    notes: &mut Vec<Fault>,
) -> Vec<IpAddr> {
    let status = from.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let listed = status.and_then(|s| s.ingress.as_ref());
    let mut named = Vec::new();
    for (i, ingress) in listed.into_iter().flatten().enumerate() {
        let field = |part: &str| format!("status.loadBalancer.ingress[{i}].{part}");
        match ingress.ip_mode.as_deref() {
            None | Some("VIP") => {
                named.extend(ingress.ip.as_deref().map(|text| (field("ip"), text)));
            }
            Some("Proxy") => {}
            Some(other) => notes.push(Fault::new(
                field("ipMode"),
                format!("{other:?} is not a mode, so the address is not served"),
                "write VIP or Proxy",
            )),
        }
    }
    addresses(named, cluster_ips, notes)
}

/// Addresses of the families that have a ClusterIP (KP-05, KP-06), each once.
/// Blanks are no addresses, others that are bad are passed over (KP-07).
fn addresses<'a>(
    listed: impl IntoIterator<Item = (String, &'a str)>,
    cluster_ips: &[IpAddr],
    notes: &mut Vec<Fault>,
) -> Vec<IpAddr> {
    let mut served = Vec::new();
    for (field, text) in listed.into_iter().filter(|(_, t)| !t.trim().is_empty()) {
        let mut note = |problem: String, mend: &str| {
            notes.push(Fault::new(
                &field,
                format!("{problem}, so it is not served"),
                mend,
            ));
        };
        let mend = "write an IPv4 or IPv6 address that clients reach the Service by";
        let Some(addr) = parse_ip(text) else {
            note(format!("{text:?} is not an address"), mend);
            continue;
        };
        let family = Family::of(addr);
        if let Some(what) = not_unicast(addr) {
            note(format!("{addr} is {what}"), mend);
        } else if !cluster_ips.iter().any(|ip| Family::of(*ip) == family) {
            note(
                format!("the Service has no {} ClusterIP", family.name()),
                "give it one, or remove the address",
            );
        } else if !served.contains(&addr) {
            served.push(addr);
        }
    }
    served
}

/// `spec.internalTrafficPolicy`.
pub(super) fn internal_policy(spec: &api::ServiceSpec) -> Result<Policy, Fault> {
    let text = spec.internal_traffic_policy.as_deref();
    policy("spec.internalTrafficPolicy", text)
}

/// `spec.externalTrafficPolicy`. It means nothing to a Service whose type lets
/// nobody outside in, even if it has a frontend for them (KP-04, KP-32).
pub(super) fn external_policy(spec: &api::ServiceSpec) -> Result<Policy, Fault> {
    let text = spec.external_traffic_policy.as_deref();
    let policy = policy("spec.externalTrafficPolicy", text)?;
    let accessible = match spec.type_.as_deref() {
        Some("LoadBalancer" | "NodePort") => true,
        _ => spec
            .external_ips
            .as_ref()
            .is_some_and(|ips| !ips.is_empty()),
    };
    Ok(if accessible { policy } else { Policy::Cluster })
}

fn policy(field: &str, text: Option<&str>) -> Result<Policy, Fault> {
    match text {
        None | Some("" | "Cluster") => Ok(Policy::Cluster),
        Some("Local") => Ok(Policy::Local),
        Some(other) => Err(Fault::new(
            field,
            format!("{other:?} is not a traffic policy"),
            "write Cluster or Local",
        )),
    }
}

/// `spec.sessionAffinity` and its time.
pub(super) fn affinity_secs(spec: &api::ServiceSpec) -> Result<Option<u32>, Fault> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return Ok(None),
        Some("ClientIP") => {}
        Some(other) => {
            return Err(Fault::new(
                "spec.sessionAffinity",
                format!("{other:?} is not an affinity"),
                "write ClientIP or None",
            ));
        }
    }
    let config = spec.session_affinity_config.as_ref();
    let secs = config
        .and_then(|c| c.client_ip.as_ref())
        .and_then(|c| c.timeout_seconds)
        .unwrap_or(AFFINITY_SECS);
    u32::try_from(secs)
        .ok()
        .filter(|_| (1..=AFFINITY_SECS_MAX).contains(&secs))
        .map(Some)
        .ok_or_else(|| {
            Fault::new(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                format!("{secs} is out of range"),
                format!("write a number from 1 to {AFFINITY_SECS_MAX}"),
            )
        })
}

/// `spec.loadBalancerSourceRanges`: what is bad is passed over, and a family
/// with a network of all addresses is not filtered (KP-48).
pub(super) fn source_ranges(spec: &api::ServiceSpec, notes: &mut Vec<Fault>) -> Vec<IpNet> {
    let mut nets: Vec<IpNet> = Vec::new();
    let listed = spec.load_balancer_source_ranges.iter().flatten();
    for (i, text) in listed.enumerate().filter(|(_, t)| !t.trim().is_empty()) {
        match parse_net(text.trim()) {
            Some(net) => nets.push(net),
            None => notes.push(Fault::new(
                format!("spec.loadBalancerSourceRanges[{i}]"),
                format!("{text:?} is not a network, so it is passed over"),
                "write a network such as 192.0.2.0/24 or 2001:db8::/32",
            )),
        }
    }
    let is_v4 = |net: &IpNet| Family::of(net.addr()) == Family::V4;
    let all: Vec<bool> = nets
        .iter()
        .filter(|n| n.prefix_len() == 0)
        .map(is_v4)
        .collect();
    nets.retain(|net| !all.contains(&is_v4(net)));
    nets.sort_unstable();
    nets.dedup();
    nets
}

/// Whether the type is LoadBalancer.
pub(super) fn is_load_balancer(spec: &api::ServiceSpec) -> bool {
    spec.type_.as_deref() == Some("LoadBalancer")
}

/// `spec.healthCheckNodePort`, which load balancers miss where they need it (KP-51).
pub(super) fn health_check_node_port(
    spec: &api::ServiceSpec,
    notes: &mut Vec<Fault>,
) -> Result<Option<u16>, Fault> {
    let field = "spec.healthCheckNodePort";
    let port = number(field, spec.health_check_node_port)?;
    let needed = is_load_balancer(spec) && external_policy(spec)? == Policy::Local;
    if port.is_none() && needed {
        notes.push(Fault::new(
            field,
            "is missing, so load balancers cannot ask which nodes have endpoints",
            "write a free port of the range of node ports",
        ));
    }
    Ok(port)
}

/// A port that is optional: absent and 0 mean none.
pub(super) fn number(field: &str, port: Option<i32>) -> Result<Option<u16>, Fault> {
    let number = port.unwrap_or(0);
    match u16::try_from(number) {
        Ok(0) => Ok(None),
        Ok(port) => Ok(Some(port)),
        Err(_) => Err(port_fault(field, number)),
    }
}
