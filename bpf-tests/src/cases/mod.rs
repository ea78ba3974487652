//! Named packets: what is in the tables, what comes in, and what has to come
//! of it, written by hand from docs/datapath.md. Every engine runs them.

mod answers;
mod bridged;
mod choice;
mod direct;
mod fewest;
mod fixture;
mod flows;
mod forwarding;
mod icmp_errors;
mod large;
mod leaving;
mod loopback;
mod node_clients;
mod north_south;
mod overlay;
mod own_sources;
mod parsing;
mod ports;
mod refusals;
mod service_networks;
mod services;
mod source_ranges_affinity;
mod straight;
mod tuples;
mod turns;
pub(crate) mod uplink;
mod vtep;

use std::collections::HashMap;

use datapath_common::{Counter, Feature, Hook, Reason, Traffic};

pub use fixture::{Fixture, NOW};
use uplink::Uplink;

use crate::engine::{Counted, Engine, Observed};
use crate::model::check::{faults, hex, is_taken_out, mask_free};
use crate::model::{
    AffinityId, AffinityRow, Ctx, FlowId, FlowRow, FragmentId, FragmentRow, Verdict, World,
    sent_packet,
};

/// The frame after the program.
#[derive(Clone, Debug)]
pub enum Out {
    /// As it came.
    Same,
    /// These bytes, except what the rules leave to the program.
    Frame(Vec<u8>),
    /// Nobody sees it.
    Gone,
}

/// One packet and what has to come of it.
#[derive(Clone, Debug)]
pub struct Case {
    /// The sentence that it shows.
    pub name: String,
    /// The tables before.
    pub world: World,
    /// The program.
    pub hook: Hook,
    /// The packet.
    pub frame: Vec<u8>,
    /// What comes with it.
    pub ctx: Ctx,
    /// What is counted.
    pub reason: Reason,
    /// Where it goes.
    pub verdict: Verdict,
    /// The frame after.
    pub out: Out,
    /// Flow rows written; all others are as before.
    pub flows: Vec<(FlowId, FlowRow)>,
    /// Affinity rows written; all others are as before.
    pub affinities: Vec<(AffinityId, AffinityRow)>,
    /// Fragments remembered; all others are as before.
    pub fragments: Vec<(FragmentId, FragmentRow)>,
    /// All turns taken.
    pub turns: HashMap<u32, u64>,
    /// All living flows that are counted.
    pub live: HashMap<(u8, u32), i64>,
    /// All traffic of service ports.
    pub service_traffic: HashMap<u32, Traffic>,
    /// All traffic of backends.
    pub backend_traffic: HashMap<(u8, u32), Traffic>,
}

impl Case {
    fn new(name: &str, world: &World, hook: Hook, frame: Vec<u8>) -> Self {
        let verdict = if hook == Hook::Xdp {
            Verdict::Pass
        } else {
            Verdict::Kernel
        };
        Self {
            name: name.to_owned(),
            world: world.clone(),
            hook,
            frame,
            ctx: Ctx::default(),
            reason: Reason::NotOurs,
            verdict,
            out: Out::Same,
            flows: Vec::new(),
            affinities: Vec::new(),
            fragments: Vec::new(),
            turns: world.turns.clone(),
            live: world.live.clone(),
            service_traffic: HashMap::new(),
            backend_traffic: HashMap::new(),
        }
    }

    /// Passed on, as it is.
    fn passes(mut self, reason: Reason) -> Self {
        self.reason = reason;
        self
    }

    /// Dropped.
    fn drops(mut self, reason: Reason) -> Self {
        (self.reason, self.verdict, self.out) = (reason, Verdict::Drop, Out::Gone);
        self
    }

    /// Leaves with this verdict as this frame.
    fn leaves(mut self, reason: Reason, verdict: Verdict, frame: Vec<u8>) -> Self {
        (self.reason, self.verdict, self.out) = (reason, verdict, Out::Frame(frame));
        self
    }

    /// Answered with this frame.
    fn answered(self, reason: Reason, frame: Vec<u8>) -> Self {
        let ifindex = self.ctx.ifindex;
        self.leaves(reason, Verdict::RedirectBack { ifindex }, frame)
    }

    fn writes(mut self, rows: impl IntoIterator<Item = (FlowId, FlowRow)>) -> Self {
        self.flows.extend(rows);
        self
    }

    /// The case on a kernel that cannot take IPv6 out of IPv4 (before Linux 6.3), where the agent
    /// switches that off: what `tulle_nic_in` would take out is the kernel's.
    #[must_use]
    pub fn without_decap_6_in_4(mut self) -> Self {
        /// Where the EtherType inside an overlay packet without outer options is.
        const INNER_TYPE: std::ops::Range<usize> = 62..64;
        self.world.config.features &= !Feature::DECAP_6_IN_4;
        let inner_v6 = self.frame.get(INNER_TYPE) == Some(&[0x86, 0xdd]);
        let of_named = [
            Reason::BackendGone,
            Reason::TtlExceeded,
            Reason::MartianSource,
        ];
        let named = of_named.contains(&self.reason) && self.verdict == Verdict::Drop;
        let taken_out = named
            || matches!(self.reason, Reason::Decapsulated | Reason::ReplyTranslated)
            || matches!(self.verdict, Verdict::RedirectIngress { .. });
        if self.hook == Hook::NicIn && inner_v6 && taken_out && self.frame[12..14] == [0x08, 0] {
            self.flows.clear();
            self.fragments.clear();
            (self.verdict, self.out) = (Verdict::Kernel, Out::Same);
            return self.passes(Reason::OverlayToKernel);
        }
        self
    }

    /// The case where the agent has functions called to spare the verifier (before Linux 6.5).
    #[must_use]
    pub fn with_calls(mut self) -> Self {
        self.world.config.features |= Feature::CALLS;
        self
    }

    fn observe(&self, engine: &mut dyn Engine) -> anyhow::Result<Observed> {
        engine.load(&self.world)?;
        engine.run(self.hook, &self.frame, &self.ctx)
    }

    /// Runs it; what is wrong, for people.
    pub fn run(&self, engine: &mut dyn Engine) -> anyhow::Result<Vec<String>> {
        let mut observed = self.observe(engine)?;
        // The clock stepped after the tables were written: ages are off by one.
        for _ in 0..50 {
            if observed.ticks == (NOW, NOW) {
                break;
            }
            observed = self.observe(engine)?;
        }
        anyhow::ensure!(observed.ticks == (NOW, NOW), "the clock steps all the time");
        let mut wrong = Vec::new();
        let code = self.verdict.code(self.hook);
        if observed.ret != code {
            wrong.push(format!(
                "returned {}, not {code} ({:?})",
                observed.ret, self.verdict
            ));
        }
        if let Some(verdict) = observed.verdict.filter(|verdict| *verdict != self.verdict) {
            wrong.push(format!("went {verdict:?}, not {:?}", self.verdict));
        }
        let counter = Counter {
            packets: 1,
            bytes: self.frame.len() as u64,
        };
        let counted = vec![Counted {
            hook: self.hook,
            reason: self.reason,
            counter,
        }];
        if observed.counted != counted {
            wrong.push(format!(
                "counted {:?}, not {}",
                observed.counted,
                self.reason.label()
            ));
        }
        let expected = match &self.out {
            Out::Same => Some(&self.frame),
            Out::Frame(frame) => Some(frame),
            Out::Gone => None,
        };
        if let Some(expected) = expected {
            wrong.extend(faults(self.verdict, &observed.frame));
            let sent = sent_packet(&self.world, &self.frame, &self.ctx);
            let (mut want, mut got) = (expected.clone(), observed.frame.clone());
            let taken_out = is_taken_out(self.hook, &self.frame, self.verdict, expected);
            for one in [&mut want, &mut got] {
                mask_free(one, taken_out, self.reason, self.verdict, sent.as_ref());
            }
            if want != got {
                wrong.push(format!(
                    "frame, wanted:\n{}  got:\n{}",
                    hex(&want),
                    hex(&got)
                ));
            }
        }
        let mut flows = self.world.flows.clone();
        flows.extend(self.flows.iter().copied());
        let seen = observed.flows;
        if flows != seen {
            wrong.push(format!("flows, wanted:\n  {flows:#?}\n  got:\n  {seen:#?}"));
        }
        if observed.turns != self.turns {
            wrong.push(format!(
                "turns, wanted {:?}, got {:?}",
                self.turns, observed.turns
            ));
        }
        if observed.live != self.live {
            wrong.push(format!(
                "living flows, wanted {:?}, got {:?}",
                self.live, observed.live
            ));
        }
        let traffic = (&self.service_traffic, &self.backend_traffic);
        if traffic != (&observed.service_traffic, &observed.backend_traffic) {
            wrong.push(format!(
                "traffic, wanted {traffic:?}, got {:?} {:?}",
                observed.service_traffic, observed.backend_traffic
            ));
        }
        let mut affinities = self.world.affinities.clone();
        affinities.extend(self.affinities.iter().copied());
        let seen = observed.affinities;
        if affinities != seen {
            wrong.push(format!(
                "affinities, wanted:\n  {affinities:#?}\n  got:\n  {seen:#?}"
            ));
        }
        let mut fragments = self.world.fragments.clone();
        fragments.extend(self.fragments.iter().copied());
        let seen = observed.fragments;
        if fragments != seen {
            wrong.push(format!(
                "fragments, wanted:\n  {fragments:#?}\n  got:\n  {seen:#?}"
            ));
        }
        Ok(wrong)
    }
}

/// Every case, IPv4 and IPv6.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        let fixture = Fixture::new(v6);
        cases.extend(parsing::cases(&fixture));
        cases.extend(services::cases(&fixture));
        cases.extend(choice::cases(&fixture));
        cases.extend(turns::cases(&fixture));
        cases.extend(fewest::cases(&fixture));
        cases.extend(flows::cases(&fixture));
        cases.extend(forwarding::cases(&fixture));
        cases.extend(refusals::cases(&fixture));
        cases.extend(overlay::cases(&fixture));
        let uplink = Uplink::new(v6);
        cases.extend(north_south::cases(&uplink));
        cases.extend(ports::cases(&uplink));
        cases.extend(answers::cases(&uplink));
        cases.extend(node_clients::cases(&uplink));
        cases.extend(loopback::cases(v6));
        cases.extend(bridged::cases(v6));
        cases.extend(large::cases(v6));
        cases.extend(leaving::cases(&uplink));
        cases.extend(straight::cases(&uplink));
        cases.extend(tuples::cases(&uplink));
        cases.extend(own_sources::cases(&uplink));
        cases.extend(direct::cases(&uplink));
        cases.extend(vtep::cases(&uplink));
        cases.extend(service_networks::cases(&uplink));
        cases.extend(icmp_errors::cases(&uplink));
        cases.extend(source_ranges_affinity::cases(&uplink));
    }
    cases
}
