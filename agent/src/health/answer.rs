//! What is said to a load balancer (pure).

use std::time::{Duration, Instant};

use serde::Serialize;

use super::board::Board;
use crate::model::{Family, NamespacedName};

/// How long something may fail before load balancers are told to go elsewhere,
/// as long as kube-proxy waits (KP-150).
pub const PATIENCE: Duration = Duration::from_mins(1);

/// An answer: the same on every path and to every method (KP-153).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// 200 or 503.
    pub status: u16,
    /// Value of `X-Load-Balancing-Endpoint-Weight`.
    pub weight: usize,
    /// JSON.
    pub body: String,
}

#[derive(Serialize)]
struct Body<'a> {
    service: Name<'a>,
    #[serde(rename = "localEndpoints")]
    local_endpoints: usize,
    #[serde(rename = "serviceProxyHealthy")]
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Name<'a> {
    namespace: &'a str,
    name: &'a str,
}

impl Answer {
    /// What the port of a Service says in a family; nothing if it is not open there.
    /// `busy` is since when the loop is at one piece of work.
    pub fn of(
        board: &Board,
        service: &NamespacedName,
        family: Family,
        busy: Option<Instant>,
        now: Instant,
    ) -> Option<Self> {
        let probe = board.probes.get(service)?;
        let weight = probe.ready(family)?;
        let troubles = [probe.failing, board.failing, busy];
        let healthy = !troubles
            .into_iter()
            .flatten()
            .any(|since| now.saturating_duration_since(since) >= PATIENCE);
        let body = Body {
            service: Name {
                namespace: &service.namespace,
                name: &service.name,
            },
            local_endpoints: weight,
            service_proxy_healthy: healthy,
        };
        Some(Self {
            status: if healthy && weight > 0 { 200 } else { 503 },
            weight,
            body: serde_json::to_string(&body).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::board::Probe;
    use super::*;

    fn said(ready: usize, troubles: [Option<u64>; 3]) -> (u16, usize, String) {
        let start = Instant::now();
        let now = start + Duration::from_secs(1000);
        let ago = |secs| start + Duration::from_secs(1000 - secs);
        let [failing, all, busy] = troubles.map(|secs: Option<u64>| secs.map(ago));
        let web = NamespacedName::new("shop", "web");
        let probe = Probe {
            port: 30_999,
            ready4: Some(ready),
            ready6: None,
            failing,
        };
        let board = Board {
            probes: [(Arc::new(web.clone()), probe)].into(),
            failing: all,
            ..Board::default()
        };
        assert_eq!(Answer::of(&board, &web, Family::V6, busy, now), None);
        let answer = Answer::of(&board, &web, Family::V4, busy, now).unwrap();
        (answer.status, answer.weight, answer.body)
    }

    #[test]
    fn kp153_status_weight_and_body() {
        let body = |n: usize, healthy: bool| {
            format!(
                r#"{{"service":{{"namespace":"shop","name":"web"}},"localEndpoints":{n},"serviceProxyHealthy":{healthy}}}"#
            )
        };
        let none = [None; 3];
        assert_eq!(said(0, none), (503, 0, body(0, true)));
        assert_eq!(said(1, none), (200, 1, body(1, true)));
        assert_eq!(said(3, none), (200, 3, body(3, true)));
        // Each trouble counts by itself, and the number stays.
        for at in 0..3 {
            let since = |secs| {
                let mut troubles = none;
                troubles[at] = Some(secs);
                said(3, troubles)
            };
            assert_eq!(since(59), (200, 3, body(3, true)), "trouble {at}");
            assert_eq!(since(60), (503, 3, body(3, false)), "trouble {at}");
        }
    }

    #[test]
    fn a_service_that_is_gone_says_nothing() {
        let gone = NamespacedName::new("shop", "gone");
        let now = Instant::now();
        assert_eq!(
            Answer::of(&Board::default(), &gone, Family::V4, None, now),
            None
        );
    }
}
