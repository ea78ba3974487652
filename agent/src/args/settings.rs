//! What the agent was told, and where: for who has to understand a node from afar.

use std::collections::BTreeMap;

use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};
use serde::Serialize;

use super::{Args, Verb};

/// Options of `run` by name. None of them is a secret: credentials are named by the file
/// that they are in.
pub type Settings = BTreeMap<String, Setting>;

/// One option.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Setting {
    /// Its values as text; none if it is not set.
    pub values: Vec<String>,
    /// `default`, `environment` or `command line`.
    pub from: &'static str,
}

impl Args {
    /// The command line, with what was effective of it; prints and ends the process if it is wrong.
    pub fn read() -> Self {
        Self::from_matches(&Self::command().get_matches())
    }

    fn from_matches(matches: &ArgMatches) -> Self {
        let mut args = Self::from_arg_matches(matches).unwrap_or_else(|error| error.exit());
        if let (Verb::Run(run), Some(("run", matches))) = (&mut args.verb, matches.subcommand()) {
            let command = Self::command();
            let command = command.find_subcommand("run");
            run.settings = command.map_or_else(Settings::new, |command| of(command, matches));
        }
        args
    }
}

fn of(command: &Command, matches: &ArgMatches) -> Settings {
    let options = command.get_arguments().filter_map(|argument| {
        let id = argument.get_id().as_str();
        let raw = matches.try_get_raw(id).ok()?;
        let text = |value: &std::ffi::OsStr| value.to_string_lossy().into_owned();
        let setting = Setting {
            values: raw.into_iter().flatten().map(text).collect(),
            from: match matches.value_source(id) {
                Some(ValueSource::CommandLine) => "command line",
                Some(ValueSource::EnvVariable) => "environment",
                _ => "default",
            },
        };
        Some((argument.get_long()?.to_owned(), setting))
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
        let matches = Args::command()
            .try_get_matches_from(line.iter().chain(&more))
            .unwrap();
        let Verb::Run(run) = Args::from_matches(&matches).verb else {
            panic!("it is `run`");
        };
        let values = |name: &str| run.settings[name].values.join(",");
        assert_eq!(values("state"), "/s");
        assert_eq!(
            (values("vni"), run.settings["vni"].from),
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
