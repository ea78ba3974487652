//! An agent is killed and started again while requests run.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::Result;

use super::Output;
use crate::report;
use crate::text::{count, millis};
use crate::traffic::{Plan, Traffic};
use crate::world::{PORT, World};

/// Requests before the kill, without an agent, and after the restart.
const SOME: usize = 200;

/// The section.
pub fn show(page: &mut Output, world: &mut World) -> Result<()> {
    page.heading("An agent is killed while requests run")?;
    let node = world.client()?.0.name().to_owned();
    page.text(&format!(
        "The datapath is pinned in the kernel and does not need the agent. Here the agent of {node}, \
         where the clients are, gets `kill -9`, and is started again after {SOME} requests without it."
    ))?;
    page.gap()?;
    let targets: Vec<SocketAddr> = world
        .web
        .ips
        .iter()
        .map(|ip| SocketAddr::new(*ip, PORT))
        .collect();
    let traffic = Traffic::start(world.client()?.1.ns(), Plan::steady(&targets))?;
    traffic.wait_for_more(SOME)?;
    let Some(agent) = world.agents.first_mut() else {
        return Ok(());
    };
    let old = agent.pid();
    agent.kill()?;
    let killed = Instant::now();
    traffic.wait_for_more(SOME)?;
    let started = Instant::now();
    agent.spawn()?;
    agent.keep();
    let new = agent.pid();
    world.await_agent(0)?;
    let ready = Instant::now();
    traffic.wait_for_more(SOME)?;
    let requests = traffic.stop()?;
    let alone = requests
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
    let (failed, why) = report::failures(&requests);
    let text = match failed {
        0 => format!(
            "None of {} failed; the longest time without an answer was {}.",
            count(requests.len(), "request"),
            millis(report::longest_silence(&requests))
        ),
        n => format!("{n} of {} failed: {why}", count(requests.len(), "request")),
    };
    page.promise(failed == 0 && alone > 0, &text)?;
    Ok(())
}

fn shown(pid: Option<u32>) -> String {
    pid.map_or("?".to_owned(), |pid| pid.to_string())
}
