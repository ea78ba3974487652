//! Bounded HTTP traffic from a pod, every request on a new connection, with
//! the time of each.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use testkit::http::{RequestError, get_here};
use testkit::{NetNs, wait};

/// Longest for one request.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Longest for all.
const DURATION: Duration = Duration::from_mins(1);
/// Longest wait for some more answers.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is sent.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to, in turn.
    pub targets: Vec<SocketAddr>,
    /// Most requests in all.
    pub requests: usize,
    /// Requests at the same time.
    pub workers: usize,
    /// Pause of each worker after a request.
    pub pause: Duration,
}

/// A request that has ended.
#[derive(Debug)]
pub struct Request {
    /// When it began to connect.
    pub began: Instant,
    /// When it was answered or failed.
    pub ended: Instant,
    /// The pod that answered.
    pub outcome: Result<String, RequestError>,
}

/// Traffic that runs. Stops on drop.
#[derive(Debug)]
pub struct Traffic {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<Result<Vec<Request>>>>,
}

#[derive(Debug)]
struct Shared {
    plan: Plan,
    began: Instant,
    stop: AtomicBool,
    begun: AtomicUsize,
    done: AtomicUsize,
}

impl Plan {
    /// A number of requests, as fast as four clients get answers.
    pub fn burst(target: SocketAddr, requests: usize) -> Self {
        Self {
            targets: vec![target],
            requests,
            workers: 4,
            pause: Duration::ZERO,
        }
    }

    /// A steady stream, while something else happens.
    pub fn steady(targets: &[SocketAddr]) -> Self {
        Self {
            targets: targets.to_vec(),
            requests: 100_000,
            workers: 4,
            pause: Duration::from_millis(1),
        }
    }
}

impl Traffic {
    /// Begins in a pod's namespace.
    pub fn start(ns: &NetNs, plan: Plan) -> Result<Self> {
        let shared = Arc::new(Shared {
            plan,
            began: Instant::now(),
            stop: AtomicBool::new(false),
            begun: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
        });
        let mut traffic = Self {
            shared,
            workers: Vec::new(),
        };
        for _ in 0..traffic.shared.plan.workers {
            let shared = Arc::clone(&traffic.shared);
            let ns = NetNs::adopt(ns.name())?;
            let thread = std::thread::Builder::new().name("client".to_owned());
            let worker = thread.spawn(move || {
                ns.enter()?;
                Ok(shared.work())
            });
            traffic
                .workers
                .push(worker.context("start a client's thread")?);
        }
        Ok(traffic)
    }

    /// Runs it to its end.
    pub fn run(ns: &NetNs, plan: Plan) -> Result<Vec<Request>> {
        Self::start(ns, plan)?.finish()
    }

    /// Waits until this many requests more than now have ended.
    pub fn wait_for_more(&self, requests: usize) -> Result<()> {
        let goal = self.shared.done.load(Ordering::Relaxed) + requests;
        let what = format!("no {requests} more requests ended");
        wait::until(&what, PATIENCE, || {
            Ok((self.shared.done.load(Ordering::Relaxed) >= goal).then_some(()))
        })?;
        Ok(())
    }

    /// Begins no more requests, and waits for those under way.
    pub fn stop(self) -> Result<Vec<Request>> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.finish()
    }

    /// All requests, in the order in which they began.
    fn finish(mut self) -> Result<Vec<Request>> {
        let mut requests = Vec::new();
        for worker in self.workers.drain(..) {
            let done = worker.join().map_err(|_| anyhow!("a client panicked"))?;
            requests.extend(done?);
        }
        requests.sort_by_key(|request| request.began);
        Ok(requests)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // nobody asks for the outcome
        }
    }
}

impl Shared {
    fn work(&self) -> Vec<Request> {
        let mut requests = Vec::new();
        while !self.stop.load(Ordering::Relaxed) && self.began.elapsed() < DURATION {
            let number = self.begun.fetch_add(1, Ordering::Relaxed);
            if number >= self.plan.requests || self.plan.targets.is_empty() {
                break;
            }
            let target = self.plan.targets[number % self.plan.targets.len()];
            let began = Instant::now();
            let outcome = get_here(target, "/", TIMEOUT).map(|response| response.pod);
            requests.push(Request {
                began,
                ended: Instant::now(),
                outcome,
            });
            self.done.fetch_add(1, Ordering::Relaxed);
            if !self.plan.pause.is_zero() {
                std::thread::sleep(self.plan.pause);
            }
        }
        requests
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// A server of its own on the loopback interface; needs no root.
    fn serve(name: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 1024]);
                let head = format!("HTTP/1.1 200 OK\r\nX-Pod: {name}\r\nContent-Length: 0\r\n\r\n");
                let _ = stream.write_all(head.as_bytes());
            }
        });
        address
    }

    fn shared(plan: Plan) -> Shared {
        Shared {
            plan,
            began: Instant::now(),
            stop: AtomicBool::new(false),
            begun: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
        }
    }

    #[test]
    fn requests_go_to_the_targets_in_turn_and_end_with_their_number() {
        let mut plan = Plan::burst(serve("a"), 5);
        plan.targets.push(serve("b"));
        let requests = shared(plan).work();
        let pods: Vec<&str> = requests
            .iter()
            .map(|r| r.outcome.as_deref().unwrap())
            .collect();
        assert_eq!(pods, ["a", "b", "a", "b", "a"]);
        assert!(requests.iter().all(|r| r.ended > r.began));
    }

    #[test]
    fn a_closed_port_is_a_failure_and_a_stopped_load_begins_nothing() {
        let closed = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let shared = shared(Plan::burst(closed, 2));
        let requests = shared.work();
        assert_eq!(requests.len(), 2);
        assert!(requests.iter().all(|request| request.outcome.is_err()));
        shared.stop.store(true, Ordering::Relaxed);
        assert!(shared.work().is_empty());
    }
}
