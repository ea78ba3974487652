//! Tulle's own file: the options of `run` as fields.

use clap::Command;

use super::file;
use super::options::{self, Form};
use super::said::{Place, Reading, Said};
use super::tree::{Node, Value};

/// `apiVersion` of Tulle's own file.
pub const API_VERSION: &str = "tulle.io/v1alpha1";
/// Its `kind`.
pub const KIND: &str = "AgentConfiguration";

/// What a document says. `whole` is the command whose options are its fields, `place` names a
/// line and field in the file.
pub fn read(document: &Node, whole: &Command, place: impl Fn(u64, &str) -> Place) -> Reading {
    let mut reading = Reading::default();
    let Value::Map(entries) = &document.value else {
        return reading;
    };
    for (name, node) in entries
        .iter()
        .filter(|(name, _)| !file::HEAD.contains(&name.as_str()))
    {
        let place = place(node.line, name);
        let Some(arg) = options::of(whole).find(|arg| {
            let long = arg.get_long();
            long.is_some_and(|long| options::field(long) == *name)
        }) else {
            let like = like(whole, name);
            reading
                .errors
                .push(format!("{place}: there is no such field{like}"));
            continue;
        };
        let said = match values(&node.value, &options::form(arg)) {
            // As YAML has it: a key with nothing behind it is a key that is not there.
            Ok(None) => continue,
            Ok(Some(values)) => options::check(whole, arg, &values).map(|()| values),
            Err(problem) => Err(problem),
        };
        let option = arg.get_long().unwrap_or_default();
        let other = reading.said.iter().find(|said| {
            let said = options::named(whole, &said.option);
            said.is_some_and(|said| options::go_not_together(whole, said, arg))
        });
        let said = said.and_then(|values| match other {
            Some(other) => Err(format!(
                "goes not together with {}; leave one of them out",
                options::field(&other.option)
            )),
            None => Ok(values),
        });
        match said {
            Ok(values) => reading.said.push(Said {
                option: option.to_owned(),
                values,
                place,
            }),
            Err(problem) => reading.errors.push(format!("{place}: {problem}")),
        }
    }
    reading
}

/// The values of a field; none if it is null.
fn values(value: &Value, form: &Form) -> Result<Option<Vec<String>>, String> {
    match (value, form) {
        (Value::Null, _) => Ok(None),
        (Value::Text(text), _) => Ok(Some(vec![text.clone()])),
        (Value::Float(number), Form::Number(_) | Form::Boolean) => {
            Ok(Some(vec![number.to_string()]))
        }
        (Value::Float(_), _) => Err(options::QUOTES.to_owned()),
        (Value::List(nodes), Form::List) => {
            let texts = Value::texts(nodes)?;
            Ok((!texts.is_empty()).then_some(texts))
        }
        (Value::List(_), _) => Err("there is a list in the place of one value".to_owned()),
        (Value::Map(_), _) => Err("there are fields in the place of a value".to_owned()),
    }
}

/// A field that may have been meant.
fn like(whole: &Command, name: &str) -> String {
    let plain = |text: &str| text.replace(['-', '_'], "").to_lowercase();
    let wanted = plain(name.strip_prefix("TULLE_").unwrap_or(name));
    let mut fields = options::of(whole).filter_map(|arg| arg.get_long().map(options::field));
    match fields.find(|field| plain(field) == wanted) {
        Some(field) => format!("; it is written {field}"),
        None => "; `tulle-agent config schema` has all of them".to_owned(),
    }
}
