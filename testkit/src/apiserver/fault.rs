//! What goes wrong, when and for whom.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::request::Verb;
use super::status::Failure;

/// A fault: what happens, and to which requests.
///
/// Without further words it happens to every request until it is lifted.
#[derive(Clone, Debug)]
pub struct Fault {
    effect: Effect,
    verbs: Vec<Verb>,
    resources: Vec<String>,
    user: Option<String>,
    skip: usize,
    times: Option<usize>,
}

/// What happens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// The request is answered by this failure.
    Answer(Failure),
    /// The connection is reset (RST) before an answer.
    Reset,
    /// The request is read and never answered; the connection stays.
    Hang,
    /// So long a pause before the answer, each event of a watch, and each 16 KiB of another body.
    Slow(Duration),
    /// The answer says that it is of this type.
    ContentType(String),
    /// The history of the version or page that is asked for is gone.
    Expired,
    /// A watch gets no bookmarks.
    NoBookmarks,
    /// A list cannot be streamed.
    NoWatchList,
    /// The body breaks off after so many events of a watch, which may run already and counts from
    /// then on; of another answer, after so many octets.
    Break {
        /// How much is sent.
        after: usize,
        /// What then.
        how: Break,
    },
    /// A watch, which may run already, gets an event `ERROR` after so many events, and ends.
    ErrorEvent {
        /// How many events are sent.
        after: usize,
        /// What the event says.
        failure: Failure,
    },
    /// Each event of a watch is sent twice.
    Twice,
    /// A watch begins by so many changes that the client has seen already.
    Replay(usize),
}

/// How a body breaks off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Break {
    /// As if it were complete. (An answer that is no watch says its length before: there it is a
    /// cut.)
    End,
    /// The connection is closed without the end of the body.
    Cut,
    /// The connection is reset.
    Reset,
    /// In the midst of the next event, then closed.
    Truncate,
    /// Nothing more is sent until the fault is lifted, and the connection stays open.
    Silence,
}

/// A fault that was added.
#[derive(Clone, Debug)]
pub struct FaultHandle {
    faults: Faults,
    id: u64,
}

impl Fault {
    /// An effect on every request.
    pub fn new(effect: Effect) -> Self {
        Self {
            effect,
            verbs: Vec::new(),
            resources: Vec::new(),
            user: None,
            skip: 0,
            times: None,
        }
    }

    /// Requests are answered by an HTTP status.
    pub fn answer(code: u16) -> Self {
        let message = format!("a fault of the test answers {code}");
        Self::new(Effect::Answer(Failure::new(code, message)))
    }

    /// A body breaks off, as [`Effect::Break`] says.
    pub fn break_after(after: usize, how: Break) -> Self {
        Self::new(Effect::Break { after, how })
    }

    /// Only requests of this verb; of any of those that are said.
    #[must_use]
    pub fn on(mut self, verb: Verb) -> Self {
        self.verbs.push(verb);
        self
    }

    /// Only requests of this resource (`services`); of any of those that are said.
    #[must_use]
    pub fn of(mut self, plural: &str) -> Self {
        self.resources.push(plural.to_owned());
        self
    }

    /// Only requests of this user.
    #[must_use]
    pub fn by(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// The first so many requests are spared.
    #[must_use]
    pub fn skip(mut self, requests: usize) -> Self {
        self.skip = requests;
        self
    }

    /// At most so many times.
    #[must_use]
    pub fn times(mut self, times: usize) -> Self {
        self.times = Some(times);
        self
    }

    fn meets(&self, asked: &Asked) -> bool {
        (self.verbs.is_empty() || asked.verb.is_some_and(|v| self.verbs.contains(&v)))
            && (self.resources.is_empty() || self.resources.contains(&asked.resource))
            && self.user.as_ref().is_none_or(|user| *user == asked.user)
    }
}

/// What faults look at in a request.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) verb: Option<Verb>,
    pub(super) resource: String,
    pub(super) user: String,
}

/// The faults of a server.
#[derive(Clone, Debug)]
pub(super) struct Faults(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    active: Mutex<Active>,
    news: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Active {
    next: u64,
    faults: Vec<Entry>,
    /// How often those happened that were lifted.
    lifted: Vec<(u64, usize)>,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    fault: Fault,
    seen: usize,
    used: usize,
}

impl Effect {
    /// Whether it waits for its moment in a stream.
    fn is_live(&self) -> bool {
        matches!(self, Self::Break { .. } | Self::ErrorEvent { .. })
    }
}

impl Faults {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner {
            active: Mutex::default(),
            news: watch::Sender::new(0),
        }))
    }

    fn active(&self) -> MutexGuard<'_, Active> {
        self.0.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, fault: Fault) -> FaultHandle {
        let mut active = self.active();
        active.next += 1;
        let id = active.next;
        active.faults.push(Entry {
            id,
            fault,
            seen: 0,
            used: 0,
        });
        drop(active);
        self.0.news.send_modify(|n| *n += 1);
        FaultHandle {
            faults: self.clone(),
            id,
        }
    }

    fn lift(&self, which: impl Fn(u64) -> bool) {
        let mut active = self.active();
        let (gone, rest) = std::mem::take(&mut active.faults)
            .into_iter()
            .partition(|entry| which(entry.id));
        active.faults = rest;
        active
            .lifted
            .extend(gone.iter().map(|entry: &Entry| (entry.id, entry.used)));
        drop(active);
        self.0.news.send_modify(|n| *n += 1);
    }

    pub(super) fn lift_all(&self) {
        self.lift(|_| true);
    }

    /// Tells when faults come and go.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.news.subscribe()
    }

    /// What happens to a request; of watches, what does not wait for a moment in the stream.
    pub(super) fn at_request(&self, asked: &Asked) -> Vec<Effect> {
        let stream = asked.verb == Some(Verb::Watch);
        let mut effects = Vec::new();
        for entry in &mut self.active().faults {
            let fault = &entry.fault;
            if !fault.meets(asked) || (stream && fault.effect.is_live()) {
                continue;
            }
            entry.seen += 1;
            if entry.seen > fault.skip && fault.times.is_none_or(|times| entry.used < times) {
                entry.used += 1;
                effects.push(fault.effect.clone());
            }
        }
        effects
    }

    /// What may happen to a running watch.
    pub(super) fn live(&self, asked: &Asked) -> Vec<(u64, Effect)> {
        let active = self.active();
        let meets = |entry: &&Entry| {
            let fault = &entry.fault;
            fault.effect.is_live()
                && fault.meets(asked)
                && fault.times.is_none_or(|times| entry.used < times)
        };
        let live = active.faults.iter().filter(meets);
        live.map(|entry| (entry.id, entry.fault.effect.clone()))
            .collect()
    }

    /// Takes one of a fault's times; whether there was one left.
    pub(super) fn take(&self, id: u64) -> bool {
        let mut active = self.active();
        let Some(entry) = active.faults.iter_mut().find(|entry| entry.id == id) else {
            return false;
        };
        entry.seen += 1;
        let due = entry.seen > entry.fault.skip
            && entry.fault.times.is_none_or(|times| entry.used < times);
        entry.used += usize::from(due);
        due
    }

    /// Whether a fault is not lifted.
    pub(super) fn holds(&self, id: u64) -> bool {
        self.active().faults.iter().any(|entry| entry.id == id)
    }
}

impl FaultHandle {
    /// Ends it.
    pub fn lift(&self) {
        self.faults.lift(|id| id == self.id);
    }

    /// How often it has happened.
    pub fn used(&self) -> usize {
        let active = self.faults.active();
        let now = active.faults.iter().map(|entry| (entry.id, entry.used));
        let mut all = now.chain(active.lifted.iter().copied());
        all.find(|(id, _)| *id == self.id)
            .map_or(0, |(_, used)| used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(verb: Verb, resource: &str) -> Asked {
        Asked {
            verb: Some(verb),
            resource: resource.to_owned(),
            user: "node".to_owned(),
        }
    }

    #[test]
    fn a_fault_meets_what_it_names_as_often_as_it_says() {
        let faults = Faults::new();
        let fault = Fault::answer(500)
            .on(Verb::List)
            .of("services")
            .skip(1)
            .times(2);
        let handle = faults.add(fault);
        let happen = || faults.at_request(&asked(Verb::List, "services")).len();
        assert_eq!([happen(), happen(), happen(), happen()], [0, 1, 1, 0]);
        assert_eq!(handle.used(), 2);
        handle.lift();
        assert_eq!(handle.used(), 2);
        let every = faults.add(Fault::answer(503).by("node"));
        assert_eq!(faults.at_request(&asked(Verb::Get, "nodes")).len(), 1);
        every.lift();
        assert!(faults.at_request(&asked(Verb::Get, "nodes")).is_empty());
    }

    #[test]
    fn a_break_waits_for_its_moment_in_a_watch() {
        let faults = Faults::new();
        let handle = faults.add(Fault::break_after(3, Break::Cut).times(1));
        let watch = asked(Verb::Watch, "nodes");
        assert!(faults.at_request(&watch).is_empty());
        assert_eq!(faults.live(&watch).len(), 1);
        assert!(faults.take(handle.id));
        assert!(!faults.take(handle.id));
        assert!(faults.live(&watch).is_empty());
        assert!(faults.holds(handle.id));
    }
}
