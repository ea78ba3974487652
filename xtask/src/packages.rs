//! What Tulle's development needs, and what of it is missing: a table and a pure decision.

use std::collections::BTreeSet;
use std::fmt::Write;

mod table;

pub use table::PACKAGES;

use table::COMPILER;

use crate::bpf_toolchain::Toolchain;
use crate::os::Os;

/// The bpf-linker that the programs are linked with.
pub const BPF_LINKER: &str = "0.13.0";

/// How that bpf-linker is installed.
pub const BPF_LINKER_INSTALL: &str = "LLVM_PREFIX=/usr/lib/llvm-22 cargo install \
     bpf-linker@0.13.0 --locked --no-default-features --features llvm-22";

/// What a package is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To compile the eBPF programs with Debian's toolchain.
    DebianToolchain,
    /// To build bpf-linker, where it is missing.
    BuildLinker,
    /// To finish the object.
    Build,
    /// To load the object.
    Load,
    /// To compile the image's programs, with Debian's compiler.
    Image,
    /// For tests, demo and measurements.
    Run,
    /// To run other kernels in virtual machines.
    Kernels,
}

/// A package of Debian 12.
#[derive(Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name for apt.
    pub name: &'static str,
    /// Why it is installed, for people.
    pub why: &'static str,
    /// Programs of which any one, however it was installed, does its work.
    pub programs: &'static [&'static str],
    /// What it is needed for.
    pub purpose: Purpose,
}

/// How much of it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// What builds the object.
    Build,
    /// What builds it and loads it.
    BuildAndLoad,
    /// What builds the object and the image.
    Image,
    /// All but what other kernels need.
    Everything,
    /// All.
    Kernels,
}

impl Scope {
    fn covers(self, purpose: Purpose) -> bool {
        match purpose {
            Purpose::DebianToolchain | Purpose::BuildLinker | Purpose::Build => true,
            Purpose::Load => !matches!(self, Self::Build | Self::Image),
            Purpose::Image => !matches!(self, Self::Build | Self::BuildAndLoad),
            Purpose::Run => matches!(self, Self::Everything | Self::Kernels),
            Purpose::Kernels => self == Self::Kernels,
        }
    }
}

/// What a machine has.
#[derive(Debug, Default)]
pub struct Machine {
    /// Debian packages that are installed, of those in [`PACKAGES`].
    pub installed: BTreeSet<String>,
    /// Programs that are found, of those in [`PACKAGES`].
    pub programs: BTreeSet<&'static str>,
    /// A bpf-linker runs and is recent enough.
    pub bpf_linker: bool,
    /// The chosen toolchain is there.
    pub toolchain: bool,
    /// A BPF file system is mounted at its place.
    pub bpffs: bool,
}

/// What a machine lacks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Packages to install.
    pub packages: Vec<&'static Package>,
    /// bpf-linker is to be built.
    pub bpf_linker: bool,
    /// The nightly is to be installed by its owner.
    pub nightly: bool,
    /// The BPF file system is to be mounted.
    pub bpffs: bool,
}

impl Missing {
    /// Compares what a scope needs with what the machine has.
    pub fn find(machine: &Machine, scope: Scope, toolchain: Toolchain) -> Self {
        let needed = |package: &&Package| {
            scope.covers(package.purpose)
                && match package.purpose {
                    Purpose::DebianToolchain => {
                        toolchain == Toolchain::Debian && !machine.toolchain
                            || package.name == COMPILER && scope.covers(Purpose::Image)
                    }
                    Purpose::BuildLinker => !machine.bpf_linker,
                    _ => true,
                }
        };
        let present = |package: &Package| {
            machine.installed.contains(package.name)
                || package
                    .programs
                    .iter()
                    .any(|program| machine.programs.contains(program))
        };
        Self {
            packages: PACKAGES
                .iter()
                .filter(needed)
                .filter(|p| !present(p))
                .collect(),
            bpf_linker: !machine.bpf_linker,
            nightly: toolchain == Toolchain::Nightly && !machine.toolchain,
            bpffs: scope == Scope::Everything && !machine.bpffs,
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The packages' lines, one each, with the reason.
    pub fn package_lines(&self) -> String {
        let width = self
            .packages
            .iter()
            .map(|package| package.name.len())
            .max()
            .unwrap_or(0);
        self.packages
            .iter()
            .fold(String::new(), |mut text, package| {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "  {:width$}  {}", package.name, package.why);
                text
            })
    }

    /// What a person has to do where `setup` may not or cannot.
    pub fn advice(&self, os: &Os) -> String {
        let mut steps = Vec::new();
        if !self.packages.is_empty() {
            let names: Vec<&str> = self.packages.iter().map(|package| package.name).collect();
            steps.push(if os.is_debian_12() {
                format!(
                    "{}\n  apt-get update && apt-get install --no-install-recommends {}",
                    self.package_lines().trim_end(),
                    names.join(" ")
                )
            } else {
                format!(
                    "{}\n  (names of Debian 12; take the packages of {} with the same content)",
                    self.package_lines().trim_end(),
                    os.name()
                )
            });
        }
        if self.nightly {
            steps.push(format!("  {}", Toolchain::Nightly.how_to_install()));
        }
        if self.bpf_linker {
            steps.push(if os.is_debian_12() {
                format!("  {BPF_LINKER_INSTALL}")
            } else {
                format!("  {BPF_LINKER_INSTALL}\n  (LLVM_PREFIX: where LLVM 22 is on this machine)")
            });
        }
        if self.bpffs {
            steps.push("  mount -t bpf bpf /sys/fs/bpf".to_owned());
        }
        steps.join("\n")
    }
}

/// Names of installed packages in the output of `dpkg-query -W -f='${db:Status-Status} ${Package}\n'`.
pub fn parse_dpkg(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .map(|name| name.trim().to_owned())
        .collect()
}

/// Whether `bpf-linker --version` is the wanted version or a later one of its series.
pub fn linker_suits(version: &str) -> bool {
    fn parts(version: &str) -> Option<[u32; 3]> {
        let mut numbers = version.split('.').map(|part| part.parse().ok());
        Some([numbers.next()??, numbers.next()??, numbers.next()??])
    }
    let found = version.trim().strip_prefix("bpf-linker ").and_then(parts);
    let (Some(found), Some(wanted)) = (found, parts(BPF_LINKER)) else {
        return false;
    };
    found[..2] == wanted[..2] && found[2] >= wanted[2]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything() -> Machine {
        Machine {
            installed: PACKAGES
                .iter()
                .map(|package| package.name.to_owned())
                .collect(),
            programs: BTreeSet::new(),
            bpf_linker: true,
            toolchain: true,
            bpffs: true,
        }
    }

    fn names(missing: &Missing) -> Vec<&str> {
        missing
            .packages
            .iter()
            .map(|package| package.name)
            .collect()
    }

    fn debian() -> Os {
        Os::parse("ID=debian\nVERSION_ID=12")
    }

    #[test]
    fn a_complete_machine_lacks_nothing() {
        let missing = Missing::find(&everything(), Scope::Everything, Toolchain::Debian);
        assert!(missing.is_empty(), "{missing:?}");
        assert_eq!(missing.advice(&debian()), "");
    }

    #[test]
    fn an_empty_machine_lacks_everything() {
        let missing = Missing::find(&Machine::default(), Scope::Everything, Toolchain::Debian);
        assert!(missing.bpf_linker && missing.bpffs && !missing.nightly);
        let all = Missing::find(&Machine::default(), Scope::Kernels, Toolchain::Debian);
        assert_eq!(all.packages.len(), PACKAGES.len());
        assert!(missing.packages.len() < PACKAGES.len(), "kernels are extra");
    }

    #[test]
    fn a_program_from_elsewhere_counts_as_its_package() {
        let mut machine = everything();
        machine.installed.remove("bpftool");
        machine.installed.remove("llvm-22");
        let missing = Missing::find(&machine, Scope::Everything, Toolchain::Debian);
        assert_eq!(names(&missing), ["llvm-22", "bpftool"]);
        machine.programs.extend(["bpftool", "llvm-strip"]);
        assert!(Missing::find(&machine, Scope::Everything, Toolchain::Debian).is_empty());
    }

    #[test]
    fn what_builds_the_linker_is_needed_only_without_the_linker() {
        let mut machine = everything();
        machine.installed.remove("llvm-22-dev");
        assert!(Missing::find(&machine, Scope::Everything, Toolchain::Debian).is_empty());
        machine.bpf_linker = false;
        let missing = Missing::find(&machine, Scope::Everything, Toolchain::Debian);
        assert_eq!(names(&missing), ["llvm-22-dev"]);
        assert!(missing.bpf_linker);
    }

    #[test]
    fn a_smaller_scope_asks_for_less() {
        let machine = Machine {
            bpf_linker: true,
            toolchain: true,
            ..Machine::default()
        };
        for (scope, expected) in [
            (Scope::Build, vec!["llvm-22"]),
            (Scope::BuildAndLoad, vec!["llvm-22", "bpftool"]),
        ] {
            let missing = Missing::find(&machine, scope, Toolchain::Debian);
            assert_eq!(names(&missing), expected);
            assert!(!missing.bpffs);
        }
    }

    #[test]
    fn the_image_needs_debians_compiler_whatever_compiles_the_programs() {
        let machine = Machine {
            bpf_linker: true,
            toolchain: true,
            programs: ["llvm-strip"].into(),
            ..Machine::default()
        };
        let image = [
            "rustc-web",
            "rust-web-src",
            "musl-tools",
            "libunwind-22-dev",
        ];
        for toolchain in [Toolchain::Debian, Toolchain::Nightly] {
            let missing = Missing::find(&machine, Scope::Image, toolchain);
            assert_eq!(names(&missing), image);
            assert!(Missing::find(&machine, Scope::Build, toolchain).is_empty());
        }
    }

    #[test]
    fn a_nightly_is_advised_and_needs_no_debian_compiler() {
        let mut machine = everything();
        machine.toolchain = false;
        machine.installed.remove("rustc-web");
        let missing = Missing::find(&machine, Scope::Build, Toolchain::Nightly);
        assert!(missing.packages.is_empty() && missing.nightly);
        assert!(
            missing
                .advice(&debian())
                .contains("rustup toolchain install nightly")
        );
        let missing = Missing::find(&machine, Scope::Build, Toolchain::Debian);
        assert_eq!(names(&missing), ["rustc-web"]);
    }

    #[test]
    fn advice_names_each_package_with_its_reason_and_the_commands() {
        let missing = Missing::find(&Machine::default(), Scope::Everything, Toolchain::Debian);
        let text = missing.advice(&debian());
        for package in PACKAGES.iter().filter(|p| p.purpose != Purpose::Kernels) {
            assert!(
                text.contains(package.name) && text.contains(package.why),
                "{text}"
            );
        }
        assert!(
            text.contains("apt-get install --no-install-recommends rustc-web "),
            "{text}"
        );
        assert!(text.contains("cargo install bpf-linker@0.13.0"), "{text}");
        assert!(text.contains("mount -t bpf"), "{text}");
        let other = missing.advice(&Os::parse("PRETTY_NAME=\"Other 1\"\nID=other"));
        assert!(
            other.contains("Other 1") && !other.contains("apt-get"),
            "{other}"
        );
    }

    #[test]
    fn dpkg_counts_only_what_is_installed() {
        let set =
            parse_dpkg("installed bpftool\nconfig-files iperf3\nnot-installed x\ninstalled ip\n");
        assert_eq!(set.into_iter().collect::<Vec<_>>(), ["bpftool", "ip"]);
    }

    #[test]
    fn the_linker_must_be_of_the_wanted_series() {
        for (text, expected) in [
            ("bpf-linker 0.13.0\n", true),
            ("bpf-linker 0.13.2", true),
            ("bpf-linker 0.12.9", false),
            ("bpf-linker 0.14.0", false),
            ("bpf-linker", false),
            ("other 0.13.0", false),
            ("", false),
        ] {
            assert_eq!(linker_suits(text), expected, "{text:?}");
        }
    }

    #[test]
    fn the_install_command_names_the_wanted_version() {
        assert!(BPF_LINKER_INSTALL.contains(&format!("bpf-linker@{BPF_LINKER} ")));
    }
}
