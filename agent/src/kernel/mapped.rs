//! Arrays that are `BPF_F_MMAPABLE`, as memory.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use aya::maps::MapData;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes from entry to entry: the kernel rounds an array's values up to 8.
const STRIDE: usize = 8;

/// The entries of an array whose values are words of 32 or 64 bits.
#[derive(Debug)]
pub(super) struct Mapped {
    /// The mapping, which keeps the map alive.
    memory: NonNull<u8>,
    bytes: NonZeroUsize,
    entries: u32,
}

// SAFETY: the mapping belongs to this value alone and is reached only through
// atomic accesses; it is not bound to a thread.
unsafe impl Send for Mapped {}
// SAFETY: what a shared reference gives are atomic words.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps an array into memory, whose values have `value` bytes.
    pub(super) fn new(map: &MapData, value: usize) -> io::Result<Self> {
        let shape = super::sys::raw(map)?.shape();
        let length = shape.max_entries as usize * STRIDE;
        let bytes = NonZeroUsize::new(length.next_multiple_of(4096))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no entries"))?;
        if shape.value_size as usize != value || value > STRIDE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("values are of {} octets, not of {value}", shape.value_size),
            ));
        }
        // SAFETY: a new mapping at an address of the kernel's choice; nothing
        // else is touched. The kernel checks the length against the map.
        let memory = unsafe {
            mmap(
                None,
                bytes,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map.fd().as_fd(),
                0,
            )
        }?;
        Ok(Self {
            memory: memory.cast(),
            bytes,
            entries: shape.max_entries,
        })
    }

    /// How many entries there are.
    pub(super) const fn entries(&self) -> u32 {
        self.entries
    }

    /// The 32 bits of an entry; `None` beyond the end.
    pub(super) fn word32(&self, index: u32) -> Option<&AtomicU32> {
        // SAFETY: inside the mapping, which lives as long as `self`, and aligned. The
        // programs access it as one aligned word too.
        self.entry(index).map(|at| unsafe { at.cast().as_ref() })
    }

    /// The 64 bits of an entry; `None` beyond the end.
    pub(super) fn word64(&self, index: u32) -> Option<&AtomicU64> {
        // SAFETY: as above.
        self.entry(index).map(|at| unsafe { at.cast().as_ref() })
    }

    /// Address of an entry, a multiple of 8.
    fn entry(&self, index: u32) -> Option<NonNull<u8>> {
        // SAFETY: the index is below the number of entries, so the address is inside the
        // mapping.
        (index < self.entries).then(|| unsafe { self.memory.add(index as usize * STRIDE) })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this length, and no
        // reference into it outlives `self`.
        let _ = unsafe { munmap(self.memory.cast(), self.bytes.get()) };
    }
}
