//! What a pinned map must look like to be taken over, compared with the object
//! that is about to be loaded.

use std::collections::BTreeMap;

use aya_obj::generated::bpf_map_type;
use datapath_common::maps;

use super::capacity::Capacities;
use super::sys::Shape;

/// Whether each CPU has its own value.
pub(crate) fn is_per_cpu(map_type: u32) -> bool {
    map_type == bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY as u32
}

/// Whether entries are numbered and always there.
pub(crate) fn is_array(map_type: u32) -> bool {
    map_type == bpf_map_type::BPF_MAP_TYPE_ARRAY as u32 || is_per_cpu(map_type)
}

/// Whether it is the event ring, which has no rows.
pub(crate) fn is_ring(map_type: u32) -> bool {
    map_type == bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32
}

/// Whether a full map makes room by itself.
pub(crate) fn is_lru(map_type: u32) -> bool {
    map_type == bpf_map_type::BPF_MAP_TYPE_LRU_HASH as u32
}

/// The object is not one of ours.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// Not an eBPF object.
    #[error("the embedded eBPF object cannot be read: {0}; build it with `cargo xtask build-ebpf`")]
    Parse(#[from] Box<aya_obj::ParseError>),
    /// Built from other sources than this agent.
    #[error("the embedded eBPF object has no {what} {name}; build object and agent from one tree")]
    Lacks {
        /// "map" or "program".
        what: &'static str,
        /// Its name.
        name: &'static str,
    },
}

/// Shapes of all maps by name: the object's, with the sizes that the agent was told.
pub(crate) fn wanted(
    object: &[u8],
    capacities: &Capacities,
) -> Result<BTreeMap<&'static str, Shape>, ObjectError> {
    let parsed = aya_obj::Object::parse(object).map_err(Box::new)?;
    let mut shapes = BTreeMap::new();
    for info in maps::ALL {
        let map = parsed.maps.get(info.name).ok_or(ObjectError::Lacks {
            what: "map",
            name: info.name,
        })?;
        let map_type = map.map_type();
        let mut entries = capacities
            .entries(info.name)
            .unwrap_or_else(|| map.max_entries());
        let mut value_size = map.value_size();
        if is_ring(map_type) {
            entries = ring_bytes(entries);
            value_size = 0;
        }
        shapes.insert(
            info.name,
            Shape {
                map_type,
                key_size: map.key_size(),
                value_size,
                max_entries: entries,
                flags: map.map_flags(),
            },
        );
    }
    Ok(shapes)
}

/// A ring's size as the kernel wants it: a power of two of whole pages.
fn ring_bytes(asked: u32) -> u32 {
    const PAGE: u32 = 4096;
    asked
        .max(PAGE)
        .div_ceil(PAGE)
        .next_power_of_two()
        .saturating_mul(PAGE)
}

/// Whether two maps hold the same kind of rows, whatever their sizes.
pub(crate) fn same_rows(a: &Shape, b: &Shape) -> bool {
    a.map_type == b.map_type
        && a.key_size == b.key_size
        && a.value_size == b.value_size
        && a.flags == b.flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_sizes() {
        for (asked, bytes) in [
            (0, 4096),
            (1, 4096),
            (4097, 8192),
            (12_288, 16_384),
            (262_144, 262_144),
        ] {
            assert_eq!(ring_bytes(asked), bytes, "{asked}");
        }
    }
}
