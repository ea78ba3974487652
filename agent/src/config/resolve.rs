//! From the words of a command line to arguments: joins them with what a file and kube-proxy's
//! flags say.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory};

use super::said::{Place, Reading, Said};
use super::{file, kube_proxy, options};
use crate::args::Args;

/// Verbs that take kube-proxy's flags and a file.
const RUN: &str = "run";

/// What came of a command line.
#[derive(Debug)]
pub struct Resolved {
    /// The words with what was joined to them.
    pub matches: ArgMatches,
    /// Where options were said that neither the command line nor the environment has.
    pub places: Vec<(String, Place)>,
    /// What means nothing to Tulle: sentences, to be told once.
    pub notes: Vec<String>,
}

impl Resolved {
    const fn of(matches: ArgMatches) -> Self {
        Self {
            matches,
            places: Vec::new(),
            notes: Vec::new(),
        }
    }
}

/// Why there are no arguments.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// Words of the command line; it knows how to be told.
    #[error("{0}")]
    Line(#[from] clap::Error),
    /// What a file or kube-proxy's flags say: sentences.
    #[error("{}", .0.join("\n"))]
    Said(Vec<String>),
}

/// The agent's command, which takes kube-proxy's flags too.
pub fn command() -> Command {
    let with_flags = |command: Command| {
        let shown = |command: Command| command.mut_subcommand("show", kube_proxy::add_flags);
        command
            .mut_subcommand(RUN, kube_proxy::add_flags)
            .mut_subcommand("config", shown)
    };
    with_flags(Args::command())
}

/// Reads a whole command line, the program's name before it, and the file that it names.
pub fn resolve(words: &[OsString]) -> Result<Resolved, Problem> {
    let command = command();
    let matches = command.clone().try_get_matches_from(words)?;
    let (verb, verb_matches) = innermost(&command, &matches);
    // Every verb reads the whole file, and takes of it what it has.
    let Some(run) = command.find_subcommand(RUN) else {
        return Ok(Resolved::of(matches));
    };
    let mut reading = kube_proxy::flags(verb_matches, run);
    if let Some(path) = config(verb_matches) {
        match file::text(&path) {
            Ok(text) => reading.append(file::read(&path, &text, run)),
            Err(problem) => reading.errors.push(problem),
        }
    }
    let Reading {
        said,
        notes,
        errors,
    } = reading;
    if !errors.is_empty() {
        return Err(Problem::Said(errors));
    }
    let said = effective(said, verb, verb_matches);
    let mut joined = words.to_vec();
    for said in &said {
        if let Some(arg) = options::named(verb, &said.option) {
            let words = options::words(arg, &said.values).into_iter();
            joined.extend(words.map(OsString::from));
        }
    }
    Ok(Resolved {
        matches: command.try_get_matches_from(joined)?,
        places: said
            .into_iter()
            .map(|said| (said.option, said.place))
            .collect(),
        notes,
    })
}

/// The file that a verb was given.
pub fn config(matches: &ArgMatches) -> Option<PathBuf> {
    matches
        .try_get_one::<PathBuf>("config")
        .ok()
        .flatten()
        .map(|path: &PathBuf| Path::to_owned(path))
}

/// The verb that was chosen, down to the last.
fn innermost<'a>(command: &'a Command, matches: &'a ArgMatches) -> (&'a Command, &'a ArgMatches) {
    let (mut command, mut matches) = (command, matches);
    while let Some((name, inner)) = matches.subcommand() {
        let Some(verb) = command.find_subcommand(name) else {
            break;
        };
        (command, matches) = (verb, inner);
    }
    (command, matches)
}

/// What counts beside the command line and the environment: of an option the first, and none
/// that goes not with what was said before it.
fn effective(said: Vec<Said>, verb: &Command, matches: &ArgMatches) -> Vec<Said> {
    let is_explicit = |id: &str| {
        let source = matches.value_source(id);
        matches!(
            source,
            Some(ValueSource::CommandLine | ValueSource::EnvVariable)
        )
    };
    let mut taken: Vec<String> = options::of(verb)
        .filter(|arg| is_explicit(arg.get_id().as_str()))
        .filter_map(|arg| arg.get_long().map(str::to_owned))
        .collect();
    let mut effective = Vec::new();
    for said in said {
        let Some(arg) = options::named(verb, &said.option) else {
            continue;
        };
        let conflicts = |long: &String| {
            let other = options::named(verb, long);
            other.is_some_and(|other| go_not_together(verb, arg, other))
        };
        if taken.contains(&said.option) || taken.iter().any(conflicts) {
            continue;
        }
        taken.push(said.option.clone());
        effective.push(said);
    }
    effective
}

fn go_not_together(verb: &Command, one: &clap::Arg, other: &clap::Arg) -> bool {
    let says = |one: &clap::Arg, other: &clap::Arg| {
        let conflicts = verb.get_arg_conflicts_with(one);
        conflicts.iter().any(|arg| arg.get_id() == other.get_id())
    };
    says(one, other) || says(other, one)
}
