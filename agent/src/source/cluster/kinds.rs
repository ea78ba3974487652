//! The kinds that are followed, and what is asked of the server for each.

use kube::core::Request;
use kube::core::params::{ListParams, WatchParams};

use crate::model::Kind;

/// Objects in a page of a list: Nodes are large, they tell of all their images.
const PAGE: u32 = 500;
const PAGE_OF_NODES: u32 = 100;
/// Label of what another proxy serves (KP-01).
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// Label of slices of headless Services (KP-09).
const HEADLESS: &str = "service.kubernetes.io/headless";

/// A kind with its selectors.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Followed {
    /// The kind.
    pub kind: Kind,
    /// Path of the resource.
    path: &'static str,
    /// Labels that the server selects by.
    labels: Option<String>,
    /// Fields that the server selects by.
    fields: Option<String>,
    /// Whether a server may be without it: then there are none.
    pub optional: bool,
}

/// What is followed: nothing that is not needed, and of that only what can mean something.
/// Pods, those of the node `host_ports` names, only for their host ports.
pub fn all(host_ports: Option<&str>) -> Vec<Followed> {
    let of = |kind, path| Followed {
        kind,
        path,
        labels: None,
        fields: None,
        optional: false,
    };
    let mut all = vec![
        Followed {
            // Services of other proxies are wanted: their addresses are left alone (KP-29).
            fields: Some("spec.clusterIP!=None".to_owned()),
            ..of(Kind::Service, "/api/v1/services")
        },
        Followed {
            labels: Some(format!("!{HEADLESS},!{OTHER_PROXY}")),
            ..of(
                Kind::EndpointSlice,
                "/apis/discovery.k8s.io/v1/endpointslices",
            )
        },
        of(Kind::Node, "/api/v1/nodes"),
        Followed {
            // Of Kubernetes 1.33 and later.
            optional: true,
            ..of(Kind::ServiceCidr, "/apis/networking.k8s.io/v1/servicecidrs")
        },
    ];
    all.extend(host_ports.map(|node| Followed {
        fields: Some(format!("spec.nodeName={node}")),
        ..of(Kind::Pod, "/api/v1/pods")
    }));
    all
}

impl Followed {
    /// Drops the field selector, which a server may not know for a kind.
    ///
    /// Says whether there was one to drop: that of Pods stays, for the others of the cluster are
    /// nobody's business here.
    pub fn widen(&mut self) -> bool {
        self.kind == Kind::Service && self.fields.take().is_some()
    }

    /// The request for a page: the first one without `next`.
    pub fn list(&self, next: Option<String>) -> Result<http::Request<Vec<u8>>, String> {
        let page = if self.kind == Kind::Node {
            PAGE_OF_NODES
        } else {
            PAGE
        };
        let params = ListParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            limit: Some(page),
            continue_token: next,
            ..ListParams::default()
        };
        let request = Request::new(self.path).list(&params);
        request.map_err(|error| error.to_string())
    }

    /// The request for a watch from `version` on, which the server ends after so many `seconds`;
    /// without a version one that begins with all objects.
    pub fn watch(
        &self,
        version: Option<&str>,
        seconds: u32,
    ) -> Result<http::Request<Vec<u8>>, String> {
        let params = WatchParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            timeout: Some(seconds),
            bookmarks: true,
            send_initial_events: version.is_none(),
        };
        let request = Request::new(self.path).watch(&params, version.unwrap_or_default());
        request.map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_selects() {
        let all = all(Some("node-1"));
        let uri = |at: usize| all[at].list(None).unwrap().uri().to_string();
        assert!(uri(0).starts_with("/api/v1/services?") && uri(0).contains("clusterIP"));
        assert!(uri(1).contains("headless") && uri(1).contains("service-proxy-name"));
        assert!(uri(2).contains("limit=100"));
        assert!(uri(4).contains("spec.nodeName%3Dnode-1"), "{}", uri(4));
        assert!(!super::all(None).iter().any(|f| f.kind == Kind::Pod));
    }

    #[test]
    fn a_watch_resumes_or_begins_with_everything() {
        let node = &all(None)[2];
        let from = node.watch(Some("42"), 300).unwrap().uri().to_string();
        assert!(from.contains("resourceVersion=42") && from.contains("allowWatchBookmarks=true"));
        assert!(from.contains("timeoutSeconds=300") && !from.contains("sendInitialEvents"));
        let whole = node.watch(None, 300).unwrap().uri().to_string();
        assert!(whole.contains("sendInitialEvents=true"), "{whole}");
        assert!(
            whole.contains("resourceVersionMatch=NotOlderThan"),
            "{whole}"
        );
    }

    #[test]
    fn only_services_are_widened() {
        let mut all = all(Some("n"));
        assert!(all[0].widen() && !all[0].widen());
        assert!(!all[4].widen());
    }
}
