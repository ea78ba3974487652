//! What an operator sees on a node.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use datapath_common::maps;
use testkit::http::{FailureKind, get};

use super::Output;
use crate::text::{excerpt, millis};
use crate::world::{PORT, World};

/// Longer than this is no "at once".
const AT_ONCE: Duration = Duration::from_millis(100);
/// Lines of a table that are shown.
const LINES: usize = 16;
/// Rows of the map that are shown.
const ROWS: usize = 2;

/// The section.
pub fn show(page: &mut Output, world: &World) -> Result<()> {
    let (node, _) = world.client()?;
    page.heading(&format!("What an operator sees on {}", node.name()))?;
    for verb in ["services", "backends", "overlay"] {
        page.command(&format!("tulle {verb}"))?;
        page.block(&excerpt::head(&run(&mut world.tulle(node, verb)?)?, LINES))?;
        page.gap()?;
    }
    refused(page, world)?;
    page.gap()?;
    page.command("tulle drops")?;
    page.block(&run(&mut world.tulle(node, "drops")?)?)?;
    page.gap()?;
    map(page, world)
}

/// A service without endpoints.
fn refused(page: &mut Output, world: &World) -> Result<()> {
    let (_, client) = world.client()?;
    page.text(&format!(
        "The service {} has no endpoints, so a client must be refused at once:",
        world.idle.name
    ))?;
    for ip in &world.idle.ips {
        let target = SocketAddr::new(*ip, PORT);
        let start = Instant::now();
        let answer = get(client.ns(), target, "/", Duration::from_secs(2));
        let took = start.elapsed();
        let refused = matches!(&answer, Err(e) if e.kind == FailureKind::Refused);
        let text = match &answer {
            Err(e) => format!("http://{target}/ after {}: {}", millis(took), e.text),
            Ok(answer) => format!("http://{target}/ answered by {}", answer.pod),
        };
        page.promise(refused && took < AT_ONCE, &text)?;
    }
    Ok(())
}

/// The pinned map as bpftool shows it.
fn map(page: &mut Output, world: &World) -> Result<()> {
    let (node, _) = world.client()?;
    let pin = node.bpffs().join(maps::FRONT_V4);
    page.command(&format!("bpftool map dump pinned {}", pin.display()))?;
    let mut command = Command::new("bpftool");
    command.args(["-j", "map", "dump", "pinned"]).arg(&pin);
    let rows = excerpt::map_rows(&run(&mut command)?, |key| key["port"] == PORT, ROWS)
        .context("bpftool printed something else than rows of JSON")?;
    page.quote(&rows.join("\n"))?;
    page.promise(
        rows.iter().any(|row| row.contains("port:")),
        "Field names come with the map: bpftool reads its BTF.",
    )?;
    Ok(())
}

/// What a command prints. An error with what it says if it fails.
fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("run {name}"))?;
    if !output.status.success() {
        let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
        bail!(
            "`{name} {}` failed ({}): {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
