//! What the agent fixed when it loaded the programs that use these maps.

use std::io;
use std::os::fd::AsFd;

use aya::maps::{MapData, MapError, MapInfo, MapType};
use aya::programs::{ProgramError, loaded_programs};
use datapath_common::{Config, maps};

use super::{Datapath, DatapathError};
use crate::sys::BatchReader;

/// Name of the map with the programs' read-only data.
const RODATA: &str = ".rodata";
/// VXLAN network identifiers have 24 bits (RFC 7348).
const VNI_BITS: u32 = 24;
/// Bytes of a map's key that is an index.
const INDEX: usize = 4;

impl Datapath {
    /// The programs' `CONFIG`: of the youngest program that uses this
    /// `tulle_flow_v4`. `None` if none is loaded.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn config(&self) -> Result<Option<Config>, DatapathError> {
        let map = maps::FLOW_V4;
        let failed = |source| DatapathError::Map { map, source };
        let flows = self.map(map)?.info().map_err(failed)?.id();
        let mut youngest = None;
        // A program may go between the listing and the look at it.
        for program in loaded_programs().flatten() {
            let ids = used_maps(&program)?;
            if ids.contains(&flows) && youngest.as_ref().is_none_or(|(id, _)| *id < program.id()) {
                youngest = Some((program.id(), ids));
            }
        }
        let Some((_, ids)) = youngest else {
            return Ok(None);
        };
        for id in ids {
            let Some(info) = present(MapInfo::from_id(id)).map_err(failed)? else {
                continue;
            };
            if info.name_as_str() == Some(RODATA) && info.map_type().ok() == Some(MapType::Array) {
                return read(&info).map_err(failed);
            }
        }
        Ok(None)
    }
}

/// Ids of the maps that a program uses; none if it is gone.
fn used_maps(program: &aya::programs::ProgramInfo) -> Result<Vec<u32>, DatapathError> {
    match program.map_ids() {
        Ok(ids) => Ok(ids.unwrap_or_default()),
        Err(ProgramError::SyscallError(e)) if e.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(Vec::new())
        }
        Err(error) => Err(DatapathError::Map {
            map: maps::FLOW_V4,
            source: MapError::IoError(io::Error::other(error)),
        }),
    }
}

/// `None` for what is gone.
fn present<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Err(e) if super::os_error(&e) == Some(io::ErrorKind::NotFound) => Ok(None),
        other => other.map(Some),
    }
}

fn read(info: &MapInfo) -> Result<Option<Config>, MapError> {
    let Some(data) = present(MapData::from_id(info.id()))? else {
        return Ok(None);
    };
    let mut reader =
        BatchReader::with_rows(data.fd().as_fd(), INDEX, info.value_size() as usize, 1);
    let Some((_, value)) = reader.next_chunk()? else {
        return Ok(None);
    };
    Ok(config_of(value))
}

/// `CONFIG` out of the read-only data, which it begins: nothing else there has
/// a global name. `None` for data that is no configuration.
fn config_of(rodata: &[u8]) -> Option<Config> {
    let config: Config = bytemuck::pod_read_unaligned(rodata.get(..size_of::<Config>())?);
    let mask = config.pod_mask4.word().swap_bytes();
    let ports_end = u32::from(config.snat_first) + u32::from(config.snat_ports);
    let plausible = config.vni >> VNI_BITS == 0
        && config.vxlan_port != 0
        && config.idle.tcp_established != 0
        && mask.leading_ones() + mask.trailing_zeros() >= u32::BITS
        && ports_end <= 1 << u16::BITS;
    plausible.then_some(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_configuration_is_taken_for_one() {
        let config = Config {
            snat_first: 50_000,
            snat_ports: 10_000,
            ..Config::EMPTY
        };
        let mut data = bytemuck::bytes_of(&config).to_vec();
        assert_eq!(config_of(&data), Some(config));
        data.extend([7; 100]);
        assert_eq!(config_of(&data), Some(config), "other constants follow");
        assert_eq!(config_of(&data[..100]), None);
        assert_eq!(config_of(&[0; 4096]), None);
        assert_eq!(config_of(&[0xff; 4096]), None);
        let beyond = Config {
            snat_first: 60_000,
            ..config
        };
        assert_eq!(config_of(bytemuck::bytes_of(&beyond)), None);
    }
}
