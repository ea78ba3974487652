//! Carrying out: units in their order, each by itself, and what failed again later.

use std::collections::BTreeSet;
use std::time::Instant;

use super::{ERRORS_KEPT, FIRST_RETRY, LAST_RETRY, Planner, Retry};
use crate::model::{Family, NamespacedName};
use crate::plan::diff::{self, Draft};
use crate::plan::ops::{MapOp, MapWriter};
use crate::plan::outcome::{Failure, Outcome, PlanError, Unit};

impl Planner {
    /// Services of which a frontend or a list of source ranges could not be
    /// written the last time. Rows that mark an address are of no one Service.
    pub fn failing_services(&self) -> BTreeSet<NamespacedName> {
        let failed = self.pending.iter().filter(|(_, retry)| retry.failures > 0);
        let ports = failed.filter_map(|(unit, _)| match unit {
            Unit::Frontend(key) => self.desired.frontend(key).map(|(port, _)| port),
            Unit::Sources(service) => self.numbers.name(*service),
            _ => None,
        });
        ports.map(|port| port.service.clone()).collect()
    }

    /// Whether the kernel refused the last write of something of this family. What a map
    /// has no room for does not count: it is that one's fault, and nothing else waits for it.
    pub fn is_refused(&self, family: Family) -> bool {
        let refused = self.pending.iter().filter(|(_, retry)| retry.refused);
        refused
            .filter_map(|(unit, _)| self.family_of(*unit))
            .any(|of| of == family)
    }

    fn family_of(&self, unit: Unit) -> Option<Family> {
        Some(match unit {
            Unit::Node(_) => Family::V4,
            Unit::Pod(addr) => Family::of(addr),
            Unit::Peer(net) | Unit::Network(net) => Family::of(net.addr()),
            Unit::Frontend(key) => Family::of(key.addr),
            Unit::Sources(service) => self.numbers.name(service)?.family,
            Unit::Backend(family, _) => family,
        })
    }

    pub(super) fn run_units(
        &mut self,
        writer: &mut impl MapWriter,
        clock: &dyn Fn() -> Instant,
        outcome: &mut Outcome,
        which: impl Fn(&Unit) -> bool,
    ) {
        let now = clock();
        let due = |retry: &Retry| retry.not_before.is_none_or(|at| at <= now);
        let mut units: Vec<Unit> = self
            .pending
            .iter()
            .filter(|(unit, retry)| which(unit) && due(retry))
            .map(|(unit, _)| *unit)
            .collect();
        units.sort_by_cached_key(|unit| self.phase(unit));
        for unit in units {
            match self.run_unit(unit, writer, clock, &mut outcome.written) {
                Ok(()) => {
                    self.pending.remove(&unit);
                }
                Err(error) => {
                    let retry = self.pending.entry(unit).or_default();
                    let delay = FIRST_RETRY.saturating_mul(1 << retry.failures.min(16));
                    retry.failures = retry.failures.saturating_add(1);
                    retry.refused = error.is_refusal();
                    retry.not_before = Some(clock() + delay.min(LAST_RETRY));
                    outcome.failed += 1;
                    if outcome.errors.len() < ERRORS_KEPT {
                        outcome.errors.push(Failure { unit, error });
                    }
                }
            }
        }
    }

    /// A pod network is a peer's or direct at every moment. An address refuses what meets no frontend: it is marked after its
    /// frontends are there, and unmarked before they go.
    fn phase(&self, unit: &Unit) -> u8 {
        match unit {
            Unit::Network(net) if self.ways.networks.contains_key(net) => 0,
            Unit::Node(_) | Unit::Pod(_) | Unit::Peer(_) => 1,
            Unit::Network(_) => 2,
            Unit::Frontend(key) => match (key.is_address(), self.desired.has_address(key.addr)) {
                (true, false) => 3,
                (false, _) if self.desired.frontend(key).is_none() => 4,
                (false, _) => 5,
                (true, true) => 6,
            },
            Unit::Sources(_) => 7,
            Unit::Backend(..) => 8,
        }
    }

    fn run_unit(
        &mut self,
        unit: Unit,
        writer: &mut impl MapWriter,
        clock: &dyn Fn() -> Instant,
        written: &mut usize,
    ) -> Result<(), PlanError> {
        let draft = match self.draft(unit) {
            Err(PlanError::Capacity(error)) => {
                // A segment that cannot be trusted may hold the slots that are needed.
                if let Unit::Frontend(key) = unit
                    && let Some(draft) = diff::blank(&self.applied, key)
                {
                    diff::execute(&draft, writer, &mut self.applied, clock, written)?;
                }
                return Err(error.into());
            }
            draft => draft?,
        };
        diff::execute(&draft, writer, &mut self.applied, clock, written)?;
        if let Unit::Backend(family, id) = unit {
            self.releasing.remove(&(family, id));
        }
        draft
            .shortage
            .map_or(Ok(()), |error| Err(PlanError::Table(error)))
    }

    fn draft(&mut self, unit: Unit) -> Result<Draft, PlanError> {
        let (applied, ways) = (&mut self.applied, &self.ways);
        Ok(match unit {
            Unit::Node(addr) => row(ways.nodes.get(&addr), applied.nodes.get(&addr), |node| {
                MapOp::node(addr, node)
            }),
            Unit::Pod(addr) => row(ways.pods.get(&addr), applied.pods.get(&addr), |via| {
                MapOp::pod(addr, via)
            }),
            Unit::Peer(net) => row(ways.peers.get(&net), applied.peers.get(&net), |via| {
                MapOp::peer(net, via)
            }),
            Unit::Network(net) => {
                let (want, have) = (ways.networks.get(&net), applied.networks.get(&net));
                row(want, have, |bits| MapOp::network(net, bits))
            }
            Unit::Sources(service) => {
                let port = self.numbers.name(service);
                let wanted = port.and_then(|port| self.desired.sources(port));
                diff::sources(applied, service, wanted.as_ref())
            }
            Unit::Frontend(key) if key.is_address() => {
                diff::address(applied, key, self.desired.has_address(key.addr))?
            }
            Unit::Frontend(key) => {
                let want = self.desired.frontend(&key).map(|(port, claim)| {
                    let in_row = applied.fronts.get(&key).map(|row| row.service);
                    (self.numbers.of(port, in_row), claim)
                });
                diff::frontend(applied, ways, key, want)?
            }
            Unit::Backend(family, id) => diff::backend(
                applied,
                ways,
                family,
                id,
                self.releasing.contains(&(family, id)),
            ),
        })
    }

    pub(super) fn release_numbers(&mut self, now: Instant) {
        let Self {
            leaving,
            desired,
            applied,
            pending,
            numbers,
            ..
        } = self;
        leaving.retain(|port, fronts| {
            if desired.has_port(port) {
                return false;
            }
            fronts.retain(|front| pending.contains_key(&Unit::Frontend(*front)));
            let number = numbers.get(port);
            let used = number.is_some_and(|number| applied.sources.is_any_of(number));
            let written = fronts.is_empty() && !used;
            if written {
                numbers.release(port, now);
            }
            !written
        });
        if !std::mem::replace(&mut self.numbers_known, true) {
            self.numbers.release_unknown(now);
        }
    }
}

/// The write that makes `have` what it should be, if one is needed.
fn row<V: Copy + PartialEq>(
    want: Option<&V>,
    have: Option<&V>,
    op: impl FnOnce(Option<V>) -> MapOp,
) -> Draft {
    let ops = if want == have {
        Vec::new()
    } else {
        vec![op(want.copied())]
    };
    ops.into()
}
