//! Draws the screen with ratatui.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line as Row, Span, Text};
use ratatui::widgets::{Paragraph, Scrollbar, ScrollbarOrientation, ScrollbarState, Wrap};

use crate::format::count;
use crate::top::app::{App, LEAST_HEIGHT, LEAST_WIDTH};
use crate::top::grid::Column;
use crate::top::list::{Item, List};
use crate::top::page::Page;
use crate::top::pages::{self, backends, drops, header, help, maps, overview, services};
use crate::top::text::{Line, Tone, cut, cut_line, piece, plain, width};

/// Draws what the app says, with colours or without.
pub fn draw(frame: &mut Frame<'_>, app: &App, color: bool) {
    let area = frame.area();
    if area.width < LEAST_WIDTH || area.height < LEAST_HEIGHT {
        too_small(frame, area);
        return;
    }
    let rows = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(1),
    ]);
    let [title, tabs, notice, body, keys] = rows.areas(area);
    let columns = usize::from(area.width);
    let line = |frame: &mut Frame<'_>, line: Line, area| {
        frame.render_widget(styled(line, color), area);
    };
    let first = header::title(&app.view, app.interval, app.paused, columns);
    line(frame, first, title);
    let room = columns.saturating_sub(header::TABS_WIDTH + 1);
    let second = header::tabs(app.page, beside(app, room), columns);
    line(frame, second, tabs);
    // A datapath that is gone is told in the page's place.
    if !app.view.is_blind() {
        line(
            frame,
            header::notice(&app.view, app.interval, columns),
            notice,
        );
    }
    page(frame, app, color, body);
    line(frame, footer(app, columns), keys);
}

fn page(frame: &mut Frame<'_>, app: &App, color: bool, area: Rect) {
    let (columns, lines) = (usize::from(area.width), usize::from(area.height));
    let view = &app.view;
    if app.help {
        return paragraph(frame, help::lines(columns), color, area);
    }
    if view.is_blind() {
        let again = format!("trying again every {}", header::seconds(app.interval));
        return paragraph(frame, overview::blind(view, &again, columns), color, area);
    }
    match app.page {
        Page::Overview => {
            let lines = overview::lines(view, Some(&app.history), columns, lines);
            paragraph(frame, lines, color, area);
        }
        Page::Services => {
            let all = &services::COLUMNS;
            list(frame, &app.services, &view.services, all, color, area);
        }
        Page::Backends => {
            let all = backends::columns(&view.backends, app.of_service.is_some());
            list(frame, &app.backends, &view.backends, &all, color, area);
        }
        Page::Drops => {
            let below = drops::DETAIL as u16 + 1;
            let rows = Layout::vertical([Constraint::Fill(1), Constraint::Length(below)]);
            let [above, below] = rows.areas(area);
            list(
                frame,
                &app.drops,
                &view.drops,
                &drops::COLUMNS,
                color,
                above,
            );
            if let Some(row) = app.drops.row(&view.drops) {
                let mut lines = vec![Line::new()];
                lines.extend(drops::detail(row, columns, drops::DETAIL));
                paragraph(frame, lines, color, below);
            }
        }
        Page::Maps => list(frame, &app.maps, &view.maps, &maps::COLUMNS, color, area),
    }
}

fn list<T: Item>(
    frame: &mut Frame<'_>,
    list: &List<T::Id>,
    rows: &[T],
    columns: &[Column],
    color: bool,
    area: Rect,
) {
    // The last column is the scrollbar's.
    let room = usize::from(area.width.saturating_sub(1));
    let shown = pages::shown(list, rows, columns, room);
    let mut text = Text::from(styled(shown.titles, color));
    for (line, chosen) in shown.rows {
        let line = styled(line, color);
        text.push_line(if chosen {
            line.style(Modifier::REVERSED)
        } else {
            line
        });
    }
    if list.order.is_empty() {
        let none = if rows.is_empty() {
            "nothing here"
        } else {
            "nothing matches"
        };
        text.push_line(styled(vec![piece(Tone::Dim, none)], color));
    }
    frame.render_widget(text, area);
    let most = list.order.len().saturating_sub(list.height);
    if most > 0 && area.height > 1 {
        let bar = Rect {
            y: area.y + 1,
            height: area.height - 1,
            ..area
        };
        let mut state = ScrollbarState::new(most).position(list.top);
        let widget = Scrollbar::new(ScrollbarOrientation::VerticalRight)
            .begin_symbol(None)
            .end_symbol(None);
        frame.render_stateful_widget(widget, bar, &mut state);
    }
}

/// What is said beside the pages, in so many columns: whose backends, how many rows.
fn beside(app: &App, room: usize) -> Line {
    let Some((shown, all)) = app.counts() else {
        return Line::new();
    };
    let of_service = app
        .of_service
        .as_ref()
        .filter(|_| app.page == Page::Backends);
    let (shown, all) = (count(shown as u64), count(all as u64));
    if let Some((_, service)) = of_service {
        let rest = room.saturating_sub(" of ".len() + width(&shown));
        let service = cut(service, rest).into_owned();
        return vec![piece(Tone::Dim, format!("{shown} of ")), plain(service)];
    }
    let text = if shown == all {
        all
    } else {
        format!("{shown} of {all}")
    };
    vec![piece(Tone::Dim, text)]
}

fn footer(app: &App, columns: usize) -> Line {
    if let Some(filter) = app.filter()
        && (app.typing || !filter.is_empty())
    {
        let cursor = if app.typing { "▏" } else { "" };
        let what = if app.typing {
            "  Enter: keep it   Esc: take it away"
        } else {
            "  Esc: take it away   /: change it"
        };
        let line = vec![
            piece(Tone::Strong, format!(" /{filter}{cursor}")),
            piece(Tone::Dim, what),
        ];
        return cut_line(line, columns);
    }
    let mut hints = vec![("q", "quit"), ("?", "help"), ("Tab", "page")];
    match app.page {
        Page::Services => hints.extend([("Enter", "backends")]),
        Page::Backends if app.of_service.is_some() => hints.extend([("Esc", "services")]),
        Page::Overview | Page::Backends | Page::Drops | Page::Maps => {}
    }
    if app.page != Page::Overview {
        hints.extend([("s", "sort"), ("r", "reverse"), ("/", "filter")]);
    }
    hints.extend([
        ("p", if app.paused { "go on" } else { "pause" }),
        ("+-", "interval"),
    ]);
    header::keys(&hints, columns)
}

fn too_small(frame: &mut Frame<'_>, area: Rect) {
    let text = format!(
        "too small: {}x{} of {LEAST_WIDTH}x{LEAST_HEIGHT} at least; q quits",
        area.width, area.height
    );
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
}

fn paragraph(frame: &mut Frame<'_>, lines: Vec<Line>, color: bool, area: Rect) {
    let lines: Vec<Row<'_>> = lines.into_iter().map(|line| styled(line, color)).collect();
    frame.render_widget(Text::from(lines), area);
}

fn styled(line: Line, color: bool) -> Row<'static> {
    let spans = line.into_iter();
    let spans = spans.map(|piece| Span::styled(piece.text, style(piece.tone, color)));
    Row::from(spans.collect::<Vec<_>>())
}

/// How a tone looks, with colours or without.
fn style(tone: Tone, color: bool) -> Style {
    let style = Style::new();
    match (tone, color) {
        (Tone::Plain, _) | (Tone::Good, false) => style,
        (Tone::Strong, _) | (Tone::Warn | Tone::Bad, false) => style.add_modifier(Modifier::BOLD),
        (Tone::Dim, _) => style.add_modifier(Modifier::DIM),
        (Tone::Good, true) => style.fg(Color::Green),
        (Tone::Warn, true) => style.fg(Color::Yellow),
        (Tone::Bad, true) => style.fg(Color::Red),
    }
}

#[cfg(test)]
#[path = "../tests/top_draw.rs"]
mod tests;
