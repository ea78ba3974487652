//! `watch`: the changes of a collection as they happen.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::body::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::fault::{Asked, Break, Effect};
use super::object::{Name, Stored};
use super::reply::{Reply, cut};
use super::request::Target;
use super::selector::Selector;
use super::settings::StaleWatch;
use super::shared::Shared;
use super::status::Failure;
use super::store::Event;
use super::wire::Control;

/// Lines that wait for a slow client.
const AHEAD: usize = 64;
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// The client is gone, or a fault has ended the stream.
struct Over;

/// A running watch.
struct Feed {
    shared: Arc<Shared>,
    target: Target,
    selector: Selector,
    asked: Asked,
    control: Arc<Control>,
    lines: mpsc::Sender<io::Result<Bytes>>,
    bookmarks: bool,
    pause: Option<Duration>,
    twice: bool,
    /// Everything up to this version is sent.
    position: u64,
    progress: Arc<AtomicU64>,
    /// Events sent.
    sent: usize,
    /// How many had been sent when a fault was first seen.
    bases: HashMap<u64, usize>,
}

/// Where a watch begins.
struct Start {
    position: u64,
    /// Objects that are there already.
    initial: Vec<Arc<Stored>>,
    /// Whether their end is marked.
    marked: bool,
    stale: Option<Failure>,
}

pub(super) fn watch(
    shared: &Arc<Shared>,
    target: &Target,
    asked: Asked,
    effects: &[Effect],
    control: &Arc<Control>,
) -> Result<Reply, Failure> {
    let query = &target.query;
    let selector = Selector::parse(
        target.kind,
        query.text("labelSelector"),
        query.text("fieldSelector"),
    )?;
    let timeout = query
        .number("timeoutSeconds")?
        .filter(|seconds| *seconds > 0);
    let settings = shared.settings().clone();
    let timeout = timeout.map_or(settings.watch_timeout, Duration::from_secs);
    let start = start(shared, target, &selector, effects)?;
    if let (Some(stale), StaleWatch::Http) = (&start.stale, settings.stale_watch) {
        return Err(stale.clone());
    }
    let (lines, receiver) = mpsc::channel(AHEAD);
    let pause = effects.iter().find_map(|effect| match effect {
        Effect::Slow(pause) => Some(*pause),
        _ => None,
    });
    let feed = Feed {
        shared: Arc::clone(shared),
        target: target.clone(),
        selector,
        asked,
        control: Arc::clone(control),
        lines,
        bookmarks: query.flag("allowWatchBookmarks") && !effects.contains(&Effect::NoBookmarks),
        pause,
        twice: effects.contains(&Effect::Twice),
        position: start.position,
        progress: shared.begin_watch(start.position.saturating_sub(1)),
        sent: 0,
        bases: HashMap::new(),
    };
    tokio::spawn(async move {
        // The stream ends as the feed is dropped, however it came to that.
        let _ = feed.run(start, Instant::now() + timeout).await;
    });
    Ok(Reply::stream(receiver))
}

fn start(
    shared: &Shared,
    target: &Target,
    selector: &Selector,
    effects: &[Effect],
) -> Result<Start, Failure> {
    let query = &target.query;
    let watch_list = shared.settings().watch_list && !effects.contains(&Effect::NoWatchList);
    let rule = query.text("resourceVersionMatch");
    let invalid = |message: &str| {
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {message}");
        Err(Failure::new(422, message))
    };
    let initial = query.text("sendInitialEvents");
    if !initial.is_empty() && !watch_list {
        return invalid(
            "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
        );
    }
    if !initial.is_empty() && rule != "NotOlderThan" {
        return invalid(
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        );
    }
    if initial.is_empty() && !rule.is_empty() {
        return invalid(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        );
    }
    let streamed = query.flag("sendInitialEvents");
    let version = query.number("resourceVersion")?.filter(|v| *v != 0);
    let store = shared.store();
    let current = store.version();
    let wanted = |(name, object): (Name, Arc<Stored>)| {
        let here = target
            .namespace
            .as_ref()
            .is_none_or(|ns| *ns == name.namespace);
        (here && selector.matches(&object.value)).then_some(object)
    };
    let mut start = Start {
        position: current,
        initial: Vec::new(),
        marked: streamed,
        stale: None,
    };
    if streamed && version.is_some_and(|v| v > current) {
        return Err(Failure::too_large(version.unwrap_or_default(), current));
    }
    match version {
        Some(version) if !streamed => {
            let replay = effects.iter().find_map(|effect| match effect {
                Effect::Replay(changes) => Some(*changes as u64),
                _ => None,
            });
            let earliest = store.compacted();
            start.position = match replay {
                Some(changes) => version.saturating_sub(changes).max(earliest).min(version),
                None => version,
            };
            if version < earliest || effects.contains(&Effect::Expired) {
                start.stale = Some(Failure::too_old(version, earliest));
            }
        }
        _ if streamed || initial.is_empty() => {
            let now = store.snapshot(target.kind, None).unwrap_or_default();
            start.initial = now.into_iter().filter_map(wanted).collect();
        }
        _ => {}
    }
    Ok(start)
}

impl Feed {
    async fn run(mut self, start: Start, deadline: Instant) -> Result<(), Over> {
        if let Some(stale) = start.stale {
            return self.fail(&stale).await;
        }
        let mut news = self.shared.store().subscribe();
        let mut faults = self.shared.faults.subscribe();
        self.disturb().await?;
        for object in start.initial {
            self.event("ADDED", object.text()).await?;
        }
        if start.marked && self.bookmarks {
            self.bookmark(true).await?;
        }
        let mut bookmark_due = Instant::now() + self.interval();
        loop {
            self.catch_up().await?;
            tokio::select! {
                changed = news.changed() => if changed.is_err() { return Ok(()) },
                changed = faults.changed() => {
                    if changed.is_err() { return Ok(()) }
                    self.disturb().await?;
                }
                () = sleep_until(bookmark_due) => {
                    self.catch_up().await?;
                    self.periodic_bookmark().await?;
                    bookmark_due = Instant::now() + self.interval();
                }
                () = sleep_until(deadline) => {
                    self.catch_up().await?;
                    return self.periodic_bookmark().await;
                }
                () = self.lines.closed() => return Err(Over),
            }
            // The interval may be another by now.
            bookmark_due = bookmark_due.min(Instant::now() + self.interval());
        }
    }

    fn interval(&self) -> Duration {
        self.shared.settings().bookmark_interval
    }

    /// Sends what has happened since.
    async fn catch_up(&mut self) -> Result<(), Over> {
        let news = {
            let store = self.shared.store();
            // A watch may begin at a version that is yet to come.
            let now = store.version().max(self.position);
            store
                .since(self.target.kind, self.position)
                .map(|e| (now, e))
        };
        let (now, events) = match news {
            Ok(news) => news,
            Err(gone) => {
                return self
                    .fail(&Failure::too_old(self.position, gone.oldest))
                    .await;
            }
        };
        for event in events {
            if let Some((name, text)) = self.seen(&event) {
                self.event(name, &text).await?;
            }
            self.position = event.version;
        }
        self.position = now;
        self.progress.store(now, Ordering::Relaxed);
        Ok(())
    }

    /// What a change is to who sees only selected objects.
    fn seen(&self, event: &Event) -> Option<(&'static str, Bytes)> {
        let namespace = self.target.namespace.as_ref();
        if namespace.is_some_and(|ns| *ns != event.name.namespace) {
            return None;
        }
        let selected = |object: &&Arc<Stored>| self.selector.matches(&object.value);
        let before = event.before.as_ref().filter(selected);
        match (before, event.after.as_ref().filter(selected)) {
            (None, Some(after)) => Some(("ADDED", after.text().clone())),
            (Some(_), Some(after)) => Some(("MODIFIED", after.text().clone())),
            // As it was when it was last seen, at the version of the change.
            (Some(before), None) => Some(("DELETED", before.at(event.version).text().clone())),
            (None, None) => None,
        }
    }

    async fn event(&mut self, name: &str, object: &Bytes) -> Result<(), Over> {
        let line = line(name, object);
        for _ in 0..=usize::from(self.twice) {
            self.truncate(&line).await?;
            if let Some(pause) = self.pause {
                tokio::time::sleep(pause).await;
            }
            self.send(line.clone()).await?;
            self.sent += 1;
            self.disturb().await?;
        }
        Ok(())
    }

    async fn periodic_bookmark(&mut self) -> Result<(), Over> {
        if self.bookmarks && self.shared.settings().bookmarks {
            self.bookmark(false).await?;
        }
        Ok(())
    }

    async fn bookmark(&mut self, end_of_initial: bool) -> Result<(), Over> {
        let mut object = self.target.kind.blank(self.position);
        if end_of_initial {
            object["metadata"]["annotations"] = serde_json::json!({INITIAL_END: "true"});
        }
        let line = line("BOOKMARK", object.to_string().as_bytes());
        self.send(line).await
    }

    /// Tells a failure in the stream, which ends it.
    async fn fail(&mut self, failure: &Failure) -> Result<(), Over> {
        let status: Value = failure.body();
        self.send(line("ERROR", status.to_string().as_bytes()))
            .await?;
        Err(Over)
    }

    async fn send(&mut self, line: Bytes) -> Result<(), Over> {
        self.lines.send(Ok(line)).await.map_err(|_| Over)
    }

    /// A fault that is due by the number of events sent, if one of its times is left.
    fn due(&mut self, wanted: impl Fn(&Effect) -> bool) -> Option<(u64, Effect)> {
        for (id, effect) in self.shared.faults.live(&self.asked) {
            let base = *self.bases.entry(id).or_insert(self.sent);
            let (Effect::Break { after, .. } | Effect::ErrorEvent { after, .. }) = &effect else {
                continue;
            };
            if self.sent - base >= *after && wanted(&effect) && self.shared.faults.take(id) {
                return Some((id, effect));
            }
        }
        None
    }

    /// Lets happen what is due.
    async fn disturb(&mut self) -> Result<(), Over> {
        let truncates = |effect: &Effect| {
            let how = Break::Truncate;
            matches!(effect, Effect::Break { how: h, .. } if *h == how)
        };
        while let Some((id, effect)) = self.due(|effect| !truncates(effect)) {
            match effect {
                Effect::ErrorEvent { failure, .. } => return self.fail(&failure).await,
                Effect::Break { how, .. } => match how {
                    Break::Reset => {
                        self.control.reset();
                        return Err(Over);
                    }
                    Break::Cut => {
                        self.lines.send(Err(cut())).await.map_err(|_| Over)?;
                        return Err(Over);
                    }
                    Break::Silence => self.be_silent(id).await?,
                    Break::End | Break::Truncate => return Err(Over),
                },
                _ => {}
            }
        }
        Ok(())
    }

    async fn be_silent(&mut self, fault: u64) -> Result<(), Over> {
        let mut faults = self.shared.faults.subscribe();
        while self.shared.faults.holds(fault) {
            tokio::select! {
                changed = faults.changed() => if changed.is_err() { return Err(Over) },
                () = self.lines.closed() => return Err(Over),
            }
        }
        Ok(())
    }

    /// Sends the half of a line if that is due.
    async fn truncate(&mut self, line: &Bytes) -> Result<(), Over> {
        let truncates = |effect: &Effect| {
            let how = Break::Truncate;
            matches!(effect, Effect::Break { how: h, .. } if *h == how)
        };
        if self.due(truncates).is_none() {
            return Ok(());
        }
        self.send(line.slice(..line.len() / 2)).await?;
        self.lines.send(Err(cut())).await.map_err(|_| Over)?;
        Err(Over)
    }
}

fn line(name: &str, object: &[u8]) -> Bytes {
    let mut line = Vec::with_capacity(object.len() + 40);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(name.as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    line.into()
}
