//! Figures of packets, as JSON and as the tables of `docs/benchmarks.md`.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::aims;
use super::datapath::Size;
use super::forward;
use super::plot::grouped;
use super::sample::Spread;
use super::yard::Yardstick;

/// How a figure came about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Repeated in one test run; the scaffold restores the packet.
    Loop,
    /// The last round of a test run; rounds of a packet with nearly the same way
    /// go before it.
    Primed,
    /// A test run for each packet.
    Single,
}

/// What a packet costs in a program.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// The program's name without its prefix.
    pub program: &'static str,
    /// The packet and its way.
    pub packet: &'static str,
    /// IP version.
    pub version: u8,
    /// Services in the tables.
    pub services: u32,
    /// How it was measured.
    pub method: Method,
    /// Nanoseconds over the empty program.
    pub over_empty: Spread,
    /// Nanoseconds of the empty program, measured in the same way.
    pub empty: f64,
}

/// What was measured in one run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// What it is worth at the moment.
    pub yardsticks: Vec<Yardstick>,
    /// The programs.
    pub sizes: Vec<Size>,
    /// The packets.
    pub figures: Vec<Figure>,
    /// What is sent on before an skb is made.
    pub forwarded: Vec<forward::Figure>,
}

/// What the figures depend on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Kernel release, numbers only.
    pub kernel: String,
    /// The processor's name.
    pub cpu: String,
    /// How many of them.
    pub cpus: usize,
    /// What the kernel does about Spectre v2: it decides what indirect calls cost.
    pub spectre_v2: String,
    /// What it does about speculative return stack overflow: it decides what
    /// every return costs.
    pub return_overflow: String,
}

impl Machine {
    /// This one.
    pub fn detect() -> Result<Self> {
        let read =
            |path: &str| std::fs::read_to_string(path).with_context(|| format!("read {path}"));
        let info = read("/proc/cpuinfo")?;
        let name = info
            .lines()
            .find_map(|line| line.strip_prefix("model name"))
            .map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
        let vulnerability = |name: &str| {
            read(&format!("/sys/devices/system/cpu/vulnerabilities/{name}"))
                .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
        };
        Ok(Self {
            // What distributions append says nothing about costs.
            kernel: read("/proc/sys/kernel/osrelease")?
                .split(|c: char| !c.is_ascii_digit() && c != '.')
                .next()
                .unwrap_or_default()
                .to_owned(),
            cpu: name.to_owned(),
            cpus: info
                .lines()
                .filter(|line| line.starts_with("processor"))
                .count(),
            spectre_v2: vulnerability("spectre_v2"),
            return_overflow: vulnerability("spec_rstack_overflow"),
        })
    }

    /// One paragraph.
    pub fn markdown(&self) -> String {
        format!(
            "Linux {}, {} × {}. Spectre v2: {}. Return stack overflow: {}.\n",
            self.kernel, self.cpus, self.cpu, self.spectre_v2, self.return_overflow
        )
    }
}

impl Report {
    /// An empty one, of this machine.
    pub fn new() -> Result<Self> {
        Ok(Self {
            machine: Machine::detect()?,
            yardsticks: Vec::new(),
            sizes: Vec::new(),
            figures: Vec::new(),
            forwarded: Vec::new(),
        })
    }

    /// The figure of a packet, measured by the scaffold where that can be.
    pub fn figure(
        &self,
        program: &str,
        packet: &str,
        version: u8,
        services: u32,
        method: Option<Method>,
    ) -> Option<&Figure> {
        let of = |method| {
            self.figures.iter().find(|f| {
                f.program == program
                    && f.packet == packet
                    && f.version == version
                    && f.services == services
                    && f.method == method
            })
        };
        match method {
            Some(method) => of(method),
            None => [Method::Loop, Method::Primed, Method::Single]
                .into_iter()
                .find_map(of),
        }
    }

    /// Numbers of services, in the order they were measured.
    pub fn services(&self) -> Vec<u32> {
        let mut all = Vec::new();
        for figure in &self.figures {
            if !all.contains(&figure.services) {
                all.push(figure.services);
            }
        }
        all
    }

    /// All tables; `plot` is the line that shows the plot of services by XDP.
    pub fn markdown(&self, plot: &str) -> String {
        let mut text = self.machine.markdown();
        if !self.figures.is_empty() {
            text += "\n### Packets\n\n";
            self.packet_table(&mut text);
            text += "\n### Aims\n\n";
            text += &aims::table(self);
            text += "\n### Beside the hand-written twin\n\n";
            text += &aims::twin_table(self);
        }
        if !self.forwarded.is_empty() {
            text += "\n### Services by XDP\n\n";
            text += &forward::markdown(&self.forwarded);
            text += plot;
        }
        text += "\n### Primitives\n\n| primitive | ns |\n|---|--:|\n";
        for Yardstick { what, nanos } in &self.yardsticks {
            let _ = writeln!(text, "| {what} | {nanos:.1} |");
        }
        text += "\n### Programs\n\n";
        self.size_table(&mut text);
        text
    }

    // Writing to a String cannot fail.
    fn packet_table(&self, text: &mut String) {
        let services = self.services();
        let Some(first) = services.first().copied() else {
            return;
        };
        *text += "| program | packet | IP |";
        for number in &services {
            let _ = write!(text, " {} |", counted(*number));
        }
        *text += " middle half | whole | single |\n|---|---|---|";
        *text += &"--:|".repeat(services.len() + 3);
        *text += "\n";
        let shown = |value: Option<f64>| value.map_or("–".to_owned(), |v| format!("{v:.0}"));
        let mut done: Vec<(&str, &str, u8)> = Vec::new();
        for figure in &self.figures {
            let (program, packet, version) = (figure.program, figure.packet, figure.version);
            if done.contains(&(program, packet, version)) {
                continue;
            }
            done.push((program, packet, version));
            let best = |services| self.figure(program, packet, version, services, None);
            let _ = write!(text, "| {program} | {packet} | {version} |");
            for number in &services {
                let found = best(*number);
                let mark = match found.map(|f| f.method) {
                    Some(Method::Primed) => "†",
                    Some(Method::Single) => "‡",
                    Some(Method::Loop) | None => "",
                };
                let _ = write!(
                    text,
                    " {}{mark} |",
                    shown(found.map(|f| f.over_empty.middle))
                );
            }
            let spread = best(first).map_or("–".to_owned(), |f| {
                format!("{:.0}–{:.0}", f.over_empty.lower, f.over_empty.upper)
            });
            let whole = best(first).map(|f| f.over_empty.middle + f.empty);
            let single = self.figure(program, packet, version, first, Some(Method::Single));
            let _ = writeln!(
                text,
                " {spread} | {} | {} |",
                shown(whole),
                shown(single.map(|f| f.over_empty.middle))
            );
        }
    }

    fn size_table(&self, text: &mut String) {
        *text += "| program | octets after the verifier | instructions that it walked |\n|---|--:|--:|\n";
        let shown = |number: Option<u32>| number.map_or("–".to_owned(), |n| n.to_string());
        for size in &self.sizes {
            let _ = writeln!(
                text,
                "| {} | {} | {} |",
                size.program,
                shown(size.xlated_octets),
                shown(size.verified_instructions)
            );
        }
    }
}

/// "1 service", "50,000 services".
pub fn counted(number: u32) -> String {
    let grouped = grouped(&number.to_string());
    let noun = if number == 1 { "service" } else { "services" };
    format!("{grouped} {noun}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(counted(1), "1 service");
        assert_eq!(counted(1000), "1,000 services");
        assert_eq!(counted(50_000), "50,000 services");
        assert_eq!(counted(123), "123 services");
    }
}
