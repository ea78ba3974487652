//! `cargo xtask test`: everything that has to hold, in one run.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::process::{Command, Stdio};
use std::thread::available_parallelism;

use anyhow::{Context, Result, bail};

use crate::bpf_toolchain::{Choice, Toolchain};
use crate::build_ebpf::{self, LoadCheck};
use crate::lint;
use crate::packages::Scope;
use crate::process;
use crate::setup;
use crate::summary::{Counts, Summary};
use crate::workspace::{Package, Workspace};

/// Every call names the same packages, all but the programs, inside which no test runs: for other
/// packages cargo chooses other features, and compiles half of the dependencies anew.
const PACKAGES: [&str; 3] = ["--workspace", "--exclude", "datapath-ebpf"];
/// Crates whose tests in `tests/` need root, while those beside the code do not.
const ROOT_TESTS: [&str; 5] = ["tulle-agent", "tulle", "testkit", "demo", "bpf-tests"];
/// Tests of Services on clusters of namespaces.
const SERVICE_TESTS: [&str; 2] = ["run_services*", "run_choice"];
/// Those of them that ask every client at every frontend: run with each way alone, too.
const CORE_TESTS: [&str; 1] = ["run_services"];
/// The variables by which services are served at sockets and by XDP there, too: nothing may be
/// different but the way. The ones are for clients inside, the others for those outside, so that
/// each is tested though both are on.
const SOCKETS: (&str, &str) = ("TULLE_TEST_SOCKETS", "1");
const XDP: (&str, &str) = ("TULLE_TEST_XDP", "generic");
/// The variable by which the objects of clusters come through an API server.
const API: (&str, &str) = ("TULLE_TEST_API", "1");
/// Names and values.
type Variables = &'static [(&'static str, &'static str)];
/// What runs once more with services served faster, beside the root tests, which have neither:
/// every combination; and with objects that come through the Kubernetes API, not from a directory.
const OTHERWISE: [(&str, &[&str], Variables); 4] = [
    (
        "root tests of services, at sockets and by XDP too",
        &SERVICE_TESTS,
        &[SOCKETS, XDP],
    ),
    (
        "root tests of services, at sockets too",
        &CORE_TESTS,
        &[SOCKETS],
    ),
    ("root tests of services, by XDP too", &CORE_TESTS, &[XDP]),
    (
        "root tests of services, through the API",
        &SERVICE_TESTS,
        &[API],
    ),
];
/// Run all tests: set up, build, verify, lint, host tests, tests that need root
#[derive(clap::Args)]
pub struct Args {
    /// Lints and host tests only; needs no root
    #[arg(long)]
    quick: bool,
    /// What compiles the eBPF programs
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    toolchain: Choice,
    /// Run only tests whose name contains this
    filter: Option<String>,
}

/// Runs the stages. What cannot go on without a failed stage ends there; lints and tests all run.
pub fn run(args: &Args) -> Result<()> {
    if !args.quick && !process::is_root() {
        bail!("tests load programs and make network namespaces: run this as root, or with --quick");
    }
    let mut summary = Summary::default();
    if !args.quick && !summary.stage("setup", || set_up(args.toolchain)) {
        return summary.finish();
    }
    let workspace = Workspace::detect()?;
    let check = if args.quick {
        LoadCheck::No
    } else {
        LoadCheck::Required
    };
    let mut toolchain: Option<Toolchain> = None;
    let built = summary.stage("build-ebpf", || {
        toolchain = Some(build_ebpf::build(&workspace, args.toolchain, check)?);
        Ok(if check == LoadCheck::Required {
            "verified by the kernel"
        } else {
            ""
        }
        .to_owned())
    });
    let Some(toolchain) = toolchain.filter(|_| built) else {
        return summary.finish();
    };
    summary.stage("lint", || {
        lint::lint(&workspace, toolchain, false)?;
        Ok(String::new())
    });

    let groups = Groups::of(workspace.packages())?;
    // The programs too: root tests run the agent and the CLI as an operator does.
    if !args.quick
        && !summary.stage("build", || {
            process::run(workspace.cargo().args(["test", "--no-run"]).args(PACKAGES))?;
            Ok(String::new())
        })
    {
        return summary.finish();
    }
    let filter = args.filter.as_deref();
    let mut ran = 0;
    summary.stage("host tests", || {
        let counts = cargo_tests(&workspace, &groups.host_runs(), filter, None, &[])?;
        ran += counts.passed;
        Ok(counts.to_string())
    });
    if !args.quick {
        let threads = available_parallelism().map_or(2, |cores| cores.get().clamp(1, 4));
        summary.stage("root tests", || {
            let runs = [tests(&groups.root)];
            let counts = cargo_tests(&workspace, &runs, filter, Some(threads), &[])?;
            ran += counts.passed;
            Ok(counts.to_string())
        });
        if filter.is_none() {
            for (stage, names, variables) in OTHERWISE {
                summary.stage(stage, || {
                    let runs = [tests(names)];
                    let counts = cargo_tests(&workspace, &runs, None, Some(threads), variables)?;
                    Ok(counts.to_string())
                });
            }
            summary.stage("demo", || demonstrate(&workspace));
        }
    }
    summary.finish()?;
    if let (0, Some(filter)) = (ran, filter) {
        bail!("no test has `{filter}` in its name");
    }
    Ok(())
}

/// Runs the demo under a name of its own, with the programs just built: it fails when anything
/// that it shows is not as promised, or anything is left of it.
fn demonstrate(workspace: &Workspace) -> Result<String> {
    let programs = workspace.target().join("debug");
    let mut demo = process::command(programs.join("tulle-demo"));
    demo.arg("--name")
        .arg(format!("test-{}", std::process::id()));
    process::run(demo.arg("--programs").arg(&programs))?;
    Ok("all as promised".into())
}

fn set_up(choice: Choice) -> Result<String> {
    let ready = setup::ensure(Scope::Everything, choice)?;
    Ok(if ready.installed {
        "installed what was missing"
    } else {
        "nothing was missing"
    }
    .into())
}

/// Names of the tests in `tests/` directories.
#[derive(Debug, PartialEq, Eq)]
struct Groups<'a> {
    host: BTreeSet<&'a str>,
    root: BTreeSet<&'a str>,
}

impl<'a> Groups<'a> {
    /// # Errors
    ///
    /// If a name is in both groups: cargo takes the name for both.
    fn of(packages: &'a [Package]) -> Result<Self> {
        let names = |root| {
            packages
                .iter()
                .filter(move |package| ROOT_TESTS.contains(&package.name.as_str()) == root)
                .flat_map(|package| package.names("test"))
                .collect::<BTreeSet<_>>()
        };
        let (host, root) = (names(false), names(true));
        if let Some(name) = host.intersection(&root).next() {
            bail!("the test {name} is in two crates, of which one needs root: rename one");
        }
        Ok(Self { host, root })
    }

    /// Arguments of the `cargo test` calls for what needs no root.
    fn host_runs(&self) -> [Vec<String>; 2] {
        let mut run = vec!["--lib".to_owned(), "--bins".to_owned()];
        run.extend(tests(&self.host));
        [run, vec!["--doc".to_owned()]]
    }
}

/// Arguments of `cargo test` for these of the tests in `tests/` directories.
fn tests<'a>(names: impl IntoIterator<Item = &'a &'a str>) -> Vec<String> {
    let words = names.into_iter().flat_map(|&name| ["--test", name]);
    words.map(str::to_owned).collect()
}

/// Runs `cargo test` for each list of arguments, all of them even if one fails, with
/// `variables` in its environment.
fn cargo_tests(
    workspace: &Workspace,
    runs: &[Vec<String>],
    filter: Option<&str>,
    threads: Option<usize>,
    variables: &[(&str, &str)],
) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut failures = 0;
    for run in runs {
        let mut command = workspace.cargo();
        command.envs(variables.iter().copied());
        command.args(["test", "--no-fail-fast"]).args(PACKAGES);
        command.args(run).arg("--");
        command.args(filter);
        if let Some(threads) = threads {
            command.arg(format!("--test-threads={threads}"));
        }
        if io::stdout().is_terminal() {
            // The tests see a pipe, the reader does not.
            command.arg("--color=always");
        }
        if let Err(error) = counted(&mut command, &mut counts, &mut io::stdout()) {
            eprintln!("error: {error:#}");
            failures += 1;
        }
    }
    if failures > 0 && counts.failed == 0 {
        bail!("{counts}; tests do not build, or ended without a result");
    } else if failures > 0 {
        bail!("{counts}");
    }
    if counts.passed == 0 && filter.is_none() {
        bail!("no test ran");
    }
    Ok(counts)
}

/// Runs a command, hands its output on line by line, and counts tests by their closing lines.
fn counted(command: &mut Command, counts: &mut Counts, to: &mut impl Write) -> Result<()> {
    println!("$ {}", process::shown(command));
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", process::shown(command)))?;
    let copied = child
        .stdout
        .take()
        .map_or(Ok(()), |out| copy_lines(out, counts, to));
    let status = child.wait().context("cannot wait for the tests")?;
    copied.context("cannot read the tests' output")?;
    if !status.success() {
        bail!("`{}` failed: {status}", process::shown(command));
    }
    Ok(())
}

fn copy_lines(from: impl Read, counts: &mut Counts, to: &mut impl Write) -> io::Result<()> {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    // Tests may print anything, so lines are octets, not text.
    while from.read_until(b'\n', &mut line)? > 0 {
        counts.add_line(&String::from_utf8_lossy(&line));
        to.write_all(&line)?;
        line.clear();
    }
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packages() -> Workspace {
        serde_json::from_str(
            r#"{"workspace_root":"/w","target_directory":"/t","packages":[
              {"name":"datapath-core","targets":[
                {"kind":["lib"],"name":"datapath_core"},{"kind":["test"],"name":"driver"}]},
              {"name":"tulle-agent","targets":[
                {"kind":["test"],"name":"run"},{"kind":["test"],"name":"packets"}]},
              {"name":"tulle","targets":[{"kind":["bin"],"name":"tulle"}]},
              {"name":"bpf-tests","targets":[{"kind":["test"],"name":"packets"}]}]}"#,
        )
        .unwrap()
    }

    #[test]
    fn each_test_is_in_one_of_the_two_groups() {
        let workspace = packages();
        let groups = Groups::of(workspace.packages()).unwrap();
        assert_eq!(
            groups.host_runs().map(|run| run.join(" ")),
            ["--lib --bins --test driver", "--doc"]
        );
        assert_eq!(tests(&groups.root).join(" "), "--test packets --test run");
        let workspace: Workspace = serde_json::from_str(
            r#"{"workspace_root":"/w","target_directory":"/t","packages":[
              {"name":"xtask","targets":[{"kind":["test"],"name":"run"}]},
              {"name":"demo","targets":[{"kind":["test"],"name":"run"}]}]}"#,
        )
        .unwrap();
        let error = Groups::of(workspace.packages()).unwrap_err().to_string();
        assert!(error.contains("the test run"), "{error}");
    }

    #[test]
    fn output_is_counted_though_a_command_fails() {
        let mut counts = Counts::default();
        let mut shown = Vec::new();
        let mut command = process::command("sh");
        command.args([
            "-c",
            "printf 'test result: FAILED. 1 passed; 2 failed\n'; exit 101",
        ]);
        let error = counted(&mut command, &mut counts, &mut shown)
            .unwrap_err()
            .to_string();
        assert!(error.contains("101"), "{error}");
        assert_eq!(
            counts,
            Counts {
                passed: 1,
                failed: 2,
                ignored: 0
            }
        );
    }
}
