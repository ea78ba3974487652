//! Running other programs: found where administrators' tools live, shown before they run,
//! never waiting for input.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// The caller's `PATH`, then the places of tools that it may lack: cargo's own programs
/// (`bpf-linker`) and the administrators' directories (`bpftool`, `nft`).
pub fn search_path() -> OsString {
    let inherited = env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = env::split_paths(&inherited).collect();
    let extra = [cargo_home().map(|home| home.join("bin"))]
        .into_iter()
        .flatten()
        .chain(["/usr/local/sbin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from));
    for place in extra {
        if !places.contains(&place) {
            places.push(place);
        }
    }
    // A directory with a colon in its name cannot be in PATH; then the caller's has to do.
    env::join_paths(places).unwrap_or(inherited)
}

/// Where `cargo install` puts programs, without the final `bin`.
pub fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
}

/// The program's path, if some directory of [`search_path`] holds it.
pub fn find(name: &str) -> Option<PathBuf> {
    env::split_paths(&search_path())
        .map(|place| place.join(name))
        .find(|path| {
            path.metadata()
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
}

/// A command that finds its program, and its own children's, in [`search_path`], and has no input.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path()).stdin(Stdio::null());
    command
}

/// Shows the command, runs it with this process's output, and fails if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    println!("$ {}", shown(command));
    let status = command.status().with_context(|| cannot_start(command))?;
    if !status.success() {
        bail!("`{}` failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs the command silently. Fails, with what it said, if it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().with_context(|| cannot_start(command))?;
    if !status.success() {
        bail!(
            "`{}` failed: {status}\n{}",
            shown(command),
            String::from_utf8_lossy(&stderr).trim_end()
        );
    }
    String::from_utf8(stdout).with_context(|| format!("`{}` printed no text", shown(command)))
}

/// What the command prints, or nothing if it is not installed or fails.
pub fn probe(command: &mut Command) -> Result<Option<String>> {
    match command.stderr(Stdio::null()).output() {
        Ok(out) if out.status.success() => {
            Ok(Some(String::from_utf8_lossy(&out.stdout).into_owned()))
        }
        Ok(_) => Ok(None),
        // The second: a directory of PATH that belongs to somebody else.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::PermissionDenied
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| cannot_start(command)),
    }
}

/// The command as one would type it: variables that it sets, program, arguments.
pub fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    // A toolchain's own cargo has a long path that tells nothing.
    let name = if program.ends_with("bin/cargo") {
        "cargo".into()
    } else {
        program.to_string_lossy()
    };
    let mut words = Vec::new();
    for (key, value) in command.get_envs() {
        let Some(value) = value.map(OsStr::to_string_lossy) else {
            continue;
        };
        // Variables that only say again what holds anyway are left out.
        let pair = match key.to_str() {
            Some("PATH" | "CARGO_TARGET_DIR") => continue,
            Some("CARGO_ENCODED_RUSTFLAGS") => format!("RUSTFLAGS={}", value.replace('\x1f', " ")),
            _ => format!("{}={value}", key.display()),
        };
        words.push(quoted(&pair));
    }
    words.push(quoted(&name));
    words.extend(command.get_args().map(|arg| quoted(&arg.to_string_lossy())));
    words.join(" ")
}

fn quoted(word: &str) -> String {
    if word.is_empty() || word.contains(|c: char| c.is_whitespace() || "'\"$*;|&<>()".contains(c)) {
        format!("'{}'", word.replace('\'', r"'\''"))
    } else {
        word.to_owned()
    }
}

fn cannot_start(command: &Command) -> String {
    format!(
        "cannot start {}: `cargo xtask setup` installs what Tulle needs",
        command.get_program().display()
    )
}

/// Whether this process is root, who alone may install, load programs and make namespaces.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_variables_and_quotes_words() {
        let mut c = command("/some/where/bin/cargo");
        c.env("A", "b")
            .env("CARGO_ENCODED_RUSTFLAGS", "one\x1ftwo")
            .args(["build", "it's", ""]);
        assert_eq!(
            shown(&c),
            r"A=b 'RUSTFLAGS=one two' cargo build 'it'\''s' ''"
        );
    }

    #[test]
    fn a_failing_command_is_an_error_that_names_it() {
        let error = output(command("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("sh -c") && text.contains("why") && text.contains('3'),
            "{text}"
        );
        assert!(run(&mut command("false")).is_err());
    }

    #[test]
    fn a_program_that_is_not_there_is_found_missing() {
        assert!(find("sh").is_some());
        assert!(find("tulle-no-such-program").is_none());
        assert_eq!(probe(&mut command("tulle-no-such-program")).unwrap(), None);
        let text = format!(
            "{:#}",
            run(&mut command("tulle-no-such-program")).unwrap_err()
        );
        assert!(text.contains("cargo xtask setup"), "{text}");
    }
}
