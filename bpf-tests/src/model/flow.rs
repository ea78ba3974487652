//! Flow rows: which are live, how they open, what packets do to them.

use std::net::IpAddr;

use datapath_common::{BackendState, Direction, FlowState, Limit, NodeClient, proto};

use super::direct::{forward_row, state_after};
use super::parse::{Fragment, Packet};
use super::world::{FlowId, FlowRow, FragmentId, FragmentRow, Tuple, World, version_of};
use crate::packet::ETHERNET;
use crate::packet::tcp_flag::{ACK, FIN, RST, SYN};

const SCTP_INIT: u8 = 1;
const SCTP_INIT_ACK: u8 = 2;
const SCTP_ABORT: u8 = 6;
/// SHUTDOWN, its ACK and its COMPLETE (RFC 9260 §3.2).
const SCTP_SHUTDOWN: [u8; 3] = [7, 8, 14];
/// Ticks of silence after which a closing connection makes room for a new one.
pub const QUIET_TICKS: u32 = 30;
/// A row's `seen` is written when it is this old.
const REFRESH_TICKS: u32 = 2;

/// A flow that is about to open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewFlow {
    /// Number of the service port.
    pub service: u32,
    /// Backend id.
    pub backend: u32,
    /// The backend sees the frontend's address as source.
    pub hairpin: bool,
    /// What the backend sees as source instead of the client's own.
    pub nat: Option<(IpAddr, u16)>,
    /// Whether a process of this node opens it.
    pub node: NodeClient,
    /// Whether it is counted as one of its backend's living flows.
    pub counted: bool,
}

impl Packet {
    /// TCP SYN alone, SCTP INIT.
    pub fn opens(&self) -> bool {
        match self.ip.proto {
            proto::TCP => self.tcp_flags & (SYN | ACK | FIN | RST) == SYN,
            proto::SCTP => self.chunk == SCTP_INIT,
            _ => false,
        }
    }

    /// TCP SYN with ACK, SCTP INIT ACK.
    pub fn accepts(&self) -> bool {
        match self.ip.proto {
            proto::TCP => self.tcp_flags & (SYN | ACK | FIN | RST) == SYN | ACK,
            proto::SCTP => self.chunk == SCTP_INIT_ACK,
            _ => false,
        }
    }

    /// FIN, RST, SHUTDOWN, ABORT.
    pub fn closes(&self) -> bool {
        match self.ip.proto {
            proto::TCP => self.tcp_flags & (FIN | RST) != 0,
            proto::SCTP => self.chunk == SCTP_ABORT || SCTP_SHUTDOWN.contains(&self.chunk),
            _ => false,
        }
    }

    /// Whether the flow table is asked before the segment even if the
    /// frontend does not say so.
    pub fn asks_flow_table(&self) -> bool {
        match self.ip.proto {
            proto::TCP => self.tcp_flags & (SYN | FIN | RST) != 0,
            // "Other than data": what opens, accepts or ends an association.
            // The rest (SACK, HEARTBEAT, …) only goes with data.
            proto::SCTP => matches!(self.chunk, SCTP_INIT | SCTP_INIT_ACK) || self.closes(),
            _ => self.ip.proto == proto::UDP,
        }
    }

    /// Data of a connection: TCP or SCTP that does not ask by itself.
    pub fn is_data(&self) -> bool {
        matches!(self.ip.proto, proto::TCP | proto::SCTP) && !self.asks_flow_table()
    }
}

/// The reply row of a flow, from the forward tuple and row.
fn reply_row(forward: Tuple, row: &FlowRow) -> FlowRow {
    FlowRow {
        addr: forward.dst,
        port: forward.dport,
        nat: row
            .translated_source()
            .map(|_| (forward.src, forward.sport)),
        counted: false,
        ..*row
    }
}

/// One more grant in this tick, if the limit (0: none) has room.
pub fn granted(row: &mut Limit, limit: u32, now: u32) -> bool {
    if limit == 0 {
        return true;
    }
    if row.tick != now {
        *row = Limit {
            tick: now,
            count: 0,
        };
    }
    if row.count >= limit {
        return false;
    }
    row.count += 1;
    true
}

impl World {
    /// Gives a later fragment the ports that the first one left.
    pub fn add_fragment_ports(&self, packet: &mut Packet) {
        let Fragment::Later(id) = packet.ip.fragment else {
            return;
        };
        let id = FragmentId {
            src: packet.ip.src,
            dst: packet.ip.dst,
            id,
            proto: packet.ip.proto,
        };
        // What is older than 30 ticks belongs to another datagram.
        let recent = |row: &&FragmentRow| self.now.wrapping_sub(row.seen) <= 30;
        if let Some(row) = self.fragments.get(&id).filter(recent) {
            (packet.sport, packet.dport, packet.has_ports) = (row.sport, row.dport, true);
            packet.first_octets = row.first_octets as usize;
        }
    }

    /// Leaves the ports of a first fragment that is translated.
    pub fn leave_fragment_ports(&mut self, packet: &Packet) {
        if let Fragment::First(id) = packet.ip.fragment {
            let Tuple {
                src,
                dst,
                sport,
                dport,
                proto,
            } = packet.tuple();
            let row = FragmentRow {
                sport,
                dport,
                seen: self.now,
                first_octets: (packet.ip.end - ETHERNET) as u32,
            };
            self.fragments.insert(
                FragmentId {
                    src,
                    dst,
                    id,
                    proto,
                },
                row,
            );
        }
    }

    /// The forward row of this key, if it is live for `packet`.
    pub fn live(&self, id: FlowId, packet: &Packet) -> Option<FlowRow> {
        let opens = packet.opens();
        let (row, state) = self.unexpired(id)?;
        let serves = match state {
            BackendState::Active => true,
            BackendState::Draining => matches!(id.tuple.proto, proto::TCP | proto::SCTP) && !opens,
            BackendState::Free => false,
        };
        let reopened = opens && row.state == FlowState::Closing;
        (serves && !reopened).then_some(row)
    }

    /// The row of this key, if it is live as a reply's: what a backend still answers
    /// is translated until its row is free.
    pub fn live_reply(&self, id: FlowId) -> Option<FlowRow> {
        let (row, state) = self.unexpired(id)?;
        (state != BackendState::Free).then_some(row)
    }

    /// A row that is not idle beyond its limit, with its backend's state.
    fn unexpired(&self, id: FlowId) -> Option<(FlowRow, BackendState)> {
        let row = *self.flows.get(&id)?;
        let idle = self.now.wrapping_sub(row.seen);
        if idle > self.idle_limit(id.tuple.proto, row.state) {
            return None;
        }
        // What is masqueraded and for no service has no backend's row.
        if row.backend == 0 {
            return Some((row, BackendState::Active));
        }
        let backend = self
            .backends
            .get(&(version_of(id.tuple.src), row.backend))?;
        (backend.generation == row.generation).then_some((row, backend.state))
    }

    /// Writes both rows of a new flow to a backend.
    pub fn open(&mut self, packet: &Packet, flow: &NewFlow) -> Option<FlowId> {
        let version = version_of(packet.ip.src);
        let to = *self.backends.get(&(version, flow.backend))?;
        Some(self.open_to(packet, flow, (to.addr, to.port), to.generation))
    }

    /// Writes the row of a new flow to a backend whose node answers.
    pub fn open_directly(&mut self, packet: &Packet, flow: &NewFlow) -> Option<FlowId> {
        let version = version_of(packet.ip.src);
        let to = *self.backends.get(&(version, flow.backend))?;
        let row = forward_row(self, flow, (to.addr, to.port), to.generation);
        let id = packet.tuple().forward();
        self.flows.insert(id, row);
        if flow.counted {
            self.count_live((version, flow.backend), 1);
        }
        Some(id)
    }

    /// Writes both rows of a new flow to this address and port.
    pub fn open_to(
        &mut self,
        packet: &Packet,
        flow: &NewFlow,
        (addr, port): (IpAddr, u16),
        generation: u32,
    ) -> FlowId {
        let tuple = packet.tuple();
        let mut forward = FlowRow {
            addr,
            port,
            nat: flow.nat,
            state: FlowState::Opening,
            hairpin: flow.hairpin,
            node: flow.node,
            backend: flow.backend,
            generation,
            service: flow.service,
            counted: flow.counted,
            opened: self.now,
            seen: self.now,
        };
        let other = reply_of(tuple, &forward);
        // A reply row of this very flow shows that the backend has spoken: what comes
        // now is data of a connection whose forward row was lost.
        let own = reply_row(tuple, &forward);
        let same = |row: &FlowRow| is_same_flow(row, &own);
        let heard = self.flows.get(&other).is_some_and(same);
        if heard && packet.is_data() {
            forward.state = FlowState::Established;
        }
        self.flows.insert(other, reply_row(tuple, &forward));
        self.flows.insert(tuple.forward(), forward);
        if flow.counted {
            self.count_live((version_of(tuple.src), flow.backend), 1);
        }
        tuple.forward()
    }

    /// Counts living flows of a backend.
    fn count_live(&mut self, backend: (u8, u32), more: i64) {
        let count = self.live.entry(backend).or_default();
        *count += more;
        if *count == 0 {
            self.live.remove(&backend);
        }
    }

    /// What a forward packet does to its live row and the reply's, which it
    /// gives back if it is gone. Where rows may be lost, at once. False, and nothing
    /// done, if another flow has the reply's row and with it this one's port.
    #[must_use]
    pub fn note_forward(&mut self, packet: &Packet, row: &FlowRow, lost: bool) -> bool {
        let tuple = packet.tuple();
        let alone = row.node == NodeClient::Direct;
        let state = if alone {
            state_after(packet, row)
        } else if packet.closes() {
            FlowState::Closing
        } else {
            row.state
        };
        if !lost && !self.is_written(row, state) {
            return true;
        }
        if alone {
            self.write(tuple.forward(), state);
            return true;
        }
        let (other, own) = (reply_of(tuple, row), reply_row(tuple, row));
        let is_own = match self.flows.get(&other) {
            None => true,
            Some(found) => is_same_flow(found, &own),
        };
        if !is_own && row.translated_source().is_some() {
            return false;
        }
        if is_own {
            let reply = self.flows.entry(other).or_insert(own);
            (reply.state, reply.seen) = (state, self.now);
        }
        self.write(tuple.forward(), state);
        true
    }

    /// Whether a packet that leads a row to `state` writes it.
    pub fn is_written(&self, row: &FlowRow, state: FlowState) -> bool {
        state != row.state || self.now.wrapping_sub(row.seen) >= REFRESH_TICKS
    }

    /// What a reply does to its live row and the forward one.
    pub fn note_reply(&mut self, packet: &Packet, row: &FlowRow) {
        self.answered = Some((version_of(packet.ip.src), row.service, row.backend));
        let id = packet.tuple().reply();
        let state = if packet.closes() {
            FlowState::Closing
        } else {
            row.state.max(FlowState::Established)
        };
        if !self.is_written(row, state) {
            return;
        }
        self.write(id, state);
        let forward = forward_of(id.tuple, row);
        let leads_here = |found: &FlowRow| {
            reply_of(forward.tuple, found) == id
                && is_same_flow(&reply_row(forward.tuple, found), row)
        };
        if self.flows.get(&forward).is_some_and(leads_here) {
            self.write(forward, state);
        }
    }

    /// Writes state and time of a row.
    pub fn write(&mut self, id: FlowId, state: FlowState) {
        if let Some(row) = self.flows.get_mut(&id) {
            (row.state, row.seen) = (state, self.now);
            // What closes does not count any more.
            if state == FlowState::Closing && std::mem::take(&mut row.counted) {
                let backend = (version_of(id.tuple.src), row.backend);
                self.count_live(backend, -1);
            }
        }
    }

    /// The live row that a packet is a translated reply of, if it is `wanted`.
    pub fn replied(
        &mut self,
        packet: &Packet,
        wanted: impl Fn(&FlowRow) -> bool,
    ) -> Option<FlowRow> {
        let row = self.answering(packet, wanted)?;
        if row.is_straight() {
            // An answer all the same.
            self.note_reply(packet, &row);
            self.leave_fragment_ports(packet);
            return None;
        }
        Some(row)
    }

    /// The live row that a packet is a reply of, if it is `wanted`. What accepts a
    /// new connection is no reply of one that is closing and has been silent for
    /// long, and that one is over then.
    pub fn answering(
        &mut self,
        packet: &Packet,
        wanted: impl Fn(&FlowRow) -> bool,
    ) -> Option<FlowRow> {
        let id = packet.tuple().reply();
        let row = self.live_reply(id).filter(wanted)?;
        let silent = self.now.wrapping_sub(row.seen);
        if !packet.accepts() || row.state != FlowState::Closing || silent < QUIET_TICKS {
            return Some(row);
        }
        self.end(id);
        None
    }

    /// Makes a closing row one that has expired.
    pub fn end(&mut self, id: FlowId) {
        // Two more than it may be silent: whoever reads it takes it for expired.
        let over = self.idle_limit(id.tuple.proto, FlowState::Closing) + 2;
        let now = self.now;
        if let Some(row) = self.flows.get_mut(&id) {
            row.seen = now.wrapping_sub(over);
        }
    }
}

/// Whether two reply rows are of one flow: the same client, frontend and backend.
fn is_same_flow(one: &FlowRow, other: &FlowRow) -> bool {
    let of = |row: &FlowRow| {
        (
            (row.backend, row.generation, row.hairpin),
            (row.addr, row.port),
            row.translated_source(),
        )
    };
    of(one) == of(other)
}

/// Key of the reply row of a flow, from the forward tuple and row: the tuple
/// of what the backend sends.
pub fn reply_of(forward: Tuple, row: &FlowRow) -> FlowId {
    let (client, port) = match row.translated_source() {
        Some(source) => source,
        None if row.hairpin => (forward.dst, forward.sport),
        None => (forward.src, forward.sport),
    };
    Tuple {
        src: row.addr,
        dst: client,
        sport: row.port,
        dport: port,
        proto: forward.proto,
    }
    .reply()
}

/// Key of the forward row of a flow, from the reply tuple and row.
pub fn forward_of(reply: Tuple, row: &FlowRow) -> FlowId {
    let (client, port) = match row.translated_source() {
        Some(client) => client,
        None if row.hairpin => (reply.src, reply.dport),
        None => (reply.dst, reply.dport),
    };
    Tuple {
        src: client,
        dst: row.addr,
        sport: port,
        dport: row.port,
        proto: reply.proto,
    }
    .forward()
}

/// Key of the forward row, from either row.
pub fn forward_of_any(id: FlowId, row: &FlowRow) -> FlowId {
    match id.direction {
        Direction::Forward => id,
        Direction::Reply => forward_of(id.tuple, row),
    }
}
