//! What becomes of a flow that a former proxy's rules translate.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use datapath_common::{Address, Backend, BackendState, Config, Frontend, FrontendKey, ViaKind};
use ipnet::IpNet;

use super::clients::Client;
use super::conntrack::{Entry, Stage};
use crate::plan::Rows;

/// What the maps say of one backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    pub(super) id: u32,
    pub(super) generation: u32,
    pub(super) via: u8,
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
pub enum Fate {
    /// It is no service's that Tulle has, or is over.
    Foreign,
    /// Its client is a process of this node: the kernel goes on with it, both ways.
    Own,
    /// So it does with that of a client whose packets Tulle's programs do not meet.
    Passed,
    /// Tulle has the service, but not the backend: it breaks.
    Unknown,
    /// It is Tulle's from now on.
    Taken {
        /// Number of its service.
        service: u32,
        /// Where its packets go.
        backend: Known,
        /// Whether the kernel meets its packets behind Tulle, and has to forget it.
        meets_kernel: bool,
    },
}

impl Served {
    /// What is asked of Tulle.
    pub fn fronts(&self) -> impl Iterator<Item = (SocketAddr, u8)> {
        self.services.keys().copied()
    }

    /// Whether a flow is to one of the frontends.
    pub fn is_asked(&self, entry: &Entry) -> bool {
        entry.stage != Stage::Over
            && self
                .services
                .contains_key(&(entry.original.dst, entry.proto))
    }

    /// What becomes of a flow of such a client.
    pub fn fate(&self, entry: &Entry, client: Client) -> Fate {
        let front = (entry.original.dst, entry.proto);
        let (Some(service), true) = (self.services.get(&front), entry.stage != Stage::Over) else {
            return Fate::Foreign;
        };
        match client {
            Client::Own => return Fate::Own,
            Client::Passed => return Fate::Passed,
            Client::Met => {}
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::takeover::conntrack;
    use datapath_common::{Ip4, Via};

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    pub fn entry(client: &str, seen: &str) -> Entry {
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

    #[test]
    fn fates_follow_client_backend_and_way() {
        let plain = entry("10.244.1.9:1000", "10.244.1.9:1000");
        let hidden = entry("198.51.100.1:1000", "192.0.2.1:2000");
        let fate = |via, entry: &Entry| match served(via).fate(entry, Client::Met) {
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
        let by_kernel = |entry| match bridged.fate(entry, Client::Met) {
            Fate::Taken { meets_kernel, .. } => meets_kernel,
            other => panic!("{other:?}"),
        };
        assert!(by_kernel(&plain) && !by_kernel(&hidden));
        let served = served(ViaKind::Local);
        let node = entry("192.0.2.1:1000", "192.0.2.1:2000");
        assert_eq!(served.fate(&node, Client::Own), Fate::Own);
        let other = Entry {
            reply: conntrack::Tuple {
                src: at("10.244.1.6:8080"),
                ..plain.reply
            },
            ..plain
        };
        assert_eq!(served.fate(&other, Client::Met), Fate::Unknown);
        // The kernel has it, whatever Tulle knows.
        for entry in [&plain, &hidden, &other] {
            assert_eq!(served.fate(entry, Client::Passed), Fate::Passed);
        }
        let foreign = Entry {
            original: conntrack::Tuple {
                dst: at("10.96.0.2:80"),
                ..plain.original
            },
            ..plain
        };
        assert_eq!(served.fate(&foreign, Client::Met), Fate::Foreign);
        assert!(served.is_asked(&plain) && !served.is_asked(&foreign));
    }
}
