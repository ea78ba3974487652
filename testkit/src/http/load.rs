//! Many requests, each on a new connection.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::client::{FailureKind, RequestError, Response, get_here};
use crate::error::{Context, Result};
use crate::netns::NetNs;

/// How a load is made.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Most requests in all.
    pub requests: usize,
    /// Requests at the same time.
    pub concurrency: usize,
    /// Longest time in all; no request begins after it.
    pub duration: Duration,
    /// Longest time for one request.
    pub timeout: Duration,
    /// Pause of each worker between its requests.
    pub pause: Duration,
}

impl LoadOptions {
    /// This many requests, four at a time, two seconds for each, a minute in all.
    pub fn requests(requests: usize) -> Self {
        Self {
            requests,
            concurrency: 4,
            duration: Duration::from_mins(1),
            timeout: Duration::from_secs(2),
            pause: Duration::ZERO,
        }
    }
}

/// A load that runs. Stops on drop.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    began: Instant,
    outcomes: mpsc::Receiver<Outcome>,
    threads: Vec<JoinHandle<Result<()>>>,
}

#[derive(Debug)]
struct Outcome {
    began: Duration,
    ended: Duration,
    result: std::result::Result<Response, RequestError>,
}

/// What a load saw.
#[derive(Clone, Default, Debug)]
pub struct LoadReport {
    /// Requests that were begun, all of which have ended.
    pub requests: usize,
    /// Successful requests by the pod that answered.
    pub by_pod: BTreeMap<String, usize>,
    /// When each pod answered last, since the beginning.
    pub last_answer: BTreeMap<String, Duration>,
    /// Requests that failed.
    pub failures: Vec<Failure>,
    /// Time that successful requests took, in ascending order.
    pub latencies: Vec<Duration>,
    /// From beginning to end.
    pub elapsed: Duration,
}

/// A request of a load that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When it was begun, since the beginning of the load.
    pub began: Duration,
    /// When it failed.
    pub ended: Duration,
    /// What kind.
    pub kind: FailureKind,
    /// In words.
    pub text: String,
}

impl Load {
    /// Begins to request `/` from a namespace.
    pub fn start(ns: &NetNs, server: SocketAddr, options: &LoadOptions) -> Result<Self> {
        let (sender, outcomes) = mpsc::channel();
        let mut load = Self {
            stop: Arc::default(),
            done: Arc::default(),
            began: Instant::now(),
            outcomes,
            threads: Vec::new(),
        };
        let granted = Arc::new(AtomicUsize::new(0));
        for _ in 0..options.concurrency.max(1) {
            let worker = Worker {
                ns: NetNs::adopt(ns.name())?,
                server,
                options: options.clone(),
                began: load.began,
                granted: Arc::clone(&granted),
                done: Arc::clone(&load.done),
                stop: Arc::clone(&load.stop),
                outcomes: sender.clone(),
            };
            let thread = std::thread::Builder::new().name("load".to_owned());
            let thread = thread.spawn(move || worker.run());
            load.threads
                .push(thread.trying(|| "start a thread for the load".to_owned())?);
        }
        Ok(load)
    }

    /// Runs a load to its end.
    pub fn run(ns: &NetNs, server: SocketAddr, options: &LoadOptions) -> Result<LoadReport> {
        Self::start(ns, server, options)?.finish()
    }

    /// Requests that have ended so far.
    pub fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    /// Time since the beginning: the clock of the report.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Begins no more requests, waits for those under way, and reports.
    pub fn stop(self) -> Result<LoadReport> {
        self.stop.store(true, Ordering::Relaxed);
        self.finish()
    }

    /// Waits for the end and reports.
    pub fn finish(mut self) -> Result<LoadReport> {
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(result) => result?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        let mut report = LoadReport {
            elapsed: self.began.elapsed(),
            ..LoadReport::default()
        };
        for outcome in self.outcomes.try_iter() {
            report.add(outcome);
        }
        report.latencies.sort();
        report.failures.sort_by_key(|failure| failure.began);
        Ok(report)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // nobody asks for the outcome
        }
    }
}

struct Worker {
    ns: NetNs,
    server: SocketAddr,
    options: LoadOptions,
    began: Instant,
    granted: Arc<AtomicUsize>,
    done: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    outcomes: mpsc::Sender<Outcome>,
}

impl Worker {
    fn run(self) -> Result<()> {
        self.ns.enter()?;
        while !self.stop.load(Ordering::Relaxed)
            && self.began.elapsed() < self.options.duration
            && self.granted.fetch_add(1, Ordering::Relaxed) < self.options.requests
        {
            let began = self.began.elapsed();
            let result = get_here(self.server, "/", self.options.timeout).and_then(only_ok);
            let outcome = Outcome {
                began,
                ended: self.began.elapsed(),
                result,
            };
            self.done.fetch_add(1, Ordering::Relaxed);
            if self.outcomes.send(outcome).is_err() {
                return Ok(()); // the load was dropped
            }
            if !self.options.pause.is_zero() {
                std::thread::sleep(self.options.pause);
            }
        }
        Ok(())
    }
}

fn only_ok(response: Response) -> std::result::Result<Response, RequestError> {
    if response.status == 200 {
        return Ok(response);
    }
    let text = format!("status {}", response.status);
    Err(RequestError {
        kind: FailureKind::Protocol,
        text,
    })
}

impl LoadReport {
    fn add(&mut self, outcome: Outcome) {
        let Outcome {
            began,
            ended,
            result,
        } = outcome;
        self.requests += 1;
        match result {
            Ok(response) => {
                *self.by_pod.entry(response.pod.clone()).or_default() += 1;
                let last = self.last_answer.entry(response.pod).or_default();
                *last = ended.max(*last);
                self.latencies.push(ended.saturating_sub(began));
            }
            Err(RequestError { kind, text }) => {
                self.failures.push(Failure {
                    began,
                    ended,
                    kind,
                    text,
                });
            }
        }
    }

    /// The latency that `percent` of the successful requests did not exceed.
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let at = (self.latencies.len() * percent.min(100))
            .div_ceil(100)
            .max(1)
            - 1;
        self.latencies.get(at).copied()
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let good = self.latencies.len();
        writeln!(
            f,
            "{} requests, {good} answered, {} failed",
            self.requests,
            self.failures.len()
        )?;
        for (pod, count) in &self.by_pod {
            writeln!(f, "  {count:>6}  {pod}")?;
        }
        for failure in self.failures.iter().take(10) {
            writeln!(
                f,
                "  failed at {:?}: {:?}: {}",
                failure.ended, failure.kind, failure.text
            )?;
        }
        Ok(())
    }
}
