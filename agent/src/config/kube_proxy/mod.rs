//! kube-proxy's configuration and flags, so that those of a cluster that has them work here.

mod fields;
mod values;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::options;
use super::said::{Place, Reading, Said};
use super::tree::{Node, Value};
use fields::{FIELDS, Field, Meaning, Mode};
use values::Converted;

/// `apiVersion` of its file, without the version.
pub const GROUP: &str = "kubeproxy.config.k8s.io";
/// Its `kind`.
pub const KIND: &str = "KubeProxyConfiguration";

/// Fields that are no options.
const HEAD: [&str; 2] = ["apiVersion", "kind"];

/// Adds kube-proxy's flags to a command, out of sight.
pub fn add_flags(mut command: Command) -> Command {
    let own: Vec<String> = command
        .get_arguments()
        .flat_map(|arg| arg.get_long_and_visible_aliases().unwrap_or_default())
        .map(str::to_owned)
        .collect();
    for field in FIELDS.iter().filter(|field| !field.flag.is_empty()) {
        // The same option under the same name is Tulle's.
        if own.iter().any(|long| long == field.flag) {
            continue;
        }
        let mut arg = Arg::new(field.flag)
            .long(field.flag)
            .action(ArgAction::Append)
            .allow_hyphen_values(!field.switch)
            .hide(true);
        if field.switch {
            arg = arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true");
        }
        if field.flag == "v" {
            arg = arg.short('v');
        }
        command = command.arg(arg);
    }
    command
}

/// What kube-proxy's flags on a command line say.
pub fn flags(matches: &ArgMatches, whole: &Command) -> Reading {
    let given = |flag: &str| -> Option<Vec<String>> {
        let values = matches.try_get_many::<String>(flag).ok()??;
        Some(values.cloned().collect())
    };
    let mode = given("proxy-mode").and_then(|values| values.last().cloned());
    let mode = mode.map_or(Mode::Iptables, |mode| Mode::named(&mode));
    let mut reading = Reading::default();
    for field in FIELDS.iter().filter(|field| !field.flag.is_empty()) {
        if let Some(values) = given(field.flag) {
            let place = Place::Flag(field.flag.to_owned());
            take(field, &values, mode, place, whole, &mut reading);
        }
    }
    reading
}

/// What a document of kind `KubeProxyConfiguration` says. `place` names a line and field in
/// the file.
pub fn read(document: &Node, whole: &Command, place: impl Fn(u64, &str) -> Place) -> Reading {
    let mode = document
        .value
        .get("mode")
        .and_then(|node| node.value.text());
    let mode = mode.map_or(Mode::Iptables, Mode::named);
    let mut reading = Reading::default();
    for (path, node) in leaves(document) {
        let place = place(node.line, &path);
        let Some(field) = FIELDS.iter().find(|field| field.path == path) else {
            if !HEAD.contains(&path.as_str()) && said(&node.value).is_some() {
                let note = format!("{place}: kube-proxy has no such field; nothing comes of it");
                reading.notes.push(note);
            }
            continue;
        };
        match said(&node.value) {
            Some(Ok(values)) => take(field, &values, mode, place, whole, &mut reading),
            Some(Err(problem)) => reading.errors.push(format!("{place}: {problem}")),
            None => {}
        }
    }
    reading
}

fn take(
    field: &Field,
    values: &[String],
    mode: Mode,
    place: Place,
    whole: &Command,
    reading: &mut Reading,
) {
    // What belongs to another mode means nothing to kube-proxy either.
    if field.mode.is_some_and(|of| of != mode) {
        return;
    }
    let (to, converted) = match field.meaning {
        Meaning::Mode => return,
        Meaning::Instead(sentence) => {
            let note = format!("{place} means nothing here: {sentence}");
            return reading.notes.push(note);
        }
        Meaning::Refused(sentence) => {
            let error = format!("{place} is kube-proxy's: {sentence}");
            return reading.errors.push(error);
        }
        Meaning::Option(to, convert) => (to, convert(values)),
    };
    // A verb that lacks the option does not need it.
    let Some(arg) = options::named(whole, to) else {
        return;
    };
    let checked = match converted {
        Converted::Values(values) => options::check(whole, arg, &values).map(|()| values),
        Converted::Wrong(problem) => Err(problem),
        Converted::Nothing(why) => {
            return reading
                .notes
                .push(format!("{place} means nothing here: {why}"));
        }
    };
    match checked {
        Ok(values) => reading.said.push(Said {
            option: to.to_owned(),
            values,
            place,
        }),
        Err(problem) => reading.errors.push(format!("{place}: {problem}")),
    }
}

fn is_known(path: &str) -> bool {
    FIELDS.iter().any(|field| field.path == path)
}

/// Fields by their whole names, down to those that the table has.
fn leaves(document: &Node) -> Vec<(String, &Node)> {
    fn walk<'a>(prefix: &str, node: &'a Node, found: &mut Vec<(String, &'a Node)>) {
        match &node.value {
            Value::Map(entries) if prefix.is_empty() || !is_known(prefix) => {
                for (name, node) in entries {
                    let dot = if prefix.is_empty() { "" } else { "." };
                    walk(&format!("{prefix}{dot}{name}"), node, found);
                }
            }
            _ => found.push((prefix.to_owned(), node)),
        }
    }
    let mut found = Vec::new();
    walk("", document, &mut found);
    found
}

/// The values of a field; none if it is as kube-proxy writes one that nobody set.
fn said(value: &Value) -> Option<Result<Vec<String>, String>> {
    match value {
        Value::Null => None,
        Value::Text(text) if matches!(text.as_str(), "" | "0" | "0s" | "false") => None,
        Value::Text(text) => Some(Ok(vec![text.clone()])),
        Value::List(nodes) => {
            let texts = nodes
                .iter()
                .map(|node| node.value.text().map(str::to_owned));
            let texts: Option<Vec<String>> = texts.collect();
            match texts {
                Some(texts) if texts.is_empty() => None,
                Some(texts) => Some(Ok(texts)),
                None => Some(Err("the list is to hold texts only".to_owned())),
            }
        }
        // Only options of a logger and the like are mappings to the last.
        Value::Map(entries) => {
            let any = entries.iter().any(|(_, node)| said(&node.value).is_some());
            any.then(|| Ok(Vec::new()))
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
