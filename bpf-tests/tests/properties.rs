//! The programs against the reference model, on random worlds and histories.
//! Needs root and `target/bpf/tulle.bpf.o`.

use std::cell::RefCell;

use bpf_tests::engine::{Engine, Fault, InProcess, Kernel, Observed, object};
use bpf_tests::model::{Ctx, Memory, Outcome, Verdict, World, met_frame, rewrite, sent_packet};
use bpf_tests::strategies::{CONFIGS, Event, WorldPlan, config, history, world};
use datapath_common::{Hook, Reason};
use proptest::prelude::*;
use proptest::test_runner::{
    Config as Runner, FileFailurePersistence, RngAlgorithm, TestCaseError, TestRng, TestRunner,
};

/// What a history met, over all its packets.
#[derive(Default)]
struct Seen {
    packets: usize,
    reasons: std::collections::HashSet<(u8, u8)>,
    outer_flows: (usize, usize),
    /// Flows whose client keeps its address, but not its port.
    moved: usize,
}

fn play(
    engine: &mut dyn Engine,
    plan: &WorldPlan,
    events: &[Event],
    seen: &mut Seen,
) -> Result<(), TestCaseError> {
    let mut world = plan.build();
    world.now = 1_000_000;
    let failed = |error: anyhow::Error| TestCaseError::fail(format!("{error:#}"));
    engine.load(&world).map_err(failed)?;
    let mut memory = Memory::default();
    for (at, event) in events.iter().enumerate() {
        if let Event::Packet(plan) = event {
            let (hook, ctx) = (plan.hook, plan.ctx());
            let frame = plan.build(&world);
            if !engine.takes(hook, &frame) {
                continue;
            }
            let before = world.clone();
            let observed = engine.run(hook, &frame, &ctx).map_err(failed)?;
            let outcome = memory
                .check(&mut world, hook, &frame, &ctx, &observed)
                .map_err(|difference| TestCaseError::fail(format!("event {at}: {difference}")))?;
            checksums_survive(&before, hook, &frame, &observed, &outcome)?;
            let opened = outcome
                .opened_flow
                .and_then(|id| Some((id, world.flows.get(&id)?)));
            let moved = opened.is_some_and(|(id, row)| {
                let source = row.translated_source();
                source.is_some_and(|source| source.0 == id.tuple.src)
            });
            seen.moved += usize::from(moved);
            seen.packets += 1;
            seen.reasons.insert((hook as u8, outcome.reason as u8));
        }
        for change in event.changes(&world) {
            engine.apply_change(&change).map_err(failed)?;
            world.apply(&change);
        }
    }
    let (flows, ports) = memory.outer_ports();
    seen.outer_flows.0 += flows;
    seen.outer_flows.1 += ports;
    Ok(())
}

/// A right upper checksum comes out right, by full recomputation.
fn checksums_survive(
    world: &World,
    hook: Hook,
    frame: &[u8],
    observed: &Observed,
    outcome: &Outcome,
) -> Result<(), TestCaseError> {
    let reason = outcome.reason;
    let encapsulated = matches!(outcome.verdict, Verdict::RedirectNeigh { .. });
    let forwarded = [
        Reason::DeliveredLocal,
        Reason::TranslatedToKernel,
        Reason::ReplyTranslated,
        Reason::Masqueraded,
        Reason::ErrorTranslated,
    ];
    let out = if encapsulated {
        &observed.frame[rewrite::OVERLAY..]
    } else if forwarded.contains(&reason) {
        &observed.frame[..]
    } else {
        return Ok(());
    };
    let (ctx, met) = (Ctx::default(), met_frame(hook, frame, outcome));
    let (Some(before), Some(after)) =
        (sent_packet(world, met, &ctx), sent_packet(world, out, &ctx))
    else {
        return Err(TestCaseError::fail("what was forwarded does not parse"));
    };
    let right = (
        rewrite::upper_sum_is_right(met, &before),
        rewrite::upper_sum_is_right(out, &after),
    );
    prop_assert_eq!(right.0, right.1);
    Ok(())
}

/// New cases on each run, failures kept; `PROPTEST_CASES` asks for more.
fn searching(cases: u32) -> TestRunner {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/properties.seeds");
    let asked = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|number| number.parse().ok());
    TestRunner::new(Runner {
        cases: asked.unwrap_or(cases),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(seeds))),
        max_shrink_iters: 4000,
        source_file: Some(file!()),
        ..Runner::default()
    })
}

/// The same cases on each run.
fn repeating(cases: u32) -> TestRunner {
    let config = Runner {
        cases,
        failure_persistence: None,
        ..Runner::default()
    };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

fn run_all(mut runner: TestRunner, engine: impl Engine) -> (Result<(), String>, Seen) {
    let state = RefCell::new((engine, Seen::default()));
    let result = runner.run(&(world(), history(40)), |(plan, events)| {
        let (engine, seen) = &mut *state.borrow_mut();
        play(engine, &plan, &events, seen)
    });
    (
        result.map_err(|failure| failure.to_string()),
        state.into_inner().1,
    )
}

#[test]
fn the_model_agrees_with_itself_and_meets_every_branch() {
    let (result, seen) = run_all(repeating(2500), InProcess::new(None));
    if let Err(failure) = result {
        panic!("{failure}");
    }
    let both = [Hook::NicIn, Hook::Xdp];
    let services = [Hook::PodFrom, Hook::NicIn];
    let mut wanted: Vec<(Hook, Reason)> = vec![
        (Hook::NicIn, Reason::SlowPath),
        (Hook::NicIn, Reason::ReplyTranslated),
        (Hook::NicIn, Reason::DeliveredLocal),
        (Hook::NicIn, Reason::Encapsulated),
        (Hook::NicIn, Reason::TranslatedToKernel),
        (Hook::NicIn, Reason::NoEndpoints),
        (Hook::NicIn, Reason::NoSuchPort),
        (Hook::NicIn, Reason::TtlExceeded),
        (Hook::NicIn, Reason::TooBig),
        (Hook::NicIn, Reason::FragmentWithoutFirst),
        (Hook::NicOut, Reason::NotOurs),
        (Hook::NicOut, Reason::ReplyTranslated),
        (Hook::NicOut, Reason::DeliveredLocal),
        (Hook::NicOut, Reason::Encapsulated),
        (Hook::NicOut, Reason::TranslatedToKernel),
        (Hook::NicOut, Reason::NoEndpoints),
        (Hook::NicOut, Reason::NoSuchPort),
        (Hook::NicOut, Reason::NoLocalEndpoints),
        (Hook::NicOut, Reason::SourceNotAllowed),
        (Hook::NicOut, Reason::TtlExceeded),
        (Hook::NicOut, Reason::UnknownFlow),
        (Hook::NicOut, Reason::Masqueraded),
        (Hook::NicOut, Reason::NewFlowLimit),
        (Hook::NicOut, Reason::SnatPortsExhausted),
        (Hook::PodFrom, Reason::ErrorTranslated),
        (Hook::PodTo, Reason::ErrorTranslated),
        (Hook::NicIn, Reason::ErrorTranslated),
        (Hook::NicOut, Reason::ErrorTranslated),
        (Hook::PodTo, Reason::ReplyTranslated),
        (Hook::PodTo, Reason::NotOurs),
    ];
    for (hooks, reasons) in [
        (
            &[Hook::PodFrom][..],
            &[
                Reason::NotOurs,
                Reason::Tagged,
                Reason::NotIp,
                Reason::Control,
                Reason::SlowPath,
                Reason::TranslatedToKernel,
                Reason::DeliveredLocal,
                Reason::Encapsulated,
                Reason::ReplyTranslated,
                Reason::NoEndpoints,
                Reason::NoSuchPort,
                Reason::TtlExceeded,
                Reason::TooBig,
                Reason::Truncated,
                Reason::BadHeader,
                Reason::NewFlowLimit,
                Reason::FragmentWithoutFirst,
                Reason::BackendGone,
                Reason::ErrorLimit,
                Reason::Unanswerable,
                Reason::MartianSource,
            ][..],
        ),
        (
            &both,
            &[
                Reason::NotOurs,
                Reason::ForeignVni,
                Reason::OverlayToKernel,
                Reason::UnknownNode,
                Reason::Decapsulated,
                Reason::Truncated,
            ],
        ),
        (
            &services,
            &[
                Reason::SnatPortsExhausted,
                Reason::SourceNotAllowed,
                Reason::NoLocalEndpoints,
                Reason::UnknownFlow,
            ],
        ),
    ] {
        let each = |hook: &Hook| {
            reasons
                .iter()
                .map(|reason| (*hook, *reason))
                .collect::<Vec<_>>()
        };
        wanted.extend(hooks.iter().flat_map(each));
    }
    let unmet: Vec<String> = wanted
        .iter()
        .filter(|(hook, reason)| !seen.reasons.contains(&(*hook as u8, *reason as u8)))
        .map(|(hook, reason)| format!("{} {}", hook.name(), reason.label()))
        .collect();
    assert!(unmet.is_empty(), "never met: {unmet:?}");
    assert!(seen.moved > 10, "{} ports were changed", seen.moved);
    let (flows, ports) = seen.outer_flows;
    assert!(
        flows > 50 && ports * 10 > flows * 9,
        "{flows} flows, {ports} outer ports"
    );
}

#[test]
fn faults_are_found() {
    let faults: [(&str, Fault); 11] = [
        ("a wrong TTL", |o| flip(o, 7, 22)),
        ("a wrong checksum", |o| flip(o, 7, 24)),
        ("a wrong MAC address in the pod", |o| flip(o, 7, 63)),
        ("an outer port out of range", |o| {
            if o.ret == 7 && o.frame.len() > 36 && o.frame[34] >= 0x80 {
                o.frame[34] = 0x10;
            }
        }),
        ("a flow row that is not refreshed", |o| {
            o.flows.values_mut().for_each(|row| row.seen = row.opened);
        }),
        ("a fragment's ports forgotten", |o| o.fragments.clear()),
        ("an affinity forgotten", |o| o.affinities.clear()),
        ("a translated source forgotten", |o| {
            o.flows.values_mut().for_each(|row| row.nat = None);
        }),
        ("traffic of a service not counted", |o| {
            o.service_traffic.clear();
        }),
        ("a wrong address in what an error quotes", |o| {
            let reason = o.counted.first().map(|counted| counted.reason);
            if reason == Some(Reason::ErrorTranslated) && o.ret == -1 {
                flip(o, -1, 57);
            }
        }),
        ("bytes not counted", |o| o.counted[0].counter.bytes += 1),
    ];
    for (name, fault) in faults {
        let (result, _) = run_all(repeating(200), InProcess::new(Some(fault)));
        assert!(result.is_err(), "not found: {name}");
    }
}

fn flip(observed: &mut Observed, ret: i32, at: usize) {
    if let Some(byte) = observed.frame.get_mut(at).filter(|_| observed.ret == ret) {
        *byte ^= 0x40;
    }
}

#[test]
fn the_programs_follow_the_rules() {
    let mut engine = Kernel::new(object().unwrap()).unwrap();
    // What cannot be loaded at all is no packet's fault.
    for number in 0..CONFIGS {
        engine.load(&World::new(config(number))).unwrap();
    }
    let (result, seen) = run_all(searching(100), engine);
    if let Err(failure) = result {
        panic!("{failure}");
    }
    assert!(seen.packets > 1000, "only {} packets", seen.packets);
    let (flows, ports) = seen.outer_flows;
    assert!(
        flows > 20 && ports * 10 > flows * 8,
        "{flows} flows, {ports} outer ports"
    );
}
