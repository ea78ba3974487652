//! `tulle_segments` as memory: the map is `BPF_F_MMAPABLE`, so a segment of
//! any length is written without a syscall.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use aya::maps::MapData;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes from slot to slot: the kernel rounds an array's values up to 8.
const STRIDE: usize = 8;

/// The slots of all segments.
#[derive(Debug)]
pub struct Segments {
    /// The mapping, which keeps the map alive.
    memory: NonNull<u8>,
    bytes: NonZeroUsize,
    slots: u32,
}

// SAFETY: the mapping belongs to this value alone and is reached only through
// atomic accesses; it is not bound to a thread.
unsafe impl Send for Segments {}
// SAFETY: through a shared reference slots are only loaded, atomically.
unsafe impl Sync for Segments {}

impl Segments {
    /// Maps the array of slots into memory.
    pub(crate) fn new(map: &MapData) -> io::Result<Self> {
        let shape = super::sys::raw(map)?.shape();
        let length = shape.max_entries as usize * STRIDE;
        let bytes = NonZeroUsize::new(length.next_multiple_of(4096))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no slots"))?;
        if shape.value_size as usize != size_of::<u32>() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "slots are not 32 bits",
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
            slots: shape.max_entries,
        })
    }

    /// How many slots there are.
    pub fn len(&self) -> u32 {
        self.slots
    }

    /// Whether there is no slot at all.
    pub fn is_empty(&self) -> bool {
        self.slots == 0
    }

    fn slot(&self, index: u32) -> Option<&AtomicU32> {
        if index >= self.slots {
            return None;
        }
        // SAFETY: the index is below the number of slots, so the address is
        // inside the mapping, which lives as long as `self`; it is a multiple
        // of 8. The programs read it as one aligned word too.
        Some(unsafe {
            self.memory
                .add(index as usize * STRIDE)
                .cast::<AtomicU32>()
                .as_ref()
        })
    }

    /// The backend id in a slot; `None` beyond the end.
    pub fn get(&self, index: u32) -> Option<u32> {
        self.slot(index).map(|slot| slot.load(Ordering::Relaxed))
    }

    /// Writes backend ids from slot `start` on; false, and nothing written, if
    /// they go beyond the end. A program sees each slot whole; the frontend
    /// that names the segment is written after this returns.
    #[must_use]
    pub fn write(&mut self, start: u32, backends: &[u32]) -> bool {
        let fits = u32::try_from(backends.len())
            .ok()
            .and_then(|n| start.checked_add(n))
            .is_some_and(|end| end <= self.slots);
        if !fits {
            return false;
        }
        for (index, backend) in (start..).zip(backends) {
            if let Some(slot) = self.slot(index) {
                slot.store(*backend, Ordering::Relaxed);
            }
        }
        fence(Ordering::SeqCst);
        true
    }

    /// Every slot.
    pub fn read(&self) -> Vec<u32> {
        (0..self.slots).filter_map(|i| self.get(i)).collect()
    }
}

impl Drop for Segments {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this length, and no
        // reference into it outlives `self`.
        let _ = unsafe { munmap(self.memory.cast(), self.bytes.get()) };
    }
}
