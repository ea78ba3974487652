//! What is on the screen, and what keys do to it. No I/O.

use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::top::history::History;
use crate::top::list::List;
use crate::top::page::{Page, Sort};
use crate::top::pages::drops::DETAIL;
use crate::top::sample::BackendId;
use crate::top::view::View;

/// Lines around a page: title, pages, notice; keys.
pub const AROUND: usize = 4;
/// Columns without which nothing is shown.
pub const LEAST_WIDTH: u16 = 60;
/// Lines without which nothing is shown.
pub const LEAST_HEIGHT: u16 = 12;

/// Intervals that `+` and `-` go through, in milliseconds.
const INTERVALS: [u64; 9] = [100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000];

/// What is to be done besides drawing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Nothing.
    None,
    /// End.
    Quit,
    /// Read at this interval from now on.
    Interval(Duration),
    /// Read no more, or go on.
    Pause(bool),
}

/// What is on the screen.
#[derive(Debug)]
pub struct App {
    /// The page.
    pub page: Page,
    /// The last reading and its rates.
    pub view: View,
    /// Values of the readings before.
    pub history: History,
    /// List of service ports.
    pub services: List<u32>,
    /// List of backends.
    pub backends: List<BackendId>,
    /// List of losses.
    pub drops: List<(String, String)>,
    /// List of maps.
    pub maps: List<String>,
    /// The service port whose backends are shown alone, and its name.
    pub of_service: Option<(u32, String)>,
    /// Time between two readings.
    pub interval: Duration,
    /// Whether nothing is read at the moment.
    pub paused: bool,
    /// Whether keys go to the filter.
    pub typing: bool,
    /// Whether the keys are explained.
    pub help: bool,
}

impl App {
    /// Begins with this page and this interval.
    pub fn new(page: Page, interval: Duration) -> Self {
        Self {
            page,
            view: View::default(),
            history: History::default(),
            services: List::new(Page::Services.first_sort()),
            backends: List::new(Page::Backends.first_sort()),
            drops: List::new(Page::Drops.first_sort()),
            maps: List::new(Page::Maps.first_sort()),
            of_service: None,
            interval,
            paused: false,
            typing: false,
            help: false,
        }
    }

    /// Sorts the present page by this.
    pub fn sort_by(&mut self, sort: Sort) {
        self.each(|list| list.set_sort(sort));
        self.refresh();
    }

    /// Fits the lists to a terminal of so many lines.
    pub fn resize(&mut self, height: u16) {
        // The titles of the list take a line.
        let lines = usize::from(height).saturating_sub(AROUND + 1).max(1);
        self.services.height = lines;
        self.backends.height = lines;
        self.maps.height = lines;
        self.drops.height = lines.saturating_sub(DETAIL + 1).max(1);
        self.services.scroll();
        self.backends.scroll();
        self.maps.scroll();
        self.drops.scroll();
    }

    /// Takes a new reading in.
    pub fn take(&mut self, view: View) {
        self.history.push(&view);
        self.view = view;
        self.refresh();
    }

    /// Filters and sorts all lists anew.
    fn refresh(&mut self) {
        self.services.update(&self.view.services, |_| true);
        let of = self.of_service.as_ref().map(|(number, _)| *number);
        self.backends.update(&self.view.backends, |row| {
            of.is_none_or(|number| row.numbers.contains(&number))
        });
        self.drops.update(&self.view.drops, |_| true);
        self.maps.update(&self.view.maps, |_| true);
    }

    /// What a key does.
    pub fn key(&mut self, key: KeyEvent) -> Action {
        if key.kind == KeyEventKind::Release {
            return Action::None;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control {
            return match key.code {
                KeyCode::Char('c') => Action::Quit,
                _ => Action::None,
            };
        }
        if self.help {
            self.help = false;
            return match key.code {
                KeyCode::Char('q') => Action::Quit,
                _ => Action::None,
            };
        }
        if self.typing && self.type_key(key.code) {
            return Action::None;
        }
        if self.move_key(key.code) {
            return Action::None;
        }
        match key.code {
            KeyCode::Char('q') => return Action::Quit,
            KeyCode::Esc => self.escape(),
            KeyCode::Backspace => self.leave_service(),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.help = true,
            KeyCode::Tab | KeyCode::Right => self.page = self.page.next(),
            KeyCode::BackTab | KeyCode::Left => self.page = self.page.previous(),
            KeyCode::Char(digit @ '1'..='5') => {
                let at = digit.to_digit(10).unwrap_or(1) as usize - 1;
                self.page = Page::ALL.get(at).copied().unwrap_or(self.page);
            }
            KeyCode::Enter => self.enter_service(),
            KeyCode::Char('s' | '>') => self.step_sort(true),
            KeyCode::Char('S' | '<') => self.step_sort(false),
            KeyCode::Char('r') => {
                self.each(|list| list.reverse());
                self.refresh();
            }
            KeyCode::Char('/') => self.typing = self.filter().is_some(),
            KeyCode::Char('p' | ' ') => {
                self.paused = !self.paused;
                return Action::Pause(self.paused);
            }
            KeyCode::Char('+' | '=') => return self.set_interval(true),
            KeyCode::Char('-' | '_') => return self.set_interval(false),
            _ => {}
        }
        Action::None
    }

    /// A key while a filter is typed; `false` if it is none of the filter's.
    fn type_key(&mut self, code: KeyCode) -> bool {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.set_filter(String::clear);
            }
            KeyCode::Backspace => self.set_filter(|filter| {
                filter.pop();
            }),
            KeyCode::Char(char) if !char.is_control() => {
                self.set_filter(|filter| filter.push(char));
            }
            KeyCode::Tab | KeyCode::BackTab | KeyCode::Left | KeyCode::Right => {
                self.typing = false;
                return false;
            }
            _ => return false,
        }
        true
    }

    /// A key that moves in the list; `false` for others.
    fn move_key(&mut self, code: KeyCode) -> bool {
        let height = self.list_height().cast_signed();
        let by = match code {
            KeyCode::Up | KeyCode::Char('k') => -1,
            KeyCode::Down | KeyCode::Char('j') => 1,
            KeyCode::PageUp => -height,
            KeyCode::PageDown => height,
            KeyCode::Home | KeyCode::Char('g') => isize::MIN,
            KeyCode::End | KeyCode::Char('G') => isize::MAX,
            _ => return false,
        };
        let view = &self.view;
        match self.page {
            Page::Overview => {}
            Page::Services => self.services.step(&view.services, by),
            Page::Backends => self.backends.step(&view.backends, by),
            Page::Drops => self.drops.step(&view.drops, by),
            Page::Maps => self.maps.step(&view.maps, by),
        }
        true
    }

    fn list_height(&self) -> usize {
        match self.page {
            Page::Drops => self.drops.height,
            _ => self.services.height,
        }
    }

    /// Takes the last thing back that was asked for. It does not quit: of an arrow key that comes
    /// in two pieces the first is this one.
    fn escape(&mut self) {
        if self.filter().is_some_and(|filter| !filter.is_empty()) {
            self.set_filter(String::clear);
        } else if self.page == Page::Backends && self.of_service.is_some() {
            self.leave_service();
        }
    }

    fn enter_service(&mut self) {
        if self.page != Page::Services {
            return;
        }
        if let Some(row) = self.services.row(&self.view.services) {
            self.of_service = Some((row.number, row.label()));
            self.backends.filter.clear();
            self.backends.rewind();
            self.page = Page::Backends;
            self.refresh();
        }
    }

    fn leave_service(&mut self) {
        if self.page == Page::Backends && self.of_service.take().is_some() {
            self.backends.rewind();
            self.page = Page::Services;
            self.refresh();
        }
    }

    fn step_sort(&mut self, forward: bool) {
        let page = self.page;
        self.each(|list| {
            let sort = list.sort().step(page, forward);
            list.set_sort(sort);
        });
        self.refresh();
    }

    fn set_interval(&mut self, longer: bool) -> Action {
        let now = self.interval.as_millis() as u64;
        let next = if longer {
            INTERVALS.iter().find(|step| **step > now)
        } else {
            INTERVALS.iter().rev().find(|step| **step < now)
        };
        let Some(next) = next else {
            return Action::None;
        };
        self.interval = Duration::from_millis(*next);
        Action::Interval(self.interval)
    }

    /// The page's filter, if it has one.
    pub fn filter(&self) -> Option<&str> {
        Some(match self.page {
            Page::Overview => return None,
            Page::Services => &self.services.filter,
            Page::Backends => &self.backends.filter,
            Page::Drops => &self.drops.filter,
            Page::Maps => &self.maps.filter,
        })
    }

    fn set_filter(&mut self, change: impl Fn(&mut String)) {
        self.each(|list| list.change_filter(&change));
        self.refresh();
    }

    /// Rows that are shown and rows that there are, of a page with a list.
    pub fn counts(&self) -> Option<(usize, usize)> {
        let view = &self.view;
        Some(match self.page {
            Page::Overview => return None,
            Page::Services => (self.services.order.len(), view.services.len()),
            Page::Backends => (self.backends.order.len(), view.backends.len()),
            Page::Drops => (self.drops.order.len(), view.drops.len()),
            Page::Maps => (self.maps.order.len(), view.maps.len()),
        })
    }

    /// Does this to the page's list, if it has one.
    fn each(&mut self, change: impl Fn(&mut dyn AnyList)) {
        match self.page {
            Page::Overview => {}
            Page::Services => change(&mut self.services),
            Page::Backends => change(&mut self.backends),
            Page::Drops => change(&mut self.drops),
            Page::Maps => change(&mut self.maps),
        }
    }
}

/// What can be done to a list whatever its rows are.
trait AnyList {
    fn sort(&self) -> Sort;
    fn set_sort(&mut self, sort: Sort);
    fn reverse(&mut self);
    fn change_filter(&mut self, change: &dyn Fn(&mut String));
}

impl<Id: Clone + PartialEq> AnyList for List<Id> {
    fn sort(&self) -> Sort {
        self.sort
    }

    fn set_sort(&mut self, sort: Sort) {
        self.sort = sort;
        self.reversed = false;
    }

    fn reverse(&mut self) {
        self.reversed = !self.reversed;
    }

    fn change_filter(&mut self, change: &dyn Fn(&mut String)) {
        change(&mut self.filter);
        self.rewind();
    }
}

#[cfg(test)]
#[path = "../tests/top_app.rs"]
mod tests;
