//! Before the datapath is touched: until the first full list of objects and this
//! node's own Node are there, what a former agent left stays in force (KP-128).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{Dirty, Model, Node, ObjectKey, Warning};
use crate::source::{Batch, Change, Trigger};

/// Causes of changes that are kept.
const MOST_TRIGGERS: usize = 10_000;

/// What has come so far.
#[derive(Debug, Default)]
pub struct Waiting {
    model: Model,
    /// The last change of each object.
    changes: BTreeMap<ObjectKey, Change>,
    triggers: Vec<Trigger>,
    /// The last batch, without its changes.
    last: Option<Batch>,
    said: bool,
}

impl Waiting {
    /// Takes a batch in.
    pub fn take(&mut self, mut batch: Batch) {
        for change in batch.changes.drain(..) {
            self.model.apply(change.clone(), &mut Dirty::default());
            let key = match &change {
                Change::Apply(object) => object.key(),
                Change::Delete(key) => key.clone(),
                Change::Synced => continue,
            };
            self.changes.insert(key, change);
        }
        // One wait may last for days.
        if self.triggers.len() < MOST_TRIGGERS {
            self.triggers.append(&mut batch.triggers);
        }
        self.last = Some(batch);
    }

    /// This node's Node, once it can begin.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.model.node(name).filter(|_| self.model.is_synced())
    }

    /// What is waited for.
    pub fn reason(&self, name: &str) -> String {
        if !self.model.is_synced() {
            return "the first full list of objects".to_owned();
        }
        let known: Vec<&str> = self
            .model
            .nodes()
            .map(|node| node.name.as_str())
            .take(8)
            .collect();
        let known = match known.as_slice() {
            [] => "there is no Node at all".to_owned(),
            known => format!("there are {}", known.join(", ")),
        };
        format!(
            "the Node {name}, which names this node's pod networks ({known}); add it, or correct --node"
        )
    }

    /// Logs once that the own Node is missing.
    pub fn complain(&mut self, name: &str) {
        if self.model.is_synced() && self.model.node(name).is_none() && !self.said {
            self.said = true;
            tracing::warn!(
                "waiting for {}; until then the datapath stays as it is",
                self.reason(name)
            );
        }
    }

    /// The objects so far.
    pub const fn model(&self) -> &Model {
        &self.model
    }

    /// What is wrong with the objects.
    pub fn warnings(&self) -> Arc<[Warning]> {
        self.last
            .as_ref()
            .map_or_else(Arc::default, |batch| batch.warnings.clone())
    }

    /// Everything as one batch, for the plan.
    pub fn into_batch(self) -> Option<Batch> {
        let mut batch = self.last?;
        batch.changes = self.changes.into_values().collect();
        batch.triggers = self.triggers;
        if self.model.is_synced() {
            batch.changes.push(Change::Synced);
        }
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Instant, SystemTime};

    use super::*;
    use crate::source::{Change, parse};

    fn batch(mut changes: Vec<Change>, synced: bool) -> Batch {
        changes.extend(synced.then_some(Change::Synced));
        Batch {
            changes,
            triggers: Vec::new(),
            warnings: Arc::default(),
            noticed: Instant::now(),
            noticed_at: SystemTime::now(),
        }
    }

    fn node(name: &str) -> Vec<Change> {
        let yaml = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n");
        parse(Path::new("nodes.yaml"), &yaml).0
    }

    #[test]
    fn it_waits_for_the_list_and_the_own_node() {
        let mut waiting = Waiting::default();
        assert_eq!(waiting.reason("a"), "the first full list of objects");
        waiting.take(batch(node("a"), false));
        assert!(waiting.node("a").is_none(), "not the whole list");
        waiting.take(batch(node("b"), true));
        assert!(waiting.node("a").is_some());
        let reason = waiting.reason("c");
        assert!(
            reason.contains("the Node c") && reason.contains("there are a, b"),
            "{reason}"
        );
        assert!(waiting.node("c").is_none());
        waiting.complain("c");
        waiting.take(batch(node("c"), false));
        assert!(waiting.node("c").is_some());
        waiting.take(batch(node("c"), false));
        let all = waiting.into_batch().unwrap();
        assert_eq!(all.changes.len(), 4, "each object once");
        assert_eq!(all.changes.last(), Some(&Change::Synced));
    }
}
