//! Memory that is free again goes back to the kernel: reading a large cluster, or loading
//! programs, takes more for a moment than is needed afterwards.

use std::time::Duration;

/// A batch of fewer changes leaves nothing that is worth the time.
pub const LARGE_BATCH: usize = 1000;
/// How long after it: what comes next may need the memory again.
pub const REST: Duration = Duration::from_secs(1);

/// Gives back what the allocator holds free.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer, and may be called from any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
