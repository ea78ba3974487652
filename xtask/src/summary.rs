//! Stages of a long run: what each one said, how long it took, and how the whole ended.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The stages so far.
#[derive(Debug, Default)]
pub struct Summary {
    stages: Vec<Stage>,
}

#[derive(Debug)]
struct Stage {
    name: &'static str,
    took: Duration,
    /// What is worth saying of a good end, or the error.
    outcome: Result<String, String>,
}

impl Summary {
    /// Runs a stage and notes how it ended. Says whether it ended well.
    pub fn stage(&mut self, name: &'static str, run: impl FnOnce() -> Result<String>) -> bool {
        println!("\n==> {name}");
        let start = Instant::now();
        let outcome = run().map_err(|error| format!("{error:#}"));
        if let Err(error) = &outcome {
            eprintln!("error: {error}");
        }
        let ok = outcome.is_ok();
        self.stages.push(Stage {
            name,
            took: start.elapsed(),
            outcome,
        });
        ok
    }

    /// Prints the table. Fails if a stage failed.
    pub fn finish(self) -> Result<()> {
        println!("\n{}", self.table());
        let failed: Vec<&str> = self
            .stages
            .iter()
            .filter(|s| s.outcome.is_err())
            .map(|s| s.name)
            .collect();
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }

    fn table(&self) -> String {
        let width = self
            .stages
            .iter()
            .map(|stage| stage.name.len())
            .max()
            .unwrap_or(0);
        let total: Duration = self.stages.iter().map(|stage| stage.took).sum();
        let mut text = String::new();
        for Stage {
            name,
            took,
            outcome,
        } in &self.stages
        {
            let (word, note) = match outcome {
                Ok(note) => ("ok", note.as_str()),
                Err(error) => ("FAILED", error.lines().next().unwrap_or_default()),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{word:6}  {name:width$}  {:>7.1} s  {note}",
                took.as_secs_f64()
            );
        }
        let _ = write!(
            text,
            "        {:width$}  {:>7.1} s",
            "total",
            total.as_secs_f64()
        );
        text
    }
}

/// How many tests ran, summed over test programs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed.
    pub failed: u32,
    /// Tests that were marked to be left out.
    pub ignored: u32,
}

impl Counts {
    /// Adds what a line of a test program's output says, if it is its closing line.
    pub fn add_line(&mut self, line: &str) {
        let line = without_colours(line);
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        let Some((_verdict, counts)) = result.split_once(". ") else {
            return;
        };
        for part in counts.split(';') {
            let Some((number, what)) = part.trim().split_once(' ') else {
                continue;
            };
            let Ok(number) = number.parse::<u32>() else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed", self.passed)?;
        if self.failed > 0 {
            write!(f, ", {} failed", self.failed)?;
        }
        if self.ignored > 0 {
            write!(f, ", {} ignored", self.ignored)?;
        }
        Ok(())
    }
}

/// The line without the escape sequences that colour it (ECMA-48, `ESC [ … m`).
fn without_colours(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, sequence)) = rest.split_once("\x1b[") {
        out.push_str(before);
        rest = sequence
            .split_once('m')
            .map_or("", |(_colour, after)| after);
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn sums_closing_lines_only() {
        let mut counts = Counts::default();
        for line in [
            "running 3 tests",
            "test a ... ok",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.02s",
            "test result: \x1b[31mFAILED\x1b[0m. 2 passed; 4 failed; 0 ignored; 0 measured",
            "test result: nonsense",
            "a test result: ok. 9 passed",
        ] {
            counts.add_line(line);
        }
        assert_eq!(
            counts,
            Counts {
                passed: 14,
                failed: 4,
                ignored: 1
            }
        );
        assert_eq!(counts.to_string(), "14 passed, 4 failed, 1 ignored");
    }

    #[test]
    fn the_table_tells_good_from_bad() {
        let mut summary = Summary::default();
        assert!(summary.stage("one", || Ok("3 passed".into())));
        assert!(!summary.stage("second", || Err(anyhow!("why\nmore"))));
        let table = summary.table();
        let rows: Vec<&str> = table.lines().collect();
        assert!(
            rows[0].starts_with("ok") && rows[0].ends_with("3 passed"),
            "{table}"
        );
        assert!(
            rows[1].starts_with("FAILED") && rows[1].ends_with("why"),
            "{table}"
        );
        assert!(rows[2].contains("total"), "{table}");
        assert_eq!(summary.finish().unwrap_err().to_string(), "failed: second");
    }

    #[test]
    fn a_good_run_ends_well() {
        let mut summary = Summary::default();
        summary.stage("one", || Ok(String::new()));
        assert!(summary.finish().is_ok());
    }
}
