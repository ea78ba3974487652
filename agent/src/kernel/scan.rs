//! Reading a map in pieces: by batches, or key by key where the kernel has no
//! batch for this kind of map.

use std::io;

use super::sys::{ENOTSUPP, RawMap, Rows};

/// Where a scan stands.
#[derive(Debug)]
enum Cursor {
    Start,
    Batch(Vec<u8>),
    /// Key by key: the next key to read.
    Key(Vec<u8>),
    End,
}

/// A resumable walk over a map. A row that is there during the whole walk is
/// seen; one that comes or goes meanwhile may be.
#[derive(Debug)]
pub(crate) struct Scan {
    cursor: Cursor,
    /// Rows that a walk key by key may still read. When its place is removed
    /// the kernel begins anew, so it needs an end of its own.
    left: u64,
}

impl Scan {
    /// A walk from the start.
    pub(crate) fn new() -> Self {
        Self {
            cursor: Cursor::Start,
            left: u64::MAX,
        }
    }

    /// A walk key by key, whatever the kernel offers.
    #[cfg(test)]
    pub(crate) fn by_keys(map: &RawMap<'_>) -> io::Result<Self> {
        let mut scan = Self::new();
        scan.start_keys(map)?;
        Ok(scan)
    }

    /// Reads about `room` rows into `rows`; false at the end, when `rows` is empty.
    pub(crate) fn step(
        &mut self,
        map: &RawMap<'_>,
        rows: &mut Rows,
        room: u32,
    ) -> io::Result<bool> {
        rows.keys.clear();
        rows.values.clear();
        loop {
            match &self.cursor {
                Cursor::End => return Ok(false),
                Cursor::Start | Cursor::Batch(_) => {
                    if !self.batch(map, rows, room)? {
                        continue;
                    }
                }
                Cursor::Key(_) => self.keys(map, rows, room)?,
            }
            if !rows.keys.is_empty() {
                return Ok(true);
            }
        }
    }

    /// One batch; false if the kernel has no batches for this map.
    fn batch(&mut self, map: &RawMap<'_>, rows: &mut Rows, mut room: u32) -> io::Result<bool> {
        let mut next = vec![0u8; map.cursor_len()];
        let from = match &self.cursor {
            Cursor::Batch(from) => Some(from.as_slice()),
            Cursor::Start | Cursor::Key(_) | Cursor::End => None,
        };
        loop {
            match map.batch(from, &mut next, rows, room) {
                Ok(true) => self.cursor = Cursor::End,
                Ok(false) => self.cursor = Cursor::Batch(next),
                // A hash bucket does not fit: a batch never splits one.
                Err(e)
                    if e.raw_os_error() == Some(libc::ENOSPC) && room < map.shape().max_entries =>
                {
                    room = room.saturating_mul(2);
                    continue;
                }
                Err(e) if from.is_none() && no_batches(&e) => {
                    self.start_keys(map)?;
                    return Ok(false);
                }
                Err(e) => return Err(e),
            }
            return Ok(true);
        }
    }

    fn start_keys(&mut self, map: &RawMap<'_>) -> io::Result<()> {
        self.left = u64::from(map.shape().max_entries) * 2;
        self.cursor = map.next_key(None)?.map_or(Cursor::End, Cursor::Key);
        Ok(())
    }

    fn keys(&mut self, map: &RawMap<'_>, rows: &mut Rows, room: u32) -> io::Result<()> {
        for _ in 0..room {
            let Cursor::Key(key) = &self.cursor else {
                return Ok(());
            };
            // The next key first: the caller may remove the row that it gets.
            let next = map.next_key(Some(key))?;
            if let Some(value) = map.get(key)? {
                rows.keys.extend_from_slice(key);
                rows.values.extend_from_slice(&value);
            }
            self.left = self.left.saturating_sub(1);
            self.cursor = match next {
                Some(next) if self.left > 0 => Cursor::Key(next),
                _ => Cursor::End,
            };
        }
        Ok(())
    }
}

fn no_batches(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP)
    )
}

/// Every row of a map, as keys and values beside each other.
pub(crate) fn all(map: &RawMap<'_>) -> io::Result<Rows> {
    let (mut scan, mut piece, mut rows) = (Scan::new(), Rows::default(), Rows::default());
    while scan.step(map, &mut piece, PIECE)? {
        rows.keys.extend_from_slice(&piece.keys);
        rows.values.extend_from_slice(&piece.values);
    }
    Ok(rows)
}

/// How many rows a map holds. Of an array: the highest entry that is not all
/// zero, counted from 1, which is what must fit when the array shrinks.
pub(crate) fn used(map: &RawMap<'_>) -> io::Result<u32> {
    let shape = map.shape();
    if super::shape::is_ring(shape.map_type) {
        return Ok(0);
    }
    let (mut scan, mut piece) = (Scan::new(), Rows::default());
    let (mut seen, mut highest) = (0u32, 0u32);
    while scan.step(map, &mut piece, PIECE)? {
        for value in piece.values.chunks_exact(map.value_len()) {
            seen += 1;
            if value.iter().any(|b| *b != 0) {
                highest = seen;
            }
        }
    }
    Ok(if super::shape::is_array(shape.map_type) {
        highest
    } else {
        seen
    })
}

/// Rows that are read in one call where nothing else decides.
pub(crate) const PIECE: u32 = 4096;

/// Writes the rows of `from` to `to` with `flags`; rows that are all zero or
/// beyond the end of a shorter array are left out. Returns how many.
/// With [`super::sys::NO_EXIST`] rows that `to` has already stay as they are.
pub(crate) fn copy(from: &RawMap<'_>, to: &RawMap<'_>, flags: u64) -> io::Result<u32> {
    let shape = from.shape();
    if super::shape::is_ring(shape.map_type) {
        return Ok(0);
    }
    let array = super::shape::is_array(shape.map_type);
    let (mut scan, mut piece, mut copied) = (Scan::new(), Rows::default(), 0);
    while scan.step(from, &mut piece, PIECE)? {
        let keys = piece.keys.chunks_exact(shape.key_size as usize);
        for (key, value) in keys.zip(piece.values.chunks_exact(from.value_len())) {
            if array && value.iter().all(|b| *b == 0) {
                continue;
            }
            match to.put(key, value, flags) {
                Ok(()) => copied += 1,
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use aya::maps::MapData;

    use super::*;

    /// Needs root, as it makes a map.
    fn hash_of(rows: u32) -> MapData {
        const HASH: u32 = 1;
        let spec = aya_obj::Map::new_from_params(HASH, 4, 8, rows, 0);
        let map = MapData::create(spec, "tulle_test", None).expect("a map can be made (as root)");
        for n in 0..rows {
            let value = u64::from(n).to_ne_bytes();
            super::super::sys::raw(&map)
                .and_then(|raw| raw.put(&n.to_ne_bytes(), &value, super::super::sys::ANY))
                .unwrap();
        }
        map
    }

    fn walk(mut scan: Scan, map: &RawMap<'_>, room: u32) -> BTreeSet<Vec<u8>> {
        let (mut rows, mut seen) = (Rows::default(), BTreeSet::new());
        while scan.step(map, &mut rows, room).unwrap() {
            for (key, value) in rows.keys.chunks(4).zip(rows.values.chunks(8)) {
                assert_eq!(key, &value[..4], "a row's value belongs to its key");
                assert!(seen.insert(key.to_vec()), "{key:?} twice");
            }
        }
        seen
    }

    #[test]
    fn batches_and_keys_see_every_row_once() {
        let map = hash_of(1000);
        let raw = super::super::sys::raw(&map).unwrap();
        for room in [1, 7, 999, 1000, 4096] {
            assert_eq!(
                walk(Scan::new(), &raw, room).len(),
                1000,
                "batches of {room}"
            );
            assert_eq!(
                walk(Scan::by_keys(&raw).unwrap(), &raw, room).len(),
                1000,
                "{room} keys"
            );
        }
    }

    #[test]
    fn a_walk_by_keys_ends_while_its_rows_are_removed() {
        let map = hash_of(500);
        let raw = super::super::sys::raw(&map).unwrap();
        let (mut scan, mut rows) = (Scan::by_keys(&raw).unwrap(), Rows::default());
        let mut removed = 0;
        while scan.step(&raw, &mut rows, 10).unwrap() {
            for key in rows.keys.chunks(4) {
                removed += usize::from(raw.take(key).unwrap().is_some());
            }
        }
        assert_eq!(removed, 500);
        assert_eq!(used(&raw).unwrap(), 0);
    }
}
