//! `tulle_xdp` with services, and behind it the classifier, as a packet meets them: to be held
//! against what the classifier does alone.

use anyhow::{Context as _, Result, ensure};
use datapath_common::{Feature, Hook};
use testkit::link::{self, sysctls};
use testkit::{NetNs, netns};

use super::{Change, Counted, Engine, Kernel, Observed, hear_of_next_hops};
use crate::model::{Ctx, Verdict, World};

/// The uplink in every case, and its gateway.
const UPLINK: &str = "uplink0";
const INDEX: u32 = 9;
const OWN_MAC: &str = "52:54:00:07:07:07";
const GATEWAY_MAC: [u8; 6] = [0x52, 0x54, 0, 0xaa, 0xbb, 0xcc];
const MACS: usize = 12;

/// What XDP returns.
const DROP: i32 = 1;
const PASS: i32 = 2;
const TRANSMIT: i32 = 3;

/// Makes this namespace's uplink, by which everything is reached.
pub fn lay_out(ns: &NetNs) -> Result<()> {
    let gateway = GATEWAY_MAC.map(|octet| format!("{octet:02x}")).join(":");
    sysctls(
        ns,
        &[
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
        ],
    )?;
    let lines = [
        format!("link add {UPLINK} index {INDEX} address {OWN_MAC} type veth peer name peer0"),
        "link set peer0 up".to_owned(),
        format!("link set {UPLINK} up"),
        format!("addr add 100.64.255.1/30 dev {UPLINK}"),
        format!("addr add fd64::1/126 dev {UPLINK} nodad"),
        format!("neigh add 100.64.255.2 lladdr {gateway} dev {UPLINK} nud permanent"),
        format!("neigh add fd64::2 lladdr {gateway} dev {UPLINK} nud permanent"),
        format!("route add default via 100.64.255.2 dev {UPLINK}"),
        format!("route add ::/0 via fd64::2 dev {UPLINK}"),
    ];
    Ok(link::batch(ns, &lines)?)
}

/// Both programs of one object. To be used in a namespace that is laid out.
pub struct Driver {
    kernel: Kernel,
    attached: bool,
    /// The VTEP device, where there is no XDP.
    vtep: u32,
    /// Packets that XDP sent on or dropped.
    pub decided: u32,
}

impl Driver {
    /// An engine for an object file's bytes.
    pub fn new(object: Vec<u8>) -> Result<Self> {
        Ok(Self {
            kernel: Kernel::new(object)?,
            attached: false,
            vtep: 0,
            decided: 0,
        })
    }

    /// A namespace for it.
    pub fn namespace() -> Result<NetNs> {
        let ns = NetNs::named(&netns::unique("driver"))?;
        lay_out(&ns)?;
        Ok(ns)
    }

    /// What XDP did with a packet, as if the classifier had done it. `None` if it passed it on.
    fn taken(&mut self, frame: &[u8], seen: Observed) -> Result<Option<Observed>> {
        let (ret, verdict) = match seen.ret {
            PASS => {
                ensure!(seen.frame == frame, "it passed on another frame");
                return Ok(None);
            }
            DROP => (Verdict::Drop.code(Hook::NicIn), None),
            TRANSMIT => {
                let macs = [GATEWAY_MAC, [0x52, 0x54, 0, 7, 7, 7]];
                let got = seen.frame.get(..MACS);
                ensure!(got == Some(macs.as_flattened()), "addressed to {got:02x?}");
                let redirected = Verdict::RedirectBack { ifindex: INDEX };
                (redirected.code(Hook::NicIn), None)
            }
            other => anyhow::bail!("XDP returned {other}"),
        };
        self.decided += 1;
        let counted = seen.counted.iter().map(|line| Counted {
            hook: Hook::NicIn,
            ..*line
        });
        let mut out = seen.frame.clone();
        out[..MACS].copy_from_slice(&frame[..MACS]);
        Ok(Some(Observed {
            ret,
            verdict,
            frame: out,
            counted: counted.collect(),
            ..seen
        }))
    }
}

impl Engine for Driver {
    fn load(&mut self, world: &World) -> Result<()> {
        let mut served = world.clone();
        if world.has(Feature::UPLINK_SERVICES) {
            served.config.features |= Feature::XDP_SERVICES;
        }
        self.kernel.load(&served)?;
        self.vtep = served.config.vtep;
        if !self.attached {
            self.kernel.put_at_driver(UPLINK, INDEX)?;
            self.attached = true;
        }
        Ok(())
    }

    fn apply_change(&mut self, change: &Change) -> Result<()> {
        self.kernel.apply_change(change)
    }

    fn takes(&self, hook: Hook, frame: &[u8]) -> bool {
        self.kernel.takes(hook, frame)
    }

    fn run(&mut self, hook: Hook, frame: &[u8], ctx: &Ctx) -> Result<Observed> {
        if hook != Hook::NicIn || ctx.ifindex == self.vtep || ctx.vlan || ctx.gso_size != 0 {
            return self.kernel.run(hook, frame, ctx);
        }
        hear_of_next_hops(self.kernel.ebpf()?)?;
        let first = self.kernel.run(Hook::Xdp, frame, ctx)?;
        // What it takes out of the overlay for a pod looks otherwise to the classifier.
        let stripped = first.ret == PASS && first.frame.len() < frame.len();
        let (began, ended) = first.ticks;
        if !stripped && let Some(seen) = self.taken(frame, first).context("at the driver")? {
            return Ok(seen);
        }
        let second = self.kernel.run(hook, frame, ctx)?;
        let ticks = if stripped {
            second.ticks
        } else {
            (began.min(ended), second.ticks.1)
        };
        Ok(Observed { ticks, ..second })
    }
}
