//! `tulle top --once`: two readings, printed.

use std::collections::BTreeSet;
use std::thread;

use crate::args::{Format, TopArgs};
use crate::context::Context;
use crate::format;
use crate::output::{self, Paint, Style};
use crate::top::grid::Column;
use crate::top::list::{Item, List};
use crate::top::page::Page;
use crate::top::pages::{self, backends, drops, header, maps, overview, services};
use crate::top::reading::Reader;
use crate::top::text::{Line, Tone, piece, plain};
use crate::top::view::View;

/// Columns where there is no terminal to ask.
const WIDTH: usize = 120;
/// Rows of a table unless told otherwise.
const ROWS: usize = 100;
/// Lines of the first page when it is asked for alone.
const OVERVIEW: usize = 40;

/// Runs the verb with `--once`.
///
/// # Errors
///
/// If the maps cannot be read or the output not be written.
pub fn run(context: &Context, args: &TopArgs) -> anyhow::Result<()> {
    let mut reader = Reader::new(context);
    let first = reader.read()?;
    thread::sleep(args.interval);
    let view = View::new(Some(&first), &reader.read()?);
    if context.format == Format::Json {
        let view = ordered(view, args);
        return Ok(output::print(&output::document("tulle.top", &view, true)?)?);
    }
    let (text, notes) = text(&view, args, context.style);
    output::print(&text)?;
    for note in notes {
        eprintln!("{note}");
    }
    Ok(())
}

/// A page's rows in the order that was asked for, and no more than that.
fn ordered(mut view: View, args: &TopArgs) -> View {
    view.services = pick(&view.services, Page::Services, args);
    view.backends = pick(&view.backends, Page::Backends, args);
    view.drops = pick(&view.drops, Page::Drops, args);
    if args.page == Some(Page::Maps) && args.sort.is_some() {
        view.maps = pick(&view.maps, Page::Maps, args);
    }
    view
}

fn pick<T: Item + Clone>(rows: &[T], page: Page, args: &TopArgs) -> Vec<T> {
    let list = list(rows, page, args, args.limit.unwrap_or(0));
    list.shown(rows).map(|(row, _)| row.clone()).collect()
}

/// A list of so many rows at most; 0 for all.
fn list<T: Item>(rows: &[T], page: Page, args: &TopArgs, limit: usize) -> List<T::Id> {
    let asked = args.sort.filter(|_| args.page == Some(page));
    let mut list = List::new(asked.unwrap_or(page.first_sort()));
    list.height = if limit == 0 { rows.len().max(1) } else { limit };
    list.update(rows, |_| true);
    list
}

/// The pages as text, and what to say beside it.
fn text(view: &View, args: &TopArgs, style: Style) -> (String, Vec<String>) {
    let columns = style.width.map_or(WIDTH, usize::from);
    let mut out = vec![title(view)];
    let mut notes = Vec::new();
    let asked = args.page;
    for page in Page::ALL {
        if asked.is_some_and(|asked| asked != page) {
            continue;
        }
        out.push(Line::new());
        let (lines, all) = match page {
            Page::Overview if asked.is_some() => {
                (overview::lines(view, None, columns, OVERVIEW), None)
            }
            // Losses and maps follow.
            Page::Overview => (overview::traffic(view, None, columns), None),
            Page::Services => table(&view.services, page, args, &services::COLUMNS, columns),
            Page::Backends => {
                let all = backends::columns(&view.backends, false);
                table(&view.backends, page, args, &all, columns)
            }
            Page::Drops if view.drops.is_empty() => {
                (vec![vec![piece(Tone::Good, "nothing lost")]], None)
            }
            Page::Drops => table(&view.drops, page, args, &drops::COLUMNS, columns),
            Page::Maps => table(&view.maps, page, args, &maps::COLUMNS, columns),
        };
        if asked.is_none() && page != Page::Overview {
            out.push(vec![piece(Tone::Strong, page.title())]);
        }
        let shown = lines.len().saturating_sub(1);
        out.extend(lines);
        if let Some(all) = all
            && shown < all
        {
            notes.push(format!(
                "the first {} of {} rows of {}; -n 0 shows all",
                format::count(shown as u64),
                format::count(all as u64),
                page.title().to_lowercase(),
            ));
        }
        if page == Page::Drops {
            out.extend(explanations(view, columns));
        }
    }
    notes.extend(view.faults.iter().map(|fault| format!("fault: {fault}")));
    let agent = view.agent.faults.iter();
    notes.extend(agent.map(|fault| format!("the agent's fault: {fault}")));
    notes.extend(view.notes.iter().cloned());
    let text = out.into_iter().map(|line| painted(line, style));
    (text.collect(), notes)
}

fn title(view: &View) -> Line {
    let mut line = vec![piece(Tone::Strong, "tulle top")];
    if let Some(node) = &view.agent.node {
        line.push(plain(format!("  {node}")));
    }
    line.push(plain("  "));
    line.extend(header::agent(&view.agent));
    let time = format::time_of_day(view.unix_nanos);
    let over = view.between_secs.map_or_else(
        || "no rates".to_owned(),
        |secs| format!("rates over {secs:.2} s"),
    );
    line.push(plain(format!("  {over}  {time} UTC")));
    line
}

/// Titles and rows, and how many rows there are in all.
fn table<T: Item>(
    rows: &[T],
    page: Page,
    args: &TopArgs,
    columns: &[Column],
    room: usize,
) -> (Vec<Line>, Option<usize>) {
    if rows.is_empty() {
        let none = format!("no {}", page.title().to_lowercase());
        return (vec![vec![piece(Tone::Dim, none)]], None);
    }
    let list = list(rows, page, args, args.limit.unwrap_or(ROWS));
    let shown = pages::shown(&list, rows, columns, room);
    let mut lines = vec![shown.titles];
    lines.extend(shown.rows.into_iter().map(|(line, _)| line));
    (lines, Some(rows.len()))
}

/// What each loss means and what to do about it.
fn explanations(view: &View, columns: usize) -> Vec<Line> {
    let mut told = BTreeSet::new();
    let mut out = Vec::new();
    for row in &view.drops {
        if told.insert(&row.reason) {
            out.push(Line::new());
            out.extend(drops::detail(row, columns, usize::MAX));
        }
    }
    out
}

fn painted(line: Line, style: Style) -> String {
    let mut text = String::new();
    for piece in line {
        let paint = match piece.tone {
            Tone::Plain => None,
            Tone::Strong => Some(Paint::Bold),
            Tone::Dim => Some(Paint::Dim),
            Tone::Good => Some(Paint::Green),
            Tone::Warn => Some(Paint::Yellow),
            Tone::Bad => Some(Paint::Red),
        };
        match paint {
            Some(paint) if !piece.text.trim().is_empty() => {
                text.push_str(&style.paint(paint, &piece.text));
            }
            _ => text.push_str(&piece.text),
        }
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

#[cfg(test)]
#[path = "../tests/top_once.rs"]
mod tests;
