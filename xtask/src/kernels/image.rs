//! The root directory that the virtual machine boots into: our test programs with their
//! libraries, a few tools, the kernel's modules, the object.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::bpf_toolchain::llvm_strip;
use crate::process;
use crate::workspace::Workspace;

use super::cpio::Archive;
use super::debian::Kernel;
use super::guest::{self, Step};
use super::modules::Modules;

/// What the machines of all kernels get: path in the archive and content.
pub struct Content {
    files: Vec<(String, Vec<u8>)>,
}

impl Content {
    /// Builds the steps' tests and collects them with all that they need, except modules. `work`
    /// is a directory for what lies between.
    pub fn build(workspace: &Workspace, steps: &[&Step], work: &Path) -> Result<Self> {
        let mut files = Vec::new();
        let mut linked = Vec::new();
        for program in build_tests(workspace, steps)? {
            files.push((program.place, stripped(&program.path, work)?));
            linked.push(program.path);
        }
        files.push(("/bin/busybox".to_owned(), read(&program("busybox")?)?));
        for tool in guest::TOOLS {
            let path = program(tool)?;
            files.push((format!("/bin/{tool}"), read(&path)?));
            linked.push(path);
        }
        for library in libraries(&linked)? {
            files.push((library.to_string_lossy().into_owned(), read(&library)?));
        }
        files.push((guest::OBJECT.to_owned(), read(&workspace.bpf_object())?));
        Ok(Self { files })
    }
}

/// The archive for a kernel.
pub fn archive(kernel: &Kernel, content: &Content, steps: &[&Step]) -> Result<Vec<u8>> {
    let modules = Modules::find(&kernel.modules())?.in_order(&guest::MODULES)?;
    let mut archive = Archive::default();
    let mut names = Vec::new();
    for (name, content) in modules {
        archive.file(&format!("/modules/{name}.ko"), &content)?;
        names.push(name);
    }
    for (path, content) in &content.files {
        archive.file(path, content)?;
    }
    let script = guest::script(&kernel.release, &names, steps);
    archive.file("/init", script.as_bytes())?;
    archive.finish()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn program(name: &str) -> Result<PathBuf> {
    process::find(name).with_context(|| format!("{name} is not installed"))
}

/// A program that cargo built.
#[derive(Debug, PartialEq, Eq)]
struct Program {
    path: PathBuf,
    /// Its path in the archive.
    place: String,
}

/// Builds the steps' test programs, and the programs of their packages, which tests start.
fn build_tests(workspace: &Workspace, steps: &[&Step]) -> Result<Vec<Program>> {
    let mut built = Vec::new();
    let mut packages: Vec<&str> = steps.iter().map(|step| step.package).collect();
    packages.sort_unstable();
    packages.dedup();
    for package in packages {
        let names: Vec<&str> = steps
            .iter()
            .filter(|step| step.package == package)
            .map(|step| step.name)
            .collect();
        let mut command = workspace.cargo();
        command.args([
            "test",
            "--no-run",
            "--message-format=json-render-diagnostics",
        ]);
        command.args(["--package", package]);
        for name in &names {
            command.args(["--test", name]);
        }
        println!("$ {}", process::shown(&command));
        let found = executables(&process::output(&mut command)?);
        for name in names {
            let place = format!("{}/{name}", guest::PROGRAMS);
            if !found.iter().any(|program| program.place == place) {
                bail!("cargo built no test {name} of {package}");
            }
        }
        built.extend(found);
    }
    Ok(built)
}

/// The tests and programs in cargo's messages.
fn executables(text: &str) -> Vec<Program> {
    #[derive(Deserialize)]
    struct Artifact {
        target: Target,
        executable: Option<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
        kind: Vec<String>,
    }
    text.lines()
        .filter_map(|line| serde_json::from_str::<Artifact>(line).ok())
        .filter_map(|Artifact { target, executable }| {
            let path = executable?;
            let place = match target.kind.first()?.as_str() {
                "test" => format!("{}/{}", guest::PROGRAMS, target.name),
                // Tests know where cargo leaves a program.
                "bin" => path.to_str()?.to_owned(),
                _ => return None,
            };
            Some(Program { path, place })
        })
        .collect()
}

/// The program without what only debuggers read, for most of it is that.
fn stripped(path: &Path, work: &Path) -> Result<Vec<u8>> {
    let out = work.join("stripped");
    process::output(llvm_strip()?.arg("-o").arg(&out).arg(path))?;
    let content = read(&out)?;
    fs::remove_file(&out).with_context(|| format!("cannot remove {}", out.display()))?;
    Ok(content)
}

/// The libraries of programs, and their loader.
fn libraries(programs: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in programs {
        let text = process::output(process::command("ldd").arg(path))?;
        let (paths, missing) = parse_ldd(&text);
        if let Some(missing) = missing {
            bail!("{} needs {missing}, which is not installed", path.display());
        }
        found.extend(paths);
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Paths in what `ldd` prints, and the first library that it did not find.
fn parse_ldd(text: &str) -> (Vec<PathBuf>, Option<String>) {
    let mut paths = Vec::new();
    let mut missing = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [name, "=>", "not", "found"] => missing = missing.or(Some(name.to_owned())),
            [_, "=>", path, _] | [path, _] if path.starts_with('/') => paths.push(path.into()),
            _ => {} // the kernel's own library, or a program without any
        }
    }
    (paths, missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_tells_libraries_and_loader() {
        let (paths, missing) = parse_ldd(
            "\tlinux-vdso.so.1 (0x00007ffc1)\n\
             \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f6)\n\
             \t/lib64/ld-linux-x86-64.so.2 (0x00007f7)\n",
        );
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(paths, expected.map(PathBuf::from));
        assert_eq!(missing, None);
        assert_eq!(parse_ldd("\tstatically linked\n"), (Vec::new(), None));
        let (_, missing) = parse_ldd("\tliba.so.1 => not found\n\tlibb.so => not found\n");
        assert_eq!(missing.as_deref(), Some("liba.so.1"));
    }

    #[test]
    fn cargo_tells_what_it_built() {
        let text = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"a"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"a"},"executable":"/t/unit-tests"}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"agent"},"executable":"/t/agent"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"packets"},"executable":"/t/packets-1"}
no json
{"reason":"build-finished","success":true}"#;
        let program = |path: &str, place: &str| Program {
            path: path.into(),
            place: place.into(),
        };
        assert_eq!(
            executables(text),
            [
                program("/t/agent", "/t/agent"),
                program("/t/packets-1", "/tests/packets"),
            ]
        );
    }

    #[test]
    fn each_step_is_a_test_of_this_checkout() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for step in guest::STEPS {
            let directory = step.package.trim_start_matches("tulle-");
            let source = root.join(directory).join(format!("tests/{}.rs", step.name));
            let text = read(&source).unwrap();
            let text = String::from_utf8(text).unwrap();
            for test in step
                .tests
                .iter()
                .chain(step.without_tcx.into_iter().flatten())
            {
                assert!(
                    text.contains(&format!("fn {test}()")),
                    "{test} in {}",
                    source.display()
                );
            }
        }
    }
}
