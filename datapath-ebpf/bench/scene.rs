//! What the benchmark tells its scaffold. Both sides compile this file.

/// Octets of every measured frame.
pub const FRAME: usize = 128;
/// The same in words.
pub const FRAME_WORDS: usize = FRAME / 8;
/// Words of the one row of `bench_scene`: the frame, the primer's frame, then
/// the five that follow.
pub const WORDS: usize = 2 * FRAME_WORDS + 5;
/// Word that holds one of the `RESTORE_*`.
pub const RESTORE: usize = 2 * FRAME_WORDS;
/// Word that holds one of the `VARY_*`.
pub const VARY: usize = 2 * FRAME_WORDS + 1;
/// Word that counts rounds.
pub const ROUNDS: usize = 2 * FRAME_WORDS + 2;
/// Word that selects the frame: the primer's while `ROUNDS` has not all of its
/// bits.
pub const MASK: usize = 2 * FRAME_WORDS + 3;

/// Word that says of how many flows each round has any, by chance; 0 for one of its own each.
pub const FLOWS: usize = 2 * FRAME_WORDS + 4;

/// The program under test leaves the frame's length alone.
pub const RESTORE_BYTES: u64 = 0;
/// The program under test takes octets away at the front.
pub const RESTORE_HEAD: u64 = 1;
/// The program under test changes the length at the end.
pub const RESTORE_TAIL: u64 = 2;

/// Every round the same packet.
pub const VARY_NOTHING: u64 = 0;
/// Every round another IPv4 source.
pub const VARY_V4: u64 = 1;
/// Every round another IPv6 source.
pub const VARY_V6: u64 = 2;

/// How often a yardstick's program does what it measures.
pub const TIMES: u64 = 8;
/// What the words of the keys are that are to be found.
pub const YARD_KEY: u64 = 7;
