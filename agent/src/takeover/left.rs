//! All that kube-proxy left, and its removal step by step.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, anyhow};

use super::chains::DEVICE;
use super::nfnl::Nfnl;
use super::{ipvs, legacy, nft};
use crate::args::ProxyMode;
use crate::net::{Netlink, link};

/// What kube-proxy left.
#[derive(Default)]
pub struct Left {
    nft: nft::Left,
    legacy: Vec<(legacy::Programs, legacy::Table)>,
    unread: Vec<String>,
    ipvs: ipvs::Left,
    /// Index of the device that has the addresses of services.
    device: Option<u32>,
}

/// One removal: done, or not done.
pub enum Step<'a> {
    /// All of nftables in one transaction.
    Nft(&'a nft::Left),
    /// One older table.
    Legacy(&'a legacy::Programs, &'a legacy::Table),
    /// Virtual servers and sets.
    Ipvs(&'a ipvs::Left),
    /// The device.
    Device(u32),
}

impl Left {
    /// Looks at this network namespace for what kube-proxy's `mode` may have left; the programs of
    /// iptables may be in the root file system of the `host`.
    pub async fn find(
        netlink: &mut Nfnl,
        links: &Netlink,
        host: Option<&Path>,
        mode: ProxyMode,
    ) -> anyhow::Result<Self> {
        let nft = nft::Left::find(netlink).context("cannot list the rules of nftables")?;
        let (mut old, mut unread) = (Vec::new(), Vec::new());
        for family in legacy::FAMILIES {
            let names = legacy::names(family);
            if names.trim().is_empty() {
                continue;
            }
            let read = match legacy::Programs::find(family, host) {
                Some(programs) => programs.tables(family).map(|tables| (programs, tables)),
                None => Err(unreadable(family, &names)),
            };
            match read {
                Ok((programs, tables)) => {
                    old.extend(tables.into_iter().map(|table| (programs.clone(), table)));
                }
                Err(error) => unread.push(format!("{error:#}")),
            }
        }
        let device = link::by_name(links, DEVICE).await?;
        if let Some(device) = &device
            && device.kind != "dummy"
        {
            tracing::warn!("{DEVICE} is a {} device, not kube-proxy's", device.kind);
        }
        let device = device.filter(|device| device.kind == "dummy");
        let by_ipvs = device.is_some() || mode == ProxyMode::Ipvs;
        let ipvs = ipvs::Left::find(netlink, by_ipvs).context("cannot list the sets of ipset")?;
        Ok(Self {
            nft,
            legacy: old,
            unread,
            ipvs,
            device: device.map(|device| device.index),
        })
    }

    /// Why some older tables could not be looked at.
    pub fn unread(&self) -> &[String] {
        &self.unread
    }

    /// The part that a mode of kube-proxy writes. Modes iptables and ipvs share chains.
    pub fn of_mode(mut self, mode: ProxyMode) -> Self {
        match mode {
            ProxyMode::Auto => {}
            ProxyMode::Nftables => {
                self.nft.shared.clear();
                self.legacy.clear();
                self.unread.clear();
                (self.ipvs, self.device) = (ipvs::Left::default(), None);
            }
            ProxyMode::Iptables => {
                self.nft.own.clear();
                (self.ipvs, self.device) = (ipvs::Left::default(), None);
            }
            ProxyMode::Ipvs => self.nft.own.clear(),
        }
        self
    }

    /// Whether there is nothing.
    pub fn is_nothing(&self) -> bool {
        self.steps().is_empty()
    }

    /// The removals, in their order: what translates goes before what it asks.
    pub fn steps(&self) -> Vec<Step<'_>> {
        let nft = !self.nft.own.is_empty() || !self.nft.shared.is_empty();
        let mut steps: Vec<Step<'_>> = nft.then_some(Step::Nft(&self.nft)).into_iter().collect();
        steps.extend(
            self.legacy
                .iter()
                .map(|(programs, table)| Step::Legacy(programs, table)),
        );
        steps.extend((!self.ipvs.is_nothing()).then_some(Step::Ipvs(&self.ipvs)));
        steps.extend(self.device.map(Step::Device));
        steps
    }

    /// What there is, for people, in that order.
    pub fn sentences(&self) -> Vec<String> {
        self.steps().iter().flat_map(Step::sentences).collect()
    }
}

impl Step<'_> {
    /// Removes it.
    pub async fn carry_out(&self, netlink: &mut Nfnl, links: &Netlink) -> anyhow::Result<()> {
        match self {
            Self::Nft(left) => left
                .remove(netlink)
                .context("the kernel refuses to change the rules of nftables; none was changed"),
            Self::Legacy(programs, table) => programs.remove(table),
            Self::Ipvs(left) => {
                left.flush_servers()
                    .context("cannot remove the virtual servers of IPVS")?;
                left.destroy_sets(netlink)
                    .context("cannot destroy a set of ipset")
            }
            Self::Device(index) => {
                let what = format!("delete {DEVICE}");
                match links.execute(&what, link::delete(*index), 0).await {
                    Err(error) if !error.is_absent() => Err(error.into()),
                    _ => Ok(()),
                }
            }
        }
    }

    /// What it is, for people.
    pub fn sentences(&self) -> Vec<String> {
        match self {
            Self::Nft(left) => left.sentences(),
            Self::Legacy(_, table) => vec![table.sentence()],
            Self::Ipvs(left) => left.sentences(),
            Self::Device(_) => vec![format!("device {DEVICE}")],
        }
    }
}

/// That nobody here can read a family's older tables.
fn unreadable(family: u8, names: &str) -> anyhow::Error {
    let names: Vec<&str> = names.split_whitespace().collect();
    anyhow!(
        "this node has tables of iptables (legacy, {}: {}), which only its programs can read, and \
         there are none: install iptables on the node, name its root file system by --host-root, \
         or run `kube-proxy --cleanup` there",
        nft::family(family),
        names.join(", ")
    )
}

/// The addresses of this node.
pub fn own_addresses() -> anyhow::Result<BTreeSet<IpAddr>> {
    let listed = nix::ifaddrs::getifaddrs().context("cannot list this node's addresses")?;
    Ok(listed
        .filter_map(|interface| interface.address)
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect())
}
