//! `tulle top`: services, backends, losses and maps as they change.
//!
//! [`reading`] reads a [`sample`], [`view`] takes rates from two of them, [`pages`] make lines of
//! that, [`app`] holds what is on the screen and knows the keys, [`draw`] draws it; [`worker`] and
//! [`terminal`] are the two threads. [`once`] prints instead.

pub mod app;
pub mod draw;
pub mod grid;
pub mod history;
pub mod list;
pub mod names;
pub mod once;
pub mod page;
pub mod pages;
pub mod reading;
pub mod sample;
pub mod terminal;
pub mod text;
pub mod view;
pub mod worker;
#[cfg(test)]
#[path = "tests/top_world.rs"]
mod world;

use std::io::{self, IsTerminal};

use anyhow::{Context as _, bail};

use crate::args::{Format, TopArgs};
use crate::context::Context;
use crate::top::app::App;
use crate::top::page::{Page, Sort};
use crate::top::reading::Reader;
use crate::top::worker::Worker;

/// Runs the verb.
///
/// # Errors
///
/// If the arguments do not fit each other, there is no terminal, or the maps cannot be read.
pub fn run(context: &Context, args: &TopArgs) -> anyhow::Result<()> {
    let page = args.page.unwrap_or(Page::Overview);
    if let Some(sort) = args.sort {
        check(page, sort)?;
    }
    if args.once {
        return once::run(context, args);
    }
    if context.format == Format::Json {
        bail!(
            "`tulle top` draws on a terminal; `tulle -o json top --once` writes one reading as JSON"
        );
    }
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        bail!(
            "`tulle top` needs a terminal to draw on and to take keys from; `tulle top --once` prints \
             one reading anywhere"
        );
    }
    let mut reader = Reader::new(context);
    let first = reader.read()?;
    let worker = Worker::start(reader, first, args.interval).context("thread that reads")?;
    let mut app = App::new(page, args.interval);
    if let Some(sort) = args.sort {
        app.sort_by(sort);
    }
    terminal::run(app, &worker, context.style.color)
}

/// Refuses an order that a page does not know.
fn check(page: Page, sort: Sort) -> anyhow::Result<()> {
    let sorts = page.sorts();
    if sorts.contains(&sort) {
        return Ok(());
    }
    let page = page.title().to_lowercase();
    if sorts.is_empty() {
        bail!("--sort: the {page} page has no list to sort; choose another with --page");
    }
    let words: Vec<String> = sorts.iter().map(|sort| sort.word()).collect();
    bail!(
        "--sort: the {page} page is not sorted by {}; it knows {}",
        sort.word(),
        words.join(", ")
    )
}
