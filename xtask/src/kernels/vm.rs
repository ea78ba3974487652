//! The virtual machine: qemu with its own emulation of the processor, so that it runs wherever
//! qemu does. The kernel's messages go to one serial line, the results to another.

use std::io::{self, Read};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process;

/// Memory of the machine. The first root directory is kept in it, too.
const MEMORY: &str = "2048M";

/// What to boot.
pub struct Machine<'a> {
    /// The kernel's image.
    pub kernel: &'a Path,
    /// The archive with the first root directory.
    pub root: &'a Path,
    /// Where the kernel's messages are written.
    pub console: &'a Path,
    /// When it is ended by force.
    pub limit: Duration,
}

/// How the machine ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// It switched itself off.
    Off,
    /// It ran out of time and was ended.
    Late,
}

/// Boots the machine, hands each line of the second serial line to `line`, and waits for the end.
pub fn run(machine: &Machine, mut line: impl FnMut(&str)) -> Result<Ending> {
    let mut command = process::command("qemu-system-x86_64");
    command
        // "max": all that the emulation offers; some programs of Debian's need more than the default.
        .args([
            "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1",
        ])
        // The clock counts instructions, a nanosecond each, and leaps over idleness. So a limit
        // in a test means the same however slow the emulation is.
        .args(["-icount", "shift=0,sleep=off"])
        .args([
            "-m",
            MEMORY,
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
        ])
        .arg("-kernel")
        .arg(machine.kernel)
        .arg("-initrd")
        .arg(machine.root)
        // panic=-1 with -no-reboot: a kernel that panics ends the machine at once.
        .args(["-append", "console=ttyS0 panic=-1"])
        .arg("-serial")
        .arg(format!("file:{}", machine.console.display()))
        .args(["-serial", "stdio"])
        .stdout(Stdio::piped());
    println!("$ {}", process::shown(&command));
    let mut child = command
        .spawn()
        .context("cannot start qemu-system-x86_64: `cargo xtask kernels` installs it")?;
    let output = child.stdout.take().context("qemu has no output")?;
    let until = Instant::now() + machine.limit;
    let (sender, receiver) = channel();
    let reader = thread::spawn(move || {
        let mut lines = Lines::default();
        lines.read(output, |line| sender.send(line).is_ok())
    });
    let ending = loop {
        match receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(text) => line(&text),
            Err(RecvTimeoutError::Disconnected) => break Ending::Off,
            Err(RecvTimeoutError::Timeout) => {
                child.kill().context("cannot end qemu")?;
                break Ending::Late;
            }
        }
    };
    let status = child.wait().context("cannot wait for qemu")?;
    drop(receiver);
    match reader.join() {
        Ok(read) => read.context("cannot read what qemu prints")?,
        Err(panic) => std::panic::resume_unwind(panic),
    }
    if ending == Ending::Off && !status.success() {
        bail!("qemu failed: {status}");
    }
    Ok(ending)
}

/// Puts octets together to lines; the machine may print anything.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn read(
        &mut self,
        mut from: impl Read,
        mut line: impl FnMut(String) -> bool,
    ) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let count = from.read(&mut buffer)?;
            self.rest.extend(&buffer[..count]);
            while let Some(end) = self.rest.iter().position(|octet| *octet == b'\n') {
                let whole: Vec<u8> = self.rest.drain(..=end).collect();
                let text = String::from_utf8_lossy(&whole);
                if !line(text.trim_end_matches(['\r', '\n']).to_owned()) {
                    return Ok(());
                }
            }
            if count == 0 {
                if !self.rest.is_empty() {
                    line(String::from_utf8_lossy(&self.rest).into_owned());
                }
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_become_lines_whatever_they_are() {
        let mut seen = Vec::new();
        let text: &[u8] = b"one\r\n\ntw\xffo\nrest";
        Lines::default()
            .read(text, |line| {
                seen.push(line);
                true
            })
            .unwrap();
        assert_eq!(seen, ["one", "", "tw\u{fffd}o", "rest"]);
    }

    #[test]
    fn reading_ends_when_nobody_listens() {
        let mut count = 0;
        Lines::default()
            .read(&b"a\nb\nc\n"[..], |_| {
                count += 1;
                false
            })
            .unwrap();
        assert_eq!(count, 1);
    }
}
