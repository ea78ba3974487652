//! `tulle-agent takeover kube-proxy`: what kube-proxy left on a node that Tulle serves goes, and
//! connections that its rules translate go on (`docs/takeover.md`).

pub mod chains;
pub mod conntrack;
mod hold;
pub mod import;
pub mod ipvs;
pub mod keeper;
pub mod legacy;
pub mod nfnl;
pub mod nft;
mod running;
pub mod surgery;

mod left;
mod writing;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, bail};

use crate::args::TakeoverArgs;
use crate::kernel::probe::{self, Sources};
use crate::net::Netlink;
use left::Left;
use nfnl::Nfnl;
use surgery::counted;

/// Does what `takeover kube-proxy` says.
pub fn run(args: &TakeoverArgs) -> anyhow::Result<()> {
    probe::check_rights(&Sources::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let links = runtime.block_on(async { Netlink::open() })?;
    let mut netlink = Nfnl::open().context("cannot ask the kernel about its rules")?;
    let all = runtime.block_on(Left::find(&mut netlink, &links, args.host_root.as_deref()))?;
    let found = all.sentences();
    let left = all.of_mode(args.mode);
    if left.is_nothing() && !found.is_empty() {
        bail!(
            "kube-proxy left nothing of mode {} on this node, but: {}; give --mode auto to remove it",
            args.mode,
            found.join("; ")
        );
    }
    let mut out = io::stdout().lock();
    if left.is_nothing() {
        writeln!(
            out,
            "nothing to remove: no trace of kube-proxy on this node"
        )?;
    } else {
        let objections = objections(args);
        if !objections.is_empty() && !args.force && !args.dry_run {
            bail!("{}; --force goes on all the same", objections.join("; "));
        }
        for objection in &objections {
            writeln!(out, "warning: {objection}")?;
        }
    }
    if args.dry_run {
        for sentence in left.sentences() {
            writeln!(out, "would remove {sentence}")?;
        }
        return Ok(());
    }
    // Before the rules go: without them nobody may be left who translates open connections.
    if !left.is_nothing()
        && let Err(error) = keeper::make(&mut netlink)
    {
        writeln!(
            out,
            "warning: connections that the kernel translates may break: cannot make the table \
             inet {}: {error}",
            keeper::TABLE
        )?;
    }
    let mut failed = Vec::new();
    for step in left.steps() {
        match runtime.block_on(step.carry_out(&mut netlink, &links)) {
            Ok(()) => {
                for sentence in step.sentences() {
                    writeln!(out, "removed {sentence}")?;
                }
            }
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    if !failed.is_empty() {
        bail!(
            "not everything could be removed: {}; mend the cause and run takeover again",
            failed.join("; ")
        );
    }
    let own = left::own_addresses()?;
    for sentence in drain(&mut netlink, &own)? {
        writeln!(out, "{sentence}")?;
    }
    Ok(())
}

/// Removes what a takeover left for connections of this node's processes, and says so.
pub fn forget() -> anyhow::Result<Option<String>> {
    let what = || format!("cannot remove the table inet {}", keeper::TABLE);
    let mut netlink = Nfnl::open().with_context(what)?;
    let removed = keeper::remove(&mut netlink).with_context(what)?;
    Ok(removed.then(|| format!("removed the table inet {}", keeper::TABLE)))
}

/// What speaks against it.
fn objections(args: &TakeoverArgs) -> Vec<String> {
    let proc = Path::new("/proc");
    let mut objections = running::find(proc);
    if !objections.is_empty() {
        objections.push(
            "it would write its rules again: take it off this node first (docs/takeover.md)"
                .to_owned(),
        );
    } else if !running::sees_processes(proc) {
        objections.push(
            "whether a kube-proxy runs cannot be seen from here: run this on the node itself, or \
             in a pod with hostPID"
                .to_owned(),
        );
    }
    let status = admin_api::Client::connect(&args.places.socket(), admin_api::DEFAULT_TIMEOUT)
        .and_then(|mut client| client.status());
    match status {
        Ok(status) if status.ready => {}
        Ok(status) => {
            let why = status
                .waiting_for
                .unwrap_or_else(|| status.faults.join("; "));
            objections.push(format!(
                "the agent of this node is not ready, nobody would serve what kube-proxy did: {why}"
            ));
        }
        Err(error) => objections.push(format!(
            "Tulle does not serve this node, nobody would serve what kube-proxy did: {error}"
        )),
    }
    objections
}

/// Says what the kernel goes on translating, and takes the keeper away if that is nothing.
fn drain(netlink: &mut Nfnl, own: &BTreeSet<IpAddr>) -> anyhow::Result<Vec<String>> {
    let mut entries = conntrack::translated(netlink).context("cannot list tracked connections")?;
    entries.retain(|entry| own.contains(&entry.original.src.ip()));
    if !entries.is_empty() {
        return Ok(vec![format!(
            "{} of this node's own processes go on through the kernel until they end; once they \
             have, run this again to remove the table inet {}",
            counted(entries.len(), "connection"),
            keeper::TABLE
        )]);
    }
    let removed = keeper::remove(netlink)
        .with_context(|| format!("cannot remove the table inet {}", keeper::TABLE))?;
    tracing::debug!(removed, "no connection is the kernel's");
    Ok(Vec::new())
}
