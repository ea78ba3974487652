//! Requests through the service: how they spread, and how long they take.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use testkit::http::{Load, LoadOptions};

use super::Output;
use crate::report;
use crate::text::{bars, count, millis};
use crate::world::{PORT, World};

/// Requests over each family.
const REQUESTS: usize = 300;

/// A section for each family.
pub fn show(page: &mut Output, world: &World) -> Result<()> {
    for ip in world.web.ips.clone() {
        let heading = if ip.is_ipv4() {
            format!("{REQUESTS} requests to a ClusterIP")
        } else {
            "The same over IPv6".to_owned()
        };
        page.heading(&heading)?;
        burst(page, world, ip)?;
    }
    Ok(())
}

fn burst(page: &mut Output, world: &World, ip: IpAddr) -> Result<()> {
    let (_, client) = world.client()?;
    let target = SocketAddr::new(ip, PORT);
    let backends = world.backends();
    let pods: Vec<String> = backends.iter().flat_map(|node| node.pods.clone()).collect();
    page.text(&format!(
        "From {} to http://{target}/, each on a new connection, four at a time. {} on {} stand \
         behind it.",
        client.name(),
        count(pods.len(), "pod"),
        count(backends.len(), "node")
    ))?;
    page.gap()?;
    let load = Load::run(client.ns(), target, &LoadOptions::requests(REQUESTS))?;
    page.block(&bars::spread(&backends, &load.by_pod, client.name()))?;
    page.gap()?;
    let failures = report::failures(&load);
    let kept = failures.is_none() && load.requests.len() == REQUESTS;
    let good = || format!("All {} requests were answered.", load.requests.len());
    page.promise(kept, &failures.unwrap_or_else(good))?;
    let even = report::is_even(&load.by_pod, &pods);
    page.promise(
        even,
        if even {
            "They spread evenly: no pod is further from its share than chance explains."
        } else {
            "They should spread evenly over the pods behind the service."
        },
    )?;
    if let (Some(median), Some(slow)) = (load.percentile(50), load.percentile(99)) {
        page.text(&format!(
            "Time for connection, request and answer: median {}, 99th percentile {}.",
            millis(median),
            millis(slow)
        ))?;
    }
    Ok(())
}
