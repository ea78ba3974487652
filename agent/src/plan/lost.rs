//! Frontends whose living flows may miss rows of the flow table, and until when.

use std::collections::BTreeMap;
use std::time::Instant;

use datapath_common::proto;

use super::ops::FrontKey;
use crate::model::Family;

/// What may be lost. A flow that was silent when its rows went shows itself
/// with its next packet, so each note lasts as long as a silent flow may live.
#[derive(Clone, Debug, Default)]
pub(super) struct Lost {
    /// Whole tables, by protocol.
    tables: BTreeMap<(Family, u8), Instant>,
    fronts: BTreeMap<FrontKey, Instant>,
}

impl Lost {
    /// Whether packets to this frontend have to ask the flow table. Those of
    /// UDP do so anyway.
    pub(super) fn expects(&self, key: &FrontKey) -> bool {
        let table = (Family::of(key.addr), key.proto);
        matches!(key.proto, proto::TCP | proto::SCTP)
            && (self.tables.contains_key(&table) || self.fronts.contains_key(key))
    }

    /// Flows through one frontend; the later of two ends counts.
    pub(super) fn note(&mut self, key: FrontKey, until: Instant) {
        let end = self.fronts.entry(key).or_insert(until);
        *end = until.max(*end);
    }

    /// Flows of one protocol in a whole table.
    pub(super) fn note_all(&mut self, family: Family, protocol: u8, until: Instant) {
        let end = self.tables.entry((family, protocol)).or_insert(until);
        *end = until.max(*end);
    }

    /// Forgets what is over.
    pub(super) fn forget(&mut self, now: Instant) {
        self.tables.retain(|_, until| *until > now);
        self.fronts.retain(|_, until| *until > now);
    }
}
