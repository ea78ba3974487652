//! Packets that two CPUs have at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use datapath_common::Hook;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::Kernel;
use super::kernel::{SK_BUFF, flow_rows};
use crate::model::{FlowId, FlowRow};

/// Turns of waiting after which the CPU is given away.
const PATIENCE: u32 = 10_000;

impl Kernel {
    /// Runs pair after pair of frames at a hook of the classifiers, the first of each on
    /// CPU 0 and the second on CPU 1, at the same moment as nearly as can be. Returns the
    /// flow rows after it.
    pub fn race(&mut self, hook: Hook, pairs: &[[Vec<u8>; 2]]) -> Result<HashMap<FlowId, FlowRow>> {
        let name = format!("tulle_{}", hook.name());
        let program = self
            .ebpf()?
            .program(&name)
            .with_context(|| format!("no {name}"))?;
        let program = <&SchedClassifier>::try_from(program)?;
        let ready = AtomicUsize::new(0);
        let run = |cpu: usize| -> Result<()> {
            let mut cpus = CpuSet::new();
            cpus.set(cpu)?;
            sched_setaffinity(Pid::from_raw(0), &cpus).context("tie a thread to its CPU")?;
            for (round, pair) in pairs.iter().enumerate() {
                let sk_buff = [0_u8; SK_BUFF];
                let mut options = TestRunOptions::new();
                options.data_in = pair.get(cpu).map(Vec::as_slice);
                options.ctx_in = Some(&sk_buff);
                ready.fetch_add(1, Ordering::SeqCst);
                let mut turns = 0;
                while ready.load(Ordering::SeqCst) < 2 * (round + 1) {
                    turns += 1;
                    if turns % PATIENCE == 0 {
                        thread::yield_now();
                    }
                }
                let ran = program.test_run(options);
                if ran.is_err() {
                    // The other one is not to wait for this.
                    ready.fetch_add(2 * pairs.len(), Ordering::SeqCst);
                }
                ran.context("run a program")?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let threads = [0, 1].map(|cpu| scope.spawn(move || run(cpu)));
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
        })?;
        flow_rows(self)
    }
}
