//! The named cases, on the model and on the programs. The programs need root
//! and `target/bpf/tulle.bpf.o`.

use bpf_tests::cases::{self, Case, Fixture};
use bpf_tests::engine::{Driver, Engine, InProcess, Kernel, object};
use datapath_common::Hook;

/// All cases.
fn every() -> Vec<Case> {
    let cases = cases::all();
    assert!(cases.len() > 1000, "only {} cases", cases.len());
    cases
}

/// All cases where IPv6 cannot be taken out of IPv4.
fn every_without_decap() -> Vec<Case> {
    every()
        .into_iter()
        .map(Case::without_decap_6_in_4)
        .collect()
}

fn run(engine: &mut dyn Engine, cases: &[Case]) {
    let (mut failed, mut left_out) = (0, 0);
    for case in cases {
        if !engine.takes(case.hook, &case.frame) {
            left_out += 1;
            continue;
        }
        let wrong = match case.run(engine) {
            Ok(wrong) => wrong,
            Err(error) => vec![format!("{error:#}")],
        };
        if !wrong.is_empty() {
            failed += 1;
            eprintln!("FAILED {}\n  {}\n", case.name, wrong.join("\n  "));
        }
    }
    assert!(
        left_out < 10,
        "{left_out} cases that the engine cannot be given"
    );
    assert!(failed == 0, "{failed} of {} cases failed", cases.len());
}

/// Whether this kernel is of a series or later.
fn is_since(series: (u32, u32)) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(series.0), Some(series.1))
}

#[test]
fn the_model_passes_every_case() {
    run(&mut InProcess::new(None), &every());
    run(&mut InProcess::new(None), &every_without_decap());
}

#[test]
fn the_programs_pass_every_case() {
    let called = |cases: Vec<Case>| cases.into_iter().map(Case::with_calls).collect::<Vec<_>>();
    // As the agent has it: older verifiers cannot follow the programs otherwise, older kernels
    // do not take IPv6 out of IPv4.
    let lists = if is_since((6, 5)) {
        // Most cases have the usual configuration: the programs are not loaded for each other.
        let usual = Fixture::new(false).world.config;
        let mut most = every();
        most.retain(|case| case.world.config == usual);
        let mut without = every_without_decap();
        without.retain(|case| case.hook == Hook::NicIn);
        vec![every(), called(most), called(without)]
    } else if is_since((6, 3)) {
        vec![called(every())]
    } else {
        vec![called(every_without_decap())]
    };
    let mut engine = Kernel::new(object().unwrap()).unwrap();
    for cases in lists {
        // What cannot be loaded at all is no case's fault.
        engine.load(&cases[0].world).unwrap();
        run(&mut engine, &cases);
    }
}

/// XDP serves what it can, the classifier the rest: together they do what the classifier does.
#[test]
fn the_programs_pass_every_case_with_services_by_xdp() {
    let ns = Driver::namespace().unwrap();
    let decided = ns.run(|| {
        let mut engine = Driver::new(object().unwrap()).unwrap();
        let mut cases = every();
        cases.retain(|case| case.hook == Hook::NicIn);
        engine.load(&cases[0].world).unwrap();
        run(&mut engine, &cases);
        engine.decided
    });
    let decided = decided.unwrap();
    assert!(decided > 80, "XDP decided about {decided} packets only");
}
