//! What kube-proxy left in the kernel's older tables of iptables ("legacy"). Only the programs of
//! iptables speak to those: the node's own are used, from its root file system if the agent's has none.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, bail};

use super::nfnl::{IPV4, IPV6};
use super::nft::family;
use super::surgery::{Rule, Surgery};

/// Where programs are, below a root directory.
const DIRECTORIES: [&str; 6] = [
    "usr/sbin",
    "sbin",
    "usr/bin",
    "bin",
    "usr/local/sbin",
    "usr/local/bin",
];

/// A table with what goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    /// Address family.
    pub family: u8,
    /// Its name.
    pub name: String,
    /// What goes; rules as `iptables-save` writes them.
    pub surgery: Surgery<String>,
}

impl Table {
    /// What there is, for people.
    pub fn sentence(&self) -> String {
        format!(
            "iptables (legacy), {} {}: {}",
            family(self.family),
            self.name,
            self.surgery.sentence()
        )
    }

    /// What `iptables-restore --noflush` is to read: one transaction of the kernel's.
    pub fn input(&self) -> String {
        // To declare a chain that is there empties it.
        let empty = self
            .surgery
            .emptied()
            .map(|chain| format!(":{chain} - [0:0]"));
        let jumps = self.surgery.jumps.iter();
        let cut = jumps.filter_map(|jump| Some(format!("-D {}", jump.id.strip_prefix("-A ")?)));
        let delete = self
            .surgery
            .delete
            .iter()
            .map(|chain| format!("-X {chain}"));
        let lines: Vec<String> = empty.chain(cut).chain(delete).collect();
        format!("*{}\n{}\nCOMMIT\n", self.name, lines.join("\n"))
    }
}

/// Reads what `iptables-save` wrote of all tables.
pub fn parse(family: u8, text: &str) -> Vec<Table> {
    let mut tables = Vec::new();
    let mut name = String::new();
    let (mut chains, mut rules) = (Vec::new(), Vec::new());
    for line in text.lines().map(str::trim_end) {
        if let Some(table) = line.strip_prefix('*') {
            table.clone_into(&mut name);
            (chains, rules) = (Vec::new(), Vec::new());
        } else if let Some(chain) = line.strip_prefix(':') {
            chains.extend(chain.split_whitespace().next().map(str::to_owned));
        } else if line.starts_with("-A ") {
            rules.extend(rule(line));
        } else if line == "COMMIT" {
            let surgery = Surgery::of(&chains, &rules);
            if !surgery.is_nothing() {
                tables.push(Table {
                    family,
                    name: std::mem::take(&mut name),
                    surgery,
                });
            }
        }
    }
    tables
}

fn rule(line: &str) -> Option<Rule<String>> {
    let words = words(line);
    let behind = |flags: [&str; 2]| {
        let at = words
            .iter()
            .position(|word| flags.contains(&word.as_str()))?;
        words.get(at + 1).cloned()
    };
    Some(Rule {
        chain: words.get(1)?.clone(),
        target: behind(["-j", "-g"]),
        id: line.to_owned(),
    })
}

/// The words of a line, where a comment in quotes is one.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quoted, mut escaped, mut any) = (String::new(), false, false, false);
    for c in line.chars() {
        match c {
            _ if escaped => {
                word.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => (quoted, any) = (!quoted, true),
            ' ' if !quoted => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            _ => word.push(c),
        }
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    words
}

/// Whether this network namespace has such tables of a family: their names.
pub fn names(family: u8) -> String {
    let file = if family == IPV6 {
        "/proc/self/net/ip6_tables_names"
    } else {
        "/proc/self/net/ip_tables_names"
    };
    // Without the module there is no file.
    std::fs::read_to_string(file).unwrap_or_default()
}

/// The programs of iptables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Programs {
    /// Root directory that they run in; the agent's own without.
    root: Option<PathBuf>,
    save: PathBuf,
    restore: PathBuf,
}

impl Programs {
    /// Finds those of a family: on the agent's `PATH`, else below `host`.
    pub fn find(family: u8, host: Option<&Path>) -> Option<Self> {
        let v6 = if family == IPV6 { "6" } else { "" };
        let variants = [
            format!("ip{v6}tables-legacy"),
            // Before there was another kind, or where the other was never installed.
            format!("ip{v6}tables"),
        ];
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = std::env::split_paths(&path).map(|directory| (None, directory));
        let hosts = DIRECTORIES
            .iter()
            .filter_map(|directory| Some((host?.to_owned(), PathBuf::from(directory))))
            .map(|(root, directory)| (Some(root), directory));
        own.chain(hosts)
            .flat_map(|(root, directory)| {
                variants.iter().map(move |variant| Self {
                    save: directory.join(format!("{variant}-save")),
                    restore: directory.join(format!("{variant}-restore")),
                    root: root.clone(),
                })
            })
            .find(|programs| programs.exist() && programs.are_legacy())
    }

    fn exist(&self) -> bool {
        let base = self.root.as_deref().unwrap_or(Path::new("/"));
        [&self.save, &self.restore].iter().all(|program| {
            // Links in another root directory may be absolute, and lead nowhere from here.
            base.join(program).symlink_metadata().is_ok()
        })
    }

    fn are_legacy(&self) -> bool {
        let version = self.run(&self.save, &["--version"], None);
        version.is_ok_and(|out| {
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            out.status.success() && !text.contains("nf_tables")
        })
    }

    /// The tables with something of kube-proxy's, without counting packets.
    pub fn tables(&self, family: u8) -> anyhow::Result<Vec<Table>> {
        let out = self.run(&self.save, &[], None)?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        Ok(parse(family, &text))
    }

    /// Removes what is kube-proxy's of a table, or nothing.
    pub fn remove(&self, table: &Table) -> anyhow::Result<()> {
        let args = ["-w", "5", "--noflush"];
        self.run(&self.restore, &args, Some(table.input()))?;
        Ok(())
    }

    fn run(&self, program: &Path, args: &[&str], input: Option<String>) -> anyhow::Result<Output> {
        let (root, path) = (self.root.clone(), Path::new("/").join(program));
        let shown = self.root.as_deref().map_or_else(
            || path.display().to_string(),
            |root| format!("{} in {}", path.display(), root.display()),
        );
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        // A thread of its own, for its root directory stays another one.
        let thread = std::thread::spawn(move || {
            if let Some(root) = root {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
                nix::unistd::chroot(&root)?;
                nix::unistd::chdir("/")?;
            }
            let mut child = Command::new(&path)
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            let stdin = child.stdin.take();
            if let (Some(input), Some(mut stdin)) = (input, stdin) {
                stdin.write_all(input.as_bytes())?;
            }
            child.wait_with_output()
        });
        let out = thread
            .join()
            .map_err(|_| anyhow::anyhow!("the thread that runs {shown} broke off"))?
            .with_context(|| format!("cannot run {shown}"))?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            bail!("{shown} failed, {}: {}", out.status, said.trim());
        }
        Ok(out)
    }
}

/// Both families.
pub const FAMILIES: [u8; 2] = [IPV4, IPV6];

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"# Generated
*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
:OTHER - [0:0]
-A PREROUTING -m comment --comment "kubernetes -j KUBE portals" -j KUBE-SERVICES
-A PREROUTING -j OTHER
-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-A
COMMIT
*filter
:INPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
COMMIT
"#;

    #[test]
    fn one_table_is_one_transaction() {
        let tables = parse(IPV4, SAVED);
        assert_eq!(tables.len(), 1, "the kubelet's chain stays: {tables:?}");
        assert_eq!(
            tables[0].input(),
            "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n\
             -D PREROUTING -m comment --comment \"kubernetes -j KUBE portals\" -j KUBE-SERVICES\n\
             -X KUBE-SERVICES\n-X KUBE-SVC-A\nCOMMIT\n"
        );
    }

    #[test]
    fn a_comment_is_one_word() {
        let found = words(r#"-A A --comment "say \"-j B\"" -j C"#);
        assert_eq!(found, ["-A", "A", "--comment", "say \"-j B\"", "-j", "C"]);
        assert_eq!(words(r#"a "" b"#), ["a", "", "b"]);
    }
}
