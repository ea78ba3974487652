//! Names of services, kept between readings: the agent is asked again only when there is a reason.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use admin_api::{Client, ClientError, Protocol, Service};
use datapath_common::proto;

/// Names are asked for again after this, whatever happened.
const REFRESH: Duration = Duration::from_mins(1);
/// And not before this, even if a name is missing: the agent may not know it either.
const LEAST: Duration = Duration::from_secs(2);
/// Asking takes at most one part in so many of the time.
const SHARE: u32 = 20;

/// Names by service number, with the frontends that the agent meant.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServiceNames {
    by_number: HashMap<u32, Named>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Named {
    name: String,
    frontends: Vec<(SocketAddr, u8)>,
}

impl ServiceNames {
    /// What the agent told.
    pub fn new(services: &[Service]) -> Self {
        let named = services.iter().map(|service| {
            let frontends = service.frontends.iter().map(|frontend| {
                let proto = match frontend.protocol {
                    Protocol::Tcp => proto::TCP,
                    Protocol::Udp => proto::UDP,
                    Protocol::Sctp => proto::SCTP,
                };
                (frontend.address, proto)
            });
            let named = Named {
                name: service.full_name(),
                frontends: frontends.collect(),
            };
            (service.number, named)
        });
        Self {
            by_number: named.collect(),
        }
    }

    /// The name of the service with this number, unless the number has been given to another since:
    /// then none of its frontends is one that the agent told.
    pub fn name(&self, number: u32, frontends: &[(SocketAddr, u8)]) -> Option<&str> {
        let named = self.by_number.get(&number)?;
        let known = named.frontends.is_empty()
            || frontends.is_empty()
            || frontends.iter().any(|f| named.frontends.contains(f));
        known.then_some(named.name.as_str())
    }
}

/// Which agent told the names: its process and when it started.
pub type AgentId = (u32, u64);

/// Names, and when they were asked for.
#[derive(Debug, Default)]
pub struct NameCache {
    names: ServiceNames,
    told_by: Option<AgentId>,
    asked: Option<(Instant, Duration)>,
    missing: bool,
}

impl NameCache {
    /// The names.
    pub const fn names(&self) -> &ServiceNames {
        &self.names
    }

    /// Remembers whether a service of the last reading had no name.
    pub const fn note_missing(&mut self, missing: bool) {
        self.missing = missing;
    }

    /// Whether to ask this agent now.
    pub fn due(&self, agent: AgentId, now: Instant) -> bool {
        let Some((asked, took)) = self.asked else {
            return true;
        };
        let age = now.saturating_duration_since(asked);
        let least = LEAST.max(took * SHARE);
        age >= REFRESH.max(least) || (age >= least && (self.missing || self.told_by != Some(agent)))
    }

    /// Asks the agent.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; the former names stay.
    pub fn refresh(&mut self, client: &mut Client, agent: AgentId) -> Result<(), ClientError> {
        let began = Instant::now();
        let services = client.services();
        let ended = Instant::now();
        self.asked = Some((ended, ended - began));
        self.names = ServiceNames::new(&services?);
        self.told_by = Some(agent);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use admin_api::FrontendAddress;

    use super::*;

    fn service(number: u32, name: &str, frontends: &[&str]) -> Service {
        let frontend = |address: &&str| FrontendAddress {
            address: address.parse().unwrap(),
            protocol: Protocol::Tcp,
        };
        Service {
            number,
            namespace: "default".into(),
            name: name.into(),
            port_name: "http".into(),
            family: 4,
            frontends: frontends.iter().map(frontend).collect(),
        }
    }

    #[test]
    fn a_number_of_another_service_has_no_name() {
        let names = ServiceNames::new(&[
            service(7, "web", &["10.96.0.10:80", "192.168.0.1:30080"]),
            service(8, "old", &[]),
        ]);
        let at = |text: &str, proto| (text.parse::<SocketAddr>().unwrap(), proto);
        let web = [
            at("10.96.0.9:80", proto::TCP),
            at("10.96.0.10:80", proto::TCP),
        ];
        assert_eq!(names.name(7, &web), Some("default/web:http"));
        assert_eq!(names.name(7, &[at("10.96.0.11:80", proto::TCP)]), None);
        assert_eq!(names.name(7, &[at("10.96.0.10:80", proto::UDP)]), None);
        assert_eq!(names.name(8, &web), Some("default/old:http"));
        assert_eq!(names.name(9, &web), None);
    }

    #[test]
    fn the_agent_is_asked_when_there_is_a_reason() {
        let start = Instant::now();
        let after = |secs| start + Duration::from_secs(secs);
        let mut cache = NameCache::default();
        assert!(cache.due((1, 1), start), "never asked");
        cache.asked = Some((start, Duration::from_millis(10)));
        cache.told_by = Some((1, 1));
        assert!(!cache.due((1, 1), after(59)));
        assert!(cache.due((1, 1), after(60)));
        assert!(!cache.due((2, 1), after(1)), "not again and again");
        assert!(cache.due((2, 1), after(2)), "another agent");
        cache.note_missing(true);
        assert!(!cache.due((1, 1), after(1)));
        assert!(cache.due((1, 1), after(2)), "a service without a name");
        cache.asked = Some((start, Duration::from_secs(1)));
        assert!(!cache.due((1, 1), after(19)), "asking is dear");
        assert!(cache.due((1, 1), after(20)));
    }
}
