//! An agent is killed and started again while requests run.

use std::time::Instant;

use anyhow::Result;

use super::Output;
use crate::report;
use crate::text::{count, millis};
use crate::world::{SOME, World, await_some};

/// The section.
pub fn show(page: &mut Output, world: &mut World) -> Result<()> {
    page.heading("An agent is killed while requests run")?;
    let node = world.client()?.0.name().to_owned();
    page.text(&format!(
        "The datapath is pinned in the kernel and does not need the agent. Here the agent of {node}, \
         where the clients are, gets `kill -9`, and is started again after {SOME} requests without it."
    ))?;
    page.gap()?;
    let load = world.start_load()?;
    let Some(agent) = world.agents.first_mut() else {
        return Ok(());
    };
    let old = agent.pid();
    agent.kill()?;
    let killed = Instant::now();
    await_some(&load)?;
    let started = Instant::now();
    agent.spawn()?;
    agent.keep();
    let new = agent.pid();
    world.await_agent(0)?;
    let ready = Instant::now();
    await_some(&load)?;
    let load = load.stop()?;
    let alone = load
        .requests
        .iter()
        .filter(|r| r.began >= killed && r.ended <= started)
        .count();
    page.text(&format!(
        "Process {} killed; process {} in sync {} after its start. {} began and ended with no agent.",
        shown(old),
        shown(new),
        millis(ready - started),
        count(alone, "request")
    ))?;
    let failures = report::failures(&load);
    let kept = failures.is_none() && alone > 0;
    let good = || {
        format!(
            "None of {} failed; the longest time without an answer was {}.",
            count(load.requests.len(), "request"),
            millis(load.longest_silence())
        )
    };
    page.promise(kept, &failures.unwrap_or_else(good))?;
    Ok(())
}

fn shown(pid: Option<u32>) -> String {
    pid.map_or("?".to_owned(), |pid| pid.to_string())
}
