//! Follows one kind: a list, then a watch that goes on where the list or the watch before ended.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::sync::Notify;

use super::access::Access;
use super::backoff::{self, Backoff};
use super::book::{Book, Listing};
use super::gauges::Gauges;
use super::kinds::Followed;
use super::request::{self, Event, Head, Lines, Trouble};
use super::tidings::Tidings;
use crate::model::Kind;

/// The server ends a watch after so many seconds, drawn anew each time (as client-go does), so
/// that watches of all nodes do not end together.
const WATCH_SECS: std::ops::Range<u32> = 300..600;
/// A watch that ends earlier counts as failed: one cannot go on like that.
const SHORT: Duration = Duration::from_secs(1);
/// Until a server that does not know lists by watch is asked for pages.
const FIRST_EVENT: Duration = Duration::from_secs(10);
/// For so long it is asked for pages: it may have been slow, or another by then.
const PAGES: Duration = Duration::from_mins(10);
/// Until a server that lacked a kind is asked for it again.
const ABSENT: Duration = Duration::from_mins(5);

/// What all kinds share.
#[derive(Debug)]
pub struct Shared {
    /// The client.
    pub access: Access,
    /// The objects.
    pub book: Mutex<Book>,
    /// Something in the book is to be told.
    pub news: Notify,
    /// Who reaches the server and who does not.
    pub tidings: Tidings,
    /// Figures.
    pub gauges: Arc<Gauges>,
    /// How long a watch may be silent.
    pub silence: Duration,
}

impl Shared {
    fn change<T>(&self, make: impl FnOnce(&mut Book) -> T) -> T {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let made = make(&mut book);
        let servers = book.servers();
        let news = book.has_news();
        drop(book);
        if let Some(servers) = servers {
            self.access.addresses().learn(servers);
        }
        if news {
            self.news.notify_one();
        }
        made
    }
}

/// One kind.
pub struct Follower {
    shared: Arc<Shared>,
    followed: Followed,
    /// Where a watch would go on; none before the first list, or when that is history.
    version: Option<String>,
    /// How lists are asked for.
    lists: Lists,
    /// The number of the client that was used last.
    login: u64,
    /// Whether it was listed once.
    known: bool,
    /// Whether the last step reached the server.
    reached: bool,
    /// Steps in a row that failed.
    failures: u32,
    /// Steps in a row that reached the server and brought nothing.
    barren: u32,
}

/// How lists are asked for: as a watch, but for a while in pages where that brought nothing.
#[derive(Debug)]
struct Lists {
    pages_until: Option<Instant>,
}

impl Lists {
    fn in_pages(&mut self, now: Instant) {
        self.pages_until = Some(now + PAGES);
    }

    fn stream(&self, now: Instant) -> bool {
        self.pages_until.is_none_or(|until| until <= now)
    }
}

/// How a step went well.
enum Step {
    /// There is a list: the watch comes next.
    Listed,
    /// The server ended the watch.
    Ended,
}

impl Follower {
    /// Before its first list.
    pub const fn new(shared: Arc<Shared>, followed: Followed) -> Self {
        Self {
            shared,
            followed,
            version: None,
            lists: Lists { pages_until: None },
            login: 0,
            known: false,
            reached: false,
            failures: 0,
            barren: 0,
        }
    }

    /// Follows for ever.
    pub async fn run(mut self) {
        let kind = self.followed.kind;
        let mut backoff = Backoff::default();
        loop {
            let began = Instant::now();
            self.reached = false;
            let wait = match self.step().await {
                Ok(Step::Listed) => continue,
                Ok(Step::Ended) if began.elapsed() >= SHORT => {
                    backoff = Backoff::default();
                    continue;
                }
                Ok(Step::Ended) => backoff.failed(Instant::now(), fastrand::f64()),
                Err(trouble) => {
                    tracing::debug!("{}: {trouble}", kind.name());
                    if self.reached {
                        backoff.works(began);
                    }
                    self.failures += 1;
                    self.barren += u32::from(self.reached && trouble.is_useless());
                    let wait = backoff.failed(Instant::now(), fastrand::f64());
                    self.trouble(&trouble, wait).await
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// What a failure changes; how long to wait, at least `wait`.
    async fn trouble(&mut self, trouble: &Trouble, wait: Duration) -> Duration {
        let shared = Arc::clone(&self.shared);
        let kind = self.followed.kind;
        match trouble {
            // A server of an age without the kind, which is no trouble.
            Trouble::Refused { code, .. }
                if self.followed.optional && *code == StatusCode::NOT_FOUND =>
            {
                // What was there stays: a server that begins may not know all its kinds yet.
                shared.change(|book| book.is_awaited(kind).then(|| book.without(kind)));
                shared.tidings.works(kind);
                return ABSENT.mul_f64(0.5 + fastrand::f64());
            }
            // Nothing waits for what may be missing.
            Trouble::Refused { code, .. }
                if self.followed.optional && *code == StatusCode::FORBIDDEN =>
            {
                shared.change(|book| book.is_awaited(kind).then(|| book.without(kind)));
            }
            _ => {}
        }
        shared.gauges.restarted(kind, trouble.reason());
        match trouble {
            // Known to happen when a watch was away for long: the list is made anew.
            Trouble::Gone if self.version.take().is_some() => {
                return wait.min(Backoff::FIRST) + self.turn();
            }
            Trouble::Refused { code, .. } if *code == StatusCode::UNAUTHORIZED => {
                shared.access.refused(self.login).await;
            }
            _ if trouble.is_unknown_parameter() && self.version.is_none() => {
                if self.lists.stream(Instant::now()) {
                    self.lists.in_pages(Instant::now());
                    return Duration::ZERO;
                }
                if self.followed.widen() {
                    return Duration::ZERO;
                }
            }
            // Once is a restart or a hiccup; a server that goes on like that is not asked again.
            Trouble::Refused { code, .. } if code.is_server_error() && self.failures > 1 => {
                shared.access.pass_over(self.login).await;
            }
            Trouble::Silent(_) if self.failures > 1 => {
                shared.access.pass_over(self.login).await;
            }
            _ => {}
        }
        // A version that brings nothing may be one that this server never had, such as after
        // etcd was restored: only a list tells.
        if self.barren > 1 || trouble.is_unknown_parameter() {
            self.version = None;
        }
        // A connection that broke is worth a word only if there is no other.
        if !self.reached || trouble.code().is_some() || self.barren > 1 {
            shared.tidings.failed(kind, trouble);
        }
        // What breaks, breaks for all nodes at once. Later failures wait longer than a turn.
        let wait = if self.failures == 1 {
            wait + self.turn()
        } else {
            wait
        };
        match trouble {
            Trouble::Refused {
                after: Some(after), ..
            } => wait.max(backoff::asked_for(*after, fastrand::f64())),
            _ => wait,
        }
    }

    /// This node's turn among all that lost the server or its history in the same moment. None before
    /// the first list: nodes do not all boot at once, and this one waits for it.
    fn turn(&self) -> Duration {
        if !self.known {
            return Duration::ZERO;
        }
        let book = self.shared.book.lock();
        let book = book.unwrap_or_else(PoisonError::into_inner);
        backoff::turn(book.names(Kind::Node).count(), fastrand::f64())
    }

    /// A list, or a watch to its end.
    async fn step(&mut self) -> Result<Step, Trouble> {
        match self.version.clone() {
            None if self.lists.stream(Instant::now()) => self.list_by_watch().await,
            None => self.list().await,
            Some(version) => {
                let lines = self.watch(Some(&version)).await?;
                self.reached = true;
                self.failures = 0;
                // One that brought nothing twice has to bring something.
                if self.barren < 2 {
                    self.shared.tidings.works(self.followed.kind);
                }
                self.events(lines).await
            }
        }
    }

    /// The server said something of the kind.
    fn works(&mut self) {
        self.reached = true;
        (self.failures, self.barren) = (0, 0);
        self.shared.gauges.heard(self.followed.kind);
        self.shared.tidings.works(self.followed.kind);
    }

    async fn client(&mut self) -> Result<kube::Client, Trouble> {
        let login = self.shared.access.client().await;
        let login = login.map_err(|error| Trouble::Broken(error.to_string()))?;
        self.login = login.number;
        Ok(login.client)
    }

    async fn watch(&mut self, version: Option<&str>) -> Result<Lines, Trouble> {
        let seconds = fastrand::u32(WATCH_SECS);
        let request = self.followed.watch(version, seconds);
        request::watch(&self.client().await?, request.map_err(Trouble::Broken)?).await
    }

    /// Page by page; where the continuation is history, from the beginning again.
    async fn list(&mut self) -> Result<Step, Trouble> {
        let mut listing = Listing::new(self.followed.kind);
        let mut next = None;
        loop {
            let request = self.followed.list(next.take()).map_err(Trouble::Broken)?;
            let page = request::page(&self.client().await?, request).await?;
            self.shared.gauges.heard(self.followed.kind);
            for json in page.items.iter().flatten() {
                let head: Head = garbled(serde_json::from_str(json.get()))?;
                listing.add(&head.metadata, json);
            }
            if !page.metadata.next.is_empty() {
                next = Some(page.metadata.next);
                continue;
            }
            if page.metadata.resource_version.is_empty() {
                return Err(Trouble::Garbled(
                    "a list without resourceVersion".to_owned(),
                ));
            }
            self.shared.change(|book| book.replace(listing));
            self.version = Some(page.metadata.resource_version);
            self.known = true;
            self.works();
            return Ok(Step::Listed);
        }
    }

    /// A watch that begins with all objects (`WatchList`, Kubernetes 1.32): no page, and no
    /// list in memory, here or there.
    async fn list_by_watch(&mut self) -> Result<Step, Trouble> {
        let mut lines = self.watch(None).await?;
        let mut listing = Listing::new(self.followed.kind);
        loop {
            let line = match lines.next(FIRST_EVENT).await {
                Ok(Some(line)) => line,
                // One that does not know the parameter sends objects and never says that they are all.
                Err(Trouble::Silent(_)) => {
                    self.lists.in_pages(Instant::now());
                    return Ok(Step::Listed);
                }
                Ok(None) => return Err(Trouble::Broken("the list ended in the midst".to_owned())),
                Err(trouble) => return Err(trouble),
            };
            let event: Event<'_> = garbled(serde_json::from_str(&line))?;
            self.shared.gauges.heard(self.followed.kind);
            if event.kind == "ERROR" {
                return Err(request::error(event.object));
            }
            let head: Head = garbled(serde_json::from_str(event.object.get()))?;
            match event.kind {
                "ADDED" | "MODIFIED" => listing.add(&head.metadata, event.object),
                "DELETED" => listing.remove(&head.metadata),
                "BOOKMARK" => {
                    let annotations = head.metadata.annotations.unwrap_or_default();
                    let version = head.metadata.resource_version;
                    let Some(version) = version.filter(|version| !version.is_empty()) else {
                        continue;
                    };
                    if annotations.initial_events_end.as_deref() == Some("true") {
                        self.shared.change(|book| book.replace(listing));
                        self.version = Some(version);
                        self.known = true;
                        self.works();
                        return self.events(lines).await;
                    }
                }
                _ => {}
            }
        }
    }

    /// Events until the server ends the watch, which is none of failure.
    async fn events(&mut self, mut lines: Lines) -> Result<Step, Trouble> {
        let kind = self.followed.kind;
        while let Some(line) = lines.next(self.shared.silence).await? {
            let event: Event<'_> = garbled(serde_json::from_str(&line))?;
            if event.kind == "ERROR" {
                return Err(request::error(event.object));
            }
            let head: Head = garbled(serde_json::from_str(event.object.get()))?;
            self.works();
            match event.kind {
                "ADDED" | "MODIFIED" => {
                    self.shared
                        .change(|book| book.apply(kind, &head.metadata, event.object));
                }
                "DELETED" => self.shared.change(|book| book.delete(kind, &head.metadata)),
                // Bookmarks, and what later servers may send.
                _ => {}
            }
            if let Some(version) = head.metadata.resource_version.filter(|v| !v.is_empty()) {
                self.version = Some(version);
            }
        }
        Ok(Step::Ended)
    }
}

fn garbled<T>(read: serde_json::Result<T>) -> Result<T, Trouble> {
    read.map_err(|error| Trouble::Garbled(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_was_slow_once_is_asked_for_streams_again() {
        let now = Instant::now();
        let mut lists = Lists { pages_until: None };
        assert!(lists.stream(now));
        lists.in_pages(now);
        assert!(!lists.stream(now + PAGES / 2));
        assert!(lists.stream(now + PAGES));
    }
}
