//! What was asked and answered.

use std::collections::VecDeque;
use std::time::SystemTime;

use super::request::Verb;

/// Most requests that are remembered.
const BOUND: usize = 200_000;

/// A request, in the order of arrival.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// When it came.
    pub at: SystemTime,
    /// Number of the listener that it came to, from 0.
    pub listener: usize,
    /// HTTP method.
    pub method: String,
    /// Path.
    pub path: String,
    /// Parameters, as they were written.
    pub query: String,
    /// What was asked, if it was about a resource.
    pub verb: Option<Verb>,
    /// The resource, `services` or `nodes/status`; empty if it was about none.
    pub resource: String,
    /// The user; empty if it was none who is known.
    pub user: String,
    /// Header `User-Agent`.
    pub agent: String,
    /// HTTP status of the answer; none as long as there is none.
    pub status: Option<u16>,
}

/// The latest requests.
#[derive(Debug, Default)]
pub(super) struct Record {
    requests: VecDeque<Recorded>,
    /// Number of the first that is remembered.
    first: u64,
}

impl Record {
    /// Notes a request; returns its number.
    pub(super) fn begin(&mut self, request: Recorded) -> u64 {
        self.requests.push_back(request);
        if self.requests.len() > BOUND {
            self.requests.pop_front();
            self.first += 1;
        }
        self.first + self.requests.len() as u64 - 1
    }

    fn entry(&mut self, number: u64) -> Option<&mut Recorded> {
        let at = number.checked_sub(self.first)?;
        self.requests.get_mut(at as usize)
    }

    pub(super) fn identify(&mut self, number: u64, user: &str) {
        if let Some(request) = self.entry(number) {
            user.clone_into(&mut request.user);
        }
    }

    pub(super) fn answer(&mut self, number: u64, status: u16) {
        if let Some(request) = self.entry(number) {
            request.status = Some(status);
        }
    }

    pub(super) fn all(&self) -> Vec<Recorded> {
        self.requests.iter().cloned().collect()
    }

    pub(super) fn clear(&mut self) {
        self.first += self.requests.len() as u64;
        self.requests.clear();
    }
}
