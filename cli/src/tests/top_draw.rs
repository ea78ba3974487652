use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;

use super::*;
use crate::top::sample::{Agent, Sample, ServiceSample};
use crate::top::view::View;
use crate::top::world;

fn buffer(app: &mut App, (width, height): (u16, u16), color: bool) -> Buffer {
    app.resize(height);
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, app, color)).unwrap();
    terminal.backend().buffer().clone()
}

/// The screen as lines without blanks at their ends.
fn screen(app: &mut App, size: (u16, u16)) -> Vec<String> {
    let buffer = buffer(app, size, false);
    let lines = buffer.content.chunks(usize::from(size.0));
    let text = lines.map(|line| {
        line.iter()
            .map(ratatui::buffer::Cell::symbol)
            .collect::<String>()
    });
    text.map(|line| line.trim_end().to_owned()).collect()
}

fn app(page: Page) -> App {
    let mut app = App::new(page, Duration::from_secs(1));
    app.resize(24);
    app.take(world::view());
    app
}

fn press(app: &mut App, code: KeyCode) {
    app.key(KeyEvent::new(code, KeyModifiers::NONE));
}

#[test]
fn the_overview_fits_80_columns() {
    let mut app = app(Page::Overview);
    app.take(world::view());
    let shown = screen(&mut app, (80, 24)).join("\n");
    let expected = "\
tulle top  n1  agent up 1m05s  every 1s                             01:02:06 UTC
[1 Overview] 2 Services  3 Backends  4 Drops  5 Maps

SERVICES         FLOWS/S  PKT/S  BIT/S  RE PKT/S  RE BIT/S NEW FLOWS
3 ports               20    200   160k       400      320k                    ██
3 backends, 1 draining, 1 port without a backend

AT                  PKT/S  BIT/S  FWD/S  KERNEL/S  LOST/S PACKETS
pod_from from pods    255   204k    250         0       5                     ██
pod_to to pods     0      0      0         0       0                     ▁▁
nic_in from the wire  5  4.00k      0         5       0                     ██
xdp wire, by XDP  0      0      0         0       0                     ▁▁
nic_out to the wire 0      0      0         0       0                     ▁▁

REASON                         AT         OUTCOME   PKT/S   PACKETS      BYTES
no_endpoints                   pod_from   refused       5     2,010  196.2 KiB
unknown_node                   nic_in     dropped       0         4      400 B

MAP                         FULL        USED       LIMIT    MEMORY
tulle_flow_v4   █████████  91.5 %     120,000     131,072    8.0 MiB
";
    for line in expected.lines() {
        let words: Vec<&str> = line
            .split_whitespace()
            .filter(|w| !w.contains(['█', '▁']))
            .collect();
        let found = shown.lines().any(|shown| {
            let shown: Vec<&str> = shown
                .split_whitespace()
                .filter(|w| !w.contains(['█', '▁']))
                .collect();
            shown == words
        });
        assert!(found, "{line:?} in\n{shown}");
    }
    assert!(shown.contains("██"), "a curve of what was read: {shown}");
    assert!(
        shown.ends_with(" q quit  ? help  Tab page  p pause  +- interval"),
        "{shown}"
    );
}

#[test]
fn services_are_a_table() {
    let mut app = app(Page::Services);
    let shown = screen(&mut app, (80, 24));
    let expected = [
        "SERVICE  IP  FLOWS/S  PKT/S ▼BIT/S  RE BIT/S  BACKENDS     FLOWS",
        "default/web:http    4   15    150   120k      240k         2       130",
        "#8 [fd00::10]:80 TCP   6   5     50  40.0k     80.0k         2        15",
        "kube-system/metrics  4   -      -      -         -         0         -",
    ];
    let trimmed: Vec<String> = shown[3..7]
        .iter()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let wanted = expected.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    assert_eq!(trimmed, wanted, "{}", shown.join("\n"));
    assert!(shown[1].ends_with('3'), "{}", shown[1]);
    let wide = screen(&mut app, (160, 40));
    assert!(
        wide[3].contains("FRONTEND") && wide[3].contains("RE PKT/S"),
        "{}",
        wide[3]
    );
    assert!(wide[4].contains("10.96.0.10:80"), "{}", wide[4]);
}

#[test]
fn no_address_of_a_backend_is_cut_at_80_columns() {
    let mut app = app(Page::Backends);
    let shown = screen(&mut app, (80, 24)).join("\n");
    let long = "[2001:db8:1234:5678:9abc:def0:1234:5678]:65535";
    let row = shown.lines().find(|line| line.contains(long)).unwrap();
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(words, [long, "active", "5", "50", "40.0k"], "{shown}");
    assert!(shown.contains("draining"), "{shown}");

    app.page = Page::Services;
    press(&mut app, KeyCode::Enter);
    let shown = screen(&mut app, (80, 24));
    assert!(shown[1].ends_with("2 of default/web:http"), "{}", shown[1]);
    assert!(
        !shown.join("\n").contains(long),
        "only those of the service"
    );
}

#[test]
fn a_long_name_ends_with_dots() {
    let mut sample = world::sample(Duration::from_secs(1), 0);
    let name = format!("default/{}:http", "very-long-name-".repeat(8));
    sample.services.rows[0].name = Some(name);
    let mut app = app(Page::Services);
    app.take(View::new(None, &sample));
    let shown = screen(&mut app, (80, 24)).join("\n");
    assert!(shown.contains("default/very-long-name-"), "{shown}");
    assert!(shown.contains("… "), "{shown}");
    press(&mut app, KeyCode::Enter);
    let shown = screen(&mut app, (80, 24));
    assert!(
        shown[1].contains("of default/") && shown[1].ends_with('…'),
        "{}",
        shown[1]
    );
}

#[test]
fn losses_say_what_to_do() {
    let mut app = app(Page::Drops);
    let shown = screen(&mut app, (80, 24)).join("\n");
    assert!(
        shown.contains("no_endpoints\n  the service has no usable endpoint;"),
        "{shown}"
    );
    assert!(
        shown.contains("  → Check the service's endpoints:"),
        "{shown}"
    );
    press(&mut app, KeyCode::Down);
    let shown = screen(&mut app, (80, 24)).join("\n");
    assert!(
        shown.contains("unknown_node\n  overlay packet from an address"),
        "{shown}"
    );
}

#[test]
fn maps_are_coloured_by_fullness_if_there_are_colours() {
    let mut app = app(Page::Maps);
    let shown = screen(&mut app, (80, 24));
    let order: Vec<&str> = shown[4..10]
        .iter()
        .map(|l| l.split(' ').next().unwrap())
        .collect();
    assert_eq!(
        order,
        [
            "tulle_flow_v4",
            "tulle_back_v4",
            "tulle_front_v4",
            "tulle_locks",
            "tulle_counters",
            "tulle_events"
        ],
        "{}",
        shown.join("\n")
    );
    assert!(
        shown[4].contains("91.5 %") && shown[7].contains(" - "),
        "{}",
        shown.join("\n")
    );
    let of = |buffer: &Buffer, line: u16| {
        let row = usize::from(line) * 80..usize::from(line + 1) * 80;
        let bar = buffer.content[row].iter().find(|cell| cell.symbol() == "█");
        bar.map(|cell| cell.fg)
    };
    let colored = buffer(&mut app, (80, 24), true);
    assert_eq!(of(&colored, 4), Some(Color::Red));
    assert_eq!(of(&colored, 5), Some(Color::Yellow));
    let plain = buffer(&mut app, (80, 24), false);
    assert!(
        plain
            .content
            .iter()
            .all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset)
    );
}

#[test]
fn too_small_a_terminal_is_told() {
    let mut app = app(Page::Services);
    let shown = screen(&mut app, (40, 10)).join(" ");
    assert!(
        shown.contains("too small: 40x10 of 60x12 at least; q quits"),
        "{shown}"
    );
    let shown = screen(&mut app, (60, 12)).join("\n");
    assert!(shown.contains("default/web:http"), "{shown}");
}

#[test]
fn a_datapath_that_is_gone_is_told_until_it_is_back() {
    let mut app = app(Page::Services);
    let gone = Sample::failed("no datapath under /x: is it?".into(), 0, Agent::default());
    app.take(View::new(None, &gone));
    let shown = screen(&mut app, (80, 24)).join("\n");
    assert!(shown.contains("no datapath under /x"), "{shown}");
    assert!(shown.contains("trying again every 1s"), "{shown}");
    assert!(!shown.contains("default/web"), "nothing old: {shown}");
    app.take(world::view());
    assert!(
        screen(&mut app, (80, 24))
            .join("\n")
            .contains("default/web")
    );
}

#[test]
fn the_keys_are_explained() {
    let mut app = app(Page::Overview);
    press(&mut app, KeyCode::Char('?'));
    let shown = screen(&mut app, (80, 24)).join("\n");
    assert!(
        shown.contains("Enter           backends of the chosen service"),
        "{shown}"
    );
    let mut app = self::app(Page::Services);
    press(&mut app, KeyCode::Char('/'));
    press(&mut app, KeyCode::Char('w'));
    let shown = screen(&mut app, (80, 24));
    assert!(
        shown[23].starts_with(" /w▏  Enter: keep it"),
        "{}",
        shown[23]
    );
    assert!(shown[1].ends_with("1 of 3"), "{}", shown[1]);
}

fn services() -> impl Strategy<Value = Vec<ServiceSample>> {
    let name = prop::option::of("[a-z日é/:]{0,90}");
    let one = (
        any::<u32>(),
        name,
        any::<[u8; 16]>(),
        any::<u16>(),
        any::<u64>(),
    );
    let one = one.prop_map(|(number, name, ip, port, n)| ServiceSample {
        number,
        name,
        frontends: vec![((ip, port).into(), 6)],
        backends: n,
        traffic: (n % 3 > 0).then(|| world::traffic(n >> 14)),
    });
    prop::collection::vec(one, 0..30)
}

fn keys() -> impl Strategy<Value = Vec<KeyCode>> {
    let chars = "[1-5srSp+/<>?jkGgh日a-z]{1}";
    let char = chars.prop_map(|text| KeyCode::Char(text.chars().next().unwrap_or('q')));
    let other = prop::sample::select(vec![
        KeyCode::Enter,
        KeyCode::Esc,
        KeyCode::Up,
        KeyCode::Down,
        KeyCode::PageDown,
        KeyCode::PageUp,
        KeyCode::Home,
        KeyCode::End,
        KeyCode::Tab,
        KeyCode::BackTab,
        KeyCode::Backspace,
    ]);
    prop::collection::vec(prop_oneof![char, other], 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn nothing_panics_at_any_size(
        worlds in prop::collection::vec(services(), 1..4),
        size in (1u16..200, 1u16..60),
        keys in keys(),
        color: bool,
    ) {
        let mut app = App::new(Page::Overview, Duration::from_secs(1));
        let mut before = None;
        for (number, rows) in (1..).zip(worlds) {
            let mut sample = world::sample(Duration::from_secs(number), number);
            sample.services.rows.extend(rows);
            app.take(View::new(before.as_ref(), &sample));
            before = Some(sample);
            buffer(&mut app, size, color);
        }
        for key in keys {
            press(&mut app, key);
            let shown = buffer(&mut app, size, color);
            if size.0 >= LEAST_WIDTH && size.1 >= LEAST_HEIGHT {
                let first: String = shown.content[..9].iter().map(ratatui::buffer::Cell::symbol).collect();
                prop_assert_eq!(first, "tulle top");
            }
        }
    }
}
