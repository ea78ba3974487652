//! A configuration file while the agent runs (KP-146).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::file;
use crate::args::{Args, RunArgs, Verb};
use crate::run::prospects;

/// Between two looks. Mounted ConfigMaps swap links and editors write anew: the text itself is
/// what counts, and it is small.
const EACH: Duration = Duration::from_secs(2);
/// No agent begins anew sooner after it began: a file that flaps is not followed at its pace.
const AGE: Duration = Duration::from_secs(10);
/// Agents that are told the same at once begin anew over so long, not all together.
const SPREAD: Duration = Duration::from_secs(5);

/// Follows the file that an agent was started with.
pub struct Follow {
    words: Vec<OsString>,
    path: Option<PathBuf>,
    began: Instant,
    /// The text at the last look.
    seen: Option<String>,
    /// The text that was judged last.
    judged: Option<String>,
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
            began: Instant::now(),
            seen: None,
            // It may have changed since these arguments were read.
            judged: None,
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
            sleep(EACH).await;
            let text = match file::text(&path) {
                Ok(text) => text,
                Err(problem) => {
                    (self.seen, self.judged) = (None, None);
                    self.wrong(problem);
                    continue;
                }
            };
            // One that is being written is another at the next look.
            let is_written = self.seen.as_ref() == Some(&text);
            self.seen = Some(text);
            if !is_written || self.judged == self.seen {
                continue;
            }
            self.judged.clone_from(&self.seen);
            let Some(changes) = self.judge(&path).await else {
                continue;
            };
            sleep_until(self.began + AGE).await;
            sleep(SPREAD.mul_f64(fastrand::f64())).await;
            // What it says now may be something else.
            if file::text(&path).ok() == self.seen {
                return Changed(changes);
            }
        }
    }

    /// What would change; nothing if it is wrong, or says the same.
    async fn judge(&mut self, path: &Path) -> Option<Vec<String>> {
        let run = match Args::of(&self.words) {
            Ok(args) => match args.verb {
                Verb::Run(run) => run,
                _ => return None,
            },
            Err(problem) => {
                self.wrong(problem.to_string());
                return None;
            }
        };
        let changes = differences(&self.values, &values(&run));
        if !changes.is_empty()
            && let Err(error) = prospects::check(&run).await
        {
            self.wrong(format!("{}: {error:#}", path.display()));
            return None;
        }
        if self.problem.take().is_some() {
            tracing::info!("{} can be read again", path.display());
        }
        (!changes.is_empty()).then_some(changes)
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
