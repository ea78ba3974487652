//! The Kubernetes API as a source when things go wrong: what was known stays in force, and what
//! was missed is caught up with. Each case by streaming lists and by pages.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests and their helpers may panic"
)]

mod source_support;

use std::time::{Duration, Instant};

use testkit::apiserver::{
    ApiServer, Break, Effect, Failure, Fault, Options, StaleWatch, TOKEN, USER, Verb,
};

use testkit::{NetNs, link};

use source_support::{LIMIT, Site, Told, service, slice};

/// Long enough to tell that nothing comes.
const PAUSE: Duration = Duration::from_millis(300);

/// A server with one service, and a source that knows it.
fn site(streams: bool) -> Site {
    let site = Site::start();
    site.server
        .configure(|settings| settings.watch_list = streams);
    site.apply(service("web", 80));
    site
}

fn each_way(case: impl Fn(&Site, &mut Told<'_>)) {
    for streams in [true, false] {
        let site = site(streams);
        let mut told = site.follow();
        told.until_synced();
        case(&site, &mut told);
    }
}

#[test]
fn kp141_a_broken_watch_goes_on_where_it_ended() {
    for how in [Break::End, Break::Cut, Break::Reset, Break::Truncate] {
        each_way(|site, told| {
            site.server.clear_requests();
            let fault = Fault::break_after(0, how)
                .of("services")
                .on(Verb::Watch)
                .times(1);
            let fault = site.server.fault(fault);
            site.apply(service("lost", 80));
            told.until_services(&["lost", "web"]);
            site.delete_service("web");
            told.until_services(&["lost"]);
            assert_eq!(fault.used(), 1, "{how:?}");
            let requests = site.server.requests();
            let of_services = requests.iter().filter(|r| r.resource == "services");
            let listed = of_services.clone().any(|request| {
                request.verb == Some(Verb::List) || request.query.contains("sendInitialEvents=true")
            });
            assert!(!listed, "{how:?}: it resumes: {requests:?}");
            assert!(
                of_services
                    .clone()
                    .any(|request| request.query.contains("resourceVersion="))
            );
        });
    }
}

#[test]
fn kp141_history_that_is_gone_is_listed_anew_and_deletions_are_found() {
    for stale in [StaleWatch::Event, StaleWatch::Http] {
        each_way(|site, told| {
            site.server
                .configure(|settings| settings.stale_watch = stale);
            site.server.listener().close();
            site.server.listener().reset_connections();
            told.until_contact("lost", |said| !said.is_empty());
            site.delete_service("web");
            site.apply(service("meanwhile", 80));
            site.server.compact();
            site.server.listener().open().unwrap();
            told.until_services(&["meanwhile"]);
            told.until_contact("well", <[String]>::is_empty);
        });
    }
}

#[test]
fn kp141_a_server_that_is_away_is_one_sentence_and_changes_nothing() {
    each_way(|site, told| {
        site.server.listener().close();
        site.server.listener().reset_connections();
        let said = told.until_contact("lost", |said| !said.is_empty());
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("stays in force"), "{said:?}");
        assert!(told.next(PAUSE * 10).is_none(), "nothing is taken back");
        assert_eq!(told.contact_now(), said, "one sentence while it lasts");
        site.server.listener().open().unwrap();
        told.until_contact("well", <[String]>::is_empty);
        assert!(told.next(PAUSE).is_none(), "nothing has changed");
    });
}

#[test]
fn kp142_a_start_without_a_server_waits() {
    let site = site(true);
    site.server.listener().close();
    let mut told = site.follow();
    told.until_contact("lost", |said| !said.is_empty());
    assert!(told.next(PAUSE).is_none(), "nothing is known");
    site.server.listener().open().unwrap();
    told.until_services(&["web"]);
    told.until_contact("well", <[String]>::is_empty);
}

#[test]
fn refusals_are_waited_out() {
    for code in [429, 500, 503] {
        each_way(|site, told| {
            let fault = site.server.fault(Fault::answer(code));
            site.server.listener().reset_connections();
            let said = told.until_contact("refused", |said| {
                said.iter().any(|s| s.contains(&code.to_string()))
            });
            let words = |s: &String| s.contains("a fault of the test");
            assert!(said.iter().any(words), "the server's words: {said:?}");
            fault.lift();
            told.until_contact("well", <[String]>::is_empty);
            site.apply(service("late", 80));
            told.until_services(&["late", "web"]);
        });
    }
}

/// 429 with a time is asked again no earlier.
#[test]
fn retry_after_is_kept_to() {
    let site = site(true);
    let failure = Failure::new(429, "slow down").retry_after(Duration::from_secs(3));
    let fault = site
        .server
        .fault(Fault::new(Effect::Answer(failure)).of("services").times(1));
    let began = Instant::now();
    let mut told = site.follow();
    told.until_synced();
    assert_eq!(fault.used(), 1);
    assert!(
        began.elapsed() >= Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn an_error_within_a_watch_is_survived() {
    each_way(|site, told| {
        let error = Effect::ErrorEvent {
            after: 1,
            failure: Failure::new(500, "etcd has no leader"),
        };
        let fault = Fault::new(error).of("services").on(Verb::Watch).times(1);
        let fault = site.server.fault(fault);
        site.apply(service("first", 80));
        site.apply(service("second", 80));
        told.until_services(&["first", "second", "web"]);
        assert_eq!(fault.used(), 1);
    });
}

#[test]
fn events_that_come_again_change_nothing() {
    let site = site(true);
    for effect in [Effect::Twice, Effect::Replay(5)] {
        site.server.fault(Fault::new(effect).of("services"));
    }
    let mut told = site.follow();
    told.until_synced();
    site.apply(service("a", 80));
    site.apply(service("b", 80));
    site.delete_service("a");
    site.server.listener().reset_connections();
    site.apply(service("c", 80));
    told.until_services(&["b", "c", "web"]);
    assert!(told.next(PAUSE).is_none());
}

/// A stream that is open and says nothing is noticed.
#[test]
fn a_half_open_watch_is_begun_anew() {
    let site = site(true);
    let mut options = site.options();
    options.silence = Duration::from_secs(2);
    let mut told = site.follow_by(options);
    told.until_synced();
    let fault = Fault::break_after(0, Break::Silence)
        .of("services")
        .on(Verb::Watch)
        .times(1);
    let fault = site.server.fault(fault);
    let met = || Ok((fault.used() == 1).then_some(()));
    testkit::wait::until("silence", LIMIT, met).unwrap();
    site.apply(service("unheard", 80));
    told.until_services(&["unheard", "web"]);
    assert_eq!(fault.used(), 1);
    let restarts = told.cluster.gauges().restarts();
    assert!(
        restarts.keys().any(|(_, reason)| *reason == "silent"),
        "{restarts:?}"
    );
}

#[test]
fn a_slow_server_is_waited_for() {
    let site = Site::start();
    let services = (0..20).map(|n| service(&format!("s{n}"), 80));
    site.server.apply_many(services).unwrap();
    site.server
        .fault(Fault::new(Effect::Slow(Duration::from_millis(50))));
    let mut told = site.follow();
    told.until_synced();
    assert_eq!(told.services().len(), 20);
}

#[test]
fn a_server_that_does_not_answer_is_passed_over_for_another() {
    let site = site(true);
    let other = site
        .server
        .listen(None, ([127, 0, 0, 1], 0).into())
        .unwrap();
    for what in ["closed", "deaf"] {
        site.server.listener().open().unwrap();
        let mut options = site.options();
        options.servers = vec![other.address().into()];
        let mut told = site.follow_by(options);
        told.until_synced();
        let name = format!("after-{what}");
        if what == "closed" {
            site.server.listener().close();
        } else {
            // The port takes connections, and no handshake comes to its end.
            site.server.listener().set_deaf(true);
        }
        site.server.listener().reset_connections();
        site.apply(service(&name, 80));
        told.until(&name, |told| {
            told.there.contains(&format!("Service shop/{name}"))
        });
        assert!(other.connections() > 0, "{what}");
        other.reset_connections();
        site.server.listener().set_deaf(false);
    }
}

/// A server that answers and serves nothing, such as one without etcd, is left for another.
#[test]
fn a_server_that_fails_is_left_for_another() {
    let site = site(true);
    let other = ApiServer::start_here(Options::default()).unwrap();
    site.server.fault(Fault::answer(503));
    other.apply(service("there", 80)).unwrap();
    let mut options = site.options();
    // Both are believed.
    let [one, two] = [&site.server, &other].map(|server| server.authority().unwrap());
    let files = site.server.kubeconfig(site.files.path()).unwrap();
    files.write_authority(&format!("{one}{two}")).unwrap();
    options.servers = vec![other.listener().address().into()];
    let mut told = site.follow_by(options);
    told.until_services(&["there"]);
    told.until_contact("well", <[String]>::is_empty);
}

/// A node that boots reaches the API server by what it learned, though the configured address
/// leads nowhere: nobody serves the cluster's own address of it yet.
#[test]
fn learned_servers_are_kept_for_the_next_boot() {
    // Endpoints are none of loopback, so the servers are at addresses of a host of their own.
    let ns = NetNs::new("learned").unwrap();
    for address in ["192.0.2.1/32", "192.0.2.2/32"] {
        link::address(&ns, "lo", address).unwrap();
    }
    let server = ApiServer::start(&ns, Options::at(([192, 0, 2, 1], 6443))).unwrap();
    let site = Site {
        server,
        ..Site::start()
    };
    site.apply(service("web", 80));
    let other = site
        .server
        .listen(Some(&ns), ([192, 0, 2, 2], 6443).into())
        .unwrap();
    site.apply(slice("default", "kubernetes", "192.0.2.2", 6443));
    let synced = || {
        let mut told = site.follow();
        told.until_synced();
    };
    ns.run(synced).unwrap();
    let kept = site.files.path().join("lib/api-servers.json");
    let text = std::fs::read_to_string(&kept).unwrap();
    assert!(text.contains("192.0.2.2:6443"), "{text}");

    site.server.listener().close();
    site.server.listener().reset_connections();
    assert_eq!(other.connections(), 0);
    ns.run(synced).unwrap();
    let requests = site.server.requests();
    assert!(
        requests
            .iter()
            .any(|request| request.listener == other.number())
    );
}

#[test]
fn tokens_rotate_and_expire() {
    let site = site(true);
    let written = site.server.kubeconfig(site.files.path()).unwrap();
    let mut told = site.follow();
    told.until_synced();
    site.server.add_token("second", USER);
    site.server.remove_token(TOKEN);
    site.server.listener().reset_connections();
    let said = told.until_contact("refused", |said| !said.is_empty());
    assert!(
        said.iter()
            .any(|s| s.contains("401") && s.contains("check the token")),
        "{said:?}"
    );
    assert!(told.next(PAUSE).is_none(), "nothing is taken back");
    written.write_token("second").unwrap();
    told.until_contact("well", <[String]>::is_empty);
    site.apply(service("late", 80));
    told.until_services(&["late", "web"]);
}

#[test]
fn certificates_rotate() {
    let site = site(true);
    let written = site.server.kubeconfig(site.files.path()).unwrap();
    let mut told = site.follow();
    told.until_synced();
    site.server.rotate_certificate().unwrap();
    site.server.listener().reset_connections();
    site.apply(service("same-ca", 80));
    told.until_services(&["same-ca", "web"]);

    site.server.rotate_authority().unwrap();
    site.server.listener().reset_connections();
    let said = told.until_contact("distrusted", |said| !said.is_empty());
    assert!(said[0].contains("certificate"), "{said:?}");
    written
        .write_authority(&site.server.authority().unwrap())
        .unwrap();
    told.until_contact("well", <[String]>::is_empty);
    site.apply(service("other-ca", 80));
    told.until_services(&["other-ca", "same-ca", "web"]);
}

#[test]
fn bad_configurations_are_named() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("kubeconfig");
    let site = Site::start();
    let mut options = site.options();
    options.kubeconfig = Some(path.clone());
    let open = |options: &tulle_agent::source::cluster::Options| {
        let opened = tulle_agent::source::cluster::Cluster::follow(options.clone());
        opened.expect_err("it cannot be used").to_string()
    };
    for text in [None, Some("a: ["), Some("apiVersion: v1\nkind: Config\n")] {
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let said = open(&options);
        assert!(
            said.contains(&*path.to_string_lossy()) && said.contains("--kubeconfig"),
            "{said}"
        );
    }
    options.kubeconfig = None;
    let said = open(&options);
    assert!(
        said.contains("--state") && said.contains("service account"),
        "{said}"
    );
}

/// In the clear, as with `kubectl proxy`.
#[test]
fn plain_http_is_spoken_too() {
    let server = ApiServer::start_here(Options::default().plain()).unwrap();
    let site = Site {
        server,
        ..Site::start()
    };
    site.apply(service("web", 80));
    let mut told = site.follow();
    told.until_services(&["web"]);
    assert!(told.synced);
}

/// As real servers speak.
#[test]
fn http2_is_spoken() {
    let site = Site::of(Options::default().http2());
    site.apply(service("web", 80));
    let mut told = site.follow();
    told.until_services(&["web"]);
    for n in 0..3 {
        let name = format!("broken-{n}");
        site.server.listener().reset_connections();
        site.apply(service(&name, 80));
        let there = format!("Service shop/{name}");
        told.until(&name, |told| told.there.contains(&there));
    }
}
