//! Flows that kube-proxy's rules translate become Tulle's own: their rows are written before any
//! program is attached (`docs/adr/0005-flows-of-a-former-proxy.md`).

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io;

use datapath_common::Config;

use super::clients::Clients;
use super::conntrack::{self, Entry};
use super::fate::{Fate, Served};
use super::flow_rows::write;
use super::hold::Hold;
use super::nfnl::{IPV4, IPV6, Nfnl};
use super::{ipvs, legacy, nft};
use crate::kernel::{Maps, TableError, now_ticks};
use crate::net::Netlink;
use crate::plan::FrontKey;

/// What was done.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Done {
    /// Flows that are Tulle's now.
    pub taken: usize,
    /// Flows of processes of this node.
    pub own: usize,
    /// Flows of clients whose packets Tulle does not meet.
    pub passed: usize,
    /// Flows to backends that Tulle does not have.
    pub unknown: usize,
    /// Frontends of those that are Tulle's.
    pub fronts: BTreeSet<FrontKey>,
    /// What failed.
    pub failures: Failures,
}

/// How often something failed, and how it did first.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Failures {
    count: usize,
    first: Option<String>,
}

impl Failures {
    fn note(&mut self, what: &str, error: &dyn Display) {
        self.count += 1;
        self.first.get_or_insert_with(|| format!("{what}: {error}"));
    }

    /// One sentence for all; none if nothing failed.
    pub fn sentence(&self) -> Option<String> {
        let first = self.first.as_ref()?;
        Some(match self.count {
            1 => first.clone(),
            count => format!("{first}, and {} more", count - 1),
        })
    }
}

/// The flows of a former proxy on their way to Tulle.
pub struct Import {
    netlink: Nfnl,
    hold: Option<Hold>,
    served: Served,
    clients: Clients,
    meets_kernel: Vec<Entry>,
    known: BTreeSet<Flow5>,
    done: Done,
}

/// What tells a flow from others.
type Flow5 = (u8, conntrack::Tuple);

/// Why it cannot be known whether there are flows to take over. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The kernel does not tell of its flows.
    #[error("cannot ask the kernel for the flows of a former proxy: {0}")]
    Conntrack(#[from] io::Error),
    /// Tulle's own tables cannot be read.
    #[error("cannot take over flows of a former proxy: {0}")]
    Table(#[from] TableError),
    /// This node's addresses are not known.
    #[error("cannot tell flows of this node's processes from others: {0:#}")]
    Addresses(anyhow::Error),
}

impl Import {
    /// Before anything is attached: writes the rows of all flows that there are. `None` if there
    /// is none of a former proxy's: then nothing was touched. What fails for one flow is noted.
    pub async fn begin(
        maps: &mut Maps,
        config: &Config,
        links: &Netlink,
    ) -> Result<Option<Self>, ImportError> {
        if conntrack::tracks_nothing() {
            return Ok(None);
        }
        let mut netlink = Nfnl::open()?;
        let served = Served::new(&maps.read_back()?, config);
        let mut there = conntrack::translated(&mut netlink)?;
        there.retain(|entry| served.is_asked(entry));
        if there.is_empty() || !has_trace(&mut netlink)? {
            return Ok(None);
        }
        let mut clients = Clients::of_agent(config).map_err(ImportError::Addresses)?;
        // Before anybody waits.
        clients.ask(links, &there).await;
        let mut done = Done::default();
        let hold = Hold::begin(served.fronts()).map_err(|error| {
            let what = "connections that open at this very moment may break, nftables does not \
                 hold them back";
            done.failures.note(what, &error);
        });
        let mut import = Self {
            netlink,
            hold: hold.ok(),
            served,
            clients,
            meets_kernel: Vec::new(),
            known: BTreeSet::new(),
            done,
        };
        import.look(maps, links).await;
        Ok(Some(import))
    }

    /// What was done so far.
    pub const fn done(&self) -> &Done {
        &self.done
    }

    /// After everything was attached: has the kernel forget flows whose packets it meets behind
    /// Tulle, lets connections come again, and takes over what came meanwhile.
    pub async fn finish(mut self, maps: &mut Maps, links: &Netlink) -> Done {
        self.forget();
        // A table that cannot be removed goes with its socket.
        if let Some(Err(error)) = self.hold.take().map(Hold::end) {
            let what = "cannot remove the table that held back new connections";
            self.done.failures.note(what, &error);
        }
        self.look(maps, links).await;
        self.forget();
        self.done
    }

    fn forget(&mut self) {
        for entry in self.meets_kernel.drain(..) {
            if let Err(error) = conntrack::forget(&mut self.netlink, &entry) {
                let what = "cannot have the kernel forget a flow";
                self.done.failures.note(what, &error);
            }
        }
    }

    /// Takes over flows that it did not know.
    async fn look(&mut self, maps: &mut Maps, links: &Netlink) {
        let mut fresh = match conntrack::translated(&mut self.netlink) {
            Ok(entries) => entries,
            Err(error) => {
                self.done.failures.note("cannot list tracked flows", &error);
                return;
            }
        };
        fresh.retain(|entry| {
            self.served.is_asked(entry) && self.known.insert((entry.proto, entry.original))
        });
        self.clients.ask(links, &fresh).await;
        let now = now_ticks();
        let mut held = Vec::new();
        for entry in fresh {
            if self.take(maps, &entry, now) {
                held.push(entry);
            }
        }
        if let Some(hold) = &mut self.hold
            && !held.is_empty()
            && let Err(error) = hold.hold(&held)
        {
            let what = "cannot hold back what the kernel would take for another flow";
            self.done.failures.note(what, &error);
        }
        self.meets_kernel.extend(held);
    }

    /// Does what becomes of a flow: whether the kernel meets its packets behind Tulle.
    fn take(&mut self, maps: &mut Maps, entry: &Entry, now: u32) -> bool {
        let Self {
            netlink,
            served,
            clients,
            done,
            ..
        } = self;
        let fate = served.fate(entry, clients.of(entry.original.src.ip()));
        match fate {
            Fate::Foreign => {}
            Fate::Unknown => done.unknown += 1,
            Fate::Own | Fate::Passed => {
                if fate == Fate::Own {
                    done.own += 1;
                } else {
                    done.passed += 1;
                }
                // Nobody else is given the port that the kernel gave it.
                if entry.is_masqueraded()
                    && let Err(error) = write(maps, entry, None, now)
                {
                    done.failures.note("cannot keep a flow's port", &error);
                }
            }
            Fate::Taken {
                service,
                backend,
                meets_kernel,
            } => {
                // The kernel sees packets until the last program is attached, and not all.
                if let Err(error) = conntrack::be_liberal(netlink, entry) {
                    done.failures
                        .note("the kernel may refuse a flow's packets", &error);
                }
                if let Err(error) = write(maps, entry, Some((service, backend)), now) {
                    done.failures.note("cannot take over a flow", &error);
                    return false;
                }
                done.taken += 1;
                done.fronts.insert(FrontKey {
                    addr: entry.original.dst.ip(),
                    port: entry.original.dst.port(),
                    proto: entry.proto,
                });
                return meets_kernel;
            }
        }
        false
    }
}

/// Whether a kube-proxy served this node, as far as the kernel says so. Which chains there are in
/// the older tables of iptables only its programs know: theirs for translation counts.
fn has_trace(netlink: &mut Nfnl) -> io::Result<bool> {
    let translates = |family| {
        legacy::names(family)
            .split_whitespace()
            .any(|name| name == "nat")
    };
    Ok(nft::has_trace(netlink)? || ipvs::has_trace() || [IPV4, IPV6].into_iter().any(translates))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_once() {
        let mut failures = Failures::default();
        assert_eq!(failures.sentence(), None);
        failures.note("cannot list", &"no");
        assert_eq!(failures.sentence().unwrap(), "cannot list: no");
        failures.note("cannot write", &"full");
        failures.note("cannot write", &"full");
        assert_eq!(failures.sentence().unwrap(), "cannot list: no, and 2 more");
    }
}
