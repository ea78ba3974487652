//! A list of rows: filtered, sorted, with one of them chosen.

use std::cmp::Ordering;

use crate::top::grid::Column;
use crate::top::page::Sort;
use crate::top::text::Piece;

/// A row of a list.
pub trait Item {
    /// What tells it from all others, also in the next reading.
    type Id: Clone + PartialEq;

    /// What tells it from all others.
    fn id(&self) -> Self::Id;

    /// Whether the filter takes it; `part` is in small letters.
    fn matches(&self, part: &str) -> bool;

    /// Which comes first: names upwards, numbers downwards.
    fn compare(&self, other: &Self, by: Sort) -> Ordering;

    /// A cell for each column.
    fn cells(&self, columns: &[Column], widths: &[usize]) -> Vec<Piece>;
}

/// Greater numbers first; what has none comes last.
pub fn downwards(a: Option<f64>, b: Option<f64>) -> Ordering {
    // No rate is negative.
    b.unwrap_or(-1.0).total_cmp(&a.unwrap_or(-1.0))
}

/// How the list is shown.
#[derive(Clone, Debug)]
pub struct List<Id> {
    /// What it is sorted by.
    pub sort: Sort,
    /// Whether the last comes first.
    pub reversed: bool,
    /// Part of a name or an address.
    pub filter: String,
    /// Indices of the rows that are shown, in their order.
    pub order: Vec<usize>,
    /// Place of the chosen row in the order.
    pub cursor: usize,
    /// Place of the first row on the screen in the order.
    pub top: usize,
    /// Rows on the screen.
    pub height: usize,
    /// The chosen row; none while the list stays at its beginning, whatever comes to be there.
    chosen: Option<Id>,
}

impl<Id: Clone + PartialEq> List<Id> {
    /// Sorted by this.
    pub const fn new(sort: Sort) -> Self {
        Self {
            sort,
            reversed: false,
            filter: String::new(),
            order: Vec::new(),
            cursor: 0,
            top: 0,
            height: 1,
            chosen: None,
        }
    }

    /// Filters and sorts these rows, of which `also` must take a row as well. The chosen row stays
    /// chosen if it is still there.
    pub fn update<T: Item<Id = Id>>(&mut self, rows: &[T], also: impl Fn(&T) -> bool) {
        let part = self.filter.to_lowercase();
        let taken = rows
            .iter()
            .enumerate()
            .filter(|(_, row)| also(row) && (part.is_empty() || row.matches(&part)));
        let mut order: Vec<(usize, &T)> = taken.collect();
        order.sort_by(|(_, a), (_, b)| {
            let by = a.compare(b, self.sort);
            let by = if self.reversed { by.reverse() } else { by };
            by.then_with(|| a.compare(b, Sort::Name))
        });
        if let Some(chosen) = &self.chosen
            && let Some(at) = order.iter().position(|(_, row)| row.id() == *chosen)
        {
            self.cursor = at;
        }
        self.order = order.into_iter().map(|(at, _)| at).collect();
        self.scroll();
    }

    /// The chosen row.
    pub fn row<'a, T>(&self, rows: &'a [T]) -> Option<&'a T> {
        rows.get(*self.order.get(self.cursor)?)
    }

    /// Chooses the row at this place of the order, or the last one.
    pub fn go<T: Item<Id = Id>>(&mut self, rows: &[T], place: usize) {
        self.cursor = place;
        self.scroll();
        self.chosen = if self.cursor == 0 {
            None
        } else {
            self.row(rows).map(Item::id)
        };
    }

    /// Moves by so many rows.
    pub fn step<T: Item<Id = Id>>(&mut self, rows: &[T], by: isize) {
        self.go(rows, self.cursor.saturating_add_signed(by));
    }

    /// Back to the beginning.
    pub fn rewind(&mut self) {
        self.cursor = 0;
        self.top = 0;
        self.chosen = None;
    }

    /// Fits cursor and screen to the rows that there are.
    pub fn scroll(&mut self) {
        let last = self.order.len().saturating_sub(1);
        self.cursor = self.cursor.min(last);
        let height = self.height.max(1);
        let least = (self.cursor + 1).saturating_sub(height);
        let most = self.order.len().saturating_sub(height).min(self.cursor);
        self.top = self.top.clamp(least.min(most), most);
    }

    /// The rows on the screen, in their order, with whether each is the chosen one.
    pub fn shown<'a, T>(&'a self, rows: &'a [T]) -> impl Iterator<Item = (&'a T, bool)> {
        let shown = self.order.iter().enumerate();
        shown
            .skip(self.top)
            .take(self.height)
            .filter_map(|(place, at)| Some((rows.get(*at)?, place == self.cursor)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::text::plain;

    /// A name and a rate.
    struct Row(&'static str, f64);

    impl Item for Row {
        type Id = &'static str;

        fn id(&self) -> &'static str {
            self.0
        }

        fn matches(&self, part: &str) -> bool {
            self.0.contains(part)
        }

        fn compare(&self, other: &Self, by: Sort) -> Ordering {
            match by {
                Sort::Bits => downwards(Some(self.1), Some(other.1)),
                _ => self.0.cmp(other.0),
            }
        }

        fn cells(&self, _: &[Column], _: &[usize]) -> Vec<Piece> {
            vec![plain(self.0)]
        }
    }

    fn names(list: &List<&'static str>, rows: &[Row]) -> Vec<&'static str> {
        list.shown(rows).map(|(row, _)| row.0).collect()
    }

    #[test]
    fn rows_are_filtered_and_sorted() {
        let rows = [Row("b", 2.0), Row("c", 2.0), Row("a", 9.0), Row("ab", 0.0)];
        let mut list = List::new(Sort::Bits);
        list.height = 10;
        list.update(&rows, |_| true);
        assert_eq!(names(&list, &rows), ["a", "b", "c", "ab"]);
        list.reversed = true;
        list.update(&rows, |_| true);
        assert_eq!(names(&list, &rows), ["ab", "b", "c", "a"], "equals by name");
        list.filter = "B".into();
        list.update(&rows, |_| true);
        assert_eq!(names(&list, &rows), ["ab", "b"]);
        list.update(&rows, |row| row.1 > 1.0);
        assert_eq!(names(&list, &rows), ["b"]);
        assert_eq!(downwards(None, Some(0.0)), Ordering::Greater);
    }

    #[test]
    fn the_chosen_row_stays_chosen() {
        let rows = [Row("a", 1.0), Row("b", 2.0), Row("c", 3.0)];
        let mut list = List::new(Sort::Bits);
        list.height = 2;
        list.update(&rows, |_| true);
        assert_eq!(list.row(&rows).unwrap().0, "c");
        let faster = [Row("a", 9.0), Row("b", 2.0), Row("c", 3.0)];
        list.update(&faster, |_| true);
        assert_eq!(
            list.row(&faster).unwrap().0,
            "a",
            "the beginning is the beginning"
        );
        list.step(&faster, 2);
        assert_eq!(list.row(&faster).unwrap().0, "b");
        assert_eq!(names(&list, &faster), ["c", "b"], "it is on the screen");
        list.update(&rows, |_| true);
        assert_eq!((list.row(&rows).unwrap().0, list.cursor), ("b", 1));
        list.step(&rows, 100);
        assert_eq!(list.row(&rows).unwrap().0, "a");
        list.step(&rows, -100);
        assert_eq!((list.row(&rows).unwrap().0, list.top), ("c", 0));
        list.update::<Row>(&[], |_| true);
        assert!(list.row::<Row>(&[]).is_none());
        list.step::<Row>(&[], 1);
        assert_eq!((list.cursor, list.top), (0, 0));
    }

    #[test]
    fn what_is_gone_leaves_its_place_to_others() {
        let rows = [Row("a", 3.0), Row("b", 2.0), Row("c", 1.0)];
        let mut list = List::new(Sort::Bits);
        list.height = 2;
        list.update(&rows, |_| true);
        list.go(&rows, 2);
        let fewer = [Row("a", 3.0), Row("b", 2.0)];
        list.update(&fewer, |_| true);
        assert_eq!((list.row(&fewer).unwrap().0, list.top), ("b", 0));
    }
}
