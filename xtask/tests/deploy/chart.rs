//! Renders the chart: Go's templates by a crate, and of Helm's functions those that the chart calls,
//! with Helm's results.

use std::collections::HashMap;
use std::fs;

use gtmpl_ng::{Context, Func, FuncError, Template, Value as Go};
use serde_json::{Value, json};

use crate::objects::{documents, read, root};

const CHART: &str = "deploy/chart/tulle";

/// The chart's own values.
pub fn values() -> Value {
    documents(&read(format!("{CHART}/values.yaml"))).remove(0)
}

/// The schema of the values.
pub fn schema() -> Value {
    serde_json::from_str(&read(format!("{CHART}/values.schema.json"))).unwrap()
}

/// The chart's description of itself.
pub fn description() -> Value {
    documents(&read(format!("{CHART}/Chart.yaml"))).remove(0)
}

/// The chart's values with those of a user over them: maps are merged, null takes a key out, all
/// else is replaced.
pub fn merged(own: &Value, user: &Value) -> Value {
    match (own, user) {
        (Value::Object(own), Value::Object(user)) => {
            let mut both = own.clone();
            for (key, value) in user {
                if value.is_null() {
                    both.remove(key);
                } else {
                    let value = own
                        .get(key)
                        .map_or_else(|| value.clone(), |o| merged(o, value));
                    both.insert(key.clone(), value);
                }
            }
            Value::Object(both)
        }
        _ => user.clone(),
    }
}

/// All objects, with a user's values, installed in a namespace.
pub fn render(user: &Value, namespace: &str) -> Vec<Value> {
    let chart = description();
    let context = json!({
        "Values": merged(&values(), user),
        "Release": { "Name": "tulle", "Namespace": namespace },
        "Chart": { "Name": chart["name"], "Version": chart["version"], "AppVersion": chart["appVersion"] },
    });
    let mut objects = Vec::new();
    for entry in fs::read_dir(root().join(CHART).join("templates")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let mut template = Template::default();
        template.add_funcs(FUNCTIONS);
        template
            .parse(text)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let rendered = template
            .render(&Context::from(go(&context)))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            objects.extend(documents(&rendered));
        } else {
            assert!(!rendered.contains("<no value>"), "{rendered}");
        }
    }
    objects
}

const FUNCTIONS: &[(&str, Func)] = &[
    ("default", |words| {
        let [fallback, value] = exactly(words)?;
        Ok(if empty(value) { fallback } else { value }.clone())
    }),
    ("join", |words| {
        let [separator, list] = exactly(words)?;
        let Go::Array(items) = list else {
            return Err(FuncError::Generic("join takes a list".into()));
        };
        let items: Result<Vec<String>, FuncError> = items.iter().map(text).collect();
        Ok(items?.join(&text(separator)?).into())
    }),
    ("nindent", |words| {
        let [width, value] = exactly(words)?;
        let width = match width {
            Go::Number(number) => number.as_u64(),
            _ => None,
        };
        let width = width.ok_or_else(|| FuncError::Generic("nindent takes a width".into()))?;
        let before = format!("\n{}", " ".repeat(usize::try_from(width).unwrap()));
        Ok(format!("{before}{}", text(value)?.replace('\n', &before)).into())
    }),
    ("quote", |words| {
        let [value] = exactly(words)?;
        Ok(format!("{:?}", text(value)?).into())
    }),
    ("replace", |words| {
        let [from, to, value] = exactly(words)?;
        Ok(text(value)?.replace(&text(from)?, &text(to)?).into())
    }),
    ("toJson", |words| {
        let [value] = exactly(words)?;
        Ok(json(value)?.to_string().into())
    }),
    ("toYaml", |words| {
        let [value] = exactly(words)?;
        let text = serde_norway::to_string(&json(value)?)
            .map_err(|error| FuncError::Generic(error.to_string()))?;
        Ok(text.trim_end().to_owned().into())
    }),
    ("upper", |words| {
        let [value] = exactly(words)?;
        Ok(text(value)?.to_uppercase().into())
    }),
];

fn exactly<const N: usize>(words: &[Go]) -> Result<&[Go; N], FuncError> {
    words
        .try_into()
        .map_err(|_| FuncError::Generic(format!("{N} arguments, not {}", words.len())))
}

fn text(value: &Go) -> Result<String, FuncError> {
    match value {
        Go::String(text) => Ok(text.clone()),
        other => Err(FuncError::Generic(format!("{other:?} is no text"))),
    }
}

fn empty(value: &Go) -> bool {
    match value {
        Go::Nil | Go::NoValue => true,
        Go::String(text) => text.is_empty(),
        _ => false,
    }
}

fn go(value: &Value) -> Go {
    match value {
        Value::Null => Go::Nil,
        Value::Bool(value) => Go::Bool(*value),
        Value::Number(number) => Go::from(number.as_i64().expect("the chart has whole numbers")),
        Value::String(text) => Go::from(text.clone()),
        Value::Array(items) => Go::Array(items.iter().map(go).collect()),
        Value::Object(map) => {
            let map: HashMap<String, Go> = map.iter().map(|(k, v)| (k.clone(), go(v))).collect();
            Go::Map(map)
        }
    }
}

fn json(value: &Go) -> Result<Value, FuncError> {
    Ok(match value {
        Go::Nil => Value::Null,
        Go::Bool(value) => (*value).into(),
        Go::Number(number) => number.as_i64().into(),
        Go::String(text) => text.clone().into(),
        Go::Array(items) => Value::Array(items.iter().map(json).collect::<Result<_, _>>()?),
        Go::Map(map) | Go::Object(map) => Value::Object(
            map.iter()
                .map(|(key, value)| Ok((key.clone(), json(value)?)))
                .collect::<Result<_, FuncError>>()?,
        ),
        other => {
            return Err(FuncError::Generic(format!(
                "{other:?} is no value of a chart"
            )));
        }
    })
}
