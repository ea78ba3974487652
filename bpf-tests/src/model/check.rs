//! Holds an observation against the rules. What the rules leave to the
//! program is adopted from the observation, after looking whether it may be.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::{self, Write as _};
use std::net::IpAddr;

use datapath_common::{Hook, Reason, proto};

use super::parse::{Fragment, Packet, parse};
use super::{Ctx, FlowRow, Hash, Hashed, Outcome, Tuple, Verdict, World, run};
use crate::engine::Observed;
use crate::packet::{ETHERNET, internet_checksum};

/// What must stay the same from packet to packet.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Backends that all packets of a tuple, or of a client, may have gone to, by segment. More
    /// than one if ids share an address and nothing told them apart.
    choices: HashMap<(Hashed, Vec<u32>), BTreeSet<u32>>,
    /// Outer source port by the tuple that was sent and the inner one.
    ports: HashMap<(Tuple, InnerTuple), u16>,
}

/// Addresses of an inner packet, and what its source was translated with.
type InnerTuple = (Vec<u8>, Option<(IpAddr, u16)>);

/// Why an observation cannot be what the rules say.
#[derive(Clone, Debug)]
pub struct Difference(String);

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Difference {}

/// The packet as it was sent, with the ports of its first fragment.
pub fn sent_packet(world: &World, frame: &[u8], ctx: &Ctx) -> Option<Packet> {
    let mut packet = parse(frame, ctx).ok()?;
    world.add_fragment_ports(&mut packet);
    Some(packet)
}

/// Whether a program took the frame that left as `out` out of the overlay.
pub fn is_taken_out(hook: Hook, frame: &[u8], verdict: Verdict, out: &[u8]) -> bool {
    let added = match verdict {
        Verdict::RedirectNeigh { .. } => OUTER,
        _ => 0,
    };
    hook == Hook::NicIn && !verdict.is_answer() && out.len() + OUTER == frame.len() + added
}

/// The frame that became the outcome's: the inner one, if it was taken out of
/// the overlay.
pub fn met_frame<'a>(hook: Hook, frame: &'a [u8], outcome: &Outcome) -> &'a [u8] {
    if is_taken_out(hook, frame, outcome.verdict, &outcome.frame) {
        &frame[OUTER..]
    } else {
        frame
    }
}

impl Memory {
    /// Runs the model on `world` as the observed program ran: with each slot
    /// of the segment and each tick that it may have met. The first run that
    /// agrees is adopted.
    pub fn check(
        &mut self,
        world: &mut World,
        hook: Hook,
        frame: &[u8],
        ctx: &Ctx,
        observed: &Observed,
    ) -> Result<Outcome, Difference> {
        let sent = sent_packet(world, frame, ctx);
        let forward = sent.as_ref().map(|sent| sent.tuple().forward());
        let row = forward.and_then(|forward| observed.flows.get(&forward));
        let port = row.and_then(FlowRow::translated_source).map(|nat| nat.1);
        let mut complaints: Vec<(usize, String)> = Vec::new();
        let ticks = if observed.ticks.0 == observed.ticks.1 {
            vec![observed.ticks.0]
        } else {
            vec![observed.ticks.0, observed.ticks.1]
        };
        let mut adopted: Option<(Outcome, World)> = None;
        let mut backends = BTreeSet::new();
        for now in ticks {
            let mut slots = 1;
            let mut slot = 0;
            while slot < slots {
                let mut after = world.clone();
                after.now = now;
                let hash = Hash::Seen { slot, port };
                let outcome = run(&mut after, hook, frame, &Ctx { hash, ..*ctx });
                meet_across_ticks(&mut after, observed);
                if let Some(choice) = &outcome.choice {
                    slots = choice.segment.len().max(1);
                }
                slot += 1;
                let met = sent_packet(world, met_frame(hook, frame, &outcome), ctx);
                let found = differences(&outcome, &after, hook, frame, met.as_ref(), observed);
                if found.is_empty() {
                    backends.extend(outcome.choice.as_ref().map(|choice| choice.backend));
                    adopted.get_or_insert((outcome, after));
                } else {
                    complaints.push((found.len(), found.join("\n  ")));
                }
            }
        }
        if let Some((outcome, after)) = adopted {
            *world = after;
            let met = sent_packet(world, met_frame(hook, frame, &outcome), ctx);
            let nat = row.and_then(FlowRow::translated_source);
            self.remember(
                &outcome,
                &backends,
                frame,
                met.as_ref().zip(Some(nat)),
                observed,
            )?;
            return Ok(outcome);
        }
        let tried = complaints.len();
        let best = complaints.into_iter().min_by_key(|(count, _)| *count);
        let text = best.map(|(_, text)| text).unwrap_or_default();
        Err(Difference(format!(
            "{} ({tried} possible runs), frame in:\n{}  {text}",
            hook.name(),
            hex(frame)
        )))
    }

    fn remember(
        &mut self,
        outcome: &Outcome,
        backends: &BTreeSet<u32>,
        frame: &[u8],
        sent: Option<(&Packet, Option<(IpAddr, u16)>)>,
        observed: &Observed,
    ) -> Result<(), Difference> {
        // What depends on more than the packet may change.
        if let Some(choice) = outcome.choice.as_ref().filter(|choice| choice.repeats) {
            let key = (choice.hashed.clone(), choice.segment.clone());
            let before = self.choices.entry(key).or_insert_with(|| backends.clone());
            let both: BTreeSet<u32> = before.intersection(backends).copied().collect();
            if both.is_empty() {
                return Err(Difference(format!(
                    "the same tuple and segment gave backend {before:?}, now {backends:?}: \
                     {choice:?}\n{}",
                    hex(frame)
                )));
            }
            *before = both;
        }
        if let (Verdict::RedirectNeigh { .. }, Some((sent, nat))) = (outcome.verdict, sent) {
            let port = outer_port(&observed.frame);
            let inner = observed.frame.get(OUTER + ETHERNET..).unwrap_or_default();
            let addresses = if sent.ip.src.is_ipv4() {
                inner.get(12..20)
            } else {
                inner.get(8..40)
            };
            let key = (sent.tuple(), (addresses.unwrap_or_default().to_vec(), nat));
            let before = *self.ports.entry(key).or_insert(port);
            if before != port {
                return Err(Difference(format!(
                    "outer source port {port}, before {before}, for {:?}\n{}",
                    sent.tuple(),
                    hex(frame)
                )));
            }
        }
        Ok(())
    }

    /// Flows that were seen to leave through the overlay, and how many outer
    /// source ports they have.
    pub fn outer_ports(&self) -> (usize, usize) {
        (
            self.ports.len(),
            self.ports.values().collect::<HashSet<_>>().len(),
        )
    }
}

const OUTER: usize = super::rewrite::OVERLAY;

fn outer_port(frame: &[u8]) -> u16 {
    frame
        .get(ETHERNET + 20..ETHERNET + 22)
        .map_or(0, |b| u16::from_be_bytes([b[0], b[1]]))
}

/// A program reads the clock where it needs it: over a tick's end, each row may have one or the
/// other. What was seen is right then.
fn meet_across_ticks(after: &mut World, observed: &Observed) {
    let (first, last) = observed.ticks;
    let meet = |rules: &mut u32, seen: u32| {
        if [first, last].contains(rules) && [first, last].contains(&seen) {
            *rules = seen;
        }
    };
    for (id, row) in &mut after.flows {
        if let Some(seen) = observed.flows.get(id) {
            meet(&mut row.opened, seen.opened);
            meet(&mut row.seen, seen.seen);
        }
    }
    for (id, row) in &mut after.affinities {
        if let Some(seen) = observed.affinities.get(id) {
            meet(&mut row.seen, seen.seen);
        }
    }
    for (id, row) in &mut after.fragments {
        if let Some(seen) = observed.fragments.get(id) {
            meet(&mut row.seen, seen.seen);
        }
    }
}

fn differences(
    outcome: &Outcome,
    after: &World,
    hook: Hook,
    frame: &[u8],
    sent: Option<&Packet>,
    observed: &Observed,
) -> Vec<String> {
    let mut found = Vec::new();
    let code = outcome.verdict.code(hook);
    if code != observed.ret {
        found.push(format!(
            "returned {}, the rules say {code} ({:?})",
            observed.ret, outcome.verdict
        ));
    }
    let right = matches!(observed.counted[..], [c]
        if c.hook == hook && c.reason == outcome.reason
            && c.counter.packets == 1 && c.counter.bytes == frame.len() as u64);
    if !right {
        found.push(format!(
            "counted {:?}, the rules say {} once, {} bytes",
            observed.counted,
            outcome.reason.label(),
            frame.len()
        ));
    }
    if outcome.verdict != Verdict::Drop {
        let (mut want, mut got) = (outcome.frame.clone(), observed.frame.clone());
        found.extend(faults(outcome.verdict, &observed.frame));
        let taken_out = is_taken_out(hook, frame, outcome.verdict, &outcome.frame);
        for one in [&mut want, &mut got] {
            mask_free(one, taken_out, outcome.reason, outcome.verdict, sent);
        }
        if want != got {
            found.push(format!(
                "frame out (what is free masked), rules:\n{}  observed:\n{}",
                hex(&want),
                hex(&got)
            ));
        }
    }
    for (id, row) in &after.flows {
        let got = observed.flows.get(id);
        if got != Some(row) {
            found.push(format!(
                "flow {id:?}:\n    rules {row:?}\n    observed {got:?}"
            ));
        }
    }
    for (id, row) in observed
        .flows
        .iter()
        .filter(|(id, _)| !after.flows.contains_key(id))
    {
        found.push(format!("flow {id:?}: unexpected {row:?}"));
    }
    let traffic = (&after.service_traffic, &after.backend_traffic);
    if traffic != (&observed.service_traffic, &observed.backend_traffic) {
        found.push(format!(
            "traffic: rules {traffic:?}, observed {:?} {:?}",
            observed.service_traffic, observed.backend_traffic
        ));
    }
    if after.turns != observed.turns {
        found.push(format!(
            "turns: rules {:?}, observed {:?}",
            after.turns, observed.turns
        ));
    }
    if after.live != observed.live {
        found.push(format!(
            "living flows: rules {:?}, observed {:?}",
            after.live, observed.live
        ));
    }
    if after.affinities != observed.affinities {
        found.push(format!(
            "affinities: rules {:?}, observed {:?}",
            after.affinities, observed.affinities
        ));
    }
    if after.fragments != observed.fragments {
        found.push(format!(
            "fragments: rules {:?}, observed {:?}",
            after.fragments, observed.fragments
        ));
    }
    found
}

/// Faults in what the rules leave open within bounds.
pub fn faults(verdict: Verdict, frame: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let header = frame.get(ETHERNET..ETHERNET + 20).unwrap_or_default();
    match verdict {
        Verdict::RedirectNeigh { .. } => {
            if internet_checksum(&[header]) != 0 {
                found.push("the outer header's checksum is wrong".to_owned());
            }
            let port = outer_port(frame);
            if !(32768..=60999).contains(&port) {
                found.push(format!("outer source port {port} is not in 32768..=60999"));
            }
        }
        Verdict::RedirectBack { .. } | Verdict::AnswerNode { .. } => {
            let v4 = header.first().is_some_and(|b| b >> 4 == 4);
            if v4 && internet_checksum(&[header]) != 0 {
                found.push("the answer's header checksum is wrong".to_owned());
            }
            let ttl = header.get(if v4 { 8 } else { 7 }).copied().unwrap_or(0);
            if ttl < 32 {
                found.push(format!("the answer's TTL is {ttl}"));
            }
        }
        _ => {}
    }
    found
}

/// Masks what the program may choose, and writes both zeros of the Internet
/// checksum as one.
pub fn mask_free(
    frame: &mut [u8],
    taken_out: bool,
    reason: Reason,
    verdict: Verdict,
    sent: Option<&Packet>,
) {
    let mut mask = |from: usize, to: usize| {
        if let Some(bytes) = frame.get_mut(from..to) {
            bytes.fill(0);
        }
    };
    let mut ip = ETHERNET;
    match verdict {
        Verdict::RedirectNeigh { .. } => {
            mask(0, 12); // Ethernet addresses: bpf_redirect_neigh fills them
            mask(18, 20); // identification
            mask(24, 26); // checksum with it, held against the bytes in faults()
            mask(34, 36); // source port
            ip += OUTER;
        }
        // bpf_redirect_neigh fills the Ethernet addresses.
        Verdict::Route { .. } => mask(0, 12),
        Verdict::RedirectBack { .. } | Verdict::AnswerNode { .. } => {
            if sent.is_some_and(|sent| sent.ip.src.is_ipv4()) {
                mask(15, 16); // type of service
                mask(18, 21); // identification, DF
                mask(22, 23); // TTL
                mask(24, 26); // checksum
            } else {
                mask(15, 18); // flow label
                mask(21, 22); // hop limit
            }
            return;
        }
        // The rules name the destination, and nothing for the kernel.
        Verdict::RedirectIngress { .. } if taken_out => mask(6, 12),
        Verdict::Kernel if taken_out => mask(0, 12),
        _ if reason == Reason::Decapsulated && verdict == Verdict::Pass => {
            mask(6, 12);
            return;
        }
        _ => {}
    }
    let Some(sent) = sent else { return };
    let upper = sent.ip.upper - ETHERNET + ip;
    let one_zero = |frame: &mut [u8], at: usize| {
        if let Some(sum) = frame
            .get_mut(at..at + 2)
            .filter(|sum| **sum == [0xff, 0xff])
        {
            sum.fill(0);
        }
    };
    let first = matches!(sent.ip.fragment, Fragment::First(_));
    if sent.ip.src.is_ipv4() {
        one_zero(frame, ip + 10);
    }
    if sent.is_later_fragment() {
        return;
    }
    match sent.ip.proto {
        proto::TCP => one_zero(frame, upper + 16),
        // Without a checksum IPv6's UDP is void; what becomes of the zero is all one.
        proto::UDP if sent.ip.src.is_ipv6() && sent.sum_is_zero => {
            frame
                .get_mut(upper + 6..upper + 8)
                .unwrap_or_default()
                .fill(0);
        }
        // The checksum covers what the first fragment does not hold.
        proto::SCTP if first => frame
            .get_mut(upper + 8..upper + 12)
            .unwrap_or_default()
            .fill(0),
        proto::ICMP | proto::ICMPV6 => {
            one_zero(frame, upper + 2);
            // The header that an error quotes has a checksum too.
            if reason == Reason::ErrorTranslated && sent.ip.src.is_ipv4() {
                one_zero(frame, upper + 8 + 10);
            }
        }
        _ => {}
    }
}

/// Bytes for people: sixteen to a line.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (at, line) in bytes.chunks(16).enumerate() {
        let _ = write!(text, "    {:04x} ", at * 16);
        for byte in line {
            let _ = write!(text, " {byte:02x}");
        }
        text.push('\n');
    }
    text
}
