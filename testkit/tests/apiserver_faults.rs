//! Each fault of the tests' API server does what it says to the client that agents use.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests and their helpers may panic"
)]

mod apiserver_support;

use std::time::{Duration, Instant};

use apiserver_support::{LIMIT, SILENCE, Site, Watched, eventually, service};
use k8s_openapi::api::core::v1::{Node, Service};
use kube::Client;
use kube::api::{Api, ListParams};
use kube::runtime::watcher;
use testkit::apiserver::{Break, Effect, Failure, Fault, FaultHandle, Recorded, Verb};

/// A site of one service, and a watcher that has seen it.
async fn watching() -> (Site, Client, Watched) {
    let site = Site::start();
    site.apply(service("web", "web"));
    let client = site.client().await;
    let mut watched = Watched::start(&client, watcher::Config::default());
    watched.expect(&["init", "+web", "done"]).await;
    // The watch begins when the watcher is asked for its next event.
    let begun = |r: &Recorded| r.verb == Some(Verb::Watch) && r.status.is_some();
    while !site.server.requests().iter().any(begun) {
        watched.expect_silence().await;
    }
    (site, client, watched)
}

fn breaks(after: usize, how: Break) -> Fault {
    Fault::break_after(after, how)
        .on(Verb::Watch)
        .of("services")
        .times(1)
}

async fn list(client: &Client) -> Result<usize, kube::Error> {
    let services: Api<Service> = Api::all(client.clone());
    services
        .list(&ListParams::default())
        .await
        .map(|l| l.items.len())
}

fn code(error: kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        other => panic!("{other:?}"),
    }
}

/// Whether the connection was reset, rather than closed.
fn is_reset(error: &(dyn std::error::Error + 'static)) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset)
        || error.source().is_some_and(is_reset)
}

#[tokio::test]
async fn requests_are_answered_by_failures_as_often_as_said() {
    let site = Site::start();
    let client = site.client().await;
    let fault = Fault::answer(500)
        .on(Verb::List)
        .of("services")
        .skip(1)
        .times(2);
    let handle = site.server.fault(fault);
    let mut codes = Vec::new();
    for _ in 0..4 {
        codes.push(list(&client).await.map_or_else(code, |_| 200));
    }
    assert_eq!(codes, [200, 500, 500, 200]);
    assert_eq!(handle.used(), 2);
    // Others are spared.
    site.server.fault(Fault::answer(403).of("services"));
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.list(&ListParams::default()).await.unwrap();
    assert_eq!(code(list(&client).await.unwrap_err()), 403);
    site.server.lift_faults();
    list(&client).await.unwrap();
    let statuses: Vec<_> = site
        .server
        .requests()
        .iter()
        .filter_map(|r| r.status)
        .collect();
    assert_eq!(statuses, [200, 500, 500, 200, 200, 403, 200]);
}

#[tokio::test]
async fn too_many_requests_say_when_to_come_again() {
    let site = Site::start();
    let failure = Failure::new(429, "slow down").retry_after(Duration::from_secs(7));
    site.server.fault(Fault::new(Effect::Answer(failure)));
    let client = site.client().await;
    let request = http::Request::get("/api/v1/services").body(kube::client::Body::empty());
    let response = client.send(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "7");
    let kube::Error::Api(status) = list(&client).await.unwrap_err() else {
        panic!("no status");
    };
    assert_eq!(status.reason, "TooManyRequests");
    assert_eq!(status.details.unwrap().retry_after_seconds, 7);
}

#[tokio::test]
async fn a_connection_is_reset_before_its_answer() {
    let site = Site::start();
    let client = site.client().await;
    list(&client).await.unwrap();
    site.server.fault(Fault::new(Effect::Reset).times(1));
    let error = list(&client).await.unwrap_err();
    assert!(is_reset(&error), "{error:?}");
    assert_eq!(site.server.requests().last().unwrap().status, None);
    list(&client).await.unwrap();
}

#[tokio::test]
async fn a_request_is_never_answered() {
    let site = Site::start();
    let client = site.client().await;
    let handle = site.server.fault(Fault::new(Effect::Hang).on(Verb::List));
    let answer = tokio::time::timeout(SILENCE, list(&client)).await;
    assert!(answer.is_err() && handle.used() == 1);
    handle.lift();
    list(&client).await.unwrap();
}

#[tokio::test]
async fn a_watch_ends_or_is_cut_after_its_events() {
    for how in [Break::End, Break::Cut, Break::Reset] {
        let (site, _client, mut watched) = watching().await;
        site.server.fault(breaks(2, how));
        site.apply(service("a", "a"));
        site.apply(service("b", "b"));
        site.apply(service("c", "c"));
        let (mut seen, mut errors) = (Vec::new(), 0);
        while seen.last().is_none_or(|last| last != "c") {
            match watched.next().await {
                error if error.starts_with("error: watch stream failed") => errors += 1,
                event => seen.push(event),
            }
        }
        // It goes on where it was, in a new watch.
        assert_eq!(seen, ["a", "b", "c"], "{how:?}");
        // The client takes a missing end for an end; a reset may overtake what it had not read.
        assert_eq!(errors, usize::from(how == Break::Reset), "{how:?}");
        let watches = site.server.requests();
        let watches = watches.iter().filter(|r| r.verb == Some(Verb::Watch));
        assert_eq!(watches.count(), 2, "{how:?}");
    }
}

#[tokio::test]
async fn a_watch_breaks_off_in_the_midst_of_an_event() {
    let (site, _client, mut watched) = watching().await;
    let handle = site.server.fault(breaks(1, Break::Truncate));
    site.apply(service("a", "a"));
    watched.expect(&["a"]).await;
    assert_eq!(handle.used(), 0);
    site.apply(service("b", "b"));
    // The client drops the half of a line, and gets the event whole in the next watch.
    watched.expect(&["b"]).await;
    assert_eq!(handle.used(), 1);
}

#[tokio::test]
async fn a_watch_falls_silent_until_the_fault_is_lifted() {
    let (site, _client, mut watched) = watching().await;
    let handle = site.server.fault(breaks(0, Break::Silence));
    eventually("no silence", || handle.used() == 1).await;
    site.apply(service("a", "a"));
    watched.expect_silence().await;
    assert_eq!(site.server.listener().connections(), 1);
    handle.lift();
    watched.expect(&["a"]).await;
}

#[tokio::test]
async fn a_watch_gets_an_error_event() {
    let (site, _client, mut watched) = watching().await;
    let failure = Failure::new(500, "the backend is away");
    let effect = Effect::ErrorEvent { after: 1, failure };
    site.server
        .fault(Fault::new(effect).on(Verb::Watch).times(1));
    site.apply(service("a", "a"));
    watched.expect(&["a"]).await;
    watched.expect_error("the backend is away").await;
    site.apply(service("b", "b"));
    watched.expect(&["b"]).await;
}

#[tokio::test]
async fn a_watch_is_told_that_it_is_too_late_and_lists_again() {
    let (site, _client, mut watched) = watching().await;
    site.server
        .fault(Fault::new(Effect::Expired).on(Verb::Watch).times(1));
    site.server.fault(breaks(0, Break::End));
    watched.expect_error("too old resource version").await;
    watched.expect(&["init", "+web", "done"]).await;
}

#[tokio::test]
async fn a_page_expires() {
    let site = Site::start();
    site.apply(service("a", "a"));
    site.apply(service("b", "b"));
    let services: Api<Service> = Api::all(site.client().await);
    let page = services
        .list(&ListParams::default().limit(1))
        .await
        .unwrap();
    let token = page.metadata.continue_.unwrap();
    site.server
        .fault(Fault::new(Effect::Expired).on(Verb::List).times(1));
    let rest = ListParams::default().limit(1).continue_token(&token);
    assert_eq!(code(services.list(&rest).await.unwrap_err()), 410);
    assert_eq!(services.list(&rest).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn events_come_twice_and_again() {
    let site = Site::start();
    site.apply(service("web", "web"));
    let client = site.client().await;
    site.server.fault(Fault::new(Effect::Twice).on(Verb::Watch));
    let mut watched = Watched::start(&client, watcher::Config::default());
    watched.expect(&["init", "+web", "done"]).await;
    watched.expect_silence().await;
    site.apply(service("a", "a"));
    watched.expect(&["a", "a"]).await;
    site.server.lift_faults();
    site.server
        .fault(Fault::new(Effect::Replay(2)).on(Verb::Watch));
    let handle = site.server.fault(breaks(0, Break::End));
    // The new watch begins two changes before what the client has seen.
    watched.expect(&["web", "a"]).await;
    assert_eq!(handle.used(), 1);
}

#[tokio::test]
async fn answers_and_events_are_slow() {
    let pause = Duration::from_millis(60);
    let site = Site::start();
    let client = site.client().await;
    for n in 0..40 {
        site.apply(service(&format!("s{n}"), &"x".repeat(1500)));
    }
    site.server.fault(Fault::new(Effect::Slow(pause)));
    let began = Instant::now();
    assert_eq!(list(&client).await.unwrap(), 40);
    // Before the answer and after each but the last of five pieces.
    assert!(began.elapsed() >= pause * 5, "{:?}", began.elapsed());
    let streaming = watcher::Config::default().streaming_lists();
    let began = Instant::now();
    let mut watched = Watched::start(&client, streaming);
    while watched.next().await != "done" {}
    assert!(began.elapsed() >= pause * 40, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_list_breaks_off() {
    let site = Site::start();
    site.apply(service("web", "web"));
    let client = site.client().await;
    for how in [Break::End, Break::Cut, Break::Reset, Break::Truncate] {
        let handle = site
            .server
            .fault(Fault::break_after(40, how).on(Verb::List).times(1));
        assert!(list(&client).await.is_err(), "{how:?}");
        handle.lift();
        assert_eq!(list(&client).await.unwrap(), 1);
    }
    site.server
        .fault(Fault::break_after(40, Break::Silence).on(Verb::List));
    assert!(tokio::time::timeout(SILENCE, list(&client)).await.is_err());
}

#[tokio::test]
async fn answers_say_that_they_are_something_else() {
    let site = Site::start();
    let client = site.client().await;
    site.server
        .fault(Fault::new(Effect::ContentType("text/html".to_owned())));
    let request = http::Request::get("/api/v1/services").body(kube::client::Body::empty());
    let response = client.send(request.unwrap()).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/html");
}

#[tokio::test]
async fn bookmarks_and_streamed_lists_go_away_for_some() {
    let site = Site::start();
    let client = site.client().await;
    site.server
        .fault(Fault::new(Effect::NoWatchList).of("services").times(1));
    let streaming = || watcher::Config::default().streaming_lists();
    Watched::start(&client, streaming())
        .expect_error("sendInitialEvents")
        .await;
    // A streamed list without bookmarks never says that it is whole.
    site.server
        .fault(Fault::new(Effect::NoBookmarks).of("services").times(1));
    let mut watched = Watched::start(&client, streaming());
    watched.expect(&["init"]).await;
    watched.expect_silence().await;
    Watched::start(&client, streaming())
        .expect(&["init", "done"])
        .await;
}

/// What a new client's list comes to, if it comes within the limit.
async fn list_anew(site: &Site, limit: Duration) -> Option<Result<usize, kube::Error>> {
    let client = site.client().await;
    tokio::time::timeout(limit, list(&client)).await.ok()
}

#[tokio::test]
async fn a_server_is_shut_and_opened_again() {
    let (site, client, mut watched) = watching().await;
    let listener = site.server.listener().clone();
    listener.close();
    let refused = list_anew(&site, LIMIT).await.unwrap().unwrap_err();
    assert!(
        format!("{refused:?}").contains("ConnectionRefused"),
        "{refused:?}"
    );
    // Those who are connected go on.
    site.apply(service("a", "a"));
    watched.expect(&["a"]).await;
    listener.shut();
    watched.expect_error("").await;
    eventually("connections stay", || listener.connections() == 0).await;
    listener.open().unwrap();
    list(&client).await.unwrap();
}

#[tokio::test]
async fn a_server_accepts_and_says_nothing() {
    let (site, _client, mut watched) = watching().await;
    let listener = site.server.listener().clone();
    listener.set_deaf(true);
    assert!(list_anew(&site, SILENCE).await.is_none(), "no handshake");
    site.apply(service("a", "a"));
    watched.expect(&["a"]).await;
    listener.set_deaf(false);
    assert!(list_anew(&site, LIMIT).await.unwrap().is_ok());
    listener.set_silent(true);
    site.apply(service("b", "b"));
    watched.expect_silence().await;
    listener.set_silent(false);
    watched.expect(&["b"]).await;
}

#[tokio::test]
async fn one_of_two_servers_goes_away() {
    let site = Site::start();
    site.apply(service("web", "web"));
    let second = site
        .server
        .listen(None, "127.0.0.1:0".parse().unwrap())
        .unwrap();
    site.server.listener().shut();
    assert!(list_anew(&site, LIMIT).await.unwrap().is_err());
    let written = site
        .server
        .kubeconfig_for(site.files.path(), &second, testkit::apiserver::TOKEN);
    let client = apiserver_support::client_of(&written.unwrap().path).await;
    assert_eq!(list(&client).await.unwrap(), 1);
    assert_eq!(site.server.requests().last().unwrap().listener, 1);
}

#[tokio::test]
async fn faults_are_known_by_what_they_hit() -> Result<(), kube::Error> {
    let site = Site::start();
    let client = site.client().await;
    let used = |handle: &FaultHandle| handle.used();
    let other = site.server.fault(Fault::answer(503).by("somebody else"));
    let this = site
        .server
        .fault(Fault::new(Effect::Slow(Duration::ZERO)).by(testkit::apiserver::USER));
    tokio::time::timeout(LIMIT, list(&client)).await.unwrap()?;
    assert_eq!((used(&other), used(&this)), (0, 1));
    Ok(())
}
