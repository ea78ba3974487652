//! The show: builds the cluster and presents it, section by section.

mod edit;
mod inspect;
mod overview;
mod requests;
mod restart;
mod wire;

use std::io::Stdout;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::setsid;

use crate::args::Options;
use crate::supervisor::BROKEN;
use crate::text::{count, page::Page};
use crate::world::World;

/// What the sections print on.
type Output = Page<Stdout>;

/// Builds and presents. Leaves everything to the supervisor, also after errors.
pub fn run(options: &Options) -> Result<ExitCode> {
    detach()?;
    let mut page = Page::stdout();
    let (nodes, pods) = (usize::from(options.nodes), usize::from(options.pods));
    page.title(&format!(
        "Tulle demo \"{}\": {}, {} on each",
        options.name,
        count(nodes, "node"),
        count(pods, "pod")
    ))?;
    let mut world = World::build(options).context("build the cluster")?;
    overview::show(&mut page, &world)?;
    world.start_agents().context("start the agents")?;
    overview::agents(&mut page, &world)?;
    requests::show(&mut page, &world)?;
    edit::show(&mut page, &mut world)?;
    restart::show(&mut page, &mut world)?;
    inspect::show(&mut page, &world)?;
    wire::show(&mut page, &world)?;
    close(&mut page, &world, options)
}

/// A session of its own: Ctrl-C reaches the supervisor only, and a kept cluster
/// outlives the terminal. Without a supervisor the show ends too.
fn detach() -> Result<()> {
    let parent = nix::unistd::getppid();
    prctl::set_pdeathsig(Signal::SIGKILL).context("follow the supervisor's end")?;
    if nix::unistd::getppid() != parent {
        bail!("the supervisor has ended");
    }
    // Fails only for the leader of a process group, who needs no other one.
    let _ = setsid();
    Ok(())
}

fn close(page: &mut Output, world: &World, options: &Options) -> Result<ExitCode> {
    page.heading("The end")?;
    let broken = page.broken().to_vec();
    if broken.is_empty() {
        page.promise(true, "Everything above is as promised.")?;
    } else {
        page.text("Not as promised:")?;
        for line in &broken {
            page.block(line)?;
        }
    }
    if options.keep {
        overview::entrances(page, world, options)?;
    }
    Ok(if broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(BROKEN)
    })
}
