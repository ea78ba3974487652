//! The Kubernetes API as a source: how the agent proves who it is, by the forms that kubeconfigs have.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests and their helpers may panic"
)]

mod source_support;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::apiserver::{Break, Fault, TOKEN, USER, Verb};
use tulle_agent::source::cluster::Cluster;

use source_support::{LIMIT, Site, service, slice};

/// Changes a kubeconfig.
fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    change(&mut config);
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, config.to_string()).unwrap();
    std::fs::rename(fresh, path).unwrap();
}

/// As editors and `echo` write it.
#[test]
fn a_token_file_may_end_in_a_newline() {
    let site = Site::start();
    site.apply(service("web", 80));
    let written = site.server.kubeconfig(site.files.path()).unwrap();
    let options = site.options();
    written.write_token(&format!("{TOKEN}\n")).unwrap();
    let mut told = site.follow_by(options);
    told.until_services(&["web"]);
    // The same for one that comes later.
    site.server.add_token("second", USER);
    written.write_token("second\r\n").unwrap();
    site.server.remove_token(TOKEN);
    site.server.listener().reset_connections();
    site.apply(service("late", 80));
    told.until_services(&["late", "web"]);
}

#[test]
fn a_token_file_counts_more_than_a_token_beside_it() {
    let site = Site::start();
    site.apply(service("web", 80));
    let options = site.options();
    edit(options.kubeconfig.as_ref().unwrap(), |config| {
        config["users"][0]["user"]["token"] = "of old".into();
    });
    site.follow_by(options).until_services(&["web"]);
}

#[test]
fn what_cannot_be_used_is_named() {
    let site = Site::start();
    let written = site.server.kubeconfig(site.files.path()).unwrap();
    let options = site.options();
    let path = options.kubeconfig.clone().unwrap();
    let said = || {
        let error = Cluster::follow(options.clone()).err().unwrap().to_string();
        assert!(error.contains(&*path.to_string_lossy()), "{error}");
        error
    };
    written.write_token("\n").unwrap();
    assert!(said().contains("token is empty"));
    std::fs::remove_file(&written.token).unwrap();
    assert!(said().contains("token cannot be read"));
    written.write_token(TOKEN).unwrap();
    edit(&path, |config| {
        config["clusters"][0]["cluster"]["proxy-url"] = "http://192.0.2.1:3128".into();
    });
    let proxied = said();
    let field = "clusters[\"test\"].cluster.proxy-url is set";
    assert!(proxied.contains(field), "{proxied}");
    edit(&path, |config| {
        config["clusters"][0]["cluster"]["proxy-url"] = "".into();
        config["users"][0]["user"] = json!({"exec": {"command": "/no/such/program"}});
    });
    assert!(said().contains("users[].user.exec.command"));
}

/// A server that is in trouble is no reason to ask for other credentials.
#[test]
fn a_program_is_not_run_again_while_the_server_fails() {
    let site = Site::start();
    site.apply(service("web", 80));
    let options = site.options();
    let runs = site.files.path().join("runs");
    let script = format!(
        "echo run >>{}; echo '{{\"status\": {{\"token\": \"{TOKEN}\"}}}}'",
        runs.display()
    );
    edit(options.kubeconfig.as_ref().unwrap(), |config| {
        config["users"][0]["user"] = json!({"exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "interactiveMode": "Never",
            "command": "/bin/sh",
            "args": ["-c", script],
        }});
    });
    let mut told = site.follow_by(options);
    told.until_services(&["web"]);
    let failing = site.server.fault(Fault::answer(503));
    site.server.listener().reset_connections();
    let often = || Ok((failing.used() > 20).then_some(()));
    testkit::wait::until("many failures", LIMIT * 2, often).unwrap();
    failing.lift();
    site.apply(service("late", 80));
    told.until_services(&["late", "web"]);
    let runs = std::fs::read_to_string(runs).unwrap();
    assert_eq!(runs.lines().count(), 1);
}

/// A program that gives credentials runs beside the watches, which go on.
#[test]
fn a_program_that_hangs_holds_up_no_watch() {
    let site = Site::start();
    site.apply(service("web", 80));
    let options = site.options();
    let path = options.kubeconfig.clone().unwrap();
    let [hang, runs] = ["hang", "runs"].map(|name| site.files.path().join(name));
    let script = format!(
        "if [ -e {hang} ]; then touch {runs}; while [ -e {hang} ]; do sleep 0.1; done; fi; \
         echo '{{\"status\": {{\"token\": \"{TOKEN}\"}}}}'",
        hang = hang.display(),
        runs = runs.display(),
    );
    edit(&path, |config| {
        config["users"][0]["user"] = json!({"exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "interactiveMode": "Never",
            "command": "/bin/sh",
            "args": ["-c", script],
        }});
    });
    let mut told = site.follow_by(options);
    told.until_services(&["web"]);
    // The configuration is another, and the next request asks the program anew.
    std::fs::write(&hang, "").unwrap();
    edit(&path, |config| config["preferences"] = json!({}));
    let broken = Fault::break_after(0, Break::End)
        .of("services")
        .on(Verb::Watch)
        .times(1);
    site.server.fault(broken);
    site.apply(service("late", 80));
    let asked = || Ok(runs.exists().then_some(()));
    testkit::wait::until("the program to run", LIMIT, asked).unwrap();
    let began = Instant::now();
    site.apply(slice("shop", "web", "10.244.1.2", 8080));
    told.until("told of the slice", |told| {
        told.there.contains("EndpointSlice shop/web")
    });
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(hang.exists());
    std::fs::remove_file(&hang).unwrap();
    told.until_services(&["late", "web"]);
}
