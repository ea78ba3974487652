//! What is printed, and which of it was not as promised.

use std::io::{self, IsTerminal, Write};

use super::{WIDTH, columns, fit, wrap};

/// Columns before everything but headings.
const INDENT: usize = 3;

/// A running page. Every method fails if the reader has gone away.
pub struct Page<W> {
    out: W,
    color: bool,
    section: usize,
    broken: Vec<String>,
}

#[derive(Clone, Copy)]
enum Paint {
    Bold,
    Dim,
    Red,
    Green,
}

impl Page<io::Stdout> {
    /// On standard output; colours only on a terminal and without `NO_COLOR`.
    pub fn stdout() -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let out = io::stdout();
        let color = out.is_terminal() && !no_color;
        Self::new(out, color)
    }
}

impl<W: Write> Page<W> {
    /// On any output.
    pub fn new(out: W, color: bool) -> Self {
        Self {
            out,
            color,
            section: 0,
            broken: Vec::new(),
        }
    }

    /// The title of everything.
    pub fn title(&mut self, text: &str) -> io::Result<()> {
        let text = self.paint(Paint::Bold, text);
        writeln!(self.out, "{text}")
    }

    /// Begins a section.
    pub fn heading(&mut self, text: &str) -> io::Result<()> {
        self.section += 1;
        let line = format!("{}  {text}", self.section);
        let rule = "─".repeat(columns(&line));
        let (line, rule) = (
            self.paint(Paint::Bold, &line),
            self.paint(Paint::Dim, &rule),
        );
        writeln!(self.out, "\n{line}\n{rule}")?;
        self.out.flush()
    }

    /// A paragraph.
    pub fn text(&mut self, text: &str) -> io::Result<()> {
        for line in wrap(text, WIDTH - INDENT) {
            writeln!(self.out, "{:INDENT$}{line}", "")?;
        }
        self.out.flush()
    }

    /// Lines as they are, but none too long.
    pub fn block(&mut self, text: &str) -> io::Result<()> {
        for line in text.lines().flat_map(|line| fit(line, WIDTH - INDENT)) {
            match line.as_str() {
                "" => writeln!(self.out)?,
                line => writeln!(self.out, "{:INDENT$}{line}", "")?,
            }
        }
        self.out.flush()
    }

    /// A file's or a packet's lines, set apart.
    pub fn quote(&mut self, text: &str) -> io::Result<()> {
        for line in text.lines().flat_map(|line| fit(line, WIDTH - INDENT - 2)) {
            let bar = self.paint(Paint::Dim, "│");
            writeln!(self.out, "{:INDENT$}{bar} {line}", "")?;
        }
        self.out.flush()
    }

    /// A command as one would type it.
    pub fn command(&mut self, text: &str) -> io::Result<()> {
        let text = self.paint(Paint::Bold, &format!("$ {text}"));
        writeln!(self.out, "{:INDENT$}{text}", "")?;
        self.out.flush()
    }

    /// An empty line.
    pub fn gap(&mut self) -> io::Result<()> {
        writeln!(self.out)
    }

    /// Something that was promised, and whether it is so.
    pub fn promise(&mut self, kept: bool, text: &str) -> io::Result<()> {
        let (mark, paint) = if kept {
            ("✓", Paint::Green)
        } else {
            ("✗", Paint::Red)
        };
        let mark = self.paint(paint, mark);
        for (n, line) in wrap(text, WIDTH - INDENT - 2).iter().enumerate() {
            let mark = if n == 0 { mark.as_str() } else { " " };
            writeln!(self.out, "{:INDENT$}{mark} {line}", "")?;
        }
        if !kept {
            self.broken
                .push(format!("section {}: {text}", self.section));
        }
        self.out.flush()
    }

    /// What was not as promised, by section.
    pub fn broken(&self) -> &[String] {
        &self.broken
    }

    fn paint(&self, paint: Paint, text: &str) -> String {
        if !self.color {
            return text.to_owned();
        }
        let code = match paint {
            Paint::Bold => 1,
            Paint::Dim => 2,
            Paint::Red => 31,
            Paint::Green => 32,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(color: bool, print: impl FnOnce(&mut Page<&mut Vec<u8>>)) -> String {
        let mut out = Vec::new();
        print(&mut Page::new(&mut out, color));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn sections_are_numbered_and_indented() {
        let text = printed(false, |page| {
            page.heading("One").unwrap();
            page.text("Words.").unwrap();
            page.block("a\n\n b").unwrap();
            page.heading("Two").unwrap();
            page.command("ls").unwrap();
        });
        assert_eq!(
            text,
            "\n1  One\n──────\n   Words.\n   a\n\n    b\n\n2  Two\n──────\n   $ ls\n"
        );
    }

    #[test]
    fn broken_promises_are_remembered() {
        let mut out = Vec::new();
        let mut page = Page::new(&mut out, false);
        page.heading("One").unwrap();
        page.promise(true, "good").unwrap();
        page.promise(false, "bad").unwrap();
        assert_eq!(page.broken(), ["section 1: bad"]);
        let text = String::from_utf8(out).unwrap();
        assert!(text.ends_with("   ✓ good\n   ✗ bad\n"), "{text}");
    }

    #[test]
    fn no_line_is_too_long() {
        let long = "word ".repeat(100);
        let text = printed(false, |page| {
            page.text(&long).unwrap();
            page.promise(true, &long).unwrap();
            page.block(&long).unwrap();
            page.quote(&long).unwrap();
        });
        assert!(text.lines().all(|line| columns(line) <= WIDTH), "{text}");
    }

    #[test]
    fn colours_only_where_wanted() {
        let print = |color| printed(color, |page| page.promise(true, "x").unwrap());
        assert!(!print(false).contains('\x1b'));
        assert_eq!(print(true), "   \x1b[32m✓\x1b[0m x\n");
    }
}
