//! `cargo xtask kernels`: the programs on kernels other than the running one.

mod cpio;
mod debian;
mod guest;
mod image;
mod modules;
mod report;
mod vm;

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::bpf_toolchain::Choice;
use crate::build_ebpf::{self, LoadCheck};
use crate::packages::Scope;
use crate::setup;
use crate::workspace::Workspace;

use debian::Kernel;
use guest::{STEPS, Step};
use image::Content;
use report::Report;
use vm::Machine;

/// Verify and test the programs on Debian's kernels, in virtual machines
///
/// The machines are emulated, which needs neither root nor a processor that helps, and is slow: some
/// minutes for each kernel. Kernels are fetched by apt and unpacked below target/kernels, not installed.
#[derive(clap::Args)]
pub struct Args {
    /// Which kernels, as 6.1 or 6.1.0-56; without any, the newest of each series that apt offers
    versions: Vec<String>,
    /// Run only this step; may be given more than once
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(STEPS.iter().map(|s| s.name)))]
    step: Vec<String>,
    /// End a machine after this many seconds
    #[arg(long, default_value_t = 3600)]
    deadline: u64,
    /// What compiles the eBPF programs
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    toolchain: Choice,
}

/// Builds, boots each kernel, and prints what they said.
pub fn run(args: &Args) -> Result<()> {
    setup::ensure(Scope::Kernels, args.toolchain)?;
    let workspace = Workspace::detect()?;
    build_ebpf::build(&workspace, args.toolchain, LoadCheck::No)?;
    let place = workspace.target().join("kernels");
    let kernels = debian::fetch(&args.versions, &place)?;
    let steps: Vec<&Step> = STEPS
        .iter()
        .filter(|step| args.step.is_empty() || args.step.iter().any(|name| name == step.name))
        .collect();
    let content = Content::build(&workspace, &steps, &place)?;
    let limit = Duration::from_secs(args.deadline);

    let mut tables = String::new();
    let mut faults = Vec::new();
    for kernel in &kernels {
        let run = boot(kernel, &content, &steps, &place, limit)
            .with_context(|| format!("Linux {}", kernel.release))?;
        // Writing to a String cannot fail.
        let _ = writeln!(tables, "\nLinux {}\n{}", kernel.release, run.table);
        for fault in run.faults {
            faults.push(format!("Linux {}: {fault}", kernel.release));
        }
    }
    println!("{}", tables.trim_end());
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(())
}

/// What a machine's run gave.
struct Run {
    table: String,
    faults: Vec<String>,
}

fn boot(
    kernel: &Kernel,
    content: &Content,
    steps: &[&Step],
    place: &Path,
    limit: Duration,
) -> Result<Run> {
    println!("\n==> Linux {}", kernel.release);
    let archive = image::archive(kernel, content, steps)?;
    let file = |kind: &str| place.join(format!("{}.{kind}", kernel.release));
    let (root, console, log) = (file("cpio"), file("console"), file("log"));
    fs::write(&root, archive).with_context(|| format!("cannot write {}", root.display()))?;
    let machine = Machine {
        kernel: &kernel.image(),
        root: &root,
        console: &console,
        limit,
    };
    let mut report = Report::default();
    let mut lines = String::new();
    let ending = vm::run(&machine, |line| {
        println!("{line}");
        lines.push_str(line);
        lines.push('\n');
        report.line(line);
    })?;
    fs::write(&log, lines).with_context(|| format!("cannot write {}", log.display()))?;
    let faults = report.faults(steps, &ending);
    let mut table = report.table();
    if !faults.is_empty() {
        let _ = write!(
            table,
            "\n{}\nAll of it: {} and {}",
            report.failures().trim_end(),
            log.display(),
            console.display()
        );
    }
    Ok(Run { table, faults })
}
