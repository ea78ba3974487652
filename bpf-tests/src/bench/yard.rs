//! What primitives cost on this machine at the moment: figures of two runs can
//! be compared only beside them.

use anyhow::{Context as _, Result};
use aya::maps::HashMap as BpfHash;
use aya::programs::Xdp;
use serde::Serialize;

use super::sample::Spread;
use super::scaffold::{FRAME, TIMES, YARD_KEY, load, run};
use crate::engine::table;

/// Rounds in one reading.
const REPEAT: u32 = 20_000;
/// Readings. Few: at XDP the kernel waits for all CPUs before and after each.
const READINGS: u32 = 20;

/// Program and what it measures.
const YARDSTICKS: [(&str, &str); 7] = [
    ("bench_y_array", "array look-up, inlined"),
    ("bench_y_call", "call of a function, and return"),
    ("bench_y_miss", "hash, 8-byte key, miss"),
    ("bench_y_lru16", "LRU hash, 16-byte key, hit"),
    ("bench_y_lru40", "LRU hash, 40-byte key, hit"),
    ("bench_y_ktime", "`ktime_get_ns`"),
    ("bench_y_head", "`adjust_head`"),
];

/// A primitive and its nanoseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Yardstick {
    /// What it is.
    pub what: &'static str,
    /// Nanoseconds of one.
    pub nanos: f64,
}

/// Measures all of them, and the empty programs.
pub fn measure() -> Result<Vec<Yardstick>> {
    let mut ebpf = load()?;
    let mut lru16: BpfHash<_, [u64; 2], u64> = table(&mut ebpf, "bench_lru16")?;
    lru16.insert([YARD_KEY; 2], 1, 0)?;
    let mut lru40: BpfHash<_, [u64; 5], u64> = table(&mut ebpf, "bench_lru40")?;
    lru40.insert([YARD_KEY; 5], 1, 0)?;
    let empty = "bench_xdp_empty";
    for name in YARDSTICKS.iter().map(|(name, _)| *name).chain([empty]) {
        crate::load::program(&mut ebpf, name)?;
    }
    let frame = [0; FRAME];
    let read = |name: &str| {
        let program = ebpf
            .program(name)
            .with_context(|| format!("no program {name}"))?;
        Ok::<_, anyhow::Error>(run(<&Xdp>::try_from(program)?, &frame, REPEAT)?.nanos)
    };
    let mut floor = Vec::new();
    let mut over: Vec<Vec<f64>> = vec![Vec::new(); YARDSTICKS.len()];
    for _ in 0..READINGS {
        for ((name, _), over) in YARDSTICKS.iter().zip(&mut over) {
            let nothing = read(empty)?;
            floor.push(nothing);
            over.push((read(name)? - nothing) / TIMES as f64);
        }
    }
    let middle = |readings| Spread::of(readings).map_or(0.0, |spread| spread.middle);
    let mut all = vec![Yardstick {
        what: "empty XDP program, whole",
        nanos: middle(floor),
    }];
    for ((_, what), over) in YARDSTICKS.iter().zip(over) {
        let nanos = middle(over);
        all.push(Yardstick { what, nanos });
    }
    Ok(all)
}
