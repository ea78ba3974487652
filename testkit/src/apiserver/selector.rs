//! Label and field selectors, as query parameters write them.

use serde_json::Value;

use super::kinds::Kind;
use super::status::Failure;

/// What a list or watch asks for.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<(Vec<String>, bool, String)>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
}

impl Selector {
    pub(super) fn parse(kind: &Kind, labels: &str, fields: &str) -> Result<Self, Failure> {
        let labels = split(labels).into_iter().map(requirement);
        let fields = split(fields).into_iter().map(|term| field(kind, term));
        Ok(Self {
            labels: labels.collect::<Result<_, _>>()?,
            fields: fields.collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn matches(&self, value: &Value) -> bool {
        let labels = value.pointer("/metadata/labels");
        let label = |key: &str| labels.and_then(|l| l.get(key)?.as_str());
        let fits = |requirement: &Requirement| {
            let value = label(&requirement.key);
            let among = |list: &[String]| value.is_some_and(|v| list.iter().any(|l| l == v));
            match &requirement.test {
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
                Test::In(list) => among(list),
                Test::NotIn(list) => !among(list),
            }
        };
        let has = |(path, equal, wanted): &(Vec<String>, bool, String)| {
            let found = path.iter().try_fold(value, |at, step| at.get(step));
            let text = match found {
                None | Some(Value::Null) => String::new(),
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
            };
            (text == *wanted) == *equal
        };
        self.labels.iter().all(fits) && self.fields.iter().all(has)
    }
}

/// Terms between commas that are not in brackets.
fn split(text: &str) -> Vec<&str> {
    let (mut terms, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms.retain(|term| !term.trim().is_empty());
    terms
}

fn requirement(term: &str) -> Result<Requirement, Failure> {
    let bad = || Failure::new(400, format!("unable to parse requirement: {term:?}"));
    let one = |value: &str| vec![value.trim().to_owned()];
    let (key, test) = if let Some((key, value)) = term.split_once("!=") {
        (key, Test::NotIn(one(value)))
    } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (key, Test::In(one(value)))
    } else if let Some((head, list)) = term
        .trim()
        .strip_suffix(')')
        .and_then(|t| t.split_once('('))
    {
        let list = list.split(',').map(|v| v.trim().to_owned()).collect();
        match head
            .trim()
            .rsplit_once(char::is_whitespace)
            .ok_or_else(bad)?
        {
            (key, "in") => (key, Test::In(list)),
            (key, "notin") => (key, Test::NotIn(list)),
            _ => return Err(bad()),
        }
    } else if let Some(key) = term.trim().strip_prefix('!') {
        (key, Test::Absent)
    } else {
        (term, Test::Exists)
    };
    let key = key.trim();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if key.is_empty() || !key.chars().all(fits) {
        return Err(bad());
    }
    Ok(Requirement {
        key: key.to_owned(),
        test,
    })
}

fn field(kind: &Kind, term: &str) -> Result<(Vec<String>, bool, String), Failure> {
    let not = term.split_once("!=").map(|parts| (parts, false));
    let is = || term.split_once("==").or_else(|| term.split_once('='));
    let Some(((path, value), equal)) = not.or_else(|| is().map(|parts| (parts, true))) else {
        let message = format!("invalid field selector: {term:?}; can't understand it");
        return Err(Failure::new(400, message));
    };
    let (path, value) = (path.trim(), value.trim());
    let every = match path {
        "metadata.name" => true,
        "metadata.namespace" => kind.namespaced,
        _ => kind.fields.contains(&path),
    };
    if !every {
        let message = format!("field label not supported: {path}");
        return Err(Failure::new(400, message));
    }
    let steps = path.split('.').map(str::to_owned).collect();
    Ok((steps, equal, value.to_owned()))
}

/// The name that a selector of one object's name asks for, for rules about names.
pub(super) fn single_name(fields: &str) -> Option<String> {
    let mut names = split(fields).into_iter().filter_map(|term| {
        let (path, value) = term.split_once('=')?;
        (path == "metadata.name").then(|| value.trim_start_matches('=').to_owned())
    });
    names.next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn selects(labels: &str, fields: &str) -> bool {
        let service = json!({
            "metadata": {"name": "web", "labels": {"app": "web", "tier": "front", "a.b/c": ""}},
            "spec": {"clusterIP": "None"},
        });
        let kind = Kind::named("Service").unwrap();
        let selector = Selector::parse(kind, labels, fields).unwrap();
        selector.matches(&service)
    }

    #[test]
    fn labels_select() {
        for yes in [
            "",
            "app",
            "!other",
            "app=web",
            "app==web",
            "app!=x",
            "other!=x",
            "app in (x, web)",
            "app notin (x)",
            "other notin (x,y)",
            "a.b/c",
            "a.b/c=",
            "app in (web),tier in (a,front)",
        ] {
            assert!(selects(yes, ""), "{yes}");
        }
        for no in [
            "other",
            "!app",
            "app=x",
            "app!=web",
            "app in (x,y)",
            "app notin (web)",
            "app=web,tier=x",
        ] {
            assert!(!selects(no, ""), "{no}");
        }
    }

    #[test]
    fn fields_select() {
        assert!(selects("", "metadata.name=web,spec.clusterIP==None"));
        assert!(!selects("", "metadata.name!=web"));
        assert!(selects("", "spec.clusterIP!=10.0.0.1"));
        assert_eq!(single_name("metadata.name=web").as_deref(), Some("web"));
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        let kind = Kind::named("Service").unwrap();
        for (labels, fields) in [
            ("a b", ""),
            ("a of (b)", ""),
            ("", "spec.ports=1"),
            ("", "x"),
        ] {
            let failure = Selector::parse(kind, labels, fields).unwrap_err();
            assert_eq!(failure.code, 400, "{labels} {fields}");
        }
    }
}
