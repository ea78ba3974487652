//! What kube-proxy left in nftables, and its removal in one transaction: its own tables, and its
//! chains in the tables that iptables writes by nftables. By netlink: no program of the node is
//! needed, and all of it goes at once.

use std::io;

use super::chains::{TABLE, is_chain};
use super::nfnl::{
    Attributes, IPV4, IPV6, Message, NFTABLES, Nfnl, Step, attribute, attributes, number, text,
};
use super::surgery::{Rule, Surgery, counted};

// From `linux/netfilter/nf_tables.h`.
pub(super) const NEWTABLE: u8 = 0;
const GETTABLE: u8 = 1;
pub(super) const DELTABLE: u8 = 2;
pub(super) const NEWCHAIN: u8 = 3;
const GETCHAIN: u8 = 4;
const DELCHAIN: u8 = 5;
pub(super) const NEWRULE: u8 = 6;
const GETRULE: u8 = 7;
const DELRULE: u8 = 8;

pub(super) const TABLE_NAME: u16 = 1;
pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const ELEMENT: u16 = 1;
pub(super) const EXPRESSION_NAME: u16 = 1;
pub(super) const EXPRESSION_DATA: u16 = 2;
pub(super) const IMMEDIATE_DATA: u16 = 2;
pub(super) const DATA_VERDICT: u16 = 2;
const VERDICT_CHAIN: u16 = 2;

/// Tables that iptables has.
const IPTABLES: [&str; 5] = ["nat", "filter", "mangle", "raw", "security"];

/// A table of kube-proxy's own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnTable {
    /// Address family.
    pub family: u8,
    /// How many chains it has.
    pub chains: usize,
}

/// A table that iptables shares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SharedTable {
    /// Address family.
    pub family: u8,
    /// Its name.
    pub name: String,
    /// What goes.
    pub surgery: Surgery<u64>,
}

/// What kube-proxy left in nftables.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Left {
    /// Its own tables (mode nftables).
    pub own: Vec<OwnTable>,
    /// Its chains (modes iptables and ipvs).
    pub shared: Vec<SharedTable>,
}

impl Left {
    /// Looks at this network namespace. A kernel without nftables has nothing.
    pub fn find(netlink: &mut Nfnl) -> io::Result<Self> {
        let chains = match chains(netlink) {
            Ok(chains) => chains,
            Err(error) if is_without_nftables(&error) => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let mut left = Self::default();
        for (family, table) in tables(netlink)? {
            let here: Vec<String> = chains
                .iter()
                .filter(|chain| chain.family == family && chain.table == table)
                .map(|chain| chain.name.clone())
                .collect();
            if !matches!(family, IPV4 | IPV6) {
                continue;
            }
            if table == TABLE {
                left.own.push(OwnTable {
                    family,
                    chains: here.len(),
                });
            } else if IPTABLES.contains(&table.as_str()) && here.iter().any(|name| is_chain(name)) {
                let surgery = Surgery::of(&here, &rules(netlink, family, &table)?);
                if !surgery.is_nothing() {
                    left.shared.push(SharedTable {
                        family,
                        name: table,
                        surgery,
                    });
                }
            }
        }
        Ok(left)
    }

    /// Removes all of it, or nothing.
    pub fn remove(&self, netlink: &mut Nfnl) -> io::Result<()> {
        netlink.batch(NFTABLES, self.messages())
    }

    fn messages(&self) -> Vec<Message> {
        let mut messages = Vec::new();
        for table in &self.own {
            let name = Attributes::default().text(TABLE_NAME, TABLE);
            messages.push(Message::new(NFTABLES, DELTABLE, table.family, name));
        }
        for table in &self.shared {
            let (family, surgery) = (table.family, &table.surgery);
            let of = |chain: &str| {
                let table = Attributes::default().text(RULE_TABLE, &table.name);
                table.text(RULE_CHAIN, chain)
            };
            for jump in &surgery.jumps {
                let rule = of(&jump.chain).bytes(RULE_HANDLE, &jump.id.to_be_bytes());
                messages.push(Message::new(NFTABLES, DELRULE, family, rule));
            }
            // Without a handle: all rules of the chain.
            for chain in surgery.emptied() {
                messages.push(Message::new(NFTABLES, DELRULE, family, of(chain)));
            }
            for chain in &surgery.delete {
                let chain = Attributes::default()
                    .text(CHAIN_TABLE, &table.name)
                    .text(CHAIN_NAME, chain);
                messages.push(Message::new(NFTABLES, DELCHAIN, family, chain));
            }
        }
        messages
    }

    /// What there is, for people, in the order in which it goes.
    pub fn sentences(&self) -> Vec<String> {
        let own = self.own.iter().map(|table| {
            let chains = counted(table.chains, "chain");
            format!("nftables: table {} {TABLE}, {chains}", family(table.family))
        });
        let shared = self.shared.iter().map(|table| {
            format!(
                "iptables (nf_tables), {} {}: {}",
                family(table.family),
                table.name,
                table.surgery.sentence()
            )
        });
        own.chain(shared).collect()
    }
}

/// Whether there is a table or a chain of kube-proxy's.
pub fn has_trace(netlink: &mut Nfnl) -> io::Result<bool> {
    let found = chains(netlink).map(|chains| {
        let own = |chain: &Chain| chain.table == TABLE;
        let shared =
            |chain: &Chain| IPTABLES.contains(&chain.table.as_str()) && is_chain(&chain.name);
        chains.iter().any(|chain| own(chain) || shared(chain))
    });
    match found {
        Err(error) if is_without_nftables(&error) => Ok(false),
        found => found,
    }
}

/// As `nft` calls an address family.
pub fn family(family: u8) -> &'static str {
    if family == IPV6 { "ip6" } else { "ip" }
}

/// Whether the kernel says so that it has no nftables.
pub fn is_without_nftables(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT)
    )
}

struct Chain {
    family: u8,
    table: String,
    name: String,
}

fn tables(netlink: &mut Nfnl) -> io::Result<Vec<(u8, String)>> {
    let mut found = Vec::new();
    let all = Message::new(NFTABLES, GETTABLE, 0, Attributes::default());
    netlink.dump(&all, |step| match step {
        Step::Begins => found.clear(),
        Step::Told(told) => {
            if let Some(name) = attribute(told.octets, TABLE_NAME) {
                found.push((told.family, text(name)));
            }
        }
    })?;
    Ok(found)
}

fn chains(netlink: &mut Nfnl) -> io::Result<Vec<Chain>> {
    let mut found = Vec::new();
    let all = Message::new(NFTABLES, GETCHAIN, 0, Attributes::default());
    netlink.dump(&all, |step| match step {
        Step::Begins => found.clear(),
        Step::Told(told) => {
            let named = |kind| attribute(told.octets, kind).map(text);
            if let (Some(table), Some(name)) = (named(CHAIN_TABLE), named(CHAIN_NAME)) {
                found.push(Chain {
                    family: told.family,
                    table,
                    name,
                });
            }
        }
    })?;
    Ok(found)
}

fn rules(netlink: &mut Nfnl, family: u8, table: &str) -> io::Result<Vec<Rule<u64>>> {
    let mut found = Vec::new();
    let of_table = Attributes::default().text(RULE_TABLE, table);
    let all = Message::new(NFTABLES, GETRULE, family, of_table);
    netlink.dump(&all, |step| match step {
        Step::Begins => found.clear(),
        Step::Told(told) => {
            let get = |kind| attribute(told.octets, kind);
            // A kernel that does not choose by table tells of all.
            if told.family == family
                && get(RULE_TABLE).map(text).as_deref() == Some(table)
                && let (Some(chain), Some(handle)) = (get(RULE_CHAIN), get(RULE_HANDLE))
            {
                found.push(Rule {
                    chain: text(chain),
                    target: get(RULE_EXPRESSIONS).and_then(target),
                    id: number(handle),
                });
            }
        }
    })?;
    Ok(found)
}

/// The chain that a rule's expressions go on with.
fn target(expressions: &[u8]) -> Option<String> {
    attributes(expressions).find_map(|(_, expression)| {
        if attribute(expression, EXPRESSION_NAME).map(text)? != "immediate" {
            return None;
        }
        let data = attribute(expression, EXPRESSION_DATA)?;
        let verdict = attribute(attribute(data, IMMEDIATE_DATA)?, DATA_VERDICT)?;
        attribute(verdict, VERDICT_CHAIN).map(text)
    })
}
