//! Expiry of flows. The tables are walked in small steps; what a whole walk
//! saw says which backend ids may be used again and since when each service's
//! flows are alive.
//!
//! **Concurrency.** The programs refresh rows while they are being judged. An
//! expired row is read again, then removed by a call that returns what it held
//! at that moment; if it was refreshed or reopened in between, it is written
//! back unless the programs already wrote it anew. Worst case: for the
//! microseconds between the two calls a packet of a flow that had been silent
//! for its whole idle time finds no row, as if it had come a little later, and
//! is handled as a packet of an unknown flow.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash;

use datapath_common::{
    Address, Direction, Flow, FlowKey, IdleTicks, Ip4, Ip6, NodeClient, maps, proto,
};

pub use datapath_core::flow::mate;
pub use datapath_core::states::idle_limit;
use datapath_core::states::live_state;

use super::maps::{Maps, TableError, typed};
use super::scan::Scan;
use super::sys::{NO_EXIST, RawMap, Rows};
use crate::plan::FrontKey;

/// Rows that one step looks at, at most (a crowded hash bucket may add a few).
pub const STEP_ROWS: u32 = 4096;

/// A backend that flows still name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NamedBackend {
    /// 4 or 6: each family has its own ids.
    pub version: u8,
    /// Backend id.
    pub id: u32,
    /// Generation of the row that the flow was opened to.
    pub generation: u32,
}

/// What a walk over both tables saw.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pass {
    /// Living rows by IP version and the state's number.
    pub rows: BTreeMap<(u8, u8), u64>,
    /// Rows removed.
    pub removed: u64,
    /// Flows of each backend that are counted in `tulle_live_*`, by their rows.
    pub counted: HashMap<NamedBackend, u64>,
    /// Backends that living rows name.
    pub backends: HashSet<NamedBackend>,
    /// For each service number the tick when its oldest living flow opened.
    pub oldest: HashMap<u32, u32>,
    /// Frontends that living rows were opened through.
    pub frontends: BTreeSet<FrontKey>,
    /// Frontends with a living flow of TCP or SCTP one of whose rows is
    /// missing, among those that were asked about.
    pub torn: BTreeSet<FrontKey>,
    /// Frontends with a living connection whose client keeps its address, but not its
    /// port.
    pub moved: BTreeSet<FrontKey>,
    /// Tick when the walk began: a flow that opened later may not be in it.
    pub began: u32,
}

impl Pass {
    /// Whether a living row names this backend row.
    pub fn names(&self, version: u8, id: u32, generation: u32) -> bool {
        self.backends.contains(&NamedBackend {
            version,
            id,
            generation,
        })
    }

    /// Living rows of one IP version.
    pub fn total(&self, version: u8) -> u64 {
        self.rows
            .iter()
            .filter(|((v, _), _)| *v == version)
            .map(|(_, n)| n)
            .sum()
    }
}

/// Whether the programs treat a row as absent: idle for too long, or in no
/// state at all.
pub fn expired<A>(idle: &IdleTicks, key: &FlowKey<A>, flow: &Flow<A>, now: u32) -> bool {
    live_state(idle, flow, key.proto, now).is_none()
}

#[derive(Debug)]
enum Table {
    V4(Scan),
    V6(Scan),
}

/// A walk over both flow tables, a step at a time.
#[derive(Debug)]
pub struct FlowGc {
    table: Table,
    pass: Pass,
    rows: Rows,
    fresh: bool,
}

impl Default for FlowGc {
    fn default() -> Self {
        Self::new()
    }
}

impl FlowGc {
    /// A walk from the start.
    pub fn new() -> Self {
        Self {
            table: Table::V4(Scan::new()),
            pass: Pass::default(),
            rows: Rows::default(),
            fresh: true,
        }
    }

    /// Looks at the next [`STEP_ROWS`] rows and removes the expired ones.
    /// At the end of the walk it returns what it saw, and the next call begins
    /// another one. `now` is in ticks of `CLOCK_MONOTONIC`. Of flows through a
    /// frontend that `whole` names both rows have to be there: see [`Pass::torn`];
    /// that costs a look-up for each of their rows.
    pub fn step(
        &mut self,
        maps: &Maps,
        idle: &IdleTicks,
        now: u32,
        whole: &dyn Fn(&FrontKey) -> bool,
    ) -> Result<Option<Pass>, TableError> {
        if std::mem::take(&mut self.fresh) {
            self.pass.began = now;
        }
        let more = match &mut self.table {
            Table::V4(scan) => step::<Ip4>(
                maps,
                maps::FLOW_V4,
                scan,
                &mut self.rows,
                &mut self.pass,
                idle,
                now,
                whole,
            ),
            Table::V6(scan) => step::<Ip6>(
                maps,
                maps::FLOW_V6,
                scan,
                &mut self.rows,
                &mut self.pass,
                idle,
                now,
                whole,
            ),
        };
        match (more, &self.table) {
            (Ok(true), _) => Ok(None),
            (Ok(false), Table::V4(_)) => {
                self.table = Table::V6(Scan::new());
                Ok(None)
            }
            (Ok(false), Table::V6(_)) => Ok(Some(std::mem::take(self).pass)),
            // Half a walk says nothing; the next call begins anew.
            (Err(e), _) => {
                *self = Self::new();
                Err(e)
            }
        }
    }

    /// A whole walk at once, for small tables and tests.
    pub fn run(maps: &Maps, idle: &IdleTicks, now: u32) -> Result<Pass, TableError> {
        let mut gc = Self::new();
        loop {
            if let Some(pass) = gc.step(maps, idle, now, &|_| false)? {
                return Ok(pass);
            }
        }
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "the parts of a walk, borrowed apart"
)]
fn step<A>(
    maps: &Maps,
    name: &'static str,
    scan: &mut Scan,
    rows: &mut Rows,
    pass: &mut Pass,
    idle: &IdleTicks,
    now: u32,
    whole: &dyn Fn(&FrontKey) -> bool,
) -> Result<bool, TableError>
where
    A: Address,
    FlowKey<A>: bytemuck::Pod,
    Flow<A>: bytemuck::Pod,
{
    let map = maps.raw(name)?;
    let fail = |source| TableError::Kernel {
        map: name,
        what: "remove expired flows".into(),
        source,
    };
    if !scan.step(&map, rows, STEP_ROWS).map_err(fail)? {
        return Ok(false);
    }
    for (key, flow) in typed::<FlowKey<A>, Flow<A>>(rows) {
        let kept = if expired(idle, &key, &flow, now) {
            let (kept, gone) = judge(&map, idle, &key, now).map_err(fail)?;
            if let Some(gone) = gone.filter(|gone| gone.counted != 0) {
                maps.count_down(named(&gone))?;
            }
            kept
        } else {
            Some(flow)
        };
        let Some(flow) = kept else {
            pass.removed += 1;
            continue;
        };
        note(pass, &key, &flow);
        let front = front(&key, &flow);
        if matches!(key.proto, proto::TCP | proto::SCTP)
            && !pass.torn.contains(&front)
            && whole(&front)
            && is_torn(&map, &key, &flow).map_err(fail)?
        {
            pass.torn.insert(front);
        }
    }
    Ok(true)
}

fn note<A: Address>(pass: &mut Pass, key: &FlowKey<A>, flow: &Flow<A>) {
    if key.direction == Direction::Forward as u8 {
        pass.frontends.insert(front(key, flow));
        let moved = flow.nat_port != 0 && flow.nat_addr == key.src && key.proto != proto::UDP;
        if moved && flow.backend != 0 {
            pass.moved.insert(front(key, flow));
        }
    }
    *pass.rows.entry((A::VERSION, flow.state)).or_default() += 1;
    let backend = named(flow);
    pass.backends.insert(backend);
    if flow.counted != 0 {
        *pass.counted.entry(backend).or_default() += 1;
    }
    pass.oldest
        .entry(flow.service)
        .and_modify(|tick| {
            // Ticks wrap: the older one is behind the other.
            if flow.opened.wrapping_sub(*tick).cast_signed() < 0 {
                *tick = flow.opened;
            }
        })
        .or_insert(flow.opened);
}

/// The backend that a row names.
const fn named<A: Address>(flow: &Flow<A>) -> NamedBackend {
    NamedBackend {
        version: A::VERSION,
        id: flow.backend,
        generation: flow.generation,
    }
}

/// The frontend that a row's flow goes through.
fn front<A: Address>(key: &FlowKey<A>, flow: &Flow<A>) -> FrontKey {
    let (addr, port) = if key.direction == Direction::Forward as u8 {
        (key.dst, key.dport)
    } else {
        (flow.addr, flow.port)
    };
    FrontKey {
        addr: addr.to_ip(),
        port,
        proto: key.proto,
    }
}

/// Whether the flow's other row is missing and this one is still there. Both
/// are written within one packet's time, and expire together.
fn is_torn<A>(map: &RawMap<'_>, key: &FlowKey<A>, flow: &Flow<A>) -> std::io::Result<bool>
where
    A: Address,
    FlowKey<A>: bytemuck::Pod,
    Flow<A>: bytemuck::Pod,
{
    // Where the backend's node answers there is one row.
    if flow.node == NodeClient::Direct as u8 {
        return Ok(false);
    }
    let other = mate(key, flow);
    if map.get(bytemuck::bytes_of(&other))?.is_some() {
        return Ok(false);
    }
    let still = map.get(bytemuck::bytes_of(key))?;
    Ok(
        still
            .is_some_and(|row| bytemuck::pod_read_unaligned::<Flow<A>>(&row).opened == flow.opened),
    )
}

/// Removes a row that seems to have expired, unless it or its mate is alive
/// after all. Returns the row if it stays, and what went.
#[expect(clippy::type_complexity, reason = "two rows, each there or not")]
fn judge<A>(
    map: &RawMap<'_>,
    idle: &IdleTicks,
    key: &FlowKey<A>,
    now: u32,
) -> std::io::Result<(Option<Flow<A>>, Option<Flow<A>>)>
where
    A: Address,
    FlowKey<A>: bytemuck::Pod,
    Flow<A>: bytemuck::Pod,
{
    let bytes = bytemuck::bytes_of(key);
    let read = |value: Vec<u8>| bytemuck::pod_read_unaligned::<Flow<A>>(&value);
    let Some(flow) = map.get(bytes)?.map(read) else {
        return Ok((None, None));
    };
    if !expired(idle, key, &flow, now) {
        return Ok((Some(flow), None));
    }
    let other = mate(key, &flow);
    if let Some(other_flow) = map.get(bytemuck::bytes_of(&other))?.map(read)
        && !expired(idle, &other, &other_flow, now)
        // A later flow may have taken that key; then it is no mate.
        && mate(&other, &other_flow) == *key
    {
        return Ok((Some(flow), None));
    }
    let Some(last) = map.take(bytes)?.map(read) else {
        return Ok((None, None));
    };
    if expired(idle, key, &last, now) {
        return Ok((None, Some(last)));
    }
    match map.put(bytes, bytemuck::bytes_of(&last), NO_EXIST) {
        Ok(()) => Ok((Some(last), None)),
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok((Some(last), Some(last))),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use datapath_common::FlowState;

    use super::*;

    fn key(direction: Direction) -> FlowKey<Ip4> {
        FlowKey {
            src: Ip4::new([10, 0, 0, 1]),
            dst: Ip4::new([10, 96, 0, 1]),
            sport: 40_000,
            dport: 80,
            proto: proto::TCP,
            direction: direction as u8,
            reserved: 0,
        }
    }

    fn flow(state: FlowState, seen: u32, hairpin: u8) -> Flow<Ip4> {
        Flow {
            addr: Ip4::new([10, 0, 1, 2]),
            port: 8080,
            state: state as u8,
            hairpin,
            backend: 1,
            generation: 1,
            service: 1,
            opened: 0,
            seen,
            ..Flow::default()
        }
    }

    #[test]
    fn mates_name_each_other() {
        let forward = key(Direction::Forward);
        let there = flow(FlowState::Opening, 0, 0);
        let reply = mate(&forward, &there);
        assert_eq!((reply.src, reply.dst), (there.addr, forward.src));
        assert_eq!((reply.sport, reply.dport), (8080, 40_000));
        let back = Flow {
            addr: forward.dst,
            port: forward.dport,
            ..there
        };
        assert_eq!(mate(&reply, &back), forward);
    }

    #[test]
    fn mates_of_a_hairpin_name_each_other() {
        let forward = key(Direction::Forward);
        let there = Flow {
            addr: forward.src,
            ..flow(FlowState::Opening, 0, 1)
        };
        let reply = mate(&forward, &there);
        assert_eq!((reply.src, reply.dst), (forward.src, forward.dst));
        let back = Flow {
            addr: forward.dst,
            port: forward.dport,
            ..there
        };
        assert_eq!(mate(&reply, &back), forward);
    }

    #[test]
    fn a_flow_is_noted_with_its_frontend_once() {
        let (forward, mut pass) = (key(Direction::Forward), Pass::default());
        let there = flow(FlowState::Established, 9, 0);
        note(&mut pass, &forward, &there);
        note(&mut pass, &mate(&forward, &there), &there);
        let front = FrontKey {
            addr: [10, 96, 0, 1].into(),
            port: 80,
            proto: proto::TCP,
        };
        assert_eq!(pass.frontends, BTreeSet::from([front]));
        assert_eq!(pass.total(4), 2);
    }

    #[test]
    fn expiry_by_state_and_across_the_wrap() {
        let idle = IdleTicks::DEFAULT;
        let key = key(Direction::Forward);
        let opening = flow(FlowState::Opening, 100, 0);
        assert!(!expired(&idle, &key, &opening, 100 + idle.tcp_opening));
        assert!(expired(&idle, &key, &opening, 101 + idle.tcp_opening));
        let open = flow(FlowState::Established, 100, 0);
        assert!(!expired(&idle, &key, &open, 101 + idle.tcp_opening));
        assert!(
            !expired(&idle, &key, &opening, 99),
            "seen a moment ahead of us"
        );
        let none = Flow { state: 0, ..open };
        assert!(expired(&idle, &key, &none, 100), "in no state");
        let strict = IdleTicks {
            tcp_opening: 0,
            ..idle
        };
        assert!(
            !expired(&strict, &key, &opening, 101),
            "may have been seen since"
        );
        assert!(expired(&strict, &key, &opening, 102));
        let late = flow(FlowState::Opening, u32::MAX - 5, 0);
        assert!(!expired(&idle, &key, &late, 10));
        assert!(expired(&idle, &key, &late, 200));
    }

    #[test]
    fn every_protocol_has_its_limits() {
        let idle = IdleTicks::DEFAULT;
        let cases = [
            (proto::TCP, FlowState::Opening, idle.tcp_opening),
            (proto::TCP, FlowState::Established, idle.tcp_established),
            (proto::TCP, FlowState::Closing, idle.tcp_closing),
            (proto::UDP, FlowState::Opening, idle.udp_opening),
            (proto::UDP, FlowState::Established, idle.udp_established),
            (proto::SCTP, FlowState::Opening, idle.sctp_opening),
            (proto::SCTP, FlowState::Established, idle.sctp_established),
            (proto::SCTP, FlowState::Closing, idle.sctp_closing),
        ];
        for (protocol, state, limit) in cases {
            assert_eq!(
                idle_limit(&idle, protocol, state),
                limit,
                "{protocol} {state:?}"
            );
        }
    }
}
