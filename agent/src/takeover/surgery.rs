//! Which chains and rules of a table of iptables go: pure.

use std::collections::{BTreeMap, BTreeSet};

use super::chains::is_chain;

/// Chains that the kernel's hooks call.
const BUILTIN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// A rule of a table; `R` is by what it is removed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule<R> {
    /// The chain that it is in.
    pub chain: String,
    /// The chain that it goes on with, if it does.
    pub target: Option<String>,
    /// Its handle, or its text.
    pub id: R,
}

/// What is to be done to a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Surgery<R> {
    /// Chains to be emptied and deleted.
    pub delete: Vec<String>,
    /// Chains to be emptied only, with a foreign chain that goes on with them.
    pub empty: Vec<(String, String)>,
    /// Rules of the kernel's own chains that call those.
    pub jumps: Vec<Rule<R>>,
    /// How many rules the emptied chains have.
    pub rules: usize,
}

impl<R: Clone> Surgery<R> {
    /// Of a table with these chains and rules.
    pub fn of(chains: &[String], rules: &[Rule<R>]) -> Self {
        let ours: BTreeSet<&str> = chains
            .iter()
            .map(String::as_str)
            .filter(|name| is_chain(name))
            .collect();
        let to_ours = |rule: &&Rule<R>| {
            let target = rule.target.as_deref();
            target.is_some_and(|target| ours.contains(target))
                && !ours.contains(rule.chain.as_str())
        };
        let (jumps, foreign): (Vec<&Rule<R>>, Vec<&Rule<R>>) = rules
            .iter()
            .filter(to_ours)
            .partition(|rule| BUILTIN.contains(&rule.chain.as_str()));
        let held: BTreeMap<&str, &str> = foreign
            .iter()
            .filter_map(|rule| Some((rule.target.as_deref()?, rule.chain.as_str())))
            .collect();
        Self {
            delete: ours
                .iter()
                .filter(|name| !held.contains_key(*name))
                .map(|name| (*name).to_owned())
                .collect(),
            empty: held
                .iter()
                .map(|(name, by)| ((*name).to_owned(), (*by).to_owned()))
                .collect(),
            jumps: jumps.into_iter().cloned().collect(),
            rules: rules
                .iter()
                .filter(|rule| ours.contains(rule.chain.as_str()))
                .count(),
        }
    }

    /// Whether there is nothing to do: an empty chain that somebody else uses stays.
    pub fn is_nothing(&self) -> bool {
        self.delete.is_empty() && self.jumps.is_empty() && self.rules == 0
    }

    /// All chains to be emptied.
    pub fn emptied(&self) -> impl Iterator<Item = &str> {
        let held = self.empty.iter().map(|(name, _)| name.as_str());
        self.delete.iter().map(String::as_str).chain(held)
    }

    /// What is done, as the end of a sentence.
    pub fn sentence(&self) -> String {
        let kept = self
            .empty
            .iter()
            .map(|(name, by)| format!("; {name} stays, empty, for a rule in {by} calls it"));
        format!(
            "{} of {}, {} that call them{}",
            counted(self.delete.len(), "chain"),
            counted(self.rules, "rule"),
            counted(self.jumps.len(), "rule"),
            kept.collect::<String>()
        )
    }
}

/// A number with its noun.
pub fn counted(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(chain: &str, target: &str, id: u32) -> Rule<u32> {
        Rule {
            chain: chain.to_owned(),
            target: Some(target.to_owned()).filter(|target| !target.is_empty()),
            id,
        }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn jumps_go_with_their_chains_and_nothing_else_does() {
        let chains = names(&[
            "PREROUTING",
            "KUBE-SERVICES",
            "KUBE-SVC-A",
            "KUBE-MARK-MASQ",
            "OTHER",
        ]);
        let rules = [
            rule("PREROUTING", "KUBE-SERVICES", 1),
            rule("PREROUTING", "OTHER", 2),
            rule("KUBE-SERVICES", "KUBE-SVC-A", 3),
            rule("KUBE-SVC-A", "KUBE-MARK-MASQ", 4),
            rule("OTHER", "", 5),
        ];
        let surgery = Surgery::of(&chains, &rules);
        assert_eq!(surgery.delete, ["KUBE-SERVICES", "KUBE-SVC-A"]);
        assert_eq!(surgery.jumps, [rules[0].clone()]);
        assert_eq!((surgery.rules, surgery.empty.len()), (2, 0));
        assert_eq!(
            surgery.sentence(),
            "2 chains of 2 rules, 1 rule that call them"
        );
    }

    #[test]
    fn a_chain_that_a_foreign_rule_calls_is_emptied_only() {
        let chains = names(&["KUBE-SERVICES", "KUBE-SVC-A", "OTHER"]);
        let rules = [
            rule("OTHER", "KUBE-SVC-A", 1),
            rule("KUBE-SERVICES", "KUBE-SVC-A", 2),
        ];
        let surgery = Surgery::of(&chains, &rules);
        assert_eq!(surgery.delete, ["KUBE-SERVICES"]);
        assert_eq!(surgery.empty, [("KUBE-SVC-A".into(), "OTHER".into())]);
        assert!(!surgery.is_nothing());
        let emptied: Vec<&str> = surgery.emptied().collect();
        assert_eq!(emptied, ["KUBE-SERVICES", "KUBE-SVC-A"]);
        let after = Surgery::of(&names(&["KUBE-SVC-A", "OTHER"]), &rules[..1]);
        assert!(after.is_nothing(), "a second run finds nothing");
    }
}
