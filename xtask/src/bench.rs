//! `cargo xtask bench`: builds the programs and the measuring program, runs it, and puts its
//! tables into `docs/benchmarks.md` if asked to.

use std::ffi::OsString;
use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::bpf_toolchain::Choice;
use crate::build_ebpf::{self, LoadCheck};
use crate::process;
use crate::workspace::Workspace;

/// The page with the tables, from the root of the workspace.
const PAGE: &str = "docs/benchmarks.md";
/// What can be measured, and the names of the page's parts.
const KINDS: [&str; 4] = ["packets", "apply", "wire", "services"];
/// Which of them draw.
const DRAWN: [&str; 2] = ["packets", "services"];
/// Where plots are, from the root of the workspace.
const PLOTS: &str = "docs/plots";

/// Measure the programs (`packets`), the agent (`apply`), clusters (`wire`) and ways to services (`services`); all
/// without an argument
#[derive(clap::Args)]
pub struct Args {
    /// What compiles the programs
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    toolchain: Choice,
    /// Put the tables into docs/benchmarks.md and plots into docs/plots, where they replace those
    /// of the last time
    #[arg(long)]
    update: bool,
    /// `packets`, `apply`, `wire` or `services`, and options: `cargo xtask bench packets --help` names them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Builds and measures. The tables go to standard output; what is going on, to standard error.
pub fn run(args: &Args) -> Result<()> {
    ensure!(
        process::is_root(),
        "only root may load programs and make namespaces: run this as root"
    );
    ensure!(
        !args.update || args.arguments.len() <= 1,
        "--update takes all tables as they are: leave out the options after what is measured"
    );
    let workspace = Workspace::detect()?;
    let toolchain = build_ebpf::build(&workspace, args.toolchain, LoadCheck::No)?;
    build_ebpf::build_bench(&workspace, toolchain)?;
    process::run(
        workspace
            .cargo()
            .args(["build", "--release"])
            .args(["--package", "bpf-tests", "--bin", "tulle-bench"])
            .args(["--package", "tulle-agent", "--bin", "tulle-agent"]),
    )?;

    let binaries = workspace.target().join("release");
    let runs: Vec<Vec<OsString>> = if args.arguments.is_empty() {
        KINDS.iter().map(|kind| vec![kind.into()]).collect()
    } else {
        vec![args.arguments.clone()]
    };
    for arguments in runs {
        let kind = arguments.first().and_then(|kind| kind.to_str());
        let kind = kind.unwrap_or_default();
        let mut command = process::command(binaries.join("tulle-bench"));
        command.args(&arguments);
        if args.update && DRAWN.contains(&kind) {
            command.arg("--plots").arg(workspace.root().join(PLOTS));
        }
        command
            .env("TULLE_BPF_OBJECT", workspace.bpf_object())
            .env("TULLE_BENCH_OBJECT", workspace.bench_object())
            .env("TULLE_AGENT", binaries.join("tulle-agent"));
        let tables = tables(&mut command)?;
        print!("{tables}");
        if args.update {
            update(&workspace, kind, &tables)?;
        }
    }
    Ok(())
}

/// What the measuring program prints. Its progress is shown meanwhile.
fn tables(command: &mut Command) -> Result<String> {
    let shown = process::shown(command);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed: {}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{shown}` printed no text"))
}

fn update(workspace: &Workspace, kind: &str, tables: &str) -> Result<()> {
    let page = workspace.root().join(PAGE);
    let text =
        fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    let text = spliced(&text, kind, tables)
        .with_context(|| format!("{PAGE} has no place for the tables of `{kind}`"))?;
    fs::write(&page, text).with_context(|| format!("cannot write {}", page.display()))
}

/// `page` with `tables` between the marks of `kind`; `None` if it lacks them.
fn spliced(page: &str, kind: &str, tables: &str) -> Option<String> {
    let (begin, end) = (
        format!("<!-- {kind}: written by cargo xtask bench --update -->\n"),
        format!("<!-- end of {kind} -->"),
    );
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!(
        "{before}{begin}\n{}\n\n{end}{after}",
        tables.trim()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_replace_those_of_the_last_time() {
        let page = "a\n<!-- wire: written by cargo xtask bench --update -->\nold\n\
                    <!-- end of wire -->\nb\n";
        let once = spliced(page, "wire", "\nnew\n").unwrap();
        assert_eq!(
            once,
            "a\n<!-- wire: written by cargo xtask bench --update -->\n\nnew\n\n\
             <!-- end of wire -->\nb\n"
        );
        assert_eq!(spliced(&once, "wire", "new"), Some(once.clone()));
        assert_eq!(spliced(page, "packets", "new"), None);
    }

    #[test]
    fn the_page_has_a_place_for_all_tables() {
        let workspace = Workspace::detect().unwrap();
        let page = fs::read_to_string(workspace.root().join(PAGE)).unwrap();
        for kind in KINDS {
            assert!(spliced(&page, kind, "x").is_some(), "{kind}");
        }
        assert!(DRAWN.iter().all(|kind| KINDS.contains(kind)));
    }
}
