//! What a virtual machine said, as a table.

use std::fmt::Write;

use crate::summary::Counts;

use super::guest::{BEGIN, DONE, END, LIMIT, Step};
use super::vm::Ending;

/// Lines of a failed step that are shown.
const SHOWN_LINES: usize = 60;
/// What busybox's `timeout` says of a process that it had killed: 128 and the signal.
const KILLED: i32 = 128 + 9;

/// What the verifier said of a program with some features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    features: String,
    program: String,
    /// Instructions that the verifier walked, or why it refused.
    outcome: Result<String, String>,
}

/// A step's end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    name: String,
    output: Vec<String>,
    /// None: it did not end.
    exit: Option<i32>,
    counts: Counts,
}

/// What one kernel did.
#[derive(Debug, Default)]
pub struct Report {
    outcomes: Vec<Outcome>,
    verdicts: Vec<Verdict>,
    before: Vec<String>,
    done: bool,
}

impl Report {
    /// Takes the next line of the machine.
    pub fn line(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix(BEGIN) {
            self.outcomes.push(Outcome {
                name: name.to_owned(),
                ..Outcome::default()
            });
            return;
        }
        if line == DONE {
            self.done = true;
            return;
        }
        let Some(step) = self.outcomes.last_mut() else {
            self.before.push(line.to_owned());
            return;
        };
        // A test program that is killed may leave half a line before the mark.
        if let Some((_, end)) = line.split_once(END) {
            step.exit = end
                .strip_prefix(step.name.as_str())
                .and_then(|exit| exit.trim().parse().ok());
            return;
        }
        step.counts.add_line(line);
        step.output.push(line.to_owned());
        self.verdicts.extend(verdict(line));
    }

    /// What went wrong, in a sentence each; nothing if all went well.
    pub fn faults(&self, steps: &[&Step], ending: &Ending) -> Vec<String> {
        let mut faults = Vec::new();
        for step in steps {
            let outcome = self
                .outcomes
                .iter()
                .find(|outcome| outcome.name == step.name);
            match outcome.map(|outcome| (outcome.exit, outcome.counts)) {
                None => faults.push(format!("{} did not run", step.name)),
                Some((None, _)) => faults.push(format!("{} did not end", step.name)),
                Some((Some(0), counts)) if counts.passed == 0 => {
                    faults.push(format!("{} ran no test", step.name));
                }
                Some((Some(0), _)) => {}
                Some((Some(KILLED), _)) => faults.push(format!(
                    "{} was killed, as it took more than {} s or too much memory",
                    step.name, LIMIT
                )),
                Some((Some(code), counts)) => {
                    faults.push(format!("{} ended with {code}: {counts}", step.name));
                }
            }
        }
        match ending {
            Ending::Late => faults.push("the machine was ended when its time was over".to_owned()),
            Ending::Off if !self.done => {
                faults.push("the machine ended early; its console tells more".to_owned());
            }
            Ending::Off => {}
        }
        faults
    }

    /// The end of what each failed step printed.
    pub fn failures(&self) -> String {
        let mut text = String::new();
        let failed = self.outcomes.iter().filter(|step| step.exit != Some(0));
        let before = (!self.before.is_empty()).then_some(("before the first step", &self.before));
        let failed = failed.map(|step| (step.name.as_str(), &step.output));
        for (name, output) in before.into_iter().chain(failed) {
            let shown = &output[output.len().saturating_sub(SHOWN_LINES)..];
            // Writing to a String cannot fail.
            let _ = writeln!(text, "--- {name}\n{}", shown.join("\n"));
        }
        text
    }

    /// Verdicts and steps for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let rows = self.verdicts.iter().map(|verdict| {
            let (word, what) = match &verdict.outcome {
                Ok(walked) => ("verified", format!("{walked} instructions")),
                Err(why) => ("REFUSED", why.clone()),
            };
            [verdict.program.as_str(), verdict.features.as_str(), word]
                .map(str::to_owned)
                .into_iter()
                .chain([what])
                .collect()
        });
        let header = ["program", "features", "verdict", ""]
            .map(str::to_owned)
            .to_vec();
        if !self.verdicts.is_empty() {
            columns(&mut text, std::iter::once(header).chain(rows).collect());
            text.push('\n');
        }
        let rows = self.outcomes.iter().map(|step| {
            let word = if step.exit == Some(0) { "ok" } else { "FAILED" };
            vec![step.name.clone(), word.to_owned(), step.counts.to_string()]
        });
        let header = ["step", "result", "tests"].map(str::to_owned).to_vec();
        columns(&mut text, std::iter::once(header).chain(rows).collect());
        text
    }
}

/// Reads `verdict <features> <program> verified <walked> …` or `… refused <why>`, also after the
/// words `test … ...` that a test's name leaves on its line.
fn verdict(line: &str) -> Option<Verdict> {
    let (before, rest) = line.split_once("verdict ")?;
    if !before.is_empty() && !before.ends_with("... ") {
        return None;
    }
    let mut words = rest.splitn(4, ' ');
    let (features, program) = (words.next()?, words.next()?);
    let outcome = match (words.next()?, words.next().unwrap_or_default()) {
        ("verified", figures) => Ok(figures.split(' ').next()?.to_owned()),
        ("refused", why) => Err(why.to_owned()),
        _ => return None,
    };
    Some(Verdict {
        features: features.to_owned(),
        program: program.to_owned(),
        outcome,
    })
}

/// Writes rows with aligned columns.
fn columns(text: &mut String, rows: Vec<Vec<String>>) {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    for row in rows {
        let mut line = String::from(" ");
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a String cannot fail.
            let _ = write!(line, " {cell:width$} ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Step = Step {
        name: "packets",
        package: "p",
        tests: &[],
        without_tcx: None,
    };

    fn report(text: &str) -> Report {
        let mut report = Report::default();
        text.lines().for_each(|line| report.line(line));
        report
    }

    fn faults(text: &str) -> Vec<String> {
        report(text).faults(&[&STEP], &Ending::Off)
    }

    const GOOD: &str = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured";

    #[test]
    fn a_good_run_has_no_fault() {
        let text = format!("@@begin packets\n{GOOD}\n@@end packets 0\n@@done");
        assert!(faults(&text).is_empty());
        assert_eq!(report(&text).failures(), "");
        let late = report(&text).faults(&[&STEP], &Ending::Late);
        assert!(late[0].contains("time was over"), "{late:?}");
    }

    #[test]
    fn each_way_to_go_wrong_is_told() {
        for (text, expected) in [
            ("@@done", "did not run"),
            ("insmod: failed\n@@done", "did not run"),
            ("@@begin packets\nhalf\n@@done", "did not end"),
            ("@@begin packets\n@@end packets 0\n@@done", "ran no test"),
            (
                "@@begin packets\nhalf a li@@end packets 137\n@@done",
                "more than 1200 s",
            ),
            (
                "@@begin packets\n@@end packets 101\n@@done",
                "ended with 101",
            ),
            ("@@begin packets\n@@end packets x\n@@done", "did not end"),
            ("@@begin packets\n@@end other 0\n@@done", "did not end"),
        ] {
            let faults = faults(text);
            assert_eq!(faults.len(), 1, "{text}: {faults:?}");
            assert!(faults[0].contains(expected), "{text}: {faults:?}");
        }
        let early = faults(&format!("@@begin packets\n{GOOD}\n@@end packets 0"));
        assert!(early[0].contains("ended early"), "{early:?}");
    }

    #[test]
    fn failures_show_the_end_of_their_output() {
        let mut text = "insmod: bad\n@@begin packets\n".to_owned();
        for n in 0..100 {
            let _ = writeln!(text, "line {n}");
        }
        text += "@@end packets 101\n@@done";
        let shown = report(&text).failures();
        assert!(
            shown.contains("insmod: bad") && shown.contains("line 99"),
            "{shown}"
        );
        assert!(!shown.contains("line 39\n"), "{shown}");
    }

    #[test]
    fn verdicts_are_read_from_any_line() {
        let report = report(
            "@@begin kernel_verify\n\
             test every_program_is_verified ... verdict none tulle_xdp verified 403 952\n\
             verdict all tulle_pod_to refused R3 invalid mem access 'scalar'\n\
             the verdict is open\n\
             verdict too short\n\
             @@end kernel_verify 101",
        );
        let expected = [
            ("none", "tulle_xdp", Ok("403".to_owned())),
            (
                "all",
                "tulle_pod_to",
                Err("R3 invalid mem access 'scalar'".to_owned()),
            ),
        ];
        assert_eq!(
            report.verdicts,
            expected.map(|(features, program, outcome)| Verdict {
                features: features.into(),
                program: program.into(),
                outcome,
            })
        );
        let table = report.table();
        let rows: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            rows[1],
            ["tulle_xdp", "none", "verified", "403", "instructions"]
        );
        assert_eq!(rows[2][..3], ["tulle_pod_to", "all", "REFUSED"]);
        assert!(
            rows.contains(&vec!["kernel_verify", "FAILED", "0", "passed"]),
            "{table}"
        );
    }
}
