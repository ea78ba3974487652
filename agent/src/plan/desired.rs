//! `&Model` → the frontends that should exist.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;

use super::backends::BackendKey;
use super::ops::FrontKey;
use crate::model::{
    Exposure, Family, Fault, Model, NamespacedName, Protocol, Service, Warning, usable,
};

/// A service port in one family: what a service number stands for.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PortKey {
    /// The Service.
    pub service: NamespacedName,
    /// Name of the port; empty for a single unnamed one.
    pub port: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Family.
    pub family: Family,
}

impl fmt::Display for PortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.service)?;
        if !self.port.is_empty() {
            write!(f, ":{}", self.port)?;
        }
        Ok(())
    }
}

/// A frontend that should exist.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// What it answers on.
    pub front: FrontKey,
    /// For which service port.
    pub port: PortKey,
    /// Its backends in ascending order, each once; none means that it refuses (KP-53).
    pub backends: Vec<BackendKey>,
}

/// The frontends of one Service.
pub fn compile(model: &Model, name: &NamespacedName) -> Vec<Wanted> {
    match model.service(name) {
        Some(service) if service.exposure == Exposure::Served => frontends(model, service),
        _ => Vec::new(),
    }
}

fn frontends(model: &Model, service: &Service) -> Vec<Wanted> {
    let mut wanted = Vec::with_capacity(service.cluster_ips.len() * service.ports.len());
    for addr in &service.cluster_ips {
        let family = Family::of(*addr);
        for port in &service.ports {
            let proto = port.protocol.number();
            let backends = usable(model.slices_of(&service.name), family, port)
                .into_iter()
                .map(|at| BackendKey {
                    addr: at.ip(),
                    port: at.port(),
                    proto,
                })
                .collect();
            wanted.push(Wanted {
                front: FrontKey {
                    addr: *addr,
                    port: port.port,
                    proto,
                },
                port: PortKey {
                    service: service.name.clone(),
                    port: port.name.clone(),
                    protocol: port.protocol,
                    family,
                },
                backends,
            });
        }
    }
    wanted
}

/// All frontends that should exist, kept up to date one Service at a time.
#[derive(Debug, Default)]
pub struct Desired {
    /// What each Service claims.
    claims_of: HashMap<NamespacedName, Vec<(FrontKey, PortKey)>>,
    /// Who claims a frontend; the first by name has it (KP-25).
    claims: BTreeMap<FrontKey, BTreeMap<PortKey, Vec<BackendKey>>>,
    contested: BTreeSet<FrontKey>,
    /// Number of frontends of each service address.
    addresses: HashMap<IpAddr, u32>,
}

impl Desired {
    /// Compiles everything.
    pub fn whole(model: &Model) -> Self {
        let mut desired = Self::default();
        let mut touched = BTreeSet::new();
        for service in model.services() {
            desired.update(&service.name, compile(model, &service.name), &mut touched);
        }
        desired
    }

    /// Replaces what `service` claims and adds the frontends (those that mark
    /// addresses too) that may have changed to `touched`.
    pub fn update(
        &mut self,
        service: &NamespacedName,
        wanted: Vec<Wanted>,
        touched: &mut BTreeSet<FrontKey>,
    ) {
        let claims: Vec<_> = wanted.iter().map(|w| (w.front, w.port.clone())).collect();
        let old = if claims.is_empty() {
            self.claims_of.remove(service)
        } else {
            self.claims_of.insert(service.clone(), claims)
        };
        for (front, port) in old.into_iter().flatten() {
            self.withdraw(front, &port, touched);
        }
        for Wanted {
            front,
            port,
            backends,
        } in wanted
        {
            touched.insert(front);
            let claims = self.claims.entry(front).or_default();
            if claims.is_empty() {
                *self.addresses.entry(front.addr).or_default() += 1;
                touched.insert(FrontKey::address(front.addr));
            }
            claims.insert(port, backends);
            if claims.len() > 1 {
                self.contested.insert(front);
            }
        }
    }

    /// Who has a frontend and what its backends are.
    pub fn frontend(&self, front: &FrontKey) -> Option<(&PortKey, &[BackendKey])> {
        let (port, backends) = self.claims.get(front)?.first_key_value()?;
        Some((port, backends))
    }

    /// Whether the address belongs to a service.
    pub fn has_address(&self, addr: IpAddr) -> bool {
        self.addresses.contains_key(&addr)
    }

    /// All frontends, without the rows that mark addresses.
    pub fn frontends(&self) -> impl Iterator<Item = &FrontKey> {
        self.claims.keys()
    }

    /// All service addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.keys().copied()
    }

    /// Number of Services with a frontend.
    pub fn services(&self) -> usize {
        self.claims_of.len()
    }

    /// What a Service claims.
    pub fn claimed(&self, service: &NamespacedName) -> Vec<(FrontKey, PortKey)> {
        self.claims_of.get(service).cloned().unwrap_or_default()
    }

    /// Whether a service port exists.
    pub fn has_port(&self, port: &PortKey) -> bool {
        self.claims_of
            .get(&port.service)
            .is_some_and(|claims| claims.iter().any(|(_, claimed)| claimed == port))
    }

    /// Frontends that more than one service port claims.
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        for front in &self.contested {
            let mut claims = self.claims.get(front).into_iter().flat_map(BTreeMap::keys);
            let Some(winner) = claims.next() else {
                continue;
            };
            warnings.extend(claims.map(|loser| {
                let fault = Fault::new(
                    "spec.clusterIPs",
                    format!(
                        "{} port {} belongs to {winner} already",
                        front.addr, front.port
                    ),
                    "give each Service its own address or port",
                );
                Warning::new(format!("Service {}", loser.service), fault)
            }));
        }
        warnings
    }

    fn withdraw(&mut self, front: FrontKey, port: &PortKey, touched: &mut BTreeSet<FrontKey>) {
        touched.insert(front);
        let Some(claims) = self.claims.get_mut(&front) else {
            return;
        };
        claims.remove(port);
        if claims.len() < 2 {
            self.contested.remove(&front);
        }
        if !claims.is_empty() {
            return;
        }
        self.claims.remove(&front);
        touched.insert(FrontKey::address(front.addr));
        if let Some(count) = self.addresses.get_mut(&front.addr) {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&front.addr);
            }
        }
    }
}
