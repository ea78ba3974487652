//! From the words of a command line to arguments: joins them with what a file and kube-proxy's
//! flags say.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory};

use super::said::{Place, Said};
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
    let shown = |config: Command| config.mut_subcommand("show", kube_proxy::add_flags);
    Args::command()
        .mut_subcommand(RUN, kube_proxy::add_flags)
        .mut_subcommand("config", shown)
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
    let file = match config(verb_matches) {
        Some(path) => file::open(path).map_err(|problem| Problem::Said(vec![problem]))?,
        None => file::File::default(),
    };
    let mode = kube_proxy::mode_of_flags(verb_matches).or_else(|| file.mode());
    let mode = mode.unwrap_or(kube_proxy::Mode::Iptables);
    let mut reading = kube_proxy::flags(verb_matches, run, mode);
    reading.append(file.read(run, mode));
    if !reading.errors.is_empty() {
        return Err(Problem::Said(reading.errors));
    }
    let (said, mut overruled) = effective(reading.said, verb, verb_matches);
    let mut notes = reading.notes;
    notes.append(&mut overruled);
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
fn config(matches: &ArgMatches) -> Option<&PathBuf> {
    matches.try_get_one("config").ok().flatten()
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

/// What counts beside the command line and the environment: of an option the first. kube-proxy's
/// flags are said on the command line, and count before the environment. What goes not with
/// something else that was said is left out, with a note.
fn effective(said: Vec<Said>, verb: &Command, matches: &ArgMatches) -> (Vec<Said>, Vec<String>) {
    let explicit = |sources: &[ValueSource]| -> Vec<String> {
        let explicit = options::of(verb).filter(|arg| {
            let source = matches.value_source(arg.get_id().as_str());
            source.is_some_and(|source| sources.contains(&source))
        });
        explicit
            .filter_map(|arg| arg.get_long().map(str::to_owned))
            .collect()
    };
    let by_line = explicit(&[ValueSource::CommandLine]);
    let by_environment = explicit(&[ValueSource::EnvVariable]);
    let (mut effective, mut notes) = (Vec::<Said>::new(), Vec::new());
    for said in said {
        let Some(arg) = options::named(verb, &said.option) else {
            continue;
        };
        let mut before: Vec<&String> = by_line.iter().collect();
        if !matches!(said.place, Place::Flag(_)) {
            before.extend(&by_environment);
        }
        before.extend(effective.iter().map(|said| &said.option));
        if before.contains(&&said.option) {
            continue;
        }
        let other = before.into_iter().find(|long| {
            let other = options::named(verb, long);
            other.is_some_and(|other| options::go_not_together(verb, arg, other))
        });
        if let Some(other) = other {
            notes.push(format!(
                "{} does not count: --{other} was said elsewhere, and counts first",
                said.place
            ));
            continue;
        }
        effective.push(said);
    }
    (effective, notes)
}
