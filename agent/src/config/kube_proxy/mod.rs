//! kube-proxy's configuration and flags, so that those of a cluster that has them work here.

mod fields;
mod values;

use std::net::Ipv4Addr;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::file;
use super::options::{self, Form};
use super::said::{Place, Reading, Said};
use super::tree::{Node, Value};
pub use fields::Mode;
use fields::{FIELDS, Field, Meaning};
use values::Converted;

/// `apiVersion` of its file.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// Its `kind`.
pub const KIND: &str = "KubeProxyConfiguration";

/// Where node ports answer.
const NODE_PORTS: &str = "nodePortAddresses";
/// Flags for which an empty text says something: nowhere.
const LISTEN: [&str; 2] = ["healthz-bind-address", "metrics-bind-address"];

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

/// The mode that the flags say.
pub fn mode_of_flags(matches: &ArgMatches) -> Option<Mode> {
    given(matches, "proxy-mode").map(|values| Mode::named(last(&values)))
}

/// The mode that a document of kind `KubeProxyConfiguration` says.
pub fn mode_of(document: &Node) -> Option<Mode> {
    let mode = document.value.get("mode")?.value.text()?;
    (!mode.is_empty()).then(|| Mode::named(mode))
}

fn given(matches: &ArgMatches, flag: &str) -> Option<Vec<String>> {
    let values = matches.try_get_many::<String>(flag).ok()??;
    Some(values.cloned().collect())
}

fn last(values: &[String]) -> &str {
    values.last().map_or("", String::as_str)
}

/// What kube-proxy's flags on a command line say, in this mode of kube-proxy.
pub fn flags(matches: &ArgMatches, whole: &Command, mode: Mode) -> Reading {
    let mut taker = Taker::new(whole, mode);
    for field in FIELDS.iter().filter(|field| !field.flag.is_empty()) {
        let Some(values) = given(matches, field.flag) else {
            continue;
        };
        let place = Place::Flag(field.flag.to_owned());
        if let Meaning::PortOf(flag) = field.meaning {
            let address = given(matches, flag);
            let address = address.as_deref().map(last).filter(|text| !text.is_empty());
            taker.listen(flag, address, last(&values), place);
        } else if !has_port(matches, field.flag) {
            taker.take_flag(field, &values, place);
        }
    }
    taker.reading
}

/// Whether the port of what this flag listens at was given apart from it.
fn has_port(matches: &ArgMatches, flag: &str) -> bool {
    let of = |field: &&Field| matches!(field.meaning, Meaning::PortOf(of) if of == flag);
    let port = FIELDS.iter().find(of);
    port.is_some_and(|field| given(matches, field.flag).is_some())
}

/// What a document of kind `KubeProxyConfiguration` says, in this mode of kube-proxy. `place`
/// names a line and field in the file.
pub fn read(
    document: &Node,
    whole: &Command,
    mode: Mode,
    place: impl Fn(u64, &str) -> Place,
) -> Reading {
    let mut taker = Taker::new(whole, mode);
    let mut node_ports = false;
    for (path, node) in leaves(document) {
        let place = place(node.line, &path);
        let Some(field) = FIELDS.iter().find(|field| field.path == path) else {
            if !file::HEAD.contains(&path.as_str()) && said(&node.value).is_some() {
                let note = format!("{place}: kube-proxy has no such field; nothing comes of it");
                taker.reading.notes.push(note);
            }
            continue;
        };
        let said = said(&node.value);
        node_ports |= field.path == NODE_PORTS && said.is_some();
        match said {
            Some(Ok(values)) => taker.take(field, &values, node.value.is_float(), place),
            Some(Err(problem)) => taker.wrong(&place, &problem),
            None => {}
        }
    }
    if !node_ports && mode != Mode::Nftables {
        let place = place(document.line, NODE_PORTS);
        taker.reading.notes.push(format!(
            "{place} is not set: in its mode {} kube-proxy answers on node ports at all of the \
             node's addresses, Tulle at the Node's own; --node-port-addresses 0.0.0.0/0,::/0 is all",
            mode.name()
        ));
    }
    taker.reading
}

/// Takes fields and flags in.
struct Taker<'a> {
    whole: &'a Command,
    mode: Mode,
    reading: Reading,
}

impl<'a> Taker<'a> {
    fn new(whole: &'a Command, mode: Mode) -> Self {
        Self {
            whole,
            mode,
            reading: Reading::default(),
        }
    }

    fn wrong(&mut self, place: &Place, problem: &str) {
        self.reading.errors.push(format!("{place}: {problem}"));
    }

    /// A flag without a text is one that was not given, but for where something listens.
    fn take_flag(&mut self, field: &Field, values: &[String], place: Place) {
        let text = last(values);
        if text.is_empty() && !LISTEN.contains(&field.flag) {
            return;
        }
        if !field.switch {
            return self.take(field, values, false, place);
        }
        // As Go's `strconv.ParseBool`.
        match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => {
                self.take(field, &["true".to_owned()], false, place);
            }
            "0" | "f" | "F" | "false" | "FALSE" | "False" => {}
            _ if matches!(field.meaning, Meaning::Refused(_)) => {
                self.take(field, values, false, place);
            }
            _ => self.wrong(&place, &format!("{text:?} is neither true nor false")),
        }
    }

    fn listen(&mut self, flag: &str, address: Option<&str>, port: &str, place: Place) {
        let unspecified = match flag {
            "metrics-bind-address" => Ipv4Addr::LOCALHOST,
            _ => Ipv4Addr::UNSPECIFIED,
        };
        let of = FIELDS.iter().find(|field| field.flag == flag);
        if let Some(Meaning::Option(to, _)) = of.map(|field| field.meaning) {
            self.say(
                to,
                values::with_port(address, port, unspecified),
                false,
                place,
            );
        }
    }

    /// What a field with these values comes to. `is_float`: YAML read a number, of which the text
    /// is lost.
    fn take(&mut self, field: &Field, values: &[String], is_float: bool, place: Place) {
        if !field.modes.is_empty() && !field.modes.contains(&self.mode) {
            let modes: Vec<&str> = field.modes.iter().map(|mode| mode.name()).collect();
            self.reading.notes.push(format!(
                "{place} means nothing here: it is of kube-proxy's mode {}, and the mode is {}",
                modes.join(" or "),
                self.mode.name()
            ));
            return;
        }
        match field.meaning {
            Meaning::Mode | Meaning::PortOf(_) => {}
            Meaning::Instead(sentence) => {
                let note = format!("{place} means nothing here: {sentence}");
                self.reading.notes.push(note);
            }
            Meaning::Refused(sentence) => {
                let error = format!("{place} is kube-proxy's: {sentence}");
                self.reading.errors.push(error);
            }
            Meaning::Option(to, convert) => self.say(to, convert(values), is_float, place),
        }
    }

    fn say(&mut self, to: &str, converted: Converted, is_float: bool, place: Place) {
        let Some(arg) = options::named(self.whole, to) else {
            return;
        };
        let checked = match converted {
            Converted::Values(_) if is_float && options::form(arg) == Form::Text => {
                Err(options::QUOTES.to_owned())
            }
            Converted::Values(values) => options::check(self.whole, arg, &values).map(|()| values),
            Converted::Wrong(problem) => Err(problem),
            Converted::Nothing(why) => {
                let note = format!("{place} means nothing here: {why}");
                return self.reading.notes.push(note);
            }
        };
        match checked {
            Ok(values) => self.reading.said.push(Said {
                option: to.to_owned(),
                values,
                place,
            }),
            Err(problem) => self.wrong(&place, &problem),
        }
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
        Value::Null | Value::Float(0.0) => None,
        Value::Text(text) if matches!(text.as_str(), "" | "0" | "0s" | "false") => None,
        Value::Text(text) => Some(Ok(vec![text.clone()])),
        Value::Float(number) => Some(Ok(vec![number.to_string()])),
        Value::List(nodes) => {
            let texts = Value::texts(nodes);
            (texts.as_deref() != Ok(&[])).then_some(texts)
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
