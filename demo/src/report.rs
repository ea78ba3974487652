//! What requests tell: counts, times, and whether a spread is even.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::traffic::Request;

/// A good spread is taken for a bad one once in e^12, about 160,000, times.
const DOUBT: f64 = 12.0;

/// Answers by the pod that gave them.
pub fn by_pod(requests: &[Request]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for pod in requests.iter().filter_map(|r| r.outcome.as_ref().ok()) {
        *counts.entry(pod.clone()).or_default() += 1;
    }
    counts
}

/// How many requests failed, and the first failures in words.
pub fn failures(requests: &[Request]) -> (usize, String) {
    let texts: Vec<String> = requests
        .iter()
        .filter_map(|request| request.outcome.as_ref().err())
        .map(ToString::to_string)
        .collect();
    let first: Vec<&str> = texts.iter().take(3).map(String::as_str).collect();
    (texts.len(), first.join("; "))
}

/// The time that `percent` of the answered requests did not exceed.
pub fn percentile(requests: &[Request], percent: usize) -> Option<Duration> {
    let mut times: Vec<Duration> = requests
        .iter()
        .filter(|request| request.outcome.is_ok())
        .map(|request| request.ended - request.began)
        .collect();
    times.sort_unstable();
    let at = (times.len() * percent.min(100)).div_ceil(100).max(1) - 1;
    times.get(at).copied()
}

/// The longest time without an answer, between the first and the last one.
pub fn longest_silence(requests: &[Request]) -> Duration {
    let mut ends: Vec<Instant> = requests
        .iter()
        .filter(|request| request.outcome.is_ok())
        .map(|request| request.ended)
        .collect();
    ends.sort_unstable();
    let gaps = ends.windows(2).map(|pair| pair[1] - pair[0]);
    gaps.max().unwrap_or_default()
}

/// Whether counts look like even chance among `pods`: nobody else answered,
/// and Pearson's chi-squared is below the bound of Laurent and Massart (2000,
/// lemma 1), `k + 2 sqrt(k x) + 2 x` at `k` degrees of freedom.
pub fn is_even(counts: &BTreeMap<String, usize>, pods: &[String]) -> bool {
    let total: usize = counts.values().sum();
    if pods.is_empty() || total == 0 || counts.keys().any(|pod| !pods.contains(pod)) {
        return false;
    }
    let expected = number(total) / number(pods.len());
    let chi_squared: f64 = pods
        .iter()
        .map(|pod| number(counts.get(pod).copied().unwrap_or(0)) - expected)
        .map(|off| off * off / expected)
        .sum();
    let freedom = number(pods.len() - 1);
    chi_squared <= freedom + 2.0 * (freedom * DOUBT).sqrt() + 2.0 * DOUBT
}

/// A count for arithmetic; counts here are far below 2^32.
fn number(count: usize) -> f64 {
    f64::from(count as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::http::{FailureKind, RequestError};

    fn request(start: Instant, began: u64, ended: u64, pod: Option<&str>) -> Request {
        Request {
            began: start + Duration::from_millis(began),
            ended: start + Duration::from_millis(ended),
            outcome: pod.map(str::to_owned).ok_or_else(|| RequestError {
                kind: FailureKind::Refused,
                text: "no".to_owned(),
            }),
        }
    }

    #[test]
    fn answers_failures_and_times_are_told_apart() {
        let start = Instant::now();
        let requests = [
            request(start, 0, 1, Some("a")),
            request(start, 1, 4, Some("b")),
            request(start, 2, 100, None),
            request(start, 3, 9, Some("a")),
        ];
        assert_eq!(
            by_pod(&requests),
            BTreeMap::from([("a".into(), 2), ("b".into(), 1)])
        );
        assert_eq!(failures(&requests), (1, "Refused: no".to_owned()));
        assert_eq!(percentile(&requests, 50), Some(Duration::from_millis(3)));
        assert_eq!(percentile(&requests, 99), Some(Duration::from_millis(6)));
        assert_eq!(percentile(&requests[2..3], 50), None);
        assert_eq!(longest_silence(&requests), Duration::from_millis(5));
    }

    fn judged(counts: &[usize]) -> bool {
        let pods: Vec<String> = (0..counts.len()).map(|n| format!("p{n}")).collect();
        let counts = pods.iter().cloned().zip(counts.iter().copied()).collect();
        is_even(&counts, &pods)
    }

    #[test]
    fn a_lopsided_spread_is_seen() {
        assert!(judged(&[50, 50, 50, 50, 50, 50]));
        assert!(judged(&[41, 62, 55, 47, 38, 57]));
        assert!(judged(&[300]));
        assert!(!judged(&[60, 60, 60, 60, 60, 0]));
        assert!(!judged(&[100, 100, 100, 0, 0, 0]));
        assert!(!judged(&[300, 0]));
        assert!(!judged(&[0, 0]), "no answer at all");
        assert!(!judged(&[]));
    }

    #[test]
    fn an_answer_of_a_stranger_is_seen() {
        let counts = BTreeMap::from([("a".to_owned(), 10), ("x".to_owned(), 1)]);
        assert!(!is_even(&counts, &["a".to_owned()]));
    }
}
