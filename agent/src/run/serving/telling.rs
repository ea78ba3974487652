//! What the metrics are told of a run, and how things are.

use std::time::{Duration, SystemTime};

use super::Serving;
use crate::metrics::Sizes;
use crate::model::Family;
use crate::plan::Outcome;
use crate::run::shared::Shared;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// Changes of endpoints that wait for a family that cannot be written, at most.
const MOST_TRIGGERS: usize = 10_000;

impl Serving {
    /// Takes note of a run of the planner that took so long.
    pub(super) fn tell_run(&mut self, shared: &mut Shared, outcome: &Outcome, took: Duration) {
        shared.metrics.changes.ran(outcome);
        if !self.planner.is_ready() {
            return;
        }
        let at = SystemTime::now();
        let refused = FAMILIES.map(|family| self.planner.is_refused(family));
        let proxy = &shared.metrics.proxy;
        for (family, refused) in FAMILIES.into_iter().zip(refused) {
            if shared.syncs.waits(family) {
                proxy.synced(family, outcome.full, took);
            }
            if !refused {
                let ours = |trigger: &mut crate::source::Trigger| trigger.family == family;
                for trigger in self.triggers.extract_if(.., ours) {
                    // Clocks of other machines may be ahead.
                    let after = at.duration_since(trigger.at).unwrap_or_default();
                    proxy.programmed(family, after);
                }
            }
        }
        self.triggers.truncate(MOST_TRIGGERS);
        proxy.planned();
        proxy.set_no_local(self.planner.desired().lacking_local());
        let fails = |family| refused[usize::from(family == Family::V6)];
        shared.syncs.written(fails, std::time::Instant::now(), at);
        let (last, renamed) = (self.planner.last_number(), self.planner.take_renamed());
        shared.metrics.ports.tell(last, renamed);
    }

    /// How much there is of what.
    pub fn sizes(&self, warnings: usize) -> Sizes {
        let applied = self.planner.applied();
        Sizes {
            objects: self.planner.model().sizes(),
            local_pods: self.local_pods(),
            services: self.planner.desired().services(),
            frontends: applied.frontend_counts(),
            backends: FAMILIES.map(|family| applied.backends(family).count()),
            slots: applied.segments().used(),
            warnings,
        }
    }
}
