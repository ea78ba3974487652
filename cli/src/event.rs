//! Events of the ring as lines.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use datapath_common::{Event, EventKind, Hook, Reason, proto};
use serde::{Deserialize, Serialize};

use crate::format;
use crate::links::interface_text;
use crate::output::{Paint, Style};

/// An event as `tulle monitor -o json` writes it, one on each line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventLine {
    /// Nanoseconds since 1970-01-01 UTC.
    pub unix_nanos: u64,
    /// `drop`, `flow` or `trace`.
    pub kind: String,
    /// Program, without its prefix; absent for a number that is none.
    pub hook: Option<String>,
    /// The reason's label; `reason_N` for a number that this program does not know.
    pub reason: String,
    /// `TCP`, `UDP` …; absent if the packet was not parsed so far.
    pub protocol: Option<String>,
    /// Source; port 0 where the protocol has none.
    pub source: Option<SocketAddr>,
    /// Destination; port 0 where the protocol has none.
    pub destination: Option<SocketAddr>,
    /// The backend that was chosen, for `flow`.
    pub backend: Option<SocketAddr>,
    /// Index of the interface that the packet came in by.
    pub ifindex: u32,
    /// Its name, if it is in this network namespace.
    pub interface: Option<String>,
    /// Length of the packet in bytes.
    pub bytes: u32,
}

/// A record of the ring, if it is one: this program knows its length and kind.
pub fn parse(record: &[u8]) -> Option<(Event, EventKind)> {
    let event: Event = bytemuck::try_pod_read_unaligned(record).ok()?;
    Some((event, EventKind::from_u8(event.kind)?))
}

/// What to write for an event; `boot_unix_nanos` is the wall clock when
/// `CLOCK_MONOTONIC` was 0.
pub fn line(
    event: &Event,
    kind: EventKind,
    boot_unix_nanos: u64,
    interfaces: &dyn Fn(u32) -> Option<String>,
) -> EventLine {
    let socket = |bytes, port| ip(event.version, bytes).map(|ip| SocketAddr::new(ip, port));
    let hook = Hook::ALL.into_iter().find(|hook| *hook as u8 == event.hook);
    EventLine {
        unix_nanos: boot_unix_nanos.saturating_add(event.time),
        kind: match kind {
            EventKind::Drop => "drop",
            EventKind::FlowOpened => "flow",
            EventKind::Trace => "trace",
        }
        .into(),
        hook: hook.map(|hook| hook.name().into()),
        reason: Reason::from_u8(event.reason).map_or_else(
            || format!("reason_{}", event.reason),
            |reason| reason.label().into(),
        ),
        protocol: (event.version != 0).then(|| format::protocol(event.proto).into_owned()),
        source: socket(event.src, event.sport),
        destination: socket(event.dst, event.dport),
        backend: match kind {
            EventKind::FlowOpened => socket(event.backend, event.backend_port),
            EventKind::Drop | EventKind::Trace => None,
        },
        ifindex: event.ifindex,
        interface: interfaces(event.ifindex),
        bytes: event.len,
    }
}

fn ip(version: u8, bytes: [u8; 16]) -> Option<IpAddr> {
    let [a, b, c, d, ..] = bytes;
    match version {
        4 => Some(Ipv4Addr::new(a, b, c, d).into()),
        6 => Some(Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

/// One line for people, with its line end: time in UTC, what happened, the
/// packet, where.
pub fn render(line: &EventLine, style: Style) -> String {
    let time = style.paint(Paint::Dim, &format::time_of_day(line.unix_nanos));
    let kind = format!("{:<5}", line.kind);
    let (kind, what) = match line.kind.as_str() {
        "drop" => (
            style.paint(Paint::Red, &kind),
            format!("{:<22}  ", line.reason),
        ),
        "flow" => (style.paint(Paint::Green, &kind), String::new()),
        _ => (kind, format!("{:<22}  ", line.reason)),
    };
    let packet = match (line.source, line.destination) {
        (Some(source), Some(destination)) => {
            let protocol = line.protocol.as_deref().unwrap_or("IP");
            format!(
                "{protocol} {} → {}",
                end(line, source),
                end(line, destination)
            )
        }
        _ => "packet".into(),
    };
    let backend = line
        .backend
        .map(|backend| format!("  to {backend}"))
        .unwrap_or_default();
    let interface = interface_text(line.interface.as_deref(), line.ifindex);
    let hook = line.hook.as_deref().unwrap_or("?");
    format!(
        "{time}  {kind}  {what}{packet}{backend}  {} B  {interface} {hook}\n",
        line.bytes
    )
}

/// An end of a packet: protocols without ports show none.
fn end(line: &EventLine, socket: SocketAddr) -> String {
    let ported = [proto::TCP, proto::UDP, proto::SCTP].map(format::protocol);
    if ported
        .iter()
        .any(|name| line.protocol.as_deref() == Some(name))
    {
        socket.to_string()
    } else {
        socket.ip().to_string()
    }
}

#[cfg(test)]
#[path = "tests/event.rs"]
mod tests;
