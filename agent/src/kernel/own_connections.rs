//! Whether the kernel's own connections (NFS, SMB, Ceph) may be translated at their sockets.
//!
//! Until kernel commits 0bdf399342c5 and 86a7e0b69bd5 (Linux 6.6) what a program gives such a
//! socket took the place of what the file system asked for: it would go to that backend for ever.
//! No program can tell these sockets from others, but it can be told whether the kernel has them.

use std::path::Path;

/// Since then every kernel has them.
const SINCE: (u32, u32) = (6, 6);
/// Since when stable releases are known to have them.
const STABLE: [(u32, u32, u32); 2] = [(5, 15, 165), (6, 1, 106)];
/// Where kernels say what they were made from: their release, Debian's version, Ubuntu's.
const SOURCES: [&str; 3] = [
    "/proc/sys/kernel/osrelease",
    "/proc/sys/kernel/version",
    "/proc/version_signature",
];

/// Whether this kernel's own connections keep the address that they asked for.
pub fn keep_addresses() -> bool {
    let texts = SOURCES.map(|path| std::fs::read_to_string(Path::new(path)).unwrap_or_default());
    has_them(&texts)
}

fn has_them<T: AsRef<str>>(texts: &[T]) -> bool {
    let words = texts
        .iter()
        .flat_map(|text| text.as_ref().split([' ', '\n']));
    let mut versions = words.filter_map(version);
    let Some(running) = versions.next() else {
        return false;
    };
    if (running.0, running.1) >= SINCE {
        return true;
    }
    // Distributions leave the last number of the release as it was.
    let newest = versions
        .filter(|v| (v.0, v.1) == (running.0, running.1))
        .fold(running, Ord::max);
    STABLE
        .iter()
        .any(|fixed| (fixed.0, fixed.1) == (newest.0, newest.1) && newest.2 >= fixed.2)
}

/// The version that a word begins with.
fn version(word: &str) -> Option<(u32, u32, u32)> {
    let mut parts = word.splitn(3, '.');
    let major = parts.next()?.parse().ok()?;
    let minor = digits(parts.next()?)?;
    Some((major, minor, parts.next().and_then(digits).unwrap_or(0)))
}

fn digits(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit());
    text[..end.unwrap_or(text.len())].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_say_what_they_have() {
        let debian = |version: &str| {
            let version = format!("#1 SMP PREEMPT_DYNAMIC Debian {version} (2025-05-22)");
            has_them(&["6.1.0-37-amd64\n", &version, ""])
        };
        assert!(debian("6.1.140-1"));
        assert!(!debian("6.1.55-1"));
        let ubuntu = |stable: &str| {
            let signature = format!("Ubuntu 5.15.0-151.161-generic {stable}");
            has_them(&["5.15.0-151-generic\n", "#161-Ubuntu SMP", &signature])
        };
        assert!(ubuntu("5.15.184"));
        assert!(!ubuntu("5.15.126"));
        for (release, has) in [
            ("6.18.44", true),
            ("6.6.0", true),
            ("7.0-rc1", true),
            ("6.6-rc2", true),
            ("6.5.13", false),
            ("6.1.106", true),
            ("6.1.105", false),
            ("5.15.165-microsoft-standard-WSL2", true),
            ("5.19.17", false),
            ("", false),
            ("strange", false),
        ] {
            assert_eq!(has_them(&[release]), has, "{release}");
        }
    }
}
