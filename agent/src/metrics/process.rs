//! This process, by the names that all Prometheus clients have for it.

use std::fmt;
use std::time::SystemTime;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::proxy::unix;

/// The collector.
#[derive(Debug)]
pub struct Process {
    started: SystemTime,
}

/// What `/proc/self/stat` says.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Process {
    /// Of a process that started now.
    pub fn new() -> Self {
        Self {
            started: SystemTime::now(),
        }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let stat = std::fs::read_to_string("/proc/self/stat");
        if let Some(stat) = stat.ok().and_then(|text| parse(&text)) {
            let second = unit(SysconfVar::CLK_TCK, 100);
            let seconds = ConstCounter::new(stat.cpu_ticks as f64 / second as f64);
            let metric = encoder.encode_descriptor(
                "process_cpu_seconds",
                "CPU time of this process, in the kernel too.",
                None,
                seconds.metric_type(),
            )?;
            seconds.encode(metric)?;
            let resident = stat.resident_pages * unit(SysconfVar::PAGE_SIZE, 4096);
            for (name, help, value) in [
                (
                    "process_resident_memory_bytes",
                    "Memory of this process, without the maps.",
                    resident,
                ),
                (
                    "process_virtual_memory_bytes",
                    "Address space of this process.",
                    stat.virtual_bytes,
                ),
                ("process_threads", "Threads of this process.", stat.threads),
            ] {
                gauge(&mut encoder, name, help, value as f64)?;
            }
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            let open = open.count() as f64;
            gauge(
                &mut encoder,
                "process_open_fds",
                "Files that this process has open.",
                open,
            )?;
        }
        if let Ok((most, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
            gauge(
                &mut encoder,
                "process_max_fds",
                "Files that this process may have open.",
                most as f64,
            )?;
        }
        let started = unix(Some(self.started));
        gauge(
            &mut encoder,
            "process_start_time_seconds",
            "When this process started, since 1970.",
            started,
        )
    }
}

fn gauge(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> fmt::Result {
    let gauge = ConstGauge::new(value);
    let metric = to.encode_descriptor(name, help, None, gauge.metric_type())?;
    gauge.encode(metric)
}

fn unit(what: SysconfVar, usual: u64) -> u64 {
    let known = sysconf(what).ok().flatten();
    known.and_then(|n| u64::try_from(n).ok()).unwrap_or(usual)
}

/// Fields from the state on, which stands behind the name in parentheses.
fn parse(stat: &str) -> Option<Stat> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Stat {
        cpu_ticks: number(11)? + number(12)?,
        threads: number(17)?,
        virtual_bytes: number(20)?,
        resident_pages: number(21)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_the_name() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 50 25 0 0 20 0 9 0 100 4096000 800 1";
        let stat = Stat {
            cpu_ticks: 75,
            threads: 9,
            virtual_bytes: 4_096_000,
            resident_pages: 800,
        };
        assert_eq!(parse(text), Some(stat));
        assert_eq!(parse("7 (a) S"), None);
        let own = std::fs::read_to_string("/proc/self/stat").unwrap();
        assert!(parse(&own).unwrap().resident_pages > 0);
    }
}
