//! Who may ask, and for what.

use std::collections::HashMap;

use serde_json::Value;

use crate::error::{self, Error};

use super::request::Target;
use super::status::Failure;

/// Who shows neither token nor certificate; may do nothing unless rules say so.
pub(super) const ANONYMOUS: &str = "system:anonymous";

/// What a user may do, as a rule of a `ClusterRole` says it. `*` stands for everything.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rule {
    /// API groups.
    pub groups: Vec<String>,
    /// Resources, with their subresource if that is meant.
    pub resources: Vec<String>,
    /// Verbs.
    pub verbs: Vec<String>,
    /// Names of objects; all if there is none.
    pub names: Vec<String>,
}

/// Tokens, certificates and rules.
#[derive(Debug, Default)]
pub(super) struct Access {
    /// Users by token.
    pub(super) tokens: HashMap<String, String>,
    /// Users by client certificate (DER).
    pub(super) certificates: HashMap<Vec<u8>, String>,
    /// Users who may not do everything.
    pub(super) rules: HashMap<String, Vec<Rule>>,
}

impl Rule {
    /// The rules of a `ClusterRole` or `Role`, those about paths left out.
    pub fn of_role(role: &Value) -> error::Result<Vec<Self>> {
        let bad = |what: &str| Error::Invalid(format!("role: {what}; write rules as RBAC does"));
        let rules = role.get("rules").and_then(Value::as_array);
        let rules = rules.ok_or_else(|| bad("rules is no list"))?;
        let texts = |rule: &Value, field: &str| -> error::Result<Vec<String>> {
            let list = match rule.get(field) {
                None | Some(Value::Null) => return Ok(Vec::new()),
                Some(list) => list.as_array(),
            };
            let list = list.ok_or_else(|| bad(&format!("{field} is no list")))?;
            let text = |v: &Value| v.as_str().map(str::to_owned);
            let list: Option<Vec<String>> = list.iter().map(text).collect();
            list.ok_or_else(|| bad(&format!("{field} holds something that is no text")))
        };
        let rules = rules.iter().map(|rule| {
            Ok(Self {
                groups: texts(rule, "apiGroups")?,
                resources: texts(rule, "resources")?,
                verbs: texts(rule, "verbs")?,
                names: texts(rule, "resourceNames")?,
            })
        });
        rules.collect()
    }

    fn allows(&self, target: &Target) -> bool {
        let among = |list: &[String], wanted: &str| list.iter().any(|l| l == "*" || l == wanted);
        let named = || {
            let about = target.about();
            about.is_some_and(|about| self.names.contains(&about))
        };
        among(&self.groups, target.kind.group)
            && among(&self.resources, &target.resource())
            && among(&self.verbs, target.verb.name())
            && (self.names.is_empty() || named())
    }
}

impl Access {
    /// The user of a request, by its header `Authorization` or its connection's certificate.
    pub(super) fn user(
        &self,
        authorization: Option<&str>,
        certificate: Option<&[u8]>,
    ) -> Result<String, Failure> {
        let unknown = || Failure::new(401, "Unauthorized");
        if let Some(header) = authorization {
            let (scheme, token) = header.split_once(' ').ok_or_else(unknown)?;
            let user = self.tokens.get(token.trim());
            return user
                .filter(|_| scheme.eq_ignore_ascii_case("bearer"))
                .cloned()
                .ok_or_else(unknown);
        }
        match certificate {
            Some(der) => self.certificates.get(der).cloned().ok_or_else(unknown),
            None => Ok(ANONYMOUS.to_owned()),
        }
    }

    /// Refuses what a user may not do.
    pub(super) fn check(&self, user: &str, target: &Target) -> Result<(), Failure> {
        let allowed = match self.rules.get(user) {
            Some(rules) => rules.iter().any(|rule| rule.allows(target)),
            None => user != ANONYMOUS,
        };
        if allowed {
            return Ok(());
        }
        let resource = target.resource();
        let name = target
            .name
            .as_ref()
            .map_or(String::new(), |n| format!(" {n:?}"));
        let scope = match &target.namespace {
            Some(namespace) => format!("in the namespace {namespace:?}"),
            None => "at the cluster scope".to_owned(),
        };
        let message = format!(
            "{resource}{name} is forbidden: User {user:?} cannot {} resource {resource:?} in API group {:?} {scope}",
            target.verb.name(),
            target.kind.group
        );
        Err(Failure::new(403, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Method;
    use serde_json::json;

    #[test]
    fn a_role_allows_what_it_says() {
        let role = json!({"rules": [
            {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"], "resourceNames": ["n1"]},
            {"apiGroups": ["", "discovery.k8s.io"], "resources": ["*"], "verbs": ["list", "watch"]},
        ]});
        let mut access = Access::default();
        access
            .rules
            .insert("node".into(), Rule::of_role(&role).unwrap());
        for (method, path, code) in [
            (Method::GET, "/api/v1/nodes/n1", None),
            (Method::PATCH, "/api/v1/nodes/n2", Some(403)),
            (Method::PATCH, "/api/v1/nodes/n1/status", Some(403)),
            (
                Method::GET,
                "/apis/discovery.k8s.io/v1/endpointslices",
                None,
            ),
            (
                Method::GET,
                "/apis/networking.k8s.io/v1/servicecidrs",
                Some(403),
            ),
            (Method::DELETE, "/api/v1/nodes/n1", Some(403)),
        ] {
            let target = Target::parse(&method, path, "").unwrap();
            let code_found = access.check("node", &target).err().map(|f| f.code);
            assert_eq!(code_found, code, "{method} {path}");
            assert!(access.check("someone", &target).is_ok());
        }
        assert!(Rule::of_role(&json!({"rules": [{"verbs": "get"}]})).is_err());
    }

    #[test]
    fn only_known_tokens_and_certificates_are_users() {
        let mut access = Access::default();
        access.tokens.insert("secret".into(), "node".into());
        access.certificates.insert(vec![1], "other".into());
        let user = |header, der: Option<&[u8]>| access.user(header, der).map_err(|f| f.code);
        assert_eq!(user(Some("Bearer secret"), None).as_deref(), Ok("node"));
        assert_eq!(user(None, Some(&[1])).as_deref(), Ok("other"));
        assert_eq!(user(Some("Bearer old"), Some(&[1])), Err(401));
        assert_eq!(user(Some("Basic secret"), None), Err(401));
        assert_eq!(user(None, None).as_deref(), Ok(ANONYMOUS));
        let target = Target::parse(&Method::GET, "/api/v1/nodes", "").unwrap();
        assert_eq!(access.check(ANONYMOUS, &target).unwrap_err().code, 403);
    }
}
