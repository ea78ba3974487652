//! Who may ask the tests' API server, by which certificate it is known, and what it remembers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests and their helpers may panic"
)]

mod apiserver_support;

use apiserver_support::{Site, Watched, client_of, config_of, service};
use k8s_openapi::api::core::v1::{Node, Service};
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Client, Config};
use serde_json::json;
use testkit::apiserver::{Options, Rule, TOKEN, USER, Verb};

async fn list(client: &Client) -> Result<usize, kube::Error> {
    let services: Api<Service> = Api::all(client.clone());
    services
        .list(&ListParams::default())
        .await
        .map(|l| l.items.len())
}

fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

#[tokio::test]
async fn tokens_come_and_go() {
    let site = Site::start();
    let client = site.client().await;
    list(&client).await.unwrap();
    site.server.remove_token(TOKEN);
    let error = list(&client).await.unwrap_err();
    assert_eq!(code(&error), Some(401));
    site.server.add_token("second", "node");
    let written = site.server.kubeconfig(site.files.path()).unwrap();
    written.write_token("second").unwrap();
    list(&client_of(&written.path).await).await.unwrap();
    let requests = site.server.requests();
    let seen: Vec<_> = requests
        .iter()
        .map(|r| (r.user.as_str(), r.status))
        .collect();
    assert_eq!(
        seen,
        [(USER, Some(200)), ("", Some(401)), ("node", Some(200))]
    );
}

#[tokio::test]
async fn who_shows_nothing_is_told_what_he_may_not() {
    let site = Site::start();
    let written = site.server.kubeconfig(site.files.path()).unwrap();
    let mut config = config_of(&written.path).await;
    config.auth_info = kube::config::AuthInfo::default();
    let client = Client::try_from(config).unwrap();
    let error = list(&client).await.unwrap_err();
    assert_eq!(code(&error), Some(403));
    assert!(error.to_string().contains("system:anonymous"), "{error}");
    client.apiserver_version().await.unwrap();
}

#[tokio::test]
async fn a_role_bounds_what_is_done_and_the_rest_is_remembered() {
    let site = Site::start();
    for name in ["n1", "n2"] {
        site.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}));
    }
    let role = json!({"rules": [
        {"apiGroups": [""], "resources": ["services"], "verbs": ["list", "watch"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["patch"], "resourceNames": ["n1"]},
    ]});
    site.server
        .restrict(USER, Some(Rule::of_role(&role).unwrap()));
    let client = site.client().await;
    let mut watched = Watched::start(&client, watcher::Config::default());
    watched.expect(&["init", "done"]).await;
    site.apply(service("web", "web"));
    watched.expect(&["web"]).await;
    assert!(site.server.forbidden().is_empty());
    let nodes: Api<Node> = Api::all(client);
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"a": "b"}}}));
    nodes
        .patch("n1", &PatchParams::default(), &patch)
        .await
        .unwrap();
    let refused = nodes.patch("n2", &PatchParams::default(), &patch).await;
    assert_eq!(code(&refused.unwrap_err()), Some(403));
    assert!(nodes.list(&ListParams::default()).await.is_err());
    let forbidden = site.server.forbidden();
    let forbidden: Vec<_> = forbidden
        .iter()
        .map(|r| (r.verb.unwrap(), r.path.as_str()))
        .collect();
    let wanted = [
        (Verb::Patch, "/api/v1/nodes/n2"),
        (Verb::List, "/api/v1/nodes"),
    ];
    assert_eq!(forbidden, wanted);
    site.server.restrict(USER, None);
    nodes.list(&ListParams::default()).await.unwrap();
}

/// A client that shows a certificate and no token.
async fn with_certificate(site: &Site, user: &str) -> Client {
    let identity = site.server.client_certificate(user).unwrap();
    let written = site.server.kubeconfig(site.files.path()).unwrap();
    let (certificate, key) = (
        site.files.path().join("c.pem"),
        site.files.path().join("k.pem"),
    );
    std::fs::write(&certificate, identity.certificate).unwrap();
    std::fs::write(&key, identity.key).unwrap();
    let mut config: Config = config_of(&written.path).await;
    let path = |path: std::path::PathBuf| Some(path.to_string_lossy().into_owned());
    config.auth_info = kube::config::AuthInfo {
        client_certificate: path(certificate),
        client_key: path(key),
        ..Default::default()
    };
    Client::try_from(config).unwrap()
}

#[tokio::test]
async fn a_certificate_tells_its_user() {
    let site = Site::start();
    let client = with_certificate(&site, "system:node:n1").await;
    list(&client).await.unwrap();
    assert_eq!(site.server.requests()[0].user, "system:node:n1");
}

#[tokio::test]
async fn certificates_are_changed_while_the_server_runs() {
    let site = Site::start();
    site.apply(service("web", "web"));
    let client = site.client().await;
    let mut watched = Watched::start(&client, watcher::Config::default());
    watched.expect(&["init", "+web", "done"]).await;
    site.server.rotate_certificate().unwrap();
    site.server.listener().reset_connections();
    list(&site.client().await).await.unwrap();
    list(&client).await.unwrap();
    // Another authority: who knows only the former does not believe the server.
    let before = site.server.authority().unwrap();
    site.server.rotate_authority().unwrap();
    let after = site.server.authority().unwrap();
    assert_ne!(before, after);
    list(&client)
        .await
        .expect("an open connection stays believed");
    site.server.listener().reset_connections();
    let error = list(&client).await.unwrap_err();
    let text = format!("{error:?}");
    assert!(
        text.contains("UnknownIssuer") || text.contains("BadSignature"),
        "{text}"
    );
    list(&site.client().await).await.unwrap();
    // A file of both lets clients through the change.
    let written = site.server.kubeconfig(site.files.path()).unwrap();
    written.write_authority(&(before + &after)).unwrap();
    list(&client_of(&written.path).await).await.unwrap();
}

#[tokio::test]
async fn a_name_that_the_certificate_lacks_is_not_believed() {
    let site = Site::start();
    let other = site
        .server
        .listen(None, "127.0.0.2:0".parse().unwrap())
        .unwrap();
    let written = site
        .server
        .kubeconfig_for(site.files.path(), &other, TOKEN)
        .unwrap();
    let error = list(&client_of(&written.path).await).await.unwrap_err();
    assert!(
        format!("{error:?}").contains("NotValidForName"),
        "{error:?}"
    );
    let named = Site::of(Options::default().names(["127.0.0.2"]));
    let other = named
        .server
        .listen(None, "127.0.0.2:0".parse().unwrap())
        .unwrap();
    let written = named
        .server
        .kubeconfig_for(named.files.path(), &other, TOKEN)
        .unwrap();
    list(&client_of(&written.path).await).await.unwrap();
}

#[tokio::test]
async fn without_tls_it_is_the_same_api() {
    let site = Site::of(Options::default().plain());
    site.apply(service("web", "web"));
    let client = site.client().await;
    assert!(site.server.url().starts_with("http://"));
    assert_eq!(list(&client).await.unwrap(), 1);
    site.server.remove_token(TOKEN);
    assert_eq!(code(&list(&client).await.unwrap_err()), Some(401));
}

#[tokio::test]
async fn requests_are_remembered_with_their_parameters() {
    let site = Site::start();
    let services: Api<Service> = Api::namespaced(site.client().await, "shop");
    let params = ListParams::default().labels("app=web").limit(5);
    services.list(&params).await.unwrap();
    let requests = site.server.requests();
    let [request] = requests.as_slice() else {
        panic!("{requests:?}");
    };
    assert_eq!(request.method, "GET");
    assert_eq!(request.path, "/api/v1/namespaces/shop/services");
    assert!(
        request.query.contains("labelSelector=app%3Dweb"),
        "{}",
        request.query
    );
    assert!(request.query.contains("limit=5"));
    assert_eq!(
        (request.verb, request.resource.as_str()),
        (Some(Verb::List), "services")
    );
    site.server.clear_requests();
    assert!(site.server.requests().is_empty());
}
