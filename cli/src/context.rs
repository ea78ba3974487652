//! What every verb is given: where things are and how to print.

use std::env;
use std::io::{self, IsTerminal};
use std::path::PathBuf;

use admin_api::{Client, ClientError, DEFAULT_TIMEOUT, SOCKET_NAME};
use serde::Serialize;

use crate::args::{Format, Global};
use crate::datapath::{Datapath, DatapathError};
use crate::output::{self, Style};

/// Where things are and how to print.
#[derive(Clone, Debug)]
pub struct Context {
    /// Directory of the pins.
    pub bpffs: PathBuf,
    /// Directory of the agent's socket.
    pub run_dir: PathBuf,
    /// Tables or JSON.
    pub format: Format,
    /// Layout of text.
    pub style: Style,
}

impl Context {
    /// From the command line, the environment and the terminal.
    pub fn new(global: &Global) -> Self {
        let terminal = io::stdout().is_terminal();
        // https://no-color.org: any value but the empty one.
        let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let width = terminal_size::terminal_size().map(|(width, _)| width.0.max(60));
        Self {
            bpffs: global.bpffs.clone(),
            run_dir: global.run_dir.clone(),
            format: global.output,
            style: Style {
                color: terminal && !global.no_color && !no_color,
                width: width.filter(|_| terminal),
            },
        }
    }

    /// The pinned maps.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn datapath(&self) -> Result<Datapath, DatapathError> {
        Datapath::open(&self.bpffs)
    }

    /// A connection to the agent.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn agent(&self) -> Result<Client, ClientError> {
        Client::connect(&self.run_dir.join(SOCKET_NAME), DEFAULT_TIMEOUT)
    }

    /// Prints a report: as JSON document, or as text with its notes on
    /// standard error.
    ///
    /// # Errors
    ///
    /// What standard output says.
    pub fn print<T: Serialize>(
        &self,
        schema: &'static str,
        report: &T,
        notes: &[String],
        render: impl FnOnce(&T, Style) -> String,
    ) -> anyhow::Result<()> {
        match self.format {
            Format::Json => output::print(&output::document(schema, report, true)?)?,
            Format::Table => {
                output::print(&render(report, self.style))?;
                for note in notes {
                    eprintln!("{note}");
                }
            }
        }
        Ok(())
    }
}
