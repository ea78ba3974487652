//! The thread that reads: keys are answered at once, however long a reading takes.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::top::reading::Reader;
use crate::top::sample::Sample;
use crate::top::view::View;

/// The second reading comes after this at the latest: nobody waits long for the first rates.
const FIRST: Duration = Duration::from_secs(1);

/// What the thread is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Read at this interval.
    Interval(Duration),
    /// Read no more, or go on.
    Pause(bool),
}

/// The thread's ends of its channels. It ends when they are dropped.
#[derive(Debug)]
pub struct Worker {
    /// What it read.
    pub views: Receiver<View>,
    /// What it is to do.
    pub orders: Sender<Order>,
}

impl Worker {
    /// Goes on reading after the `first` reading.
    ///
    /// # Errors
    ///
    /// If there can be no thread.
    pub fn start(reader: Reader, first: Sample, interval: Duration) -> io::Result<Self> {
        // One waits at most: a terminal that is stopped stops the readings too.
        let (send, views) = sync_channel(1);
        let (orders, receive) = channel();
        thread::Builder::new()
            .name("readings".into())
            .spawn(move || work(reader, first, interval, &send, &receive))?;
        Ok(Self { views, orders })
    }
}

fn work(
    mut reader: Reader,
    first: Sample,
    interval: Duration,
    views: &SyncSender<View>,
    orders: &Receiver<Order>,
) {
    let mut pace = Pace::new(interval, first.took);
    let mut before = first;
    if views.send(View::new(None, &before)).is_err() {
        return;
    }
    loop {
        match pace.wait(Instant::now()) {
            Some(Duration::ZERO) => {
                let began = Instant::now();
                let sample = reader.read_or_tell();
                // Before it is sent: a terminal that stood still for an hour says nothing of how
                // long a reading takes.
                pace.done(began, Instant::now());
                if views.send(View::new(Some(&before), &sample)).is_err() {
                    return;
                }
                before = sample;
            }
            wait => {
                // Paused: only an order, or the end, changes that.
                let order = match wait {
                    Some(wait) => orders.recv_timeout(wait),
                    None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
                };
                match order {
                    Ok(order) => pace.order(order),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        }
    }
}

/// When to read: at the interval, but never more than half of the time.
#[derive(Clone, Copy, Debug)]
struct Pace {
    interval: Duration,
    paused: bool,
    began: Instant,
    ended: Instant,
    first: bool,
}

impl Pace {
    fn new(interval: Duration, took: Duration) -> Self {
        let ended = Instant::now();
        Self {
            interval,
            paused: false,
            began: ended.checked_sub(took).unwrap_or(ended),
            ended,
            first: true,
        }
    }

    /// How long to wait for the next reading; `None` while paused.
    fn wait(&self, now: Instant) -> Option<Duration> {
        if self.paused {
            return None;
        }
        let interval = if self.first {
            self.interval.min(FIRST)
        } else {
            self.interval
        };
        let took = self.ended - self.began;
        let due = (self.began + interval).max(self.ended + took);
        Some(due.saturating_duration_since(now))
    }

    const fn order(&mut self, order: Order) {
        match order {
            Order::Interval(interval) => self.interval = interval,
            Order::Pause(paused) => self.paused = paused,
        }
    }

    const fn done(&mut self, began: Instant, ended: Instant) {
        self.began = began;
        self.ended = ended;
        self.first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_come_at_the_interval_and_leave_time() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let millis = |pace: Pace, now| pace.wait(at(now)).map(|wait| wait.as_millis());
        let mut pace = Pace {
            interval: Duration::from_mins(1),
            paused: false,
            began: at(0),
            ended: at(10),
            first: true,
        };
        assert_eq!(millis(pace, 100), Some(900), "the first rates come soon");
        pace.done(at(1000), at(1010));
        assert_eq!(millis(pace, 2000), Some(59_000));
        pace.order(Order::Interval(Duration::from_millis(100)));
        assert_eq!(millis(pace, 1050), Some(50));
        assert_eq!(millis(pace, 2000), Some(0));
        pace.done(at(2000), at(5000));
        assert_eq!(millis(pace, 5000), Some(3000), "half of the time at most");
        pace.order(Order::Pause(true));
        assert_eq!(millis(pace, 9000), None);
        pace.order(Order::Pause(false));
        assert_eq!(millis(pace, 9000), Some(0));
    }
}
