//! What requests tell: whether any failed, and whether a spread is even.

use std::collections::BTreeMap;

use testkit::http::LoadReport;

use crate::text::count;

/// A good spread is taken for a bad one once in e^12, about 160,000, times.
const DOUBT: f64 = 12.0;

/// How many requests failed, with the first failures in words; `None` if all
/// were answered.
pub fn failures(load: &LoadReport) -> Option<String> {
    let failures = load.failures.iter().take(3);
    let first: Vec<String> = failures.map(ToString::to_string).collect();
    let all = count(load.requests.len(), "request");
    let failed = load.failures.len();
    (failed > 0).then(|| format!("{failed} of {all} failed: {}", first.join("; ")))
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
    use std::time::Instant;
    use testkit::http::{FailureKind, Request, RequestError};

    #[test]
    fn failures_are_counted_and_the_first_are_told() {
        let now = Instant::now();
        let load = |failed: usize| {
            let request = |n: usize| Request {
                began: now,
                ended: now,
                outcome: if n < failed {
                    Err(RequestError {
                        kind: FailureKind::Refused,
                        text: format!("no {n}"),
                    })
                } else {
                    Ok("a".to_owned())
                },
            };
            LoadReport::of((0..5).map(request).collect())
        };
        assert_eq!(failures(&load(0)), None);
        assert_eq!(
            failures(&load(4)).unwrap(),
            "4 of 5 requests failed: Refused: no 0; Refused: no 1; Refused: no 2"
        );
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
