//! What kube-proxy's mode ipvs left besides chains: virtual servers, the sets that its rules ask,
//! and the device that has the addresses of services.

use std::io;

use super::chains::{DEVICE, is_set};
use super::nfnl::{Attributes, IPSET, Message, Nfnl, Step, attribute, text};
use super::surgery::counted;

const TABLE: &str = "/proc/self/net/ip_vs";

// From `linux/genetlink.h` and `linux/ip_vs.h`.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const FLUSH: u8 = 17;

// From `linux/netfilter/ipset/ip_set.h`.
const SET_DESTROY: u8 = 3;
const SET_LIST: u8 = 7;
const SET_PROTOCOL: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 6;
/// Names only.
const LIST_NAMES: u32 = 1 << 1;
/// The attribute is in network order: the kernel asks for this flag.
const IN_NETWORK_ORDER: u16 = 1 << 14;
/// Version of the protocol, which every kernel since Linux 2.6.39 speaks.
const PROTOCOL: u8 = 6;

/// What mode ipvs left.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Left {
    /// Virtual servers, as `/proc/net/ip_vs` shows them.
    pub servers: Vec<String>,
    /// Sets.
    pub sets: Vec<String>,
}

impl Left {
    /// Looks at this network namespace. A kernel without them has none. Virtual servers bear no
    /// name: they count as kube-proxy's if it is `known` to have been in mode ipvs here, or left sets.
    pub fn find(netlink: &mut Nfnl, known: bool) -> io::Result<Self> {
        let table = std::fs::read_to_string(TABLE).unwrap_or_default();
        Ok(Self::of(servers(&table), sets(netlink)?, known))
    }

    fn of(mut servers: Vec<String>, sets: Vec<String>, known: bool) -> Self {
        if !known && sets.is_empty() {
            servers.clear();
        }
        Self { servers, sets }
    }

    /// Whether there is nothing.
    pub fn is_nothing(&self) -> bool {
        self.servers.is_empty() && self.sets.is_empty()
    }

    /// Takes all virtual servers off, as kube-proxy's own `--cleanup` does: where it has some,
    /// others' are not told from them.
    pub fn flush_servers(&self) -> io::Result<()> {
        if self.servers.is_empty() {
            return Ok(());
        }
        let mut netlink = Nfnl::open_generic()?;
        let family = generic_family(&mut netlink, "IPVS")?;
        netlink.request(Message::generic(family, FLUSH, Attributes::default()))
    }

    /// Deletes the sets; the chains that ask them are gone by then.
    pub fn destroy_sets(&self, netlink: &mut Nfnl) -> io::Result<()> {
        for set in &self.sets {
            let name = protocol().text(SET_NAME, set);
            let destroy = Message::new(IPSET, SET_DESTROY, 0, name);
            match netlink.request(destroy) {
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
                    return Err(io::Error::new(error.kind(), format!("{set}: {error}")));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What there is, for people.
    pub fn sentences(&self) -> Vec<String> {
        let mut sentences = Vec::new();
        if !self.servers.is_empty() {
            sentences.push(format!(
                "IPVS: {}: {}",
                counted(self.servers.len(), "virtual server"),
                self.servers.join(", ")
            ));
        }
        if !self.sets.is_empty() {
            sentences.push(format!(
                "ipset: {}: {}",
                counted(self.sets.len(), "set"),
                self.sets.join(", ")
            ));
        }
        sentences
    }
}

/// Whether there are virtual servers, or the device that has their addresses.
pub fn has_trace() -> bool {
    let table = std::fs::read_to_string(TABLE).unwrap_or_default();
    !servers(&table).is_empty() || nix::net::if_::if_nametoindex(DEVICE).is_ok()
}

/// The virtual servers in `/proc/net/ip_vs`.
fn servers(table: &str) -> Vec<String> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let (protocol, address) = (words.next()?, words.next()?);
        matches!(protocol, "TCP" | "UDP" | "SCTP" | "FWM")
            .then(|| format!("{protocol} {}", readable(address)))
    };
    table.lines().filter_map(server).collect()
}

/// `0A600001:01BB` as `10.96.0.1:443`; IPv6 has its address in brackets already.
fn readable(address: &str) -> String {
    let read = || {
        let (ip, port) = address.rsplit_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        if ip.starts_with('[') {
            return Some(format!("{ip}:{port}"));
        }
        let ip = std::net::Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?);
        Some(format!("{ip}:{port}"))
    };
    read().unwrap_or_else(|| address.to_owned())
}

fn protocol() -> Attributes {
    Attributes::default().bytes(SET_PROTOCOL, &[PROTOCOL])
}

fn sets(netlink: &mut Nfnl) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    let names = protocol().word(SET_FLAGS | IN_NETWORK_ORDER, LIST_NAMES);
    let all = Message::new(IPSET, SET_LIST, 0, names);
    let listed = netlink.dump(&all, |step| match step {
        Step::Begins => found.clear(),
        Step::Told(told) => {
            let name = attribute(told.octets, SET_NAME).map(text);
            found.extend(name.filter(|name| is_set(name)));
        }
    });
    match listed {
        // No sets in this kernel.
        Err(error) if super::nft::is_without_nftables(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(()) => Ok(found),
    }
}

/// Number of a family of generic netlink.
fn generic_family(netlink: &mut Nfnl, name: &str) -> io::Result<u16> {
    let mut found = None;
    let named = Attributes::default().text(FAMILY_NAME, name);
    netlink.ask(Message::generic(CONTROL, GET_FAMILY, named), |told| {
        let id = attribute(told.octets, FAMILY_ID).and_then(|id| id.try_into().ok());
        found = found.or(id.map(u16::from_ne_bytes));
    })?;
    found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_servers_are_read() {
        let table = "IP Virtual Server version 1.2.1 (size=4096)\n\
            Prot LocalAddress:Port Scheduler Flags\n  \
              -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
            TCP  0A600001:01BB rr \n  \
              -> C0A84D0B:192B      Masq    1      0          0\n\
            UDP  [fd00:0000:0000:0000:0000:0000:0000:000a]:0035 rr\n\
            FWM  00000001 rr\n";
        let found = servers(table);
        assert_eq!(found[0], "TCP 10.96.0.1:443");
        assert!(found[1].ends_with("000a]:53"), "{found:?}");
        assert_eq!(found[2], "FWM 00000001");
        assert_eq!(found.len(), 3);
        assert_eq!(servers(""), [""; 0]);
    }

    #[test]
    fn virtual_servers_of_others_are_left() {
        let (servers, sets) = (
            vec!["TCP 192.0.2.1:80".to_owned()],
            vec!["KUBE-CLUSTER-IP".to_owned()],
        );
        let count = |sets: &[String], known| {
            Left::of(servers.clone(), sets.to_vec(), known)
                .servers
                .len()
        };
        assert_eq!(count(&[], false), 0);
        assert_eq!(count(&sets, false), 1);
        assert_eq!(count(&[], true), 1);
    }

    #[test]
    fn families_of_generic_netlink_have_numbers() {
        let mut netlink = Nfnl::open_generic().unwrap();
        let own = generic_family(&mut netlink, "nlctrl").unwrap();
        assert_eq!(own, CONTROL);
        let none = generic_family(&mut netlink, "no-such-family").unwrap_err();
        assert_eq!(none.raw_os_error(), Some(libc::ENOENT));
    }
}
