//! Many requests, each on a new connection, with the time of each.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::client::{FailureKind, RequestError, Response, get_here};
use crate::error::{Context, Result};
use crate::netns::NetNs;
use crate::wait;

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

    /// A stream of requests while something else happens: any number in
    /// `duration`, with a pause of a millisecond after each.
    pub fn steady(duration: Duration) -> Self {
        Self {
            duration,
            pause: Duration::from_millis(1),
            ..Self::requests(usize::MAX)
        }
    }
}

/// A load that runs. Stops on drop.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<Result<Vec<Request>>>>,
}

#[derive(Debug)]
struct Shared {
    servers: Vec<SocketAddr>,
    options: LoadOptions,
    began: Instant,
    stop: AtomicBool,
    begun: AtomicUsize,
    done: AtomicUsize,
}

/// A request that has ended.
#[derive(Clone, Debug)]
pub struct Request {
    /// When it began to connect.
    pub began: Instant,
    /// When it was answered or failed.
    pub ended: Instant,
    /// The pod that answered.
    pub outcome: std::result::Result<String, RequestError>,
}

/// What a load saw.
#[derive(Clone, Default, Debug)]
pub struct LoadReport {
    /// All requests, in the order in which they began.
    pub requests: Vec<Request>,
    /// Successful ones by the pod that answered.
    pub by_pod: BTreeMap<String, usize>,
    /// Why the others failed, in the same order.
    pub failures: Vec<RequestError>,
}

impl Load {
    /// Begins to request `/` from a namespace, of several servers in turn.
    pub fn start(ns: &NetNs, servers: impl ToSocketAddrs, options: &LoadOptions) -> Result<Self> {
        let servers = servers
            .to_socket_addrs()
            .trying(|| "read the addresses of the load".to_owned())?;
        let mut load = Self {
            shared: Arc::new(Shared::new(servers.collect(), options)),
            workers: Vec::new(),
        };
        for _ in 0..options.concurrency.max(1) {
            let shared = Arc::clone(&load.shared);
            let ns = NetNs::adopt(ns.name())?;
            let thread = std::thread::Builder::new().name("load".to_owned());
            let worker = thread.spawn(move || {
                ns.enter()?;
                Ok(shared.work())
            });
            load.workers
                .push(worker.trying(|| "start a thread for the load".to_owned())?);
        }
        Ok(load)
    }

    /// Runs a load to its end.
    pub fn run(
        ns: &NetNs,
        servers: impl ToSocketAddrs,
        options: &LoadOptions,
    ) -> Result<LoadReport> {
        Self::start(ns, servers, options)?.finish()
    }

    /// Requests that have ended so far.
    pub fn done(&self) -> usize {
        self.shared.done.load(Ordering::Relaxed)
    }

    /// Waits until this many requests more than now have ended.
    pub fn wait_for_more(&self, requests: usize, limit: Duration) -> Result<()> {
        let goal = self.done() + requests;
        let what = format!("no {requests} more requests ended");
        wait::until(&what, limit, || Ok((self.done() >= goal).then_some(())))
    }

    /// Begins no more requests, waits for those under way, and reports.
    pub fn stop(self) -> Result<LoadReport> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.finish()
    }

    /// Waits for the end and reports.
    pub fn finish(mut self) -> Result<LoadReport> {
        let mut requests = Vec::new();
        for worker in self.workers.drain(..) {
            match worker.join() {
                Ok(done) => requests.extend(done?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(LoadReport::of(requests))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // nobody asks for the outcome
        }
    }
}

impl Shared {
    fn new(servers: Vec<SocketAddr>, options: &LoadOptions) -> Self {
        Self {
            servers,
            options: options.clone(),
            began: Instant::now(),
            stop: AtomicBool::new(false),
            begun: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
        }
    }

    /// What one worker does, in the calling thread's namespace.
    fn work(&self) -> Vec<Request> {
        let options = &self.options;
        let mut requests = Vec::new();
        while !self.stop.load(Ordering::Relaxed) && self.began.elapsed() < options.duration {
            let number = self.begun.fetch_add(1, Ordering::Relaxed);
            if number >= options.requests || self.servers.is_empty() {
                break;
            }
            let server = self.servers[number % self.servers.len()];
            let began = Instant::now();
            let outcome = get_here(server, "/", options.timeout).and_then(only_ok);
            requests.push(Request {
                began,
                ended: Instant::now(),
                outcome: outcome.map(|response| response.pod),
            });
            self.done.fetch_add(1, Ordering::Relaxed);
            if !options.pause.is_zero() {
                std::thread::sleep(options.pause);
            }
        }
        requests
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
    /// Of requests in any order.
    pub fn of(mut requests: Vec<Request>) -> Self {
        requests.sort_by_key(|request| request.began);
        let mut report = Self::default();
        for request in &requests {
            match &request.outcome {
                Ok(pod) => *report.by_pod.entry(pod.clone()).or_default() += 1,
                Err(error) => report.failures.push(error.clone()),
            }
        }
        report.requests = requests;
        report
    }

    /// The time that `percent` of the answered requests did not exceed.
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let times = self.answered().map(|request| request.ended - request.began);
        let mut times: Vec<Duration> = times.collect();
        times.sort_unstable();
        let at = (times.len() * percent.min(100)).div_ceil(100).max(1) - 1;
        times.get(at).copied()
    }

    /// The longest time without an answer, between the first and the last one.
    pub fn longest_silence(&self) -> Duration {
        let mut ends: Vec<Instant> = self.answered().map(|request| request.ended).collect();
        ends.sort_unstable();
        let gaps = ends.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap_or_default()
    }

    /// When a pod answered last.
    pub fn last_answer(&self, pod: &str) -> Option<Instant> {
        let of_pod = |r: &&Request| r.outcome.as_ref().is_ok_and(|who| who == pod);
        let ends = self.requests.iter().filter(of_pod);
        ends.map(|request| request.ended).max()
    }

    fn answered(&self) -> impl Iterator<Item = &Request> {
        self.requests.iter().filter(|r| r.outcome.is_ok())
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, failed) = (self.requests.len(), self.failures.len());
        writeln!(
            f,
            "{all} requests, {} answered, {failed} failed",
            all - failed
        )?;
        for (pod, count) in &self.by_pod {
            writeln!(f, "  {count:>6}  {pod}")?;
        }
        let Some(first) = self.requests.first() else {
            return Ok(());
        };
        let failed = |r: &Request| Some((r.ended - first.began, r.outcome.clone().err()?));
        for (at, error) in self.requests.iter().filter_map(failed).take(10) {
            writeln!(f, "  failed at {at:?}: {error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// A server of its own on the loopback interface; needs no root.
    fn serve(name: &'static str, status: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 1024]);
                let head =
                    format!("HTTP/1.1 {status}\r\nX-Pod: {name}\r\nContent-Length: 0\r\n\r\n");
                let _ = stream.write_all(head.as_bytes());
            }
        });
        address
    }

    #[test]
    fn requests_go_to_the_servers_in_turn_and_end_with_their_number() {
        let servers = vec![serve("a", "200 OK"), serve("b", "200 OK")];
        let requests = Shared::new(servers, &LoadOptions::requests(5)).work();
        let pods: Vec<&str> = requests
            .iter()
            .map(|r| r.outcome.as_deref().unwrap())
            .collect();
        assert_eq!(pods, ["a", "b", "a", "b", "a"]);
        assert!(requests.iter().all(|r| r.ended > r.began));
    }

    #[test]
    fn another_status_is_a_failure() {
        let servers = vec![serve("a", "404 Not Found")];
        let requests = Shared::new(servers, &LoadOptions::requests(1)).work();
        let error = requests[0].outcome.clone().unwrap_err();
        assert_eq!(
            (error.kind, error.text.as_str()),
            (FailureKind::Protocol, "status 404")
        );
    }

    #[test]
    fn a_closed_port_is_a_failure_and_a_stopped_load_begins_nothing() {
        let closed = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let shared = Shared::new(vec![closed], &LoadOptions::requests(2));
        let requests = shared.work();
        assert_eq!(requests.len(), 2);
        assert!(requests.iter().all(|request| request.outcome.is_err()));
        shared.stop.store(true, Ordering::Relaxed);
        assert!(shared.work().is_empty());
    }

    #[test]
    fn answers_failures_and_times_are_told_apart() {
        let start = Instant::now();
        let request = |began, ended, pod: Option<&str>| Request {
            began: start + Duration::from_millis(began),
            ended: start + Duration::from_millis(ended),
            outcome: pod.map(str::to_owned).ok_or_else(|| RequestError {
                kind: FailureKind::Refused,
                text: "no".to_owned(),
            }),
        };
        let failed = request(2, 100, None);
        let report = LoadReport::of(vec![
            request(3, 9, Some("a")),
            failed.clone(),
            request(0, 1, Some("a")),
            request(1, 4, Some("b")),
        ]);
        assert!(report.requests.is_sorted_by_key(|r| r.began));
        assert_eq!(
            report.by_pod,
            BTreeMap::from([("a".into(), 2), ("b".into(), 1)])
        );
        assert_eq!(report.percentile(50), Some(Duration::from_millis(3)));
        assert_eq!(report.percentile(99), Some(Duration::from_millis(6)));
        assert_eq!(report.longest_silence(), Duration::from_millis(5));
        let at = |ms| Some(start + Duration::from_millis(ms));
        assert_eq!(report.last_answer("a"), at(9));
        assert_eq!(report.last_answer("c"), None);
        assert_eq!(
            report.to_string(),
            "4 requests, 3 answered, 1 failed\n       2  a\n       1  b\n  \
             failed at 100ms: Refused: no\n"
        );
        assert_eq!(LoadReport::of(vec![failed]).percentile(50), None);
    }
}
