//! A configuration file while the agent runs (KP-146).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::file;
use crate::args::{Args, RunArgs, Verb};

/// Between two looks. Mounted ConfigMaps swap links and editors write anew: the text itself is
/// what counts, and it is small.
const EACH: Duration = Duration::from_secs(2);

/// Follows the file that an agent was started with.
pub struct Follow {
    words: Vec<OsString>,
    path: Option<PathBuf>,
    text: Option<String>,
    values: BTreeMap<String, Vec<String>>,
    /// What was wrong when it was looked at last.
    problem: Option<String>,
}

/// What changed: sentences.
#[derive(Debug)]
pub struct Changed(pub Vec<String>);

impl Follow {
    /// Of an agent with this command line, which is served by these arguments.
    pub fn new(words: Vec<OsString>, args: &RunArgs) -> Self {
        Self {
            words,
            path: args.config.file.clone(),
            text: args
                .config
                .file
                .as_ref()
                .and_then(|path| file::text(path).ok()),
            values: values(args),
            problem: None,
        }
    }

    /// Waits until the file says something else that can be served. A file that is wrong is
    /// told once, and one that is gone; what it said stays in force.
    pub async fn changed(&mut self) -> Changed {
        let Some(path) = self.path.clone() else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(EACH).await;
            let text = match file::text(&path) {
                Ok(text) => text,
                Err(problem) => {
                    self.wrong(problem);
                    continue;
                }
            };
            if self.problem.is_none() && self.text.as_ref() == Some(&text) {
                continue;
            }
            self.text = Some(text);
            let run = match Args::of(&self.words) {
                Ok(args) => match args.verb {
                    Verb::Run(run) => run,
                    _ => continue,
                },
                Err(problem) => {
                    self.wrong(problem.to_string());
                    continue;
                }
            };
            if self.problem.take().is_some() {
                tracing::info!("{} can be read again", path.display());
            }
            let changes = differences(&self.values, &values(&run));
            if !changes.is_empty() {
                return Changed(changes);
            }
        }
    }

    fn wrong(&mut self, problem: String) {
        if self.problem.as_ref() != Some(&problem) {
            tracing::error!("{problem}; what was said before stays in force");
            self.problem = Some(problem);
        }
    }
}

fn values(run: &RunArgs) -> BTreeMap<String, Vec<String>> {
    let settings = run.settings.iter();
    settings
        .map(|(name, setting)| (name.clone(), setting.values.clone()))
        .collect()
}

fn differences(
    old: &BTreeMap<String, Vec<String>>,
    new: &BTreeMap<String, Vec<String>>,
) -> Vec<String> {
    let shown = |values: Option<&Vec<String>>| match values.map(Vec::as_slice) {
        None | Some([]) => "nothing".to_owned(),
        Some(values) => values.join(","),
    };
    let changed = new
        .iter()
        .filter(|(name, values)| old.get(*name) != Some(*values));
    changed
        .map(|(name, values)| {
            let old = shown(old.get(name));
            format!("--{name} is {} in the place of {old}", shown(Some(values)))
        })
        .collect()
}
