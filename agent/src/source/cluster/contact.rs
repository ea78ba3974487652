//! Who reaches the API server and who does not (pure), told as sentences that stay the same
//! while nothing changes: one line in the log for each phase of an outage.

use std::collections::BTreeMap;

use crate::model::Kind;

/// Kinds that cannot be followed at the moment, and why.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Contact(BTreeMap<Kind, String>);

impl Contact {
    /// A kind is not followed. Says whether that is news.
    pub fn failed(&mut self, kind: Kind, why: &str) -> bool {
        self.0.insert(kind, why.to_owned()).as_deref() != Some(why)
    }

    /// A kind is followed. Says whether that is news.
    pub fn works(&mut self, kind: Kind) -> bool {
        self.0.remove(&kind).is_some()
    }

    /// What is wrong: a sentence for each reason.
    pub fn sentences(&self) -> Vec<String> {
        let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (kind, why) in &self.0 {
            reasons.entry(why).or_default().push(kind.name());
        }
        let sentence = |(why, kinds): (&str, Vec<&str>)| {
            format!(
                "{} cannot be followed, what they said last stays in force: {why}",
                kinds.join(", ")
            )
        };
        reasons.into_iter().map(sentence).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_with_one_reason_share_a_sentence() {
        let mut contact = Contact::default();
        assert!(contact.failed(Kind::Service, "refused"));
        assert!(!contact.failed(Kind::Service, "refused"), "no news");
        assert!(contact.failed(Kind::Node, "refused"));
        assert!(contact.failed(Kind::EndpointSlice, "forbidden"));
        let said = contact.sentences();
        assert_eq!(said.len(), 2);
        assert!(said[0].starts_with("EndpointSlice cannot") && said[0].ends_with("forbidden"));
        assert!(said[1].starts_with("Service, Node cannot"), "{said:?}");
        assert!(contact.works(Kind::Node) && !contact.works(Kind::Node));
        assert_eq!(contact.sentences().len(), 2);
    }
}
