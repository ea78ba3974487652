use super::*;
use crate::top::world;

fn app(page: Page) -> App {
    let mut app = App::new(page, Duration::from_secs(1));
    app.resize(24);
    app.take(world::view());
    app
}

fn press(app: &mut App, code: KeyCode) -> Action {
    app.key(KeyEvent::new(code, KeyModifiers::NONE))
}

fn type_text(app: &mut App, text: &str) {
    for char in text.chars() {
        assert_eq!(press(app, KeyCode::Char(char)), Action::None, "{text}");
    }
}

fn services(app: &App) -> Vec<u32> {
    app.services
        .shown(&app.view.services)
        .map(|(row, _)| row.number)
        .collect()
}

#[test]
fn keys_lead_to_pages_and_out() {
    let mut app = app(Page::Overview);
    press(&mut app, KeyCode::Tab);
    assert_eq!(app.page, Page::Services);
    press(&mut app, KeyCode::Char('5'));
    assert_eq!(app.page, Page::Maps);
    press(&mut app, KeyCode::BackTab);
    assert_eq!(app.page, Page::Drops);
    press(&mut app, KeyCode::Char('?'));
    assert!(app.help);
    assert_eq!(
        press(&mut app, KeyCode::Esc),
        Action::None,
        "only the help goes"
    );
    assert!(!app.help);
    assert_eq!(press(&mut app, KeyCode::Esc), Action::None);
    assert_eq!(press(&mut app, KeyCode::Char('q')), Action::Quit);
    let control = |char| KeyEvent::new(KeyCode::Char(char), KeyModifiers::CONTROL);
    press(&mut app, KeyCode::Char('/'));
    assert_eq!(
        app.key(control('c')),
        Action::Quit,
        "whatever else is going on"
    );
    assert_eq!(app.key(control('q')), Action::None);
    let mut release = KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE);
    release.kind = KeyEventKind::Release;
    assert_eq!(app.key(release), Action::None);
}

#[test]
fn rows_are_sorted_by_keys() {
    let mut app = app(Page::Services);
    assert_eq!(
        (app.services.sort, services(&app)),
        (Sort::Bits, vec![7, 8, 9])
    );
    press(&mut app, KeyCode::Char('r'));
    assert_eq!(services(&app), [9, 8, 7]);
    press(&mut app, KeyCode::Char('>'));
    assert_eq!(
        (app.services.sort, app.services.reversed),
        (Sort::ReplyPackets, false)
    );
    for _ in 0..4 {
        press(&mut app, KeyCode::Char('<'));
    }
    assert_eq!(
        (app.services.sort, services(&app)),
        (Sort::Name, vec![7, 9, 8])
    );
    assert_eq!(app.maps.sort, Sort::Full, "other pages have their own");
    press(&mut app, KeyCode::Char('1'));
    assert_eq!(
        press(&mut app, KeyCode::Char('s')),
        Action::None,
        "no list, nothing to sort"
    );
}

#[test]
fn a_filter_is_typed_kept_and_taken_away() {
    let mut app = app(Page::Services);
    type_text(&mut app, "/WEBq");
    assert!(app.typing);
    assert_eq!((services(&app), app.counts()), (vec![], Some((0, 3))));
    press(&mut app, KeyCode::Backspace);
    assert_eq!(services(&app), [7]);
    press(&mut app, KeyCode::Enter);
    assert_eq!((app.typing, app.filter()), (false, Some("WEB")));
    app.take(world::view());
    assert_eq!(services(&app), [7], "the next reading is filtered too");
    assert_eq!(press(&mut app, KeyCode::Esc), Action::None);
    assert_eq!(services(&app), [7, 8, 9]);
    type_text(&mut app, "/fd00");
    assert_eq!(services(&app), [8], "by address");
    press(&mut app, KeyCode::Esc);
    assert_eq!((app.typing, services(&app).len()), (false, 3));
    type_text(&mut app, "/we");
    press(&mut app, KeyCode::Tab);
    assert!(!app.typing, "another page has a filter of its own");
    assert_eq!(press(&mut app, KeyCode::Char('q')), Action::Quit);
    press(&mut app, KeyCode::Char('1'));
    press(&mut app, KeyCode::Char('/'));
    assert!(!app.typing, "nothing to filter");
}

#[test]
fn enter_shows_the_backends_of_a_service() {
    let mut app = app(Page::Services);
    press(&mut app, KeyCode::Enter);
    assert_eq!(app.page, Page::Backends);
    assert_eq!(app.of_service, Some((7, "default/web:http".into())));
    assert_eq!(app.counts(), Some((2, 3)));
    app.take(world::view());
    assert_eq!(app.counts(), Some((2, 3)));
    assert_eq!(
        press(&mut app, KeyCode::Enter),
        Action::None,
        "nothing behind a backend"
    );
    assert_eq!(press(&mut app, KeyCode::Esc), Action::None);
    assert_eq!((app.page, &app.of_service), (Page::Services, &None));
    press(&mut app, KeyCode::Down);
    press(&mut app, KeyCode::Enter);
    assert_eq!(app.of_service, Some((8, "#8 [fd00::10]:80 TCP".into())));
    press(&mut app, KeyCode::Backspace);
    press(&mut app, KeyCode::Char('3'));
    assert_eq!(app.counts(), Some((3, 3)));
    assert_eq!(press(&mut app, KeyCode::Esc), Action::None);
}

#[test]
fn the_interval_has_steps_and_ends() {
    let mut app = app(Page::Overview);
    let millis = |ms| Action::Interval(Duration::from_millis(ms));
    assert_eq!(press(&mut app, KeyCode::Char('+')), millis(2_000));
    assert_eq!(press(&mut app, KeyCode::Char('-')), millis(1_000));
    app.interval = Duration::from_millis(700);
    assert_eq!(press(&mut app, KeyCode::Char('-')), millis(500));
    app.interval = Duration::from_millis(100);
    assert_eq!(press(&mut app, KeyCode::Char('-')), Action::None);
    app.interval = Duration::from_mins(1);
    assert_eq!(press(&mut app, KeyCode::Char('=')), Action::None);
    assert_eq!(press(&mut app, KeyCode::Char('p')), Action::Pause(true));
    assert_eq!(press(&mut app, KeyCode::Char(' ')), Action::Pause(false));
}

#[test]
fn lists_move_within_their_rows() {
    let mut app = app(Page::Backends);
    let cursor = |app: &App| app.backends.cursor;
    for (code, expected) in [
        (KeyCode::End, 2),
        (KeyCode::Down, 2),
        (KeyCode::Up, 1),
        (KeyCode::Home, 0),
        (KeyCode::PageDown, 2),
        (KeyCode::PageUp, 0),
        (KeyCode::Char('j'), 1),
        (KeyCode::Char('G'), 2),
        (KeyCode::Char('g'), 0),
    ] {
        press(&mut app, code);
        assert_eq!(cursor(&app), expected, "{code:?}");
    }
}
