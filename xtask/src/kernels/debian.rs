//! Kernels as Debian's packages bring them: found by apt, unpacked beside the build, installed
//! nowhere.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::process;

const PREFIX: &str = "linux-image-";
/// The small flavour for virtual machines. It has all that Tulle needs.
const FLAVOUR: &str = "-cloud-amd64";

/// An unpacked kernel.
#[derive(Debug)]
pub struct Kernel {
    /// What `uname -r` will say.
    pub release: String,
    directory: PathBuf,
}

impl Kernel {
    /// The bootable image.
    pub fn image(&self) -> PathBuf {
        self.directory
            .join(format!("boot/vmlinuz-{}", self.release))
    }

    /// The directory of its modules.
    pub fn modules(&self) -> PathBuf {
        self.directory.join("lib/modules").join(&self.release)
    }

    fn at(directory: &Path) -> Result<Self> {
        let modules = directory.join("lib/modules");
        let release = fs::read_dir(&modules)
            .ok()
            .and_then(|mut entries| entries.next())
            .with_context(|| format!("{} holds no kernel's modules", directory.display()))?
            .with_context(|| format!("cannot list {}", modules.display()))?
            .file_name()
            .into_string()
            .ok()
            .context("a kernel's release that is no text")?;
        let kernel = Self {
            release,
            directory: directory.to_owned(),
        };
        if !kernel.image().is_file() {
            bail!("{} is missing in the package", kernel.image().display());
        }
        Ok(kernel)
    }
}

/// Fetches the kernel of each version, or the newest of each series that apt offers.
pub fn fetch(versions: &[String], into: &Path) -> Result<Vec<Kernel>> {
    fs::create_dir_all(into).with_context(|| format!("cannot make {}", into.display()))?;
    let offered = process::output(process::command("apt-cache").args([
        "search",
        "--names-only",
        &format!("^{PREFIX}[0-9].*{FLAVOUR}$"),
    ]))?;
    let offered = releases(&offered);
    let wanted = if versions.is_empty() {
        newest_of_each_series(&offered)
    } else {
        versions
            .iter()
            .map(|version| choose(version, &offered))
            .collect::<Result<_>>()?
    };
    if wanted.is_empty() {
        bail!("apt offers no kernel: run `apt-get update`");
    }
    wanted
        .iter()
        .map(|version| unpack(&format!("{PREFIX}{version}{FLAVOUR}"), into))
        .collect()
}

/// Versions in what `apt-cache search` prints, such as `6.1.0-56`. Packages that only depend on
/// the newest of a series are left out.
fn releases(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter_map(|name| name.strip_prefix(PREFIX)?.strip_suffix(FLAVOUR))
        .filter(|version| numbers(version).len() > 2)
        .collect()
}

/// All numbers in a version, to compare versions by.
fn numbers(version: &str) -> Vec<u32> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

fn compare(a: &&str, b: &&str) -> Ordering {
    numbers(a).cmp(&numbers(b))
}

fn newest_of_each_series(offered: &[&str]) -> Vec<String> {
    let mut series: BTreeMap<Vec<u32>, &str> = BTreeMap::new();
    for version in offered {
        let newest = series
            .entry(numbers(version)[..2].to_vec())
            .or_insert(version);
        if compare(newest, version) == Ordering::Less {
            *newest = version;
        }
    }
    series.into_values().map(str::to_owned).collect()
}

/// The newest version that begins with what was asked for.
fn choose(asked: &str, offered: &[&str]) -> Result<String> {
    let wanted = numbers(asked);
    let found = offered
        .iter()
        .copied()
        .filter(|version| !wanted.is_empty() && numbers(version).starts_with(&wanted))
        .max_by(compare);
    match found {
        Some(version) => Ok(version.to_owned()),
        None => bail!(
            "apt offers no kernel {asked}; it offers {} (after `apt-get update` perhaps more)",
            newest_of_each_series(offered).join(", ")
        ),
    }
}

/// Downloads and unpacks a package, unless that was done before.
fn unpack(package: &str, into: &Path) -> Result<Kernel> {
    let directory = into.join(package);
    if directory.is_dir() {
        return Kernel::at(&directory);
    }
    let work = into.join(format!("{package}.{}.tmp", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let unpacked = download(package, &work).and_then(|()| {
        let root = work.join("root");
        fs::rename(&root, &directory)
            .with_context(|| format!("cannot move {} into place", root.display()))
    });
    let removed = fs::remove_dir_all(&work);
    unpacked?;
    removed.with_context(|| format!("cannot remove {}", work.display()))?;
    Kernel::at(&directory)
}

/// Leaves the package's content in `root` below `work`.
fn download(package: &str, work: &Path) -> Result<()> {
    println!("Fetching Debian's package {package}, to unpack it; it is not installed.");
    let mut apt = process::command("apt-get");
    apt.current_dir(work).args(["-q", "download", package]);
    if process::is_root() {
        // apt's own user may not write here, and apt would complain of it.
        apt.args(["-o", "APT::Sandbox::User=root"]);
    }
    process::output(&mut apt)?;
    let archive = fs::read_dir(work)
        .with_context(|| format!("cannot list {}", work.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|kind| kind == "deb"))
        .with_context(|| format!("apt-get downloaded no package {package}"))?;
    process::output(
        process::command("dpkg-deb")
            .arg("-x")
            .arg(archive)
            .arg(work.join("root")),
    )
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERED: &str = "\
linux-image-6.1.0-9-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.1.0-56-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.12-cloud-amd64 - Linux for x86-64 cloud (meta-package)
linux-image-6.12.117+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.99+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.1.0-56-rt-amd64 - another flavour
";

    #[test]
    fn the_newest_of_each_series_is_taken() {
        assert_eq!(
            newest_of_each_series(&releases(OFFERED)),
            ["6.1.0-56", "6.12.117+deb12"]
        );
        assert!(newest_of_each_series(&[]).is_empty());
    }

    #[test]
    fn a_version_is_a_series_or_more_of_it() {
        let offered = releases(OFFERED);
        for (asked, expected) in [
            ("6.1", "6.1.0-56"),
            ("6.1.0-9", "6.1.0-9"),
            ("6.12", "6.12.117+deb12"),
            ("6.12.99", "6.12.99+deb12"),
        ] {
            assert_eq!(choose(asked, &offered).unwrap(), expected, "{asked}");
        }
        for asked in ["6", "5.15", "newest", "", "6.1.0-5"] {
            let answer = choose(asked, &offered);
            if asked == "6" {
                assert_eq!(answer.unwrap(), "6.12.117+deb12");
                continue;
            }
            let text = answer.unwrap_err().to_string();
            assert!(text.contains("6.1.0-56, 6.12.117+deb12"), "{text}");
        }
    }

    #[test]
    fn a_package_without_a_kernel_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Kernel::at(directory.path()).is_err());
        fs::create_dir_all(directory.path().join("lib/modules/6.1.0-1")).unwrap();
        let text = Kernel::at(directory.path()).unwrap_err().to_string();
        assert!(text.contains("vmlinuz-6.1.0-1"), "{text}");
        fs::create_dir_all(directory.path().join("boot")).unwrap();
        fs::write(directory.path().join("boot/vmlinuz-6.1.0-1"), "").unwrap();
        assert_eq!(Kernel::at(directory.path()).unwrap().release, "6.1.0-1");
    }
}
