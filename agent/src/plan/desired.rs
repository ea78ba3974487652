//! `&Model` → the frontends that should exist.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use datapath_common::FrontendFlags;
use ipnet::IpNet;

use super::backends::BackendKey;
use super::compile::{Here, compile};
use super::kind::Kind;
use super::lacking::Lacking;
use super::ops::FrontKey;
use super::sources::SourceRange;
use crate::model::{Family, Fault, Model, NamespacedName, Pod, Protocol, Warning};

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

impl PortKey {
    /// The object that the port is of, as warnings name it.
    pub fn object(&self) -> String {
        match Pod::owned(&self.service) {
            Some(pod) => format!("Pod {}/{pod}", self.service.namespace),
            None => format!("Service {}", self.service),
        }
    }
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
    /// Backends for clients inside (pods of this node and the node itself), in
    /// ascending order, each once.
    pub inside: Vec<BackendKey>,
    /// The same for clients outside.
    pub outside: Vec<BackendKey>,
    /// Bits of [`FrontendFlags`] that follow from the Service:
    /// which empty list drops, masquerade, source ranges.
    pub flags: u16,
    /// Session affinity in seconds, 0 for none.
    pub affinity_secs: u32,
    /// Networks that may open flows, if the flags have `SOURCE_RANGES`.
    pub sources: Vec<IpNet>,
    /// Whether whatever else is sent to the address is refused (KP-28): its
    /// address is a ClusterIP.
    pub marks_address: bool,
    /// Whether there are usable endpoints, but none that its policy, Local, lets it have (KP-160).
    pub lacks_local: bool,
    /// By which new flows of clients inside are given one of them: positions in
    /// the list. Empty if all have one share.
    pub table: Arc<[u16]>,
    /// The same of clients outside.
    pub out_table: Arc<[u16]>,
    /// Of several claims to one frontend the first kind has it (KP-38), then
    /// the first service port by name (KP-25).
    pub kind: Kind,
}

/// What a frontend does for the service port that has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    inside: Vec<BackendKey>,
    /// `None` if it is the same list.
    outside: Option<Vec<BackendKey>>,
    /// As in [`Wanted`].
    pub flags: u16,
    /// As in [`Wanted`].
    pub affinity_secs: u32,
    sources: Vec<IpNet>,
    marks_address: bool,
    table: Arc<[u16]>,
    out_table: Arc<[u16]>,
}

impl Claim {
    /// Backends for clients inside, and the table of positions among them.
    pub fn inside(&self) -> (&[BackendKey], &[u16]) {
        (&self.inside, &self.table)
    }

    /// The same for clients outside, where they are other ones.
    pub fn outside(&self) -> Option<(&[BackendKey], &[u16])> {
        let outside = self.outside.as_deref()?;
        Some((outside, &self.out_table))
    }

    /// Networks of a family that may open flows; `None` if all may.
    pub fn ranges(&self, family: Family) -> Option<impl Iterator<Item = SourceRange>> {
        let asks = self.flags & FrontendFlags::SOURCE_RANGES != 0;
        let nets = self.sources.iter();
        let ours = nets.filter(move |net| Family::of(net.addr()) == family);
        asks.then(|| ours.map(SourceRange::new))
    }
}

impl From<Wanted> for (FrontKey, Claimant, Claim) {
    fn from(wanted: Wanted) -> Self {
        let outside = (wanted.outside != wanted.inside).then_some(wanted.outside);
        let claim = Claim {
            inside: wanted.inside,
            outside,
            flags: wanted.flags,
            affinity_secs: wanted.affinity_secs,
            sources: wanted.sources,
            marks_address: wanted.marks_address,
            table: wanted.table,
            out_table: wanted.out_table,
        };
        (wanted.front, (wanted.kind, wanted.port), claim)
    }
}

/// The lowest has a contested frontend.
type Claimant = (Kind, PortKey);

/// All frontends that should exist, kept up to date one Service at a time.
#[derive(Debug, Default)]
pub struct Desired {
    /// What each Service claims.
    claims_of: HashMap<NamespacedName, Vec<(FrontKey, Claimant)>>,
    /// Who claims a frontend, in ascending order; hardly ever more than one.
    claims: BTreeMap<FrontKey, Vec<(Claimant, Claim)>>,
    contested: BTreeSet<FrontKey>,
    /// Number of claims that mark each service address.
    addresses: HashMap<IpAddr, u32>,
    /// What lacks endpoints on this node.
    lacking: Lacking,
}

impl Desired {
    /// Compiles everything.
    pub fn whole(model: &Model, here: &Here) -> Self {
        let mut desired = Self::default();
        let mut touched = BTreeSet::new();
        for owner in model.owners() {
            let wanted = compile(model, owner, here);
            desired.update(owner, wanted, &mut touched);
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
        let claims: Vec<_> = wanted
            .iter()
            .map(|w| (w.front, (w.kind, w.port.clone())))
            .collect();
        self.lacking.set(service, &wanted);
        let old = if claims.is_empty() {
            self.claims_of.remove(service)
        } else {
            self.claims_of.insert(service.clone(), claims)
        };
        for (front, claimant) in old.into_iter().flatten() {
            self.withdraw(front, &claimant, touched);
        }
        for wanted in wanted {
            let (front, claimant, claim) = wanted.into();
            touched.insert(front);
            let claims = self.claims.entry(front).or_default();
            let marks = claim.marks_address;
            let former = match claims.binary_search_by(|(held, _)| held.cmp(&claimant)) {
                Ok(at) => Some(std::mem::replace(&mut claims[at].1, claim)),
                Err(at) => {
                    claims.reserve_exact(1);
                    claims.insert(at, (claimant, claim));
                    None
                }
            };
            if claims.len() > 1 {
                self.contested.insert(front);
            }
            if marks {
                self.mark(front.addr, touched);
            }
            if former.is_some_and(|former| former.marks_address) {
                self.unmark(front.addr, touched);
            }
        }
    }

    /// Who has a frontend and what it does.
    pub fn frontend(&self, front: &FrontKey) -> Option<(&PortKey, &Claim)> {
        let ((_, port), claim) = self.claims.get(front)?.first()?;
        Some((port, claim))
    }

    /// Networks that may use a service port; `None` if no frontend of it asks for them.
    pub fn sources(&self, port: &PortKey) -> Option<BTreeSet<SourceRange>> {
        let mut sources = None;
        let claims = self.claims_of.get(&port.service).into_iter().flatten();
        for (front, _) in claims.filter(|(_, (_, claimed))| claimed == port) {
            let holder = self.frontend(front).filter(|(holder, _)| *holder == port);
            let ranges = holder.and_then(|(_, claim)| claim.ranges(port.family));
            if let Some(ranges) = ranges {
                sources.get_or_insert_with(BTreeSet::new).extend(ranges);
            }
        }
        sources
    }

    /// Whether the address is a service's alone, so that whatever meets no frontend is refused.
    pub fn has_address(&self, addr: IpAddr) -> bool {
        self.addresses.contains_key(&addr)
    }

    /// All frontends, without the rows that mark addresses.
    pub fn frontends(&self) -> impl Iterator<Item = &FrontKey> {
        self.claims.keys()
    }

    /// All addresses that are a service's alone.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.keys().copied()
    }

    /// Services with a frontend.
    pub fn names(&self) -> impl Iterator<Item = &NamespacedName> {
        self.claims_of.keys()
    }

    /// How many service ports have usable endpoints, but none that a Local policy lets this node use:
    /// by internal and external policy, for IPv4 and IPv6 each.
    pub const fn lacking_local(&self) -> [[usize; 2]; 2] {
        self.lacking.counts()
    }

    /// Number of Services with a frontend.
    pub fn services(&self) -> usize {
        self.claims_of.len()
    }

    /// What a Service claims.
    pub fn claimed(&self, service: &NamespacedName) -> Vec<(FrontKey, PortKey)> {
        let claims = self.claims_of.get(service).into_iter().flatten();
        claims
            .map(|(front, (_, port))| (*front, port.clone()))
            .collect()
    }

    /// Whether a service port exists.
    pub fn has_port(&self, port: &PortKey) -> bool {
        self.claims_of
            .get(&port.service)
            .is_some_and(|claims| claims.iter().any(|(_, (_, claimed))| claimed == port))
    }

    /// Whether more than one service port claims a frontend.
    pub fn has_contests(&self) -> bool {
        !self.contested.is_empty()
    }

    /// Frontends that more than one service port claims.
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        for front in &self.contested {
            let claims = self.claims.get(front).into_iter().flatten();
            let mut claims = claims.map(|(claimant, _)| claimant);
            let Some((kind, winner)) = claims.next() else {
                continue;
            };
            warnings.extend(claims.map(|(lost, loser)| {
                let problem = format!(
                    "{} port {} belongs to {}, {}, already",
                    front.addr,
                    front.port,
                    winner.object(),
                    kind.field()
                );
                let fault = Fault::new(lost.field(), problem, lost.mend());
                Warning::new(loser.object(), fault)
            }));
        }
        warnings
    }

    fn withdraw(&mut self, front: FrontKey, claimant: &Claimant, touched: &mut BTreeSet<FrontKey>) {
        touched.insert(front);
        let Some(claims) = self.claims.get_mut(&front) else {
            return;
        };
        let at = claims.binary_search_by(|(held, _)| held.cmp(claimant));
        let former = at.ok().map(|at| claims.remove(at).1);
        if claims.len() < 2 {
            self.contested.remove(&front);
        }
        if claims.is_empty() {
            self.claims.remove(&front);
        }
        if former.is_some_and(|former| former.marks_address) {
            self.unmark(front.addr, touched);
        }
    }

    fn mark(&mut self, addr: IpAddr, touched: &mut BTreeSet<FrontKey>) {
        let count = self.addresses.entry(addr).or_default();
        *count += 1;
        if *count == 1 {
            touched.insert(FrontKey::address(addr));
        }
    }

    fn unmark(&mut self, addr: IpAddr, touched: &mut BTreeSet<FrontKey>) {
        let Some(count) = self.addresses.get_mut(&addr) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            self.addresses.remove(&addr);
            touched.insert(FrontKey::address(addr));
        }
    }
}
