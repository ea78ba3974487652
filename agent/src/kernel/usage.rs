//! How full the maps are and what they cost.

use std::os::fd::AsFd;
use std::os::fd::AsRawFd;

use aya::maps::MapData;
use datapath_common::maps;

use super::maps::{Maps, TableError};
use super::scan;

/// How full a map is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// The map.
    pub map: &'static str,
    /// Entries in use. Of a numbered table: entries up to the last one in use.
    pub used: u32,
    /// Entries that fit; bytes for the event ring.
    pub limit: u32,
    /// Kernel memory in bytes, by the kernel's own account.
    pub bytes: u64,
}

impl Maps {
    /// Usage of every map. Counts rows, so it takes milliseconds on full
    /// tables: not for each scrape.
    pub fn usage(&self) -> Result<Vec<Usage>, TableError> {
        maps::ALL
            .iter()
            .map(|info| {
                let map = self.raw(info.name)?;
                let used = scan::used(&map).map_err(|source| TableError::Kernel {
                    map: info.name,
                    what: "count it".into(),
                    source,
                })?;
                Ok(Usage {
                    map: info.name,
                    used,
                    limit: map.shape().max_entries,
                    bytes: match self.by_name.get(info.name) {
                        Some(data) => memory(info.name, data)?,
                        None => 0,
                    },
                })
            })
            .collect()
    }
}

/// What the kernel says that the map occupies (`memlock` in procfs).
pub(super) fn memory(name: &'static str, data: &MapData) -> Result<u64, TableError> {
    let fail = |source| TableError::Kernel {
        map: name,
        what: "learn its size".into(),
        source,
    };
    let path = format!("/proc/self/fdinfo/{}", data.fd().as_fd().as_raw_fd());
    let text = std::fs::read_to_string(path).map_err(fail)?;
    Ok(memlock(&text).unwrap_or(0))
}

fn memlock(fdinfo: &str) -> Option<u64> {
    fdinfo
        .lines()
        .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    #[test]
    fn memlock_is_found() {
        assert_eq!(
            super::memlock("pos:\t0\nmemlock:\t12288\nmap_id:\t3\n"),
            Some(12_288)
        );
        assert_eq!(super::memlock("pos:\t0\n"), None);
    }
}
