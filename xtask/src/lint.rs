//! `cargo xtask lint`: formatting and lints, of the host's crates and of the programs.

use anyhow::{Result, bail};

use crate::bpf_toolchain::{Choice, Toolchain};
use crate::build_ebpf::{self, LoadCheck};
use crate::docs;
use crate::process;
use crate::workspace::Workspace;

/// Check formatting and lints of all crates; warnings are errors
#[derive(clap::Args)]
pub struct Args {
    /// Format the sources and write the generated pages, instead of checking them
    #[arg(long)]
    fix: bool,
    /// What compiles the eBPF programs
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    toolchain: Choice,
}

/// Lints everything.
pub fn run(args: &Args) -> Result<()> {
    let workspace = Workspace::detect()?;
    // The agent's build embeds the object, so clippy needs it too.
    let toolchain = build_ebpf::build(&workspace, args.toolchain, LoadCheck::No)?;
    lint(&workspace, toolchain, args.fix)
}

/// Lints a workspace whose object is built. Goes on after a failure, to show all there is.
pub fn lint(workspace: &Workspace, toolchain: Toolchain, fix: bool) -> Result<()> {
    let mut fmt = workspace.cargo();
    fmt.args(["fmt", "--all"]);
    if !fix {
        fmt.arg("--check");
    }

    let mut host = workspace.cargo();
    host.args([
        "clippy",
        "--quiet",
        "--workspace",
        "--exclude",
        "datapath-ebpf",
        "--all-targets",
    ])
    .args(["--", "-D", "warnings"]);

    // There is no clippy beside Debian's BPF compiler. The programs' source also compiles for the
    // host, where clippy sees all of it; what is only compiled for BPF is left to rustc's lints.
    let mut programs = workspace.cargo();
    programs
        .args([
            "clippy",
            "--quiet",
            "--package",
            "datapath-ebpf",
            "--profile",
            "bpf",
        ])
        .args(["--", "-D", "warnings"]);
    let mut programs_for_bpf = toolchain.cargo(workspace, "check", &["-Dwarnings"]);
    programs_for_bpf.arg("--quiet");

    let mut failures: Vec<String> = [
        ("formatting (`cargo xtask lint --fix` mends it)", fmt),
        ("clippy for the host's crates", host),
        ("clippy for the programs", programs),
        ("rustc's lints for the programs", programs_for_bpf),
    ]
    .into_iter()
    .filter_map(|(what, mut command)| {
        let error = process::run(&mut command).err()?;
        eprintln!("error: {error:#}");
        Some(what.to_owned())
    })
    .collect();
    let pages = if fix {
        docs::write(workspace).map(drop)
    } else {
        docs::check(workspace)
    };
    if let Err(error) = pages {
        eprintln!("error: {error:#}");
        failures.push("generated pages (`cargo xtask docs` writes them)".to_owned());
    }
    if !failures.is_empty() {
        bail!("lints: {}", failures.join("; "));
    }
    Ok(())
}
