//! What the pipeline asks of the maps.

use datapath_common::{
    Affinity, AffinityKey, Backend, Config, Direction, Flow, FlowKey, FlowState, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, Via,
};

use crate::{Headers, states::Progress};

/// What is granted only so often in a tick.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Grant {
    /// A new flow.
    Flow,
    /// An ICMP error.
    IcmpError,
}

/// How a row of the flow table is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put {
    /// If no row has its key.
    New,
    /// Whether one has or not. Then there is one at every moment: whoever reads
    /// meanwhile finds the one or the other, whole.
    Over,
}

/// A row of the flow table, in place.
pub trait FlowRow<A>: Copy {
    /// The row as it is now.
    fn get(&self) -> Flow<A>;
    /// Sets state and time. Another CPU may do so at the same time: both write
    /// values that are right for a packet of this moment.
    fn touch(&self, state: FlowState, seen: u32);
    /// Where `state` is closing: notes that the flow is counted no more (`counted`), and says
    /// which backend it was counted for; of all who ask only the first is told. Otherwise, and
    /// if it was not counted, 0.
    fn uncount(&self, state: FlowState) -> u32;
    /// Whether it is of this backend.
    #[inline(always)]
    fn names(&self, backend: u32, generation: u32) -> bool {
        let row = self.get();
        row.backend == backend && row.generation == generation
    }
}

/// The maps, as seen by one family of addresses.
pub trait Tables<A> {
    /// Handle of a flow row.
    type Row: FlowRow<A>;

    /// What the agent fixed at load time.
    fn config(&self) -> &Config;
    /// Now, in ticks.
    fn now(&self) -> u32;
    /// Whether one more of these is granted to this CPU in this tick.
    fn grant(&self, what: Grant) -> bool;

    /// Row of `tulle_front_*`.
    fn frontend(&self, key: &FrontendKey<A>) -> Option<&Frontend>;
    /// Has every packet to a frontend ask the flow table from now on.
    fn ask_flows(&self, key: &FrontendKey<A>);
    /// Slot of `tulle_segments`.
    fn slot(&self, index: u32) -> Option<u32>;
    /// Runs [`crate::holds`], where a verifier does not follow it again for each
    /// state that leads there.
    fn holds(&self, start: u32, len: u32, id: u32) -> bool;
    /// Row of `tulle_back_*`.
    fn backend(&self, id: u32) -> Option<&Backend<A>>;
    /// Row of `tulle_flow_*`.
    fn flow(&self, key: FlowKey<A>) -> Option<Self::Row>;
    /// Prepares a row of `tulle_flow_*`: `fill` writes every field of key and
    /// value in place, for the stack has no room for them. False if there is no
    /// place.
    #[must_use]
    fn stage(&self, fill: impl FnOnce(&mut FlowKey<A>, &mut Flow<A>)) -> bool;
    /// Gives the key of the prepared row another destination port.
    fn stage_port(&self, dport: u16);
    /// Notes in a prepared reply row whose client keeps its source that the client's
    /// port is translated, or (`false`) takes that back.
    fn stage_moved(&self, moved: bool);
    /// Takes the lock of the prepared row's key, which other keys may have too, and says
    /// which it is. `None` if another CPU keeps it for long.
    fn lock(&self) -> Option<u32>;
    /// Gives that lock back: what was written before is there for who takes it next.
    fn unlock(&self, lock: u32);
    /// Writes the prepared row; false if the table did not take it.
    #[must_use]
    fn put(&self, how: Put) -> bool;
    /// The prepared row, and the one in the table that has its key.
    fn rival(&self) -> Option<(Self::Row, Self::Row)>;
    /// Prepares a row and writes it, in place of what is there.
    #[must_use]
    #[inline(always)]
    fn fill_flow(&self, fill: impl FnOnce(&mut FlowKey<A>, &mut Flow<A>)) -> bool {
        self.stage(fill) && self.put(Put::Over)
    }
    /// Runs [`crate::claim_port`], where a verifier does not follow it again
    /// for each state that leads there.
    fn claim_port(&self, hash: u32, facts: u32) -> u32;
    /// Runs [`crate::claim`], likewise.
    fn claim(&self, how: u32) -> u32;
    /// Runs [`crate::below`], likewise.
    fn below(&self, first: u32, slots: u32, id: u32) -> u32;
    /// Runs [`crate::pick`], likewise.
    fn pick(&self, list: u64, how: u64, hash: u32) -> u32;
    /// Takes a turn of this row of `tulle_turns`: says how many were taken before. No two
    /// flows have the same one. `None` without such a row.
    fn turn(&self, row: u32) -> Option<u64>;
    /// Row of `tulle_live_*`: living flows of a backend that are counted, 0 without such a row.
    fn live(&self, id: u32) -> u64;
    /// Counts one more there, or one less; nothing for id 0.
    fn count_live(&self, id: u32, opened: bool);
    /// Runs [`Progress::of`] of a row and the packet that met it, likewise.
    fn progress(&self, met: u32, seen: u32) -> Progress;
    /// Row of `tulle_affin_*`.
    fn affinity(&self, key: AffinityKey<A>) -> Option<Affinity>;
    /// Writes a row of `tulle_affin_*`; best effort.
    fn remember_affinity(&self, key: AffinityKey<A>, affinity: Affinity);
    /// Whether `source` lies in a network that may use `service` (`tulle_srcs_*`).
    fn source_allowed(&self, service: u32, source: A) -> bool;
    /// Counts this packet for a service port and a backend, if they are to be
    /// counted; never fails.
    fn count(&self, service: u32, backend: u32, direction: Direction);
    /// Counts a flow that was opened, likewise.
    fn count_flow(&self, service: u32, backend: u32);
    /// Row of `tulle_frag_*`.
    fn ports(&self, key: FragmentKey<A>) -> Option<FragmentPorts>;
    /// Writes a row of `tulle_frag_*`; best effort.
    fn remember_ports(&self, key: FragmentKey<A>, ports: FragmentPorts);
    /// Row of `tulle_pods_*`.
    fn pod(&self, addr: &A) -> Option<&Via>;
    /// Longest match in `tulle_peers_*`.
    fn peer(&self, addr: &A) -> Option<&Via>;
    /// Longest match in `tulle_direct_*`: bits of [`datapath_common::Network`], 0 without.
    fn network(&self, addr: &A) -> u32;
    /// Tells watchers of a flow to `addr` and `port` that was opened; never fails.
    fn flow_opened(&self, headers: &Headers<A>, addr: A, port: u16);
}
