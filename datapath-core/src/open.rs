//! Opening a flow: its two rows, and a port for a source that is translated.

use core::hint::black_box;

use datapath_common::{
    Address, Affinity, AffinityKey, Backend, Config, Direction, Feature, Flow, FlowKey, FlowState,
    Frontend, FrontendFlags, NodeClient, Reason, Via, ViaKind, proto,
};

use crate::{
    Family, Grant, Headers, Put, Tables,
    direct::Named,
    hooks::front_key,
    ports::{FORCE, KEEPS, facts},
    service::Client,
};

/// How a flow is to be opened. In one word: it is passed in a register.
#[derive(Clone, Copy)]
pub(crate) struct Manner(u64);

impl Manner {
    const HAIRPIN: u64 = 1 << 32;
    const AS_NODE: u64 = 1 << 33;
    const AS_VTEP: u64 = 1 << 34;
    const DIRECT: u64 = 1 << 35;
    /// First of the bits of a [`datapath_common::NodeClient`].
    const NODE_SHIFT: u32 = 40;

    /// To the backend with this id; the client keeps its address.
    #[inline(always)]
    pub(crate) const fn to(backend: u32) -> Self {
        Self(backend as u64)
    }

    /// The client is its own backend, and gets the frontend's address.
    #[inline(always)]
    pub(crate) const fn hairpin(self, yes: bool) -> Self {
        Self(self.0 | if yes { Self::HAIRPIN } else { 0 })
    }

    /// For such a client.
    #[inline(always)]
    pub(crate) const fn client(self, client: Client) -> Self {
        Self(self.0 | (client.node() as u64) << Self::NODE_SHIFT)
    }

    /// The backend's node answers the client itself: the flow has a forward row only.
    #[inline(always)]
    const fn direct(self) -> Self {
        Self(self.0 | Self::DIRECT)
    }

    /// A [`datapath_common::NodeClient`].
    #[inline(always)]
    const fn node(self) -> u8 {
        if self.has(Self::DIRECT) {
            NodeClient::Direct as u8
        } else {
            (self.0 >> Self::NODE_SHIFT) as u8
        }
    }

    /// With a translated source.
    #[inline(always)]
    pub(crate) const fn source(self, source: Source) -> Self {
        Self(
            self.0
                | match source {
                    Source::Own => 0,
                    Source::Node => Self::AS_NODE,
                    Source::Vtep => Self::AS_VTEP,
                },
        )
    }

    #[inline(always)]
    const fn has(self, bits: u64) -> bool {
        self.0 & bits != 0
    }

    /// What the source becomes.
    #[inline(always)]
    const fn translated(self) -> Source {
        if self.has(Self::AS_NODE) {
            Source::Node
        } else if self.has(Self::AS_VTEP) {
            Source::Vtep
        } else {
            Source::Own
        }
    }
}

/// The address that the backend sees as the client's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// The client's own.
    Own,
    /// This node's on the underlay.
    Node,
    /// The VTEP device's.
    Vtep,
}

impl Source {
    /// Of a client that is masqueraded towards the backend behind `via`.
    #[inline(always)]
    pub(crate) fn masqueraded<F: Family>(
        config: &Config,
        client: Client,
        via: &Via,
        h: &Headers<F::Addr>,
    ) -> Self {
        let (host, kernel, vxlan) = (
            via.kind == ViaKind::Host as u8,
            via.kind == ViaKind::Kernel as u8,
            via.kind == ViaKind::Vxlan as u8,
        );
        // An answer from outside comes to the node's own address; to others of this
        // node nobody listens for it.
        let keeps = host || (client.is_node() && !vxlan && (!kernel || h.src == F::node(config)));
        if keeps || config.snat_ports == 0 || h.sport == 0 {
            return Self::Own;
        }
        let source = if kernel { Self::Node } else { Self::Vtep };
        if source.address::<F>(config) == F::Addr::UNSPECIFIED {
            Self::Own
        } else {
            source
        }
    }

    /// The address; unspecified for the client's own.
    #[inline(always)]
    pub(crate) fn address<F: Family>(self, config: &Config) -> F::Addr {
        match self {
            Self::Own => F::Addr::UNSPECIFIED,
            Self::Node => F::node(config),
            Self::Vtep => F::vtep(config),
        }
    }
}

/// A flow that is to be opened. References, not copies: those would take much
/// of the stack.
pub(crate) struct Opening<'a, A> {
    /// The frontend, and the backend with its id; `None` for a packet of no service here.
    pub through: Option<(&'a Frontend, u32, &'a Backend<A>)>,
    /// Without them: where another node sends the packet; `None` for one that goes where it wants.
    pub named: Option<&'a Named<A>>,
    /// The client is its own backend.
    pub hairpin: bool,
    /// A [`datapath_common::NodeClient`].
    pub node: u8,
    /// The address that the source gets, unspecified if it stays.
    pub nat: A,
}

impl<A: Address> Opening<'_, A> {
    /// Where the packets go.
    #[inline(always)]
    fn target(&self, h: &Headers<A>) -> (A, u16) {
        match (self.through, self.named) {
            (Some((_, _, backend)), _) => (backend.addr, backend.port),
            (None, Some(named)) => (named.addr, named.port),
            (None, None) => (h.dst, h.dport),
        }
    }

    /// Writes key and value of the row for packets from the client, whose
    /// source becomes `nat` (with port 0: stays).
    #[inline(always)]
    fn forward(
        &self,
        h: &Headers<A>,
        state: FlowState,
        now: u32,
        nat_port: u16,
    ) -> impl FnOnce(&mut FlowKey<A>, &mut Flow<A>) {
        move |key, row| {
            (key.src, key.dst) = (h.src, h.dst);
            (key.sport, key.dport) = (h.sport, h.dport);
            (key.proto, key.direction, key.reserved) = (h.proto, Direction::Forward as u8, 0);
            (row.addr, row.port) = self.target(h);
            (row.nat_addr, row.nat_port) = (self.nat, nat_port);
            self.fill(row, state, now);
            row.counted = self.is_counted() as u8;
        }
    }

    /// Whether the flow is counted in `tulle_live_*`.
    #[inline(always)]
    const fn is_counted(&self) -> bool {
        match self.through {
            Some((front, ..)) => front.flags & FrontendFlags::LEAST_FLOWS != 0,
            None => false,
        }
    }

    /// The same for packets to the client, which the backend sends to the
    /// translated source, or as `hairpin` says.
    #[inline(always)]
    fn reply(
        &self,
        h: &Headers<A>,
        state: FlowState,
        now: u32,
        nat_port: u16,
    ) -> impl FnOnce(&mut FlowKey<A>, &mut Flow<A>) {
        move |key, row| {
            (key.src, key.sport) = self.target(h);
            (key.dst, key.dport) = if nat_port != 0 {
                (self.nat, nat_port)
            } else if self.hairpin {
                (h.dst, h.sport)
            } else {
                (h.src, h.sport)
            };
            (key.proto, key.direction, key.reserved) = (h.proto, Direction::Reply as u8, 0);
            (row.addr, row.port) = (h.dst, h.dport);
            (row.nat_addr, row.nat_port) = if nat_port != 0 {
                (h.src, h.sport)
            } else {
                (A::UNSPECIFIED, 0)
            };
            self.fill(row, state, now);
        }
    }

    /// What both rows have.
    #[inline(always)]
    fn fill(&self, row: &mut Flow<A>, state: FlowState, now: u32) {
        row.state = state as u8;
        row.hairpin = self.hairpin as u8;
        (row.node, row.counted) = (self.node, 0);
        (row.backend, row.generation, row.service) = match self.through {
            Some((front, id, backend)) => (id, backend.generation, front.service),
            None => (0, 0, 0),
        };
        row.opened = now;
        row.seen = now;
    }

    /// Prepares the reply row, for [`crate::claim_port`]; `told` as the row of a port that is claimed
    /// already is to say. False if there is no place.
    #[inline(always)]
    pub(crate) fn stage_reply<T: Tables<A>>(&self, tables: &T, h: &Headers<A>, told: u32) -> bool {
        tables.stage(self.reply(h, heard(told), tables.now(), told as u16))
    }

    /// Writes the reply row once more if there is none. In a full table the kernel evicts what
    /// was not looked up yet, and the forward row may have been given the reply's place. Not by
    /// a look-up: a row that was looked up is kept longer, and those of unanswered flows would
    /// push out others.
    #[inline(always)]
    pub(crate) fn stays<T: Tables<A>>(&self, tables: &T, h: &Headers<A>, told: u32) {
        if self.stage_reply(tables, h, told) {
            // As a rule it is there.
            let _ = tables.put(Put::New);
        }
    }

    /// Writes the forward row, and what is remembered of the client.
    #[inline(always)]
    pub(crate) fn finish<T: Tables<A>>(&self, tables: &T, h: &Headers<A>, told: u32) -> u32 {
        let forward = self.forward(h, heard(told), tables.now(), told as u16);
        if !tables.fill_flow(forward) {
            return FAILED | Reason::FlowTableFull as u32;
        }
        if let Some((front, id, _)) = self.through {
            tables.count_flow(front.service, id);
        }
        if let Some((front, id, backend)) = self.through
            && front.affinity_secs != 0
        {
            let key = AffinityKey {
                client: h.src,
                service: front.service,
            };
            let affinity = Affinity {
                backend: id,
                generation: backend.generation,
                seen: tables.now(),
            };
            tables.remember_affinity(key, affinity);
        }
        let (addr, port) = self.target(h);
        tables.flow_opened(h, addr, port);
        told
    }
}

/// Writes both rows of a new flow: the reply's first, so that no answer can
/// come back untranslated. Returns the port that the source gets, 0 if it stays.
#[inline(always)]
pub(crate) fn open<F: Family, T: Tables<F::Addr>>(
    tables: &T,
    h: &Headers<F::Addr>,
    front: &Frontend,
    manner: Manner,
    hash: u32,
) -> Result<u16, Reason> {
    let mut told = stage_apart::<F, T>(tables, h, front, manner.0);
    if told & FAILED == 0 {
        told = tables.claim_port(hash, facts(h) | told);
    }
    if told & FAILED == 0 {
        told = finish_apart::<F, T>(tables, h, front, manner.0, told);
    }
    if front.flags & FrontendFlags::FLOWS_MAY_BE_LOST != 0 && told & FAILED == 0 {
        stays_apart::<F, T>(tables, h, front, manner.0, told);
    }
    // Not where the row is written, which needs most of the stack; and without a branch: a
    // verifier would follow both sides to the program's end.
    let least = (front.flags / FrontendFlags::LEAST_FLOWS) as u32;
    let counted = black_box(least & !(told / FAILED) & 1);
    tables.count_live(manner.0 as u32 & counted.wrapping_neg(), true);
    port_of(told)
}

// What an opening tells fits a register: the port of the translated source (0 if
// it stays), and these.

/// No flow was opened; instead of a port there is a reason's number.
pub(crate) const FAILED: u32 = 1 << 16;
/// The backend has been heard already.
pub(crate) const HEARD: u32 = 1 << 17;
/// It failed for this moment only: nobody is known to have the port.
pub(crate) const LATER: u32 = 1 << 18;

/// The state of a flow that was opened so.
#[inline(always)]
const fn heard(told: u32) -> FlowState {
    if told & HEARD == 0 {
        FlowState::Opening
    } else {
        FlowState::Established
    }
}

/// What an opening told.
#[inline(always)]
pub(crate) fn port_of(told: u32) -> Result<u16, Reason> {
    if told & FAILED == 0 {
        Ok(told as u16)
    } else {
        Err(Reason::from_u8(told as u8).unwrap_or(Reason::FlowTableFull))
    }
}

// Functions of their own: each needs as much of the stack as a whole program.

/// Opens a flow whose answers do not come by here: it has a forward row only. A function of its own, for
/// its stack. Returns what an opening tells.
#[inline(never)]
pub(crate) fn open_directly<F: Family, T: Tables<F::Addr>>(
    tables: &T,
    h: &Headers<F::Addr>,
    front: &Frontend,
    backend: u32,
) -> u32 {
    if tables.grant(Grant::Flow) {
        // What the client sends next says that it was answered.
        finish::<F, T>(tables, h, front, Manner::to(backend).direct().0, 0)
    } else {
        FAILED | Reason::NewFlowLimit as u32
    }
}

/// Prepares the reply row, which nobody else may have. Returns how to claim its port: a
/// source that would stay is translated all the same if the row that it needs is another
/// flow's; the client keeps its address then.
#[inline(never)]
fn stage_apart<F: Family, T: Tables<F::Addr>>(
    tables: &T,
    h: &Headers<F::Addr>,
    front: &Frontend,
    manner: u64,
) -> u32 {
    if !tables.grant(Grant::Flow) {
        return FAILED | Reason::NewFlowLimit as u32;
    }
    let Some(backend) = tables.backend(manner as u32) else {
        return FAILED | Reason::BackendGone as u32;
    };
    let source = Manner(manner).translated();
    let hairpin = Manner(manner).has(Manner::HAIRPIN);
    let new = &Opening {
        through: Some((front, manner as u32, backend)),
        named: None,
        hairpin,
        node: Manner(manner).node(),
        nat: source.address::<F>(tables.config()),
    };
    // The port is the key's and not the row's, which says only that there is one.
    let told = if source == Source::Own { 0 } else { ANY };
    if !new.stage_reply(tables, h, told) {
        FAILED | Reason::FlowTableFull as u32
    } else if source != Source::Own {
        0
    } else if hairpin {
        KEEPS | FORCE
    } else {
        how_kept(tables.config(), h)
    }
}

/// A port that is not known yet.
pub(crate) const ANY: u32 = u16::MAX as u32;

/// How a source claims its port that keeps its address.
#[inline(always)]
pub(crate) fn how_kept<A>(config: &Config, h: &Headers<A>) -> u32 {
    if moves(config) && h.sport != 0 {
        KEEPS
    } else {
        KEEPS | FORCE
    }
}

/// Whether a source that keeps its address may get another port.
#[inline(always)]
const fn moves(config: &Config) -> bool {
    config.snat_ports != 0 && config.features & Feature::UPLINK_SERVICES != 0
}

/// Whether the source keeps its address and gets another port, as `told`.
#[inline(always)]
fn is_moved(manner: u64, told: u32) -> bool {
    Manner(manner).translated() == Source::Own && told as u16 != 0
}

/// The opening of a flow whose port is claimed, as `told`.
#[inline(always)]
fn opening<'a, F: Family, T: Tables<F::Addr>>(
    tables: &T,
    h: &Headers<F::Addr>,
    front: &'a Frontend,
    manner: u64,
    backend: &'a Backend<F::Addr>,
    told: u32,
) -> Opening<'a, F::Addr> {
    Opening {
        through: Some((front, manner as u32, backend)),
        named: None,
        hairpin: Manner(manner).has(Manner::HAIRPIN),
        node: Manner(manner).node(),
        nat: if is_moved(manner, told) {
            h.src
        } else {
            Manner(manner).translated().address::<F>(tables.config())
        },
    }
}

/// Writes the forward row of a flow whose reply row is written, as `told`.
#[inline(never)]
fn finish_apart<F: Family, T: Tables<F::Addr>>(
    tables: &T,
    h: &Headers<F::Addr>,
    front: &Frontend,
    manner: u64,
    told: u32,
) -> u32 {
    finish::<F, T>(tables, h, front, manner, told)
}

#[inline(always)]
fn finish<F: Family, T: Tables<F::Addr>>(
    tables: &T,
    h: &Headers<F::Addr>,
    front: &Frontend,
    manner: u64,
    told: u32,
) -> u32 {
    let Some(backend) = tables.backend(manner as u32) else {
        return FAILED | Reason::BackendGone as u32;
    };
    let new = &opening::<F, T>(tables, h, front, manner, backend, told);
    // Its data has to ask for the port, which nothing else says.
    if is_moved(manner, told) && h.proto != proto::UDP {
        tables.ask_flows(&front_key(h));
    }
    new.finish(tables, h, told)
}

/// As [`Opening::stays`].
#[inline(never)]
fn stays_apart<F: Family, T: Tables<F::Addr>>(
    tables: &T,
    h: &Headers<F::Addr>,
    front: &Frontend,
    manner: u64,
    told: u32,
) {
    let Some(backend) = tables.backend(manner as u32) else {
        return;
    };
    opening::<F, T>(tables, h, front, manner, backend, told).stays(tables, h, told);
}
