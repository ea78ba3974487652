//! Where programs are attached, and the names by which the folder of links
//! remembers it.

use datapath_common::{Hook, SocketHook};

use super::programs::name;

/// Index of the loopback device: Linux gives every network namespace this one
/// (`LOOPBACK_IFINDEX`).
pub const LOOPBACK: u32 = 1;

/// A program at an interface.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    /// The interface's index.
    pub ifindex: u32,
    /// A [`Hook`]'s number.
    hook: u8,
}

impl Place {
    /// The program of `hook` at the interface.
    pub fn new(hook: Hook, ifindex: u32) -> Self {
        Self {
            ifindex,
            hook: hook as u8,
        }
    }

    /// Which program.
    pub fn hook(self) -> Hook {
        Hook::ALL[usize::from(self.hook) % Hook::ALL.len()]
    }
}

/// Prefix of the directory that remembers a filter of ours.
const FILTER: &str = "filter-";
/// Prefix of the directory that remembers a qdisc of ours.
const QDISC: &str = "clsact-";

/// What a name in the folder of links stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Entry {
    /// A link.
    Link(Place),
    /// A filter.
    Filter(Place),
    /// A qdisc.
    Qdisc(u32),
    /// A link to a cgroup.
    Socket(SocketHook),
}

impl Entry {
    /// Its name.
    pub(crate) fn file_name(self) -> String {
        match self {
            Self::Link(p) => format!("{}-{}", name(p.hook()), p.ifindex),
            Self::Filter(p) => format!("{FILTER}{}-{}", name(p.hook()), p.ifindex),
            Self::Qdisc(ifindex) => format!("{QDISC}{ifindex}"),
            Self::Socket(hook) => hook.program().to_owned(),
        }
    }

    /// What a name stands for; `None` for names that are not ours.
    pub(crate) fn parse(file_name: &str) -> Option<Self> {
        if let Some(ifindex) = file_name.strip_prefix(QDISC) {
            return ifindex.parse().ok().map(Self::Qdisc);
        }
        let is_it = |hook: &SocketHook| hook.program() == file_name;
        if let Some(hook) = SocketHook::ALL.into_iter().find(is_it) {
            return Some(Self::Socket(hook));
        }
        let (filter, rest) = match file_name.strip_prefix(FILTER) {
            Some(rest) => (true, rest),
            None => (false, file_name),
        };
        let (program, ifindex) = rest.rsplit_once('-')?;
        let hook = Hook::ALL.into_iter().find(|h| name(*h) == program)?;
        let place = Place::new(hook, ifindex.parse().ok()?);
        Some(if filter {
            Self::Filter(place)
        } else {
            Self::Link(place)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for hook in Hook::ALL {
            let place = Place::new(hook, 17);
            for entry in [Entry::Link(place), Entry::Filter(place), Entry::Qdisc(17)] {
                assert_eq!(Entry::parse(&entry.file_name()), Some(entry));
            }
        }
        for hook in SocketHook::ALL {
            let entry = Entry::Socket(hook);
            assert_eq!(Entry::parse(&entry.file_name()), Some(entry));
        }
        for other in [
            "",
            "tulle_pod_from",
            "tulle_pod_from-x",
            "other-3",
            "clsact-",
            "filter-tulle_xdp",
        ] {
            assert_eq!(Entry::parse(other), None, "{other}");
        }
    }
}
