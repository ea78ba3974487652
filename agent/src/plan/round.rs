//! A round: every row of the plan's maps compared with what was written, a piece at a time.
//!
//! Whoever makes a step also writes, so nothing changes while a piece is compared; between
//! pieces anything may. A row that is there is met by reading the map; one that is not there is
//! missed by counting those that are, and then asked for exactly.

use std::time::Instant;

use super::applied::Rows;
use super::difference::{Difference, MapReader, Table};
use super::ops::FrontKey;
use super::planner::Planner;
use crate::model::Family;

/// Slots that are looked at in the time of a row: they are memory.
const SLOTS_FOR_ROW: u32 = 8;
/// Rows that are looked at in the time in which one that differs is written, at most.
const ROWS_FOR_WRITE: u32 = 8;
/// Frontends that are asked for one by one in one go: all may be missing.
const ASKED: u32 = 128;
/// Rows of a small table that are read by one call where all of them are read in one go.
const AT_ONCE: u32 = 1024;

#[derive(Clone, Copy, Debug)]
enum Phase {
    Begin,
    /// Reads on; so many rows were the plan's.
    Rows(usize),
    /// Asks for frontends one by one, those after this one.
    Frontends(Option<FrontKey>),
    /// Reads a small table in one go.
    Whole,
    /// Looks at slots from this one on.
    Slots(u32),
}

/// One round under way.
#[derive(Debug)]
pub struct Round {
    table: usize,
    phase: Phase,
    found: Vec<Difference>,
}

impl Default for Round {
    fn default() -> Self {
        Self::new()
    }
}

impl Round {
    /// From the first table on.
    pub const fn new() -> Self {
        Self {
            table: 0,
            phase: Phase::Begin,
            found: Vec::new(),
        }
    }

    /// What differed since this was asked last. The planner has to run if there is anything.
    pub fn take_found(&mut self) -> Vec<Difference> {
        std::mem::take(&mut self.found)
    }

    /// Compares about `room` rows. Says whether the round is over.
    ///
    /// # Errors
    ///
    /// That of the reader. What was found until then stays; the round is to be begun anew.
    pub fn step<R: MapReader>(
        &mut self,
        planner: &mut Planner,
        reader: &mut R,
        room: u32,
        now: Instant,
    ) -> Result<bool, R::Error> {
        let mut left = room;
        while left > 0 {
            let Some(table) = Table::ALL.get(self.table).copied() else {
                return Ok(true);
            };
            let before = self.found.len();
            let cost = self.piece(table, planner, reader, left, now)?;
            let writes = (self.found.len() - before) as u32;
            let cost = cost.saturating_add(writes.saturating_mul(ROWS_FOR_WRITE));
            left = left.saturating_sub(cost);
        }
        Ok(self.table >= Table::ALL.len())
    }

    const fn end_table(&mut self) {
        self.table += 1;
        self.phase = Phase::Begin;
    }

    /// Compares a piece of a table, and says how many rows that was.
    fn piece<R: MapReader>(
        &mut self,
        table: Table,
        planner: &mut Planner,
        reader: &mut R,
        room: u32,
        now: Instant,
    ) -> Result<u32, R::Error> {
        match self.phase {
            Phase::Begin if table == Table::Segments => {
                self.phase = Phase::Slots(0);
                Ok(0)
            }
            Phase::Begin => {
                reader.begin(table);
                self.phase = Phase::Rows(0);
                Ok(0)
            }
            Phase::Rows(known) => {
                let Some(rows) = reader.next(room)? else {
                    self.count(table, planner, known);
                    return Ok(1);
                };
                let known = known + planner.compare(table, &rows, now, &mut self.found);
                self.phase = Phase::Rows(known);
                if planner.is_beyond(table, &rows) {
                    self.end_table();
                }
                Ok(rows.count())
            }
            Phase::Frontends(after) => {
                let family = table.family().unwrap_or(Family::V4);
                let keys = planner.frontends_after(family, after, room.min(ASKED) as usize);
                for key in &keys {
                    if reader.frontend(key)?.is_none() {
                        planner.miss_frontend(table, *key, now, &mut self.found);
                    }
                }
                match keys.last() {
                    Some(last) => self.phase = Phase::Frontends(Some(*last)),
                    None => self.end_table(),
                }
                Ok(keys.len() as u32 + 1)
            }
            Phase::Whole => {
                reader.begin(table);
                let mut all = Rows::default();
                while let Some(rows) = reader.next(AT_ONCE)? {
                    all.append(rows);
                }
                let cost = all.count();
                planner.compare(table, &all, now, &mut self.found);
                planner.miss(table, &all, &mut self.found);
                self.end_table();
                Ok(cost + 1)
            }
            Phase::Slots(first) => {
                let count = planner.slots_after(first).min(room * SLOTS_FOR_ROW);
                if count == 0 {
                    self.end_table();
                    return Ok(0);
                }
                let slots = reader.slots(first, count)?;
                planner.compare_slots(first, &slots, &mut self.found);
                self.phase = Phase::Slots(first + count);
                Ok(count.div_ceil(SLOTS_FOR_ROW))
            }
        }
    }

    /// A table's end: every row of the plan was met, unless something is missing or came or
    /// went meanwhile. Arrays have all their rows.
    fn count(&mut self, table: Table, planner: &Planner, known: usize) {
        let whole = match planner.expected(table) {
            Some(expected) => known == expected,
            None => true,
        };
        if whole {
            self.end_table();
        } else if matches!(table, Table::FrontV4 | Table::FrontV6) {
            self.phase = Phase::Frontends(None);
        } else {
            self.phase = Phase::Whole;
        }
    }
}
