//! `tulle-agent config`: what a command line and a file come to.

use std::io::{self, Write};

use anyhow::Context;
use clap::CommandFactory;

use super::schema;
use crate::args::{Args, ShowArgs};

/// Prints what is in force as a document of Tulle's own file: what differs from the defaults, or
/// all of it. What means nothing to Tulle goes to standard error.
pub fn show(args: &ShowArgs) -> anyhow::Result<()> {
    for note in &args.run.notes {
        eprintln!("{note}");
    }
    let command = Args::command();
    let run = command
        .find_subcommand("run")
        .context("there is no `run`")?;
    let document = schema::document(run, |arg| {
        let setting = args.run.settings.get(arg.get_long()?)?;
        let default = setting.from == "default";
        let is_shown = (args.all || !default) && !setting.values.is_empty();
        is_shown.then(|| setting.values.clone())
    });
    let text = document.and_then(|document| serde_norway::to_string(&document));
    let text = text.context("cannot write YAML")?;
    print(&text)
}

/// Prints the schema.
pub fn schema() -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(&schema::schema()).context("cannot write JSON")?;
    print(&format!("{text}\n"))
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}
