//! XDP at the uplink: in which mode, and why.

use datapath_common::Hook;
use netlink_packet_route::link::XdpAttached;

use super::attach::{AttachError, Report, attach_type};
use super::loader::Datapath;
use super::pins::remove_link;
use super::place::{Entry, Place};
use super::rtnl::Rtnl;

/// What the operator wants of XDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum XdpMode {
    /// In the driver, unless the device is a veth or the driver has none.
    #[default]
    Auto,
    /// In the driver, or not at all with an error.
    Native,
    /// In the stack, before everything else.
    Generic,
    /// Not at all.
    Off,
}

/// What became of XDP, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct XdpChoice {
    /// `Native`, `Generic` or `Off`.
    pub mode: XdpMode,
    /// One sentence.
    pub why: String,
}

const XDP_GENERIC: u32 = 1 << 1;
const XDP_NATIVE: u32 = 1 << 2;

impl Datapath {
    pub(super) fn sync_xdp(
        &mut self,
        ifindex: u32,
        asked: XdpMode,
        report: &mut Report,
    ) -> XdpChoice {
        let place = Place::new(Hook::Xdp, ifindex);
        let off = |why: &str| XdpChoice {
            mode: XdpMode::Off,
            why: why.into(),
        };
        let device = Rtnl::open().and_then(|mut rtnl| rtnl.device(ifindex));
        let device = match device {
            Ok(Some(device)) => device,
            Ok(None) => return off("the uplink does not exist"),
            Err(e) => return off(&format!("the uplink cannot be looked at: {e}")),
        };
        let (flags, mode, why) = match asked {
            XdpMode::Off => return off("switched off"),
            XdpMode::Auto if device.veth => {
                return off(
                    "the uplink is a veth, where XDP would cost the peer its segmentation offload",
                );
            }
            XdpMode::Auto => (XDP_NATIVE, XdpMode::Native, "the uplink's driver has it"),
            XdpMode::Native => (XDP_NATIVE, XdpMode::Native, "asked for"),
            XdpMode::Generic => (XDP_GENERIC, XdpMode::Generic, "asked for"),
        };
        let fits = match device.xdp {
            None => true,
            Some(XdpAttached::SocketBuffer) => mode == XdpMode::Generic,
            Some(_) => mode == XdpMode::Native,
        };
        // A link keeps its mode: another mode needs another link. Meanwhile
        // `tulle_nic_in` does the same work.
        if !fits && let Err(e) = remove_link(&self.entry(Entry::Link(place))) {
            report.failed.push((place, e.into()));
        }
        let outcome = self.ensure_link(place, attach_type::XDP, flags);
        match outcome {
            Err(AttachError::Kernel { source, .. }) if asked == XdpMode::Auto => {
                off(&format!("the uplink's driver refuses it: {source}"))
            }
            Err(AttachError::Kernel { source, .. }) => {
                let mode = if mode == XdpMode::Native {
                    "native"
                } else {
                    "generic"
                };
                let why = format!("the kernel refuses it: {source}");
                report.failed.push((
                    place,
                    AttachError::Xdp {
                        mode,
                        ifindex,
                        source,
                    },
                ));
                off(&why)
            }
            outcome => {
                let ok = outcome.is_ok();
                self.note(place, outcome, report);
                if ok {
                    XdpChoice {
                        mode,
                        why: why.into(),
                    }
                } else {
                    off("it could not be attached")
                }
            }
        }
    }

    /// Gives a living XDP link the new program; a dead one waits for the next sync.
    pub(super) fn replace_xdp(&mut self, place: Place, report: &mut Report) {
        match self.living(place) {
            Ok(Some(_)) => {
                let outcome = self.ensure_link(place, attach_type::XDP, 0);
                self.note(place, outcome, report);
            }
            Ok(None) => {}
            Err(e) => report.failed.push((place, e)),
        }
    }
}
