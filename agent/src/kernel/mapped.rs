//! Arrays that are `BPF_F_MMAPABLE`, as memory: by windows, each from its first use on. What
//! is mapped counts as the agent's memory, and most of a large array is never used.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64};

use aya::maps::MapData;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes from entry to entry: the kernel rounds an array's values up to 8.
const STRIDE: usize = 8;
/// Entries of a window, a multiple of those of a page.
pub(super) const WINDOW: u32 = 32_768;

/// The entries of an array whose values are words of 32 or 64 bits.
#[derive(Debug)]
pub(super) struct Mapped {
    map: OwnedFd,
    entries: u32,
    windows: Box<[OnceLock<Window>]>,
}

/// A part of an array.
#[derive(Debug)]
pub(super) struct Window {
    /// The mapping.
    memory: NonNull<u8>,
    bytes: NonZeroUsize,
    entries: u32,
}

// SAFETY: the mapping belongs to this value alone and is reached only through
// atomic accesses; it is not bound to a thread.
unsafe impl Send for Window {}
// SAFETY: what a shared reference gives are atomic words.
unsafe impl Sync for Window {}

impl Mapped {
    /// Prepares to map an array into memory, whose values have `value` bytes.
    pub(super) fn new(map: &MapData, value: usize) -> io::Result<Self> {
        let shape = super::sys::raw(map)?.shape();
        if shape.value_size as usize != value || value > STRIDE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("values are of {} octets, not of {value}", shape.value_size),
            ));
        }
        let windows = shape.max_entries.div_ceil(WINDOW);
        let mapped = Self {
            map: map.fd().as_fd().try_clone_to_owned()?,
            entries: shape.max_entries,
            windows: (0..windows).map(|_| OnceLock::new()).collect(),
        };
        // Whether the kernel maps it at all is known from now on.
        mapped.reach(0, 1)?;
        Ok(mapped)
    }

    /// How many entries there are.
    pub(super) const fn entries(&self) -> u32 {
        self.entries
    }

    /// Maps what is not mapped yet of entries `first .. end`.
    ///
    /// # Errors
    ///
    /// The kernel has no memory for it.
    pub(super) fn reach(&self, first: u32, end: u32) -> io::Result<()> {
        for number in first / WINDOW..end.min(self.entries).div_ceil(WINDOW) {
            let Some(place) = self.windows.get(number as usize) else {
                break;
            };
            if place.get().is_none() {
                // If another thread was first, its own stays.
                let _ = place.set(self.window(number)?);
            }
        }
        Ok(())
    }

    /// Maps a window once more, for as long as the caller keeps it.
    pub(super) fn window(&self, number: u32) -> io::Result<Window> {
        let first = number * WINDOW;
        let entries = self.entries.saturating_sub(first).min(WINDOW);
        Window::new(self.map.as_fd(), first, entries)
    }

    /// A window that is mapped already.
    pub(super) fn mapped(&self, number: u32) -> Option<&Window> {
        self.windows.get(number as usize)?.get()
    }

    /// The 32 bits of an entry; `None` beyond the end, or without memory for it.
    pub(super) fn word32(&self, index: u32) -> Option<&AtomicU32> {
        self.at(index)?.word32(index % WINDOW)
    }

    /// The 64 bits of an entry; `None` beyond the end, or without memory for it.
    pub(super) fn word64(&self, index: u32) -> Option<&AtomicU64> {
        self.at(index)?.word64(index % WINDOW)
    }

    fn at(&self, index: u32) -> Option<&Window> {
        let place = self.windows.get((index / WINDOW) as usize)?;
        if place.get().is_none() {
            self.reach(index, index.checked_add(1)?).ok()?;
        }
        place.get()
    }
}

impl Window {
    fn new(map: BorrowedFd<'_>, first: u32, entries: u32) -> io::Result<Self> {
        let bytes = NonZeroUsize::new((entries as usize * STRIDE).next_multiple_of(4096))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no entries"))?;
        let offset = (u64::from(first) * STRIDE as u64).cast_signed();
        // SAFETY: a new mapping at an address of the kernel's choice; nothing
        // else is touched. The kernel checks the range against the map.
        let memory = unsafe {
            mmap(
                None,
                bytes,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map,
                offset,
            )
        }?;
        Ok(Self {
            memory: memory.cast(),
            bytes,
            entries,
        })
    }

    /// The 32 bits of an entry, counted from the window's first; `None` beyond its end.
    pub(super) fn word32(&self, index: u32) -> Option<&AtomicU32> {
        // SAFETY: inside the mapping, which lives as long as `self`, and aligned. The
        // programs access it as one aligned word too.
        self.entry(index).map(|at| unsafe { at.cast().as_ref() })
    }

    fn word64(&self, index: u32) -> Option<&AtomicU64> {
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

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this length, and no
        // reference into it outlives `self`.
        let _ = unsafe { munmap(self.memory.cast(), self.bytes.get()) };
    }
}
