//! Texts that many objects repeat, such as names of nodes, kept once.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

/// Texts below which nobody looks for those that are in no object any more.
const FEW: usize = 1024;

#[derive(Default)]
struct Texts {
    known: HashSet<Arc<str>>,
    /// How many there may be before those of nobody are forgotten.
    limit: usize,
}

thread_local! {
    // Objects are made by one thread; another one's would merely have copies of their own.
    static TEXTS: RefCell<Texts> = RefCell::default();
}

/// The text, shared with all who have asked this thread for the same.
pub(crate) fn shared(text: &str) -> Arc<str> {
    TEXTS.with_borrow_mut(|texts| texts.share(text))
}

impl Texts {
    fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.limit.max(FEW) {
            self.known.retain(|text| Arc::strong_count(text) > 1);
            self.limit = 2 * self.known.len();
        }
        let text: Arc<str> = text.into();
        self.known.insert(Arc::clone(&text));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_once_and_not_for_ever() {
        let mut texts = Texts::default();
        let (a, b) = (texts.share("node-a"), texts.share("node-a"));
        assert!(Arc::ptr_eq(&a, &b));
        for n in 0..10 * FEW {
            texts.share(&n.to_string());
        }
        assert!(texts.known.len() <= FEW + 1, "{}", texts.known.len());
        assert!(Arc::ptr_eq(&a, &texts.share("node-a")), "somebody has it");
    }
}
