//! Flows that kube-proxy's rules translate become Tulle's own: their rows are written before any
//! program is attached (`docs/adr/0005-flows-of-a-former-proxy.md`).

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};

use aya::Pod;
use aya::maps::{HashMap as Table, MapData, MapError};
use datapath_common::{
    Address, Backend, BackendState, Config, Direction, Flow, FlowKey, FlowState, Frontend,
    FrontendKey, Ip4, Ip6, NodeClient, ViaKind,
};
use ipnet::IpNet;

use super::conntrack::{self, Entry, Stage};
use super::hold::Hold;
use super::left::own_addresses;
use super::nfnl::Nfnl;
use crate::kernel::{Maps, NO_EXIST, TableError, now_ticks};
use crate::plan::{FrontKey, Rows};

/// What the maps say of one backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Known {
    id: u32,
    generation: u32,
    via: u8,
}

/// Frontends and backends by address, port and protocol.
#[derive(Default, Debug)]
pub struct Served {
    services: HashMap<(SocketAddr, u8), u32>,
    backends: HashMap<(SocketAddr, u8), Known>,
    /// Where the pods behind the bridge are, if there is one.
    bridged: Vec<IpNet>,
}

impl Served {
    /// From the maps' rows.
    pub fn new(rows: &Rows, config: &Config) -> Self {
        let mut served = Self::default();
        if config.bridge != 0 {
            let four = IpNet::with_netmask(config.pod_net4.to_ip(), config.pod_mask4.to_ip());
            let six = IpNet::with_netmask(config.pod_net6.to_ip(), config.pod_mask6.to_ip());
            served.bridged = [four, six].into_iter().flatten().collect();
        }
        served.take(&rows.front_v4, &rows.back_v4);
        served.take(&rows.front_v6, &rows.back_v6);
        served
    }

    /// Whether an address is behind the bridge.
    fn is_bridged(&self, ip: IpAddr) -> bool {
        self.bridged.iter().any(|network| network.contains(&ip))
    }

    fn take<A: Address>(
        &mut self,
        fronts: &[(FrontendKey<A>, Frontend)],
        backends: &[(u32, Backend<A>)],
    ) {
        let at = |addr: A, port, protocol| (SocketAddr::new(addr.to_ip(), port), protocol);
        let fronts = fronts.iter().filter(|(key, _)| key.port != 0);
        self.services
            .extend(fronts.map(|(key, row)| (at(key.addr, key.port, key.proto), row.service)));
        let active = |row: &&(u32, Backend<A>)| row.1.state == BackendState::Active as u8;
        self.backends
            .extend(backends.iter().filter(active).map(|(id, row)| {
                let known = Known {
                    id: *id,
                    generation: row.generation,
                    via: row.via.kind,
                };
                (at(row.addr, row.port, row.proto), known)
            }));
    }
}

/// What becomes of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// It is no service's that Tulle has, or is over.
    Foreign,
    /// Its client is a process of this node: the kernel goes on with it, both ways.
    Own,
    /// Tulle has the service, but not the backend: it breaks.
    Unknown,
    /// It is Tulle's from now on.
    Taken {
        service: u32,
        backend: Known,
        /// Whether the kernel meets its packets behind Tulle, and has to forget it.
        meets_kernel: bool,
    },
}

impl Served {
    fn fate(&self, entry: &Entry, own: &BTreeSet<IpAddr>) -> Fate {
        let front = (entry.original.dst, entry.proto);
        let (Some(service), true) = (self.services.get(&front), entry.stage != Stage::Over) else {
            return Fate::Foreign;
        };
        if own.contains(&entry.original.src.ip()) {
            return Fate::Own;
        }
        let Some(backend) = self.backends.get(&(entry.reply.src, entry.proto)) else {
            return Fate::Unknown;
        };
        let via = |kind: ViaKind| backend.via == kind as u8;
        // Pods behind the bridge meet other nodes' by the kernel; it is passed by on the way to them.
        let forwarded = if via(ViaKind::Vxlan) {
            self.is_bridged(entry.original.src.ip())
        } else {
            via(ViaKind::Kernel) && !self.is_bridged(entry.reply.src.ip())
        };
        Fate::Taken {
            service: *service,
            backend: *backend,
            meets_kernel: via(ViaKind::Host) || forwarded && !entry.is_masqueraded(),
        }
    }
}

/// The two rows of a flow, the reply's first. Without a backend the flow is the kernel's: only the
/// reply's row, by which the programs translate nothing (a *straight* one, `docs/datapath.md`).
fn rows<A: Address>(
    entry: &Entry,
    backend: Option<(u32, Known)>,
    now: u32,
    address: impl Fn(IpAddr) -> Option<A>,
) -> Option<Vec<(FlowKey<A>, Flow<A>)>> {
    let (client, front) = (entry.original.src, entry.original.dst);
    let (server, seen) = (entry.reply.src, entry.reply.dst);
    let key = |src: SocketAddr, dst: SocketAddr, direction| {
        Some(FlowKey {
            src: address(src.ip())?,
            dst: address(dst.ip())?,
            sport: src.port(),
            dport: dst.port(),
            proto: entry.proto,
            direction: direction as u8,
            reserved: 0,
        })
    };
    let state = match entry.stage {
        Stage::Opening => FlowState::Opening,
        Stage::Established => FlowState::Established,
        Stage::Closing | Stage::Over => FlowState::Closing,
    };
    let row = |at: SocketAddr, nat: Option<SocketAddr>| {
        let nat = nat.filter(|_| entry.is_masqueraded());
        Some(Flow {
            addr: address(at.ip())?,
            nat_addr: nat.map_or(Some(A::UNSPECIFIED), |nat| address(nat.ip()))?,
            port: at.port(),
            nat_port: nat.map_or(0, |nat| nat.port()),
            state: state as u8,
            hairpin: 0,
            node: NodeClient::No as u8,
            counted: 0,
            backend: backend.map_or(0, |(_, known)| known.id),
            generation: backend.map_or(0, |(_, known)| known.generation),
            service: backend.map_or(0, |(service, _)| service),
            opened: now,
            seen: now,
        })
    };
    let reply = key(server, seen, Direction::Reply)?;
    if backend.is_none() {
        return Some(vec![(reply, row(server, None)?)]);
    }
    let forward = key(client, front, Direction::Forward)?;
    Some(vec![
        (reply, row(front, Some(client))?),
        (forward, row(server, Some(seen))?),
    ])
}

/// What was done.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Done {
    /// Flows that are Tulle's now.
    pub taken: usize,
    /// Flows of processes of this node.
    pub own: usize,
    /// Flows to backends that Tulle does not have.
    pub unknown: usize,
    /// Frontends of those that are Tulle's.
    pub fronts: BTreeSet<FrontKey>,
}

/// The flows of a former proxy on their way to Tulle.
pub struct Import {
    netlink: Nfnl,
    hold: Option<Hold>,
    served: Served,
    own: BTreeSet<IpAddr>,
    meets_kernel: Vec<Entry>,
    known: BTreeSet<Flow5>,
    done: Done,
}

/// What tells a flow from others.
type Flow5 = (u8, conntrack::Tuple);

/// Why flows could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The kernel does not tell of its flows.
    #[error("cannot ask connection tracking for the flows of a former proxy: {0}")]
    Conntrack(#[from] io::Error),
    /// A row was not taken.
    #[error("cannot take over flows of a former proxy: {0}")]
    Table(#[from] TableError),
    /// This node's addresses are not known.
    #[error("cannot tell flows of this node's processes from others: {0:#}")]
    Addresses(anyhow::Error),
}

impl Import {
    /// Before anything is attached: writes the rows of all flows that there are. `None` if the
    /// kernel translates none.
    pub fn begin(maps: &mut Maps, config: &Config) -> Result<Option<Self>, ImportError> {
        if conntrack::tracks_nothing() {
            return Ok(None);
        }
        let rows = maps.read_back()?;
        let served = Served::new(&rows, config);
        let own = own_addresses().map_err(ImportError::Addresses)?;
        // From here on connections wait.
        let hold = Hold::begin().map_err(|error| {
            tracing::warn!(
                "connections that a former proxy opens at this very moment may break: nftables \
                 does not hold them back: {error}"
            );
        });
        let mut import = Self {
            netlink: Nfnl::open()?,
            hold: hold.ok(),
            served,
            own,
            meets_kernel: Vec::new(),
            known: BTreeSet::new(),
            done: Done::default(),
        };
        import.look(maps)?;
        Ok((!import.known.is_empty()).then_some(import))
    }

    /// What was done so far.
    pub const fn done(&self) -> &Done {
        &self.done
    }

    /// After everything was attached: has the kernel forget flows whose packets it meets behind
    /// Tulle, lets connections come again, and takes over what came meanwhile.
    pub fn finish(mut self, maps: &mut Maps) -> Result<Done, ImportError> {
        self.forget()?;
        if let Some(hold) = self.hold.take() {
            hold.end()?;
        }
        self.look(maps)?;
        self.forget()?;
        Ok(self.done)
    }

    fn forget(&mut self) -> io::Result<()> {
        for entry in self.meets_kernel.drain(..) {
            conntrack::forget(&mut self.netlink, &entry)?;
        }
        Ok(())
    }

    /// Takes over flows that it did not know.
    fn look(&mut self, maps: &mut Maps) -> Result<(), ImportError> {
        let now = now_ticks();
        let mut held = Vec::new();
        for entry in conntrack::translated(&mut self.netlink)? {
            if !self.known.insert((entry.proto, entry.original)) {
                continue;
            }
            match self.served.fate(&entry, &self.own) {
                Fate::Foreign => {}
                Fate::Own => {
                    // Nobody else is given the port that the kernel gave it.
                    if entry.is_masqueraded() {
                        write(maps, &entry, None, now)?;
                    }
                    self.done.own += 1;
                }
                Fate::Unknown => self.done.unknown += 1,
                Fate::Taken {
                    service,
                    backend,
                    meets_kernel,
                } => {
                    // The kernel sees packets until the last program is attached, and not all.
                    conntrack::be_liberal(&mut self.netlink, &entry)?;
                    write(maps, &entry, Some((service, backend)), now)?;
                    self.done.taken += 1;
                    self.done.fronts.insert(FrontKey {
                        addr: entry.original.dst.ip(),
                        port: entry.original.dst.port(),
                        proto: entry.proto,
                    });
                    if meets_kernel {
                        held.push(entry);
                    }
                }
            }
        }
        if let Some(hold) = &mut self.hold
            && !held.is_empty()
        {
            hold.hold(&held)?;
        }
        self.meets_kernel.extend(held);
        Ok(())
    }
}

/// Writes the rows of a flow, unless the programs have some of it already.
fn write(
    maps: &mut Maps,
    entry: &Entry,
    backend: Option<(u32, Known)>,
    now: u32,
) -> Result<(), TableError> {
    if entry.original.src.is_ipv4() {
        let four = |ip| match ip {
            IpAddr::V4(ip) => Some(Ip4::from(ip)),
            IpAddr::V6(_) => None,
        };
        let rows = rows(entry, backend, now, four);
        put(&mut maps.flow_v4, rows)
            .map_err(|e| maps.refused(datapath_common::maps::FLOW_V4, "a flow".to_owned(), e))
    } else {
        let six = |ip| match ip {
            IpAddr::V6(ip) => Some(Ip6::from(ip)),
            IpAddr::V4(_) => None,
        };
        let rows = rows(entry, backend, now, six);
        put(&mut maps.flow_v6, rows)
            .map_err(|e| maps.refused(datapath_common::maps::FLOW_V6, "a flow".to_owned(), e))
    }
}

fn put<A: Address>(
    map: &mut Table<MapData, FlowKey<A>, Flow<A>>,
    rows: Option<Vec<(FlowKey<A>, Flow<A>)>>,
) -> Result<(), MapError>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    for (key, row) in rows.into_iter().flatten() {
        match map.insert(key, row, NO_EXIST) {
            Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::EEXIST) => {}
            done => done?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use datapath_common::Via;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn entry(client: &str, seen: &str) -> Entry {
        Entry {
            proto: 6,
            original: conntrack::Tuple {
                src: at(client),
                dst: at("10.96.0.1:80"),
            },
            reply: conntrack::Tuple {
                src: at("10.244.1.5:8080"),
                dst: at(seen),
            },
            stage: Stage::Established,
            timeout: 60,
        }
    }

    fn served(via: ViaKind) -> Served {
        let front = FrontendKey {
            addr: Ip4::new([10, 96, 0, 1]),
            port: 80,
            proto: 6,
            scope: 0,
        };
        let row = Frontend {
            service: 9,
            ..Frontend::default()
        };
        let backend = Backend {
            addr: Ip4::new([10, 244, 1, 5]),
            port: 8080,
            proto: 6,
            state: BackendState::Active as u8,
            generation: 3,
            via: Via {
                kind: via as u8,
                ..Via::default()
            },
        };
        let mut served = Served::default();
        served.take(&[(front, row)], &[(7, backend)]);
        served
    }

    fn four(ip: IpAddr) -> Option<Ip4> {
        match ip {
            IpAddr::V4(ip) => Some(ip.into()),
            IpAddr::V6(_) => None,
        }
    }

    #[test]
    fn fates_follow_client_backend_and_way() {
        let own = BTreeSet::from(["192.0.2.1".parse().unwrap()]);
        let plain = entry("10.244.1.9:1000", "10.244.1.9:1000");
        let hidden = entry("198.51.100.1:1000", "192.0.2.1:2000");
        let fate = |via, entry: &Entry| match served(via).fate(entry, &own) {
            Fate::Taken { meets_kernel, .. } => Some(meets_kernel),
            _ => None,
        };
        for (via, of_plain, of_hidden) in [
            (ViaKind::Local, false, false),
            (ViaKind::Vxlan, false, false),
            (ViaKind::Kernel, true, false),
            (ViaKind::Host, true, true),
        ] {
            assert_eq!(fate(via, &plain), Some(of_plain), "{via:?}");
            assert_eq!(fate(via, &hidden), Some(of_hidden), "{via:?}");
        }
        let mut bridged = served(ViaKind::Vxlan);
        bridged.bridged = vec!["10.244.1.0/24".parse().unwrap()];
        let by_kernel = |entry| match bridged.fate(entry, &own) {
            Fate::Taken { meets_kernel, .. } => meets_kernel,
            other => panic!("{other:?}"),
        };
        assert!(by_kernel(&plain) && !by_kernel(&hidden));
        let served = served(ViaKind::Local);
        let node = entry("192.0.2.1:1000", "192.0.2.1:2000");
        assert_eq!(served.fate(&node, &own), Fate::Own);
        let other = Entry {
            reply: conntrack::Tuple {
                src: at("10.244.1.6:8080"),
                ..plain.reply
            },
            ..plain
        };
        assert_eq!(served.fate(&other, &own), Fate::Unknown);
        let foreign = Entry {
            original: conntrack::Tuple {
                dst: at("10.96.0.2:80"),
                ..plain.original
            },
            ..plain
        };
        assert_eq!(served.fate(&foreign, &own), Fate::Foreign);
    }

    #[test]
    fn rows_are_each_others_mates() {
        let known = Known {
            id: 7,
            generation: 3,
            via: 0,
        };
        for seen in ["10.244.1.9:1000", "192.0.2.1:2000"] {
            let entry = entry("10.244.1.9:1000", seen);
            let rows = rows(&entry, Some((9, known)), 5, four).unwrap();
            let [(reply_key, reply), (forward_key, forward)] = rows[..] else {
                panic!("{rows:?}");
            };
            assert_eq!(crate::kernel::gc::mate(&reply_key, &reply), forward_key);
            assert_eq!(crate::kernel::gc::mate(&forward_key, &forward), reply_key);
            assert_eq!((reply.port, forward.port), (80, 8080));
            assert_eq!(forward.nat_port != 0, entry.is_masqueraded());
        }
        let kernels = rows(&entry("192.0.2.1:1000", "192.0.2.1:2000"), None, 5, four).unwrap();
        let [(key, row)] = kernels[..] else {
            panic!("{kernels:?}");
        };
        assert_eq!((key.dport, row.backend, row.nat_port), (2000, 0, 0));
        assert_eq!((row.addr, row.port), (key.src, key.sport), "straight");
    }
}
