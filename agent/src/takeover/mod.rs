//! `tulle-agent takeover kube-proxy`: what kube-proxy left on a node that Tulle serves goes, and
//! connections that its rules translate go on (`docs/takeover.md`).

pub mod chains;
mod clients;
pub mod conntrack;
mod fate;
mod flow_rows;
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
use std::path::Path;

use anyhow::{Context, bail};

use crate::args::TakeoverArgs;
use crate::kernel::probe::{self, Sources};
use crate::net::{Netlink, link};
use clients::{Client, Clients};
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
    let root = args.host_root.as_deref();
    let all = runtime.block_on(Left::find(&mut netlink, &links, root, args.mode))?;
    let found = all.sentences();
    let left = all.of_mode(args.mode);
    // What cannot be looked at stops nothing else.
    let mut failed = left.unread().to_vec();
    if left.is_nothing() && failed.is_empty() && !found.is_empty() {
        bail!(
            "kube-proxy left nothing of mode {} on this node, but: {}; give --mode auto to remove it",
            args.mode,
            found.join("; ")
        );
    }
    let mut out = io::stdout().lock();
    if left.is_nothing() {
        if failed.is_empty() {
            let none = "nothing to remove: no trace of kube-proxy on this node";
            writeln!(out, "{none}")?;
        }
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
        return all_of_it(&failed);
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
    all_of_it(&failed)?;
    let kernels = runtime.block_on(of_the_kernel(&mut netlink, &links, args))?;
    for sentence in drain(&mut netlink, kernels)? {
        writeln!(out, "{sentence}")?;
    }
    Ok(())
}

/// Fails if something did.
fn all_of_it(failed: &[String]) -> anyhow::Result<()> {
    if !failed.is_empty() {
        bail!(
            "not everything could be removed: {}; mend the cause and run takeover again",
            failed.join("; ")
        );
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

/// How many connections the kernel goes on translating: of this node's processes, and of clients
/// whose packets the agent's programs do not meet.
async fn of_the_kernel(
    netlink: &mut Nfnl,
    links: &Netlink,
    args: &TakeoverArgs,
) -> anyhow::Result<(usize, usize)> {
    let entries = conntrack::translated(netlink).context("cannot list tracked connections")?;
    let status = admin_api::Client::connect(&args.places.socket(), admin_api::DEFAULT_TIMEOUT)
        .and_then(|mut client| client.status());
    let own = left::own_addresses()?;
    let Ok(status) = status else {
        // Nobody says where programs are.
        let is_own = |entry: &&conntrack::Entry| own.contains(&entry.original.src.ip());
        return Ok((entries.iter().filter(is_own).count(), 0));
    };
    let mut names: BTreeSet<&str> = status
        .links
        .iter()
        .map(|at| at.interface.as_str())
        .collect();
    names.extend(
        status
            .overlay
            .as_ref()
            .map(|overlay| overlay.device.as_str()),
    );
    let mut devices = BTreeSet::new();
    for link in link::all(links).await? {
        if names.contains(link.name.as_str()) {
            // The way to a pod behind a bridge leads to the bridge.
            devices.extend([Some(link.index), link.controller].into_iter().flatten());
        }
    }
    let mut clients = Clients::behind(own, devices);
    clients.ask(links, &entries).await;
    let count = |wanted| {
        let who = entries
            .iter()
            .map(|entry| clients.of(entry.original.src.ip()));
        who.filter(|client| *client == wanted).count()
    };
    Ok((count(Client::Own), count(Client::Passed)))
}

/// Says what the kernel goes on translating, and takes the keeper away if that is nothing.
fn drain(netlink: &mut Nfnl, (own, passed): (usize, usize)) -> anyhow::Result<Vec<String>> {
    let whose = [
        (own, "this node's own processes"),
        (passed, "clients that Tulle does not meet"),
    ];
    let whose: Vec<String> = whose
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, who)| format!("{} of {who}", counted(count, "connection")))
        .collect();
    if !whose.is_empty() {
        return Ok(vec![format!(
            "{} go on through the kernel until they end; once they have, run this again to remove \
             the table inet {}",
            whose.join(" and "),
            keeper::TABLE
        )]);
    }
    let removed = keeper::remove(netlink)
        .with_context(|| format!("cannot remove the table inet {}", keeper::TABLE))?;
    tracing::debug!(removed, "no connection is the kernel's");
    Ok(Vec::new())
}
