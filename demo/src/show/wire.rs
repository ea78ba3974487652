//! A request between nodes as it passes the wire.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use testkit::capture::{Capture, Captured, describe_vxlan};
use testkit::http::get;
use testkit::packet::{self, Frame, L4};

use super::Output;
use crate::world::{PORT, World};

/// Connections until one goes to another node: with half of the pods elsewhere
/// all of them stay at home once in 2^100 times.
const TRIES: usize = 100;
const LIMIT: Duration = Duration::from_secs(5);
/// Frames that the capture keeps.
const FRAMES: usize = 10_000;

/// The section.
pub fn show(page: &mut Output, world: &World) -> Result<()> {
    page.heading("A request on the wire")?;
    let (node, client) = world.client()?;
    if world.cluster.nodes().len() < 2 {
        page.text("There is one node only, so nothing passes the wire. Left out.")?;
        return Ok(());
    }
    let overlay = world
        .status(0)?
        .overlay
        .context("the agent has no overlay")?;
    let target = SocketAddr::new(*world.web.ips.first().context("no service address")?, PORT);
    // The switch's side of the cable: there frames of both directions are as
    // they travel, before a program at the other end takes the overlay off.
    let capture = Capture::start(world.cluster.switch(), node.name(), FRAMES)?;
    let mut remote = None;
    for _ in 0..TRIES {
        let answer = get(client.ns(), target, "/", LIMIT)?;
        if !node.pods().iter().any(|pod| pod.name() == answer.pod) {
            remote = Some(answer.pod);
            break;
        }
    }
    let remote = remote.context("no request left the node")?;
    let request = capture.wait_for("no request on the wire", LIMIT, |frame| {
        payload(frame, overlay.port).is_some_and(|data| data.starts_with(b"GET "))
    })?;
    let answer = capture.wait_for("no answer on the wire", LIMIT, |frame| {
        payload(frame, overlay.port).is_some_and(|data| data.starts_with(b"HTTP/1.1 200"))
    })?;
    capture.stop()?;
    page.text(&format!(
        "Captured on the cable of {} while {} asked http://{target}/ and {remote} answered. The \
         service's address is gone before the wire; the client's own address stays.",
        node.name(),
        client.name()
    ))?;
    for (what, frame) in [("the request", &request), ("the answer", &answer)] {
        page.gap()?;
        page.text(&format!("{what}:"))?;
        let text = describe_vxlan(&frame.bytes, overlay.port).context("no overlay packet")?;
        page.quote(&text.replace(", TCP ", "\n       TCP       "))?;
        let data = payload(frame, overlay.port).unwrap_or_default();
        let line = String::from_utf8_lossy(&data)
            .lines()
            .next()
            .unwrap_or("")
            .to_owned();
        page.quote(&format!("       HTTP      {line}"))?;
    }
    page.gap()?;
    let inner = inner(&request, overlay.port).context("no overlay packet")?;
    let backend = world.cluster.pods().find(|(_, pod)| pod.name() == remote);
    let (_, backend) = backend.context("an unknown pod answered")?;
    let right = addresses(&inner) == Some((client.ip4(), backend.ip4()));
    page.promise(
        right,
        &format!(
            "Inside, the packet goes from {} to {}, in VNI {}.",
            client.ip4(),
            backend.ip4(),
            overlay.vni
        ),
    )?;
    Ok(())
}

/// The packet inside an overlay packet.
fn inner(frame: &Captured, port: u16) -> Option<Frame> {
    let outer = packet::parse(&frame.bytes).ok()?;
    match outer.upper() {
        Some(L4::Udp(udp)) if udp.dport == port => {}
        _ => return None,
    }
    packet::parse(&packet::unwrap_vxlan(&outer).ok()?.inner).ok()
}

fn payload(frame: &Captured, port: u16) -> Option<Vec<u8>> {
    match inner(frame, port)?.upper()? {
        L4::Tcp(tcp) => Some(tcp.payload.clone()),
        _ => None,
    }
}

fn addresses(frame: &Frame) -> Option<(std::net::Ipv4Addr, std::net::Ipv4Addr)> {
    match &frame.net {
        packet::Net::V4(ip) => Some((ip.src, ip.dst)),
        _ => None,
    }
}
