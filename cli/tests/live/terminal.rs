//! A pseudo-terminal with a program in it, and the screen that the program draws.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A terminal, and the program that it is the controlling terminal of.
pub struct Terminal {
    master: Option<File>,
    slave: File,
    path: PathBuf,
    screen: vt100::Parser,
    child: Child,
    modes: Termios,
}

impl Terminal {
    /// Runs a command in a terminal of 80 columns and 24 lines.
    pub fn run(command: &Command) -> Self {
        // Not inherited by what other tests start: the terminal could not hang up.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = PathBuf::from(ptsname_r(&master).unwrap());
        let master = File::from(master.as_fd().try_clone_to_owned().unwrap());
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOCTTY.bits())
            .open(&path)
            .unwrap();
        stty(&path, 80, 24);
        let modes = tcgetattr(&slave).unwrap();
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        // setsid(1) gives the program a session of its own with this controlling terminal, and
        // becomes the program: it has the process id.
        let mut inside = Command::new("setsid");
        inside.arg("--ctty").arg(command.get_program());
        inside
            .args(command.get_args())
            .env("TERM", "xterm-256color");
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        let child = inside
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .unwrap();
        Self {
            master: Some(master),
            slave,
            path,
            screen: parser(80, 24),
            child,
            modes,
        }
    }

    /// Another size of the terminal.
    pub fn resize(&mut self, columns: u16, lines: u16) {
        self.screen = parser(columns, lines);
        self.stty(columns, lines);
    }

    /// The same, without a look at the screen.
    pub fn stty(&self, columns: u16, lines: u16) {
        stty(&self.path, columns, lines);
    }

    /// Presses keys, as the bytes that a terminal sends for them.
    pub fn press(&mut self, keys: &str) {
        let master = self.master.as_mut().unwrap();
        master.write_all(keys.as_bytes()).unwrap();
    }

    /// The text on the screen.
    pub fn text(&self) -> String {
        self.screen.screen().contents()
    }

    /// The screen, with colours as they are.
    pub fn screen(&self) -> &vt100::Screen {
        self.screen.screen()
    }

    /// Reads what the program writes, for so long at most; `false` once there is nobody to read from.
    fn pump(&mut self, most: Duration) -> bool {
        let Some(master) = &mut self.master else {
            return false;
        };
        let mut fds = [PollFd::new(master.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(most).unwrap();
        if poll(&mut fds, timeout).unwrap() == 0 {
            return true;
        }
        let mut bytes = [0; 8192];
        let got = master.read(&mut bytes).unwrap_or(0);
        self.screen.process(&bytes[..got]);
        got > 0
    }

    /// Waits until the screen shows all of these texts.
    pub fn wait_for(&mut self, texts: &[&str]) -> String {
        self.wait_until(&format!("{texts:?}"), |screen| {
            texts.iter().all(|text| screen.contains(text))
        })
    }

    /// Waits until the screen is as `wanted` says.
    pub fn wait_until(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = self.text();
            if wanted(&text) {
                return text;
            }
            assert!(Instant::now() < deadline, "no {what} on\n{text}");
            self.pump(Duration::from_millis(50));
        }
    }

    /// Sends a signal to the program.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// The terminal goes away under the program.
    pub fn hang_up(&mut self) {
        self.master = None;
    }

    /// Waits for the end of the program.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                while self.pump(Duration::from_millis(50)) && self.readable() {}
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "it does not end:\n{}",
                self.text()
            );
            if !self.pump(Duration::from_millis(20)) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// Whether the terminal takes no more output until somebody reads.
    pub fn is_full(&self) -> bool {
        let mut fds = [PollFd::new(self.slave.as_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 0
    }

    /// Waits for the end of the program, and reads nothing meanwhile.
    pub fn wait_unread(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn readable(&self) -> bool {
        let master = self.master.as_ref().unwrap();
        let mut fds = [PollFd::new(master.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
    }

    /// Whether keys go to the program one by one, unseen.
    pub fn is_raw(&self) -> bool {
        tcgetattr(&self.slave).unwrap().local_flags != self.modes.local_flags
    }

    /// Asserts that the terminal is as it was before the program.
    pub fn assert_given_back(&self) {
        assert_eq!(tcgetattr(&self.slave).unwrap(), self.modes);
        let screen = self.screen.screen();
        assert!(!screen.alternate_screen(), "{}", screen.contents());
        assert!(!screen.hide_cursor(), "the cursor is hidden");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parser(columns: u16, lines: u16) -> vt100::Parser {
    let size = |n| NonZeroU16::new(n).unwrap();
    vt100::Parser::new(size(lines), size(columns), 0)
}

fn stty(path: &PathBuf, columns: u16, lines: u16) {
    let mut command = Command::new("stty");
    command.arg("-F").arg(path);
    let (columns, lines) = (columns.to_string(), lines.to_string());
    let done = command.args(["cols", &columns, "rows", &lines]).status();
    assert!(done.unwrap().success());
}
