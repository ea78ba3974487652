//! A backend is removed by editing its manifest while requests run.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use testkit::http::LoadReport;
use testkit::wait;

use super::Output;
use crate::frontends::{self, NodeFrontends};
use crate::report;
use crate::text::{count, millis};
use crate::world::{World, await_some};

/// Longest that a change may take to reach the maps of all nodes.
const LIMIT: Duration = Duration::from_secs(10);

/// An edit as the nodes saw it.
struct Applied {
    /// Just before the file was replaced.
    edited: Instant,
    /// When each node's frontend rows were seen changed.
    changed: Vec<Instant>,
    /// From the file's notice to the last map write, as each agent measured it.
    synced: Vec<Duration>,
}

/// The section.
pub fn show(page: &mut Output, world: &mut World) -> Result<()> {
    page.heading("A backend is removed while requests run")?;
    let Some(victim) = world
        .web
        .endpoints
        .last()
        .map(|endpoint| endpoint.pod.clone())
    else {
        return Ok(());
    };
    if world.web.endpoints.len() < 2 {
        page.text("The service has one pod only, so there is none to spare. Left out.")?;
        return Ok(());
    }
    page.text(&format!(
        "Four clients in {} send requests over both families without a break. Meanwhile the \
         endpoints of {victim} are deleted from {}.",
        world.client()?.1.name(),
        world.web.file()
    ))?;
    page.gap()?;
    let nodes = world.frontends()?;
    let load = world.start_load()?;
    let before = world.web.clone();
    world.web.remove_endpoint(&victim)?;
    let applied = apply(world, &nodes)?;
    await_some(&load)?;
    let load = load.stop()?;
    print_times(page, &nodes, &applied)?;
    page.gap()?;
    judge(page, &load, &applied, &victim)?;
    world.web = before;
    let back = apply(world, &nodes)?;
    let slowest = back.changed.iter().max().copied().unwrap_or(back.edited);
    page.text(&format!(
        "Then the file is put back; {} later {victim} is in the maps of all nodes again.",
        millis(slowest - back.edited)
    ))?;
    Ok(())
}

/// Writes the service's file, and waits until every node has it in its maps
/// and every agent has said so.
fn apply(world: &World, nodes: &[NodeFrontends]) -> Result<Applied> {
    let rows: Vec<_> = nodes
        .iter()
        .map(NodeFrontends::read)
        .collect::<Result<_>>()?;
    let counts = nodes.iter().enumerate();
    let syncs: Vec<u64> = counts
        .map(|(n, _)| Ok(world.status(n)?.syncs))
        .collect::<Result<_>>()?;
    let edited = Instant::now();
    world.state.write_service(&world.web)?;
    let changed = frontends::await_change(nodes, &rows, LIMIT)?;
    let mut synced = Vec::new();
    for (n, before) in syncs.into_iter().enumerate() {
        let what = format!("no word of the sync from the agent of {}", nodes[n].node);
        let micros = wait::until(&what, LIMIT, || {
            let status = world.status(n).ok();
            Ok(status
                .filter(|s| s.syncs > before)
                .and_then(|s| s.last_sync_micros))
        });
        synced.push(Duration::from_micros(micros?));
    }
    Ok(Applied {
        edited,
        changed,
        synced,
    })
}

fn print_times(page: &mut Output, nodes: &[NodeFrontends], applied: &Applied) -> Result<()> {
    let mut table = format!(
        "{:10}{:>28}{:>34}\n",
        "", "edit to change in the maps", "file noticed to last map write"
    );
    for (n, node) in nodes.iter().enumerate() {
        let seen = millis(applied.changed[n] - applied.edited);
        let synced = millis(applied.synced[n]);
        writeln!(table, "{:10}{seen:>28}{synced:>34}", node.node).context("print the times")?;
    }
    page.block(&table)?;
    Ok(())
}

fn judge(page: &mut Output, load: &LoadReport, applied: &Applied, victim: &str) -> Result<()> {
    // The clients are on the first node, whose maps decide for them.
    let changed = applied.changed.first().copied().unwrap_or(applied.edited);
    let requests = &load.requests;
    let failures = report::failures(load);
    let all = count(requests.len(), "request");
    let good = || format!("None of {all} failed.");
    page.promise(failures.is_none(), &failures.unwrap_or_else(good))?;
    let late: Vec<Instant> = requests
        .iter()
        .filter(|r| r.began >= applied.edited && r.outcome.as_ref().is_ok_and(|pod| pod == victim))
        .map(|request| request.began)
        .collect();
    let strays = late.iter().filter(|began| **began >= changed).count();
    let text = match late.iter().max() {
        None => format!("Nothing that began after the edit went to {victim}."),
        Some(last) => format!(
            "{} that began after the edit still went to {victim}, the last one {} after it; all \
             were answered. None began after the maps had changed.",
            count(late.len(), "request"),
            millis(*last - applied.edited)
        ),
    };
    if strays == 0 {
        page.promise(true, &text)?;
    } else {
        let text = format!(
            "{} went to {victim} though they began after the maps had changed.",
            count(strays, "request")
        );
        page.promise(false, &text)?;
    }
    Ok(())
}
