//! What the programs remember: flows and session affinity, read and forgotten.

use std::io::ErrorKind;

use aya::maps::{HashMap, MapData, MapError};
use datapath_common::{Address, Affinity, AffinityKey, Flow, FlowKey, FlowState, Ip4, Ip6, maps};

use super::{Datapath, DatapathError, os_error};
use crate::tables::{AffinityRow, AffinityRowKey, FlowRow, FlowRowKey};

/// Write only over a row that is there (`linux/bpf.h`).
const BPF_EXIST: u64 = 2;

impl Datapath {
    /// Rows of `tulle_flow_v4` and `tulle_flow_v6`, expired ones included.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn flows(&self) -> Result<Vec<FlowRow>, DatapathError> {
        let mut rows = self.rows(maps::FLOW_V4, FlowRow::new::<Ip4>)?;
        rows.extend(self.rows(maps::FLOW_V6, FlowRow::new::<Ip6>)?);
        Ok(rows)
    }

    /// Removes flow rows; rows that are gone already are no error. Returns how
    /// many were removed.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn remove_flows(
        &self,
        keys: impl IntoIterator<Item = FlowRowKey>,
    ) -> Result<u64, DatapathError> {
        let mut v4: HashMap<_, FlowKey<Ip4>, Flow<Ip4>> = self.typed(maps::FLOW_V4)?;
        let mut v6: HashMap<_, FlowKey<Ip6>, Flow<Ip6>> = self.typed(maps::FLOW_V6)?;
        let mut removed = 0;
        for key in keys {
            let (map, result) = match key {
                FlowRowKey::V4(key) => (maps::FLOW_V4, v4.remove(&key)),
                FlowRowKey::V6(key) => (maps::FLOW_V6, v6.remove(&key)),
            };
            removed += changed(map, result)?;
        }
        Ok(removed)
    }

    /// Moves flow rows to closing, as of the tick `now`; rows that are gone are
    /// no error. Returns how many there were.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn close_flows(
        &self,
        keys: impl IntoIterator<Item = FlowRowKey>,
        now: u32,
    ) -> Result<u64, DatapathError> {
        let mut v4: HashMap<_, FlowKey<Ip4>, Flow<Ip4>> = self.typed(maps::FLOW_V4)?;
        let mut v6: HashMap<_, FlowKey<Ip6>, Flow<Ip6>> = self.typed(maps::FLOW_V6)?;
        let mut closed = 0;
        for key in keys {
            let (map, result) = match key {
                FlowRowKey::V4(key) => (maps::FLOW_V4, close(&mut v4, &key, now)),
                FlowRowKey::V6(key) => (maps::FLOW_V6, close(&mut v6, &key, now)),
            };
            closed += changed(map, result)?;
        }
        Ok(closed)
    }

    /// Rows of `tulle_affin_v4` and `tulle_affin_v6`, expired ones included.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn affinities(&self) -> Result<Vec<AffinityRow>, DatapathError> {
        let mut rows = self.rows(maps::AFFIN_V4, AffinityRow::new::<Ip4>)?;
        rows.extend(self.rows(maps::AFFIN_V6, AffinityRow::new::<Ip6>)?);
        Ok(rows)
    }

    /// Removes affinity rows; rows that are gone already are no error. Returns
    /// how many were removed.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn remove_affinities(
        &self,
        keys: impl IntoIterator<Item = AffinityRowKey>,
    ) -> Result<u64, DatapathError> {
        let mut v4: HashMap<_, AffinityKey<Ip4>, Affinity> = self.typed(maps::AFFIN_V4)?;
        let mut v6: HashMap<_, AffinityKey<Ip6>, Affinity> = self.typed(maps::AFFIN_V6)?;
        let mut removed = 0;
        for key in keys {
            let (map, result) = match key {
                AffinityRowKey::V4(key) => (maps::AFFIN_V4, v4.remove(&key)),
                AffinityRowKey::V6(key) => (maps::AFFIN_V6, v6.remove(&key)),
            };
            removed += changed(map, result)?;
        }
        Ok(removed)
    }
}

/// Rows that a write changed: none if the row was not there.
fn changed(map: &'static str, result: Result<(), MapError>) -> Result<u64, DatapathError> {
    match result {
        Ok(()) => Ok(1),
        Err(e) if is_absent(&e) => Ok(0),
        Err(source) => Err(DatapathError::Map { map, source }),
    }
}

/// Moves a flow row to closing, if it is there.
fn close<A: Address>(
    map: &mut HashMap<MapData, FlowKey<A>, Flow<A>>,
    key: &FlowKey<A>,
    now: u32,
) -> Result<(), MapError>
where
    FlowKey<A>: aya::Pod,
    Flow<A>: aya::Pod,
{
    let flow = Flow {
        state: FlowState::Closing as u8,
        seen: now,
        ..map.get(key, 0)?
    };
    map.insert(key, flow, BPF_EXIST)
}

/// Whether the row was not there.
fn is_absent(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound) || os_error(error) == Some(ErrorKind::NotFound)
}
