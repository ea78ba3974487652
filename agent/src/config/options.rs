//! The options of a verb as fields of a file: names, forms and checks all come from the
//! command line's own definition.

use std::any::TypeId;
use std::error::Error;

use clap::builder::ValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command};

/// A number where a text is wanted, and its own text is lost.
pub const QUOTES: &str = "is a number where a text is wanted; write it in quotes";

/// What an option takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Form {
    /// `true` or `false`.
    Boolean,
    /// A whole number up to this one.
    Number(u64),
    /// One of these words.
    Word(Vec<String>),
    /// Any text.
    Text,
    /// Texts, or one with commas between them.
    List,
}

/// The options that a file can set.
pub fn of(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| {
        let long = arg.get_long();
        long.is_some_and(|long| !matches!(long, "help" | "config")) && !arg.is_hide_set()
    })
}

/// The option with this name on the command line.
pub fn named<'a>(command: &'a Command, long: &str) -> Option<&'a Arg> {
    of(command).find(|arg| arg.get_long() == Some(long))
}

/// `--max-flows` is the field `maxFlows`.
pub fn field(long: &str) -> String {
    let mut words = long.split('-');
    let mut name = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at(word.len().min(1));
        name.push_str(&first.to_uppercase());
        name.push_str(rest);
    }
    name
}

/// What the option takes.
pub fn form(arg: &Arg) -> Form {
    let is = |parser: &ValueParser, id: TypeId| parser.type_id() == id;
    let parser = arg.get_value_parser();
    if matches!(arg.get_action(), ArgAction::SetTrue) || is(parser, TypeId::of::<bool>()) {
        return Form::Boolean;
    }
    if arg.get_value_delimiter().is_some() || is_plural(arg) {
        return Form::List;
    }
    let most = [
        (TypeId::of::<u16>(), u64::from(u16::MAX)),
        (TypeId::of::<u32>(), u64::from(u32::MAX)),
        (TypeId::of::<u64>(), u64::MAX),
    ];
    if let Some((_, most)) = most.iter().find(|(id, _)| is(parser, *id)) {
        return Form::Number(*most);
    }
    let words: Vec<String> = arg
        .get_possible_values()
        .iter()
        .map(|word| word.get_name().to_owned())
        .collect();
    if words.is_empty() {
        Form::Text
    } else {
        Form::Word(words)
    }
}

/// Lists that the command line takes as one text.
fn is_plural(arg: &Arg) -> bool {
    let names = arg.get_value_names().unwrap_or_default();
    names.iter().any(|name| name.as_str() == "CIDRS")
}

/// The option with these values as words of a command line.
pub fn words(arg: &Arg, values: &[String]) -> Vec<String> {
    let long = arg.get_long().unwrap_or_default();
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        let set = values.iter().any(|value| value == "true");
        return set.then(|| format!("--{long}")).into_iter().collect();
    }
    vec![format!("--{long}={}", values.join(","))]
}

/// Whether the option takes these values; what is wrong if not.
pub fn check(command: &Command, arg: &Arg, values: &[String]) -> Result<(), String> {
    if form(arg) == Form::Boolean {
        return match values {
            [value] if value == "true" || value == "false" => Ok(()),
            _ => Err(format!("{:?} is neither true nor false", values.join(","))),
        };
    }
    if values.is_empty() {
        return Err("there is no value; leave the field out for the default".to_owned());
    }
    let line = std::iter::once(command.get_name().to_owned()).chain(words(arg, values));
    match command.clone().try_get_matches_from(line) {
        // Conflicts are between options, and for whoever joins them.
        Err(error) if is_about_value(error.kind()) => Err(sentence(&error, values)),
        _ => Ok(()),
    }
}

/// Whether the command line refuses the two together.
pub fn go_not_together(verb: &Command, one: &Arg, other: &Arg) -> bool {
    let says = |one: &Arg, other: &Arg| {
        let conflicts = verb.get_arg_conflicts_with(one);
        conflicts.iter().any(|arg| arg.get_id() == other.get_id())
    };
    says(one, other) || says(other, one)
}

const fn is_about_value(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::InvalidValue | ErrorKind::ValueValidation | ErrorKind::InvalidUtf8
    )
}

fn sentence(error: &clap::Error, values: &[String]) -> String {
    let shown = match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(value)) => value.clone(),
        _ => values.join(","),
    };
    if let Some(ContextValue::Strings(words)) = error.get(ContextKind::ValidValue) {
        return format!("{shown:?} is not one of {}", words.join(", "));
    }
    match error.source() {
        Some(source) => format!("{shown:?}: {source}"),
        None => format!("{shown:?} is not what this takes"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Args;

    fn run() -> Command {
        let command = Args::command();
        command.find_subcommand("run").unwrap().clone()
    }

    #[test]
    fn forms_are_those_of_the_command_line() {
        let run = run();
        let of = |long: &str| form(named(&run, long).unwrap());
        assert_eq!(of("vni"), Form::Number(u64::from(u32::MAX)));
        assert_eq!(of("vxlan-port"), Form::Number(u64::from(u16::MAX)));
        assert_eq!(of("masquerade"), Form::Boolean);
        assert_eq!(of("host-ports"), Form::Boolean);
        assert_eq!(of("api-servers"), Form::List);
        assert_eq!(of("node-port-addresses"), Form::List);
        assert_eq!(of("uplink"), Form::Text);
        assert_eq!(of("min-sync-period"), Form::Text);
        assert!(matches!(of("xdp"), Form::Word(words) if words.contains(&"native".to_owned())));
        assert_eq!(field("max-flows"), "maxFlows");
        assert_eq!(field("vni"), "vni");
    }

    #[test]
    fn values_are_checked_as_the_command_line_s() {
        let run = run();
        let of = |long: &str, values: &[&str]| {
            let values: Vec<String> = values.iter().map(ToString::to_string).collect();
            check(&run, named(&run, long).unwrap(), &values)
        };
        assert_eq!(of("vni", &["7"]), Ok(()));
        assert_eq!(of("host-ports", &["false"]), Ok(()));
        assert_eq!(
            of("masquerade-exclude", &["10.0.0.0/8", "fd00::/8"]),
            Ok(())
        );
        assert_eq!(of("node-port-addresses", &["primary"]), Ok(()));
        assert_eq!(of("uplink", &["eth-0"]), Ok(()));
        let wrong = |long: &str, values: &[&str]| of(long, values).unwrap_err();
        assert!(
            wrong("vni", &["0"]).contains("1..16777216"),
            "{}",
            wrong("vni", &["0"])
        );
        assert!(wrong("xdp", &["fast"]).contains("native"));
        assert!(wrong("masquerade", &["yes"]).contains("neither true nor false"));
        assert!(wrong("masquerade-exclude", &["10.0.0.0/8", "x"]).contains("\"x\""));
        assert!(wrong("vni", &[]).contains("leave the field out"));
    }
}
