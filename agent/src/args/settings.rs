//! What the agent was told, and where: for who has to understand a node from afar.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};
use serde::Serialize;

use super::{Args, ConfigVerb, Verb};
use crate::config::{self, Problem, Resolved};

/// Options of `run` by name. None of them is a secret: credentials are named by the file
/// that they are in.
pub type Settings = BTreeMap<String, Setting>;

/// One option.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Setting {
    /// Its values as text; none if it is not set.
    pub values: Vec<String>,
    /// `default`, `environment`, `command line`, or file, line and field.
    pub from: String,
}

impl Args {
    /// The command line of this process, with what was effective of it and of the file that it
    /// names; prints and ends the process if it is wrong.
    pub fn read() -> Self {
        let words: Vec<OsString> = std::env::args_os().collect();
        Self::of(&words).unwrap_or_else(|problem| match problem {
            Problem::Line(error) => error.exit(),
            Problem::Said(sentences) => {
                for sentence in sentences {
                    eprintln!("tulle-agent: {sentence}");
                }
                // As clap ends it.
                std::process::exit(2)
            }
        })
    }

    /// The same of any command line, the program's name before it.
    pub fn of(words: &[OsString]) -> Result<Self, Problem> {
        let resolved = config::resolve(words)?;
        let mut args = Self::from_arg_matches(&resolved.matches)?;
        let command = Self::command();
        let mut matches = resolved.matches.subcommand();
        let run = match &mut args.verb {
            Verb::Run(run) => run,
            Verb::Config(verb) => match &mut **verb {
                ConfigVerb::Show(show) => {
                    matches = matches.and_then(|(_, matches)| matches.subcommand());
                    &mut show.run
                }
                ConfigVerb::Schema => return Ok(args),
            },
            _ => return Ok(args),
        };
        if let (Some((_, matches)), Some(command)) = (matches, command.find_subcommand("run")) {
            run.settings = settings(command, matches, &resolved);
        }
        run.notes = resolved.notes;
        Ok(args)
    }
}

fn settings(command: &Command, matches: &ArgMatches, resolved: &Resolved) -> Settings {
    let options = command.get_arguments().filter_map(|argument| {
        let id = argument.get_id().as_str();
        let long = argument.get_long()?;
        let raw = matches.try_get_raw(id).ok()?;
        let text = |value: &std::ffi::OsStr| value.to_string_lossy().into_owned();
        let place = resolved.places.iter().find(|(option, _)| option == long);
        let from = match (place, matches.value_source(id)) {
            (Some((_, place)), _) => place.to_string(),
            (None, Some(ValueSource::CommandLine)) => "command line".to_owned(),
            (None, Some(ValueSource::EnvVariable)) => "environment".to_owned(),
            (None, _) => "default".to_owned(),
        };
        let values = raw.into_iter().flatten().map(text).collect();
        Some((long.to_owned(), Setting { values, from }))
    });
    options.filter(|(name, _)| name != "help").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_told_with_its_value() {
        let line = ["tulle-agent", "run", "--state", "/s", "--node", "n0"];
        let more = ["--vni", "7", "--masquerade-exclude", "10.0.0.0/8,fd00::/8"];
        let words = line.iter().chain(&more).map(OsString::from);
        let words: Vec<OsString> = words.collect();
        let Verb::Run(run) = Args::of(&words).unwrap().verb else {
            panic!("it is `run`");
        };
        let values = |name: &str| run.settings[name].values.join(",");
        assert_eq!(values("state"), "/s");
        assert_eq!(
            (values("vni"), run.settings["vni"].from.as_str()),
            ("7".to_owned(), "command line")
        );
        assert_eq!(values("masquerade-exclude"), "10.0.0.0/8,fd00::/8");
        assert_eq!(run.settings["max-flows"].from, "default");
        assert_eq!(values("uplink"), "");
        let command = Args::command();
        let options = command.find_subcommand("run").unwrap().get_arguments();
        let longs = options.filter_map(clap::Arg::get_long);
        let wanted: Vec<&str> = longs.filter(|long| *long != "help").collect();
        assert_eq!(run.settings.len(), wanted.len());
    }
}
