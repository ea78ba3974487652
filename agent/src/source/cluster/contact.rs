//! Who reaches the API server and who does not (pure), told as sentences that stay the same while
//! one outage lasts, whatever becomes of single connections: one line in the log for each phase.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::Kind;

/// How a kind is kept from being followed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Loss {
    /// Nobody answers, or not as the API does.
    Contact(String),
    /// The server refuses everybody.
    All(String),
    /// The server refuses this kind.
    Kind(String),
}

/// Kinds that cannot be followed at the moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Contact {
    lost: BTreeMap<Kind, Loss>,
    /// How the present loss of contact was told first: other words for it are no news.
    told: Option<String>,
}

impl Contact {
    /// A kind is not followed.
    pub fn failed(&mut self, kind: Kind, loss: Loss) {
        if let Loss::Contact(why) = &loss {
            self.told.get_or_insert_with(|| why.clone());
        }
        self.lost.insert(kind, loss);
    }

    /// A kind is followed.
    pub fn works(&mut self, kind: Kind) {
        self.lost.remove(&kind);
        if !self
            .lost
            .values()
            .any(|loss| matches!(loss, Loss::Contact(_)))
        {
            self.told = None;
        }
    }

    /// What is wrong.
    pub fn sentences(&self) -> Vec<String> {
        let mut refused: BTreeSet<&str> = BTreeSet::new();
        let mut forbidden: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (kind, loss) in &self.lost {
            match loss {
                Loss::Contact(_) => {}
                Loss::All(why) => drop(refused.insert(why)),
                Loss::Kind(why) => forbidden.entry(why).or_default().push(kind.name()),
            }
        }
        let told = self
            .told
            .iter()
            .map(|why| format!("cannot be followed, the last state stays in force: {why}"));
        let refused = refused
            .into_iter()
            .map(|why| format!("cannot be followed, the last state stays in force: {why}"));
        let forbidden = forbidden.into_iter().map(|(why, kinds)| {
            let kinds = kinds.join(", ");
            format!("{kinds} cannot be followed, what they said last stays in force: {why}")
        });
        told.chain(refused).chain(forbidden).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_one_sentence_from_beginning_to_end() {
        let mut contact = Contact::default();
        contact.failed(Kind::Service, Loss::Contact("reset".to_owned()));
        let said = contact.sentences();
        assert_eq!(said.len(), 1);
        assert!(said[0].ends_with("in force: reset"), "{said:?}");
        contact.failed(Kind::Node, Loss::Contact("refused".to_owned()));
        contact.failed(Kind::Service, Loss::Contact("refused".to_owned()));
        assert_eq!(contact.sentences(), said, "other words are no news");
        contact.works(Kind::Service);
        assert_eq!(contact.sentences(), said);
        contact.works(Kind::Node);
        assert_eq!(contact.sentences(), [""; 0]);
    }

    #[test]
    fn refusals_name_the_kinds_that_they_are_about() {
        let mut contact = Contact::default();
        for kind in [Kind::Service, Kind::Node] {
            contact.failed(kind, Loss::All("401".to_owned()));
        }
        assert_eq!(contact.sentences().len(), 1);
        for kind in [Kind::Service, Kind::Node] {
            contact.failed(kind, Loss::Kind("403".to_owned()));
        }
        let said = contact.sentences();
        assert!(
            said.len() == 1 && said[0].starts_with("Service, Node cannot"),
            "{said:?}"
        );
    }
}
