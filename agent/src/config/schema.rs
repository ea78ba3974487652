//! The published schema of Tulle's own file, out of the options of `run`.

use clap::{Arg, ArgAction, Command, CommandFactory};
use serde_json::{Map, Value, json};
use serde_norway::Mapping;

use super::options::{self, Form};
use super::own;
use crate::args::Args;

/// JSON Schema, draft 2020-12.
pub fn schema() -> Value {
    let command = Args::command();
    let run = command.find_subcommand("run");
    let options = run.into_iter().flat_map(options::of);
    let mut properties = Map::from_iter([
        (
            "apiVersion".to_owned(),
            json!({ "const": own::API_VERSION }),
        ),
        ("kind".to_owned(), json!({ "const": own::KIND })),
    ]);
    properties.extend(options.map(|arg| {
        let long = arg.get_long().unwrap_or_default();
        (options::field(long), property(arg))
    }));
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://tulle.io/schemas/agent-configuration.v1alpha1.json",
        "title": own::KIND,
        "description": "Configuration of Tulle's node agent: the options of `tulle-agent run`. \
                        The command line and the environment count before it.",
        "type": "object",
        "required": ["apiVersion", "kind"],
        "additionalProperties": false,
        "properties": properties,
    })
}

fn property(arg: &Arg) -> Value {
    let mut property = match options::form(arg) {
        Form::Boolean => json!({ "type": ["boolean", "null"] }),
        Form::Number(most) => {
            json!({ "type": ["integer", "null"], "minimum": 0, "maximum": most })
        }
        Form::Word(mut words) => {
            words.sort();
            let mut words: Vec<Value> = words.into_iter().map(Value::from).collect();
            words.push(Value::Null);
            json!({ "enum": words })
        }
        // `on`, `off` and numbers are texts to whoever reads them.
        Form::Text => json!({ "type": ["string", "null"] }),
        Form::List => json!({
            "type": ["array", "string", "null"],
            "items": { "type": "string" },
        }),
    };
    let help = arg.get_help().map(ToString::to_string);
    property["description"] = Value::from(help.unwrap_or_default().replace('\n', " "));
    if let Some(default) = default(arg) {
        property["default"] = default;
    }
    property
}

fn default(arg: &Arg) -> Option<Value> {
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return Some(json!(false));
    }
    // One that depends on the machine is not shown anywhere.
    if arg.is_hide_default_value_set() {
        return None;
    }
    let [text] = arg.get_default_values() else {
        return None;
    };
    Some(value(arg, &[text.to_str()?.to_owned()]))
}

/// Values of an option, as the command line takes them, as the file has them.
fn value(arg: &Arg, values: &[String]) -> Value {
    let first = values.first().map(String::as_str).unwrap_or_default();
    match options::form(arg) {
        Form::Boolean => Value::from(first == "true"),
        Form::Number(_) => first.parse::<u64>().map_or(Value::Null, Value::from),
        Form::Word(_) | Form::Text => Value::from(first),
        Form::List => {
            let all = values.iter().flat_map(|value| value.split(','));
            all.collect::<Vec<&str>>().into()
        }
    }
}

/// The options of a verb as a document of Tulle's own file, in their order, without those for
/// which `shown` has nothing.
pub fn document(
    run: &Command,
    shown: impl Fn(&Arg) -> Option<Vec<String>>,
) -> serde_norway::Result<Mapping> {
    let mut document = Mapping::from_iter([
        ("apiVersion".into(), own::API_VERSION.into()),
        ("kind".into(), own::KIND.into()),
    ]);
    for arg in options::of(run) {
        let Some(values) = shown(arg) else {
            continue;
        };
        let value = serde_norway::to_value(value(arg, &values))?;
        let long = arg.get_long().unwrap_or_default();
        document.insert(options::field(long).into(), value);
    }
    Ok(document)
}
