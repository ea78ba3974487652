//! What a request asks for: its path and parameters.

use std::collections::BTreeMap;

use hyper::Method;

use super::kinds::Kind;
use super::selector;
use super::status::Failure;

/// What is done with a resource, as rules of access name it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Verb {
    /// One object.
    Get,
    /// A collection.
    List,
    /// Changes of a collection.
    Watch,
    /// A new object.
    Create,
    /// A whole object in place of another.
    Update,
    /// A part of an object.
    Patch,
    /// One object less.
    Delete,
    /// A collection less.
    DeleteCollection,
}

/// A request of a resource.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) verb: Verb,
    pub(super) kind: &'static Kind,
    /// None for the whole cluster.
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) subresource: Option<String>,
    pub(super) query: Query,
}

/// Parameters of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Query(BTreeMap<String, String>);

impl Verb {
    /// As rules write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

impl Query {
    pub(super) fn parse(text: &str) -> Self {
        let pairs = form_urlencoded::parse(text.as_bytes());
        Self(
            pairs
                .map(|(k, v)| (k.into_owned(), v.into_owned()))
                .collect(),
        )
    }

    /// A parameter, empty if it is not there.
    pub(super) fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        matches!(self.text(name), "true" | "1" | "True" | "t" | "T" | "TRUE")
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Failure> {
        match self.text(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                let message = format!("parameter {name}: {text:?} is not a number");
                Failure::new(400, message)
            }),
        }
    }
}

impl Target {
    /// The resource at a path; none if there is nothing.
    pub(super) fn parse(method: &Method, path: &str, query: &str) -> Option<Self> {
        let steps: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version, rest) = match steps.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            // Of a namespace itself.
            ["namespaces", _, "status" | "finalize"] | ["namespaces", _] => (None, rest),
            ["namespaces", namespace, rest @ ..] => (Some((*namespace).to_owned()), rest),
            rest => (None, rest),
        };
        let (plural, name, subresource) = match rest {
            [plural] => (plural, None, None),
            [plural, name] => (plural, Some(name), None),
            [plural, name, sub] => (plural, Some(name), Some(sub)),
            _ => return None,
        };
        let kind = Kind::at(group, version, plural)?;
        if namespace.is_some() && !kind.namespaced {
            return None;
        }
        let query = Query::parse(query);
        let named = name.is_some();
        let verb = match *method {
            Method::GET | Method::HEAD if named => Verb::Get,
            Method::GET | Method::HEAD if query.flag("watch") => Verb::Watch,
            Method::GET | Method::HEAD => Verb::List,
            Method::POST if !named => Verb::Create,
            Method::PUT if named => Verb::Update,
            Method::PATCH if named => Verb::Patch,
            Method::DELETE if named => Verb::Delete,
            Method::DELETE => Verb::DeleteCollection,
            _ => return None,
        };
        Some(Self {
            verb,
            kind,
            namespace,
            name: name.map(|n| (*n).to_owned()),
            subresource: subresource.map(|s| (*s).to_owned()),
            query,
        })
    }

    /// The resource as rules of access write it: `nodes`, `nodes/status`.
    pub(super) fn resource(&self) -> String {
        match &self.subresource {
            Some(sub) => format!("{}/{sub}", self.kind.plural),
            None => self.kind.plural.to_owned(),
        }
    }

    /// The only object that the request can be about.
    pub(super) fn about(&self) -> Option<String> {
        let selected = || selector::single_name(self.query.text("fieldSelector"));
        self.name.clone().or_else(selected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &Method, path: &str, query: &str) -> Option<String> {
        let target = Target::parse(method, path, query)?;
        let text = |of: &Option<String>| of.clone().unwrap_or_else(|| "-".to_owned());
        Some(format!(
            "{} {} {} {}",
            target.verb.name(),
            target.resource(),
            text(&target.namespace),
            text(&target.name)
        ))
    }

    #[test]
    fn paths_say_what_is_asked() {
        for (method, path, query, wanted) in [
            (Method::GET, "/api/v1/services", "", "list services - -"),
            (
                Method::GET,
                "/api/v1/services",
                "watch=1",
                "watch services - -",
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a/services/b",
                "",
                "get services a b",
            ),
            (Method::GET, "/api/v1/namespaces", "", "list namespaces - -"),
            (
                Method::GET,
                "/api/v1/namespaces/a",
                "",
                "get namespaces - a",
            ),
            (
                Method::PATCH,
                "/api/v1/nodes/n/status",
                "",
                "patch nodes/status - n",
            ),
            (
                Method::POST,
                "/apis/events.k8s.io/v1/namespaces/default/events",
                "",
                "create events default -",
            ),
            (
                Method::DELETE,
                "/apis/discovery.k8s.io/v1/namespaces/a/endpointslices",
                "",
                "deletecollection endpointslices a -",
            ),
        ] {
            assert_eq!(
                parse(&method, path, query).as_deref(),
                Some(wanted),
                "{path}"
            );
        }
        for path in [
            "/api/v1",
            "/api/v2/services",
            "/apis/x/v1/y",
            "/",
            "/api/v1/namespaces/a/nodes",
        ] {
            assert_eq!(parse(&Method::GET, path, ""), None, "{path}");
        }
    }
}
