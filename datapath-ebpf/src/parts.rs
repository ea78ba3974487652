//! From a program at a hook to the part for the packet, by a tail call.

#[cfg(target_arch = "bpf")]
use core::arch::asm;

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    programs::{TcContext, XdpContext},
};
use datapath_common::{Feature, Hook, Ip4, Part, Reason, proto};
use datapath_core::{ETH_LEN, Family, Frame, Packet as _, V4, V6};

use crate::{
    ctx::Skb,
    exit::{Origin, TcExit},
    maps,
    tables::config,
};

/// What a part is told beside the packet, in the first word of its control block.
#[derive(Clone, Copy)]
pub struct Note(u32);

impl Note {
    const TUNNELED: u32 = 1 << 8;

    /// From the program of `hook`; `tunneled`: the packet came out of the overlay here.
    #[inline(always)]
    pub const fn new(hook: Hook, tunneled: bool) -> Self {
        Self(hook as u32 | if tunneled { Self::TUNNELED } else { 0 })
    }

    /// What the program before left.
    #[inline(always)]
    pub fn read(raw: *mut __sk_buff) -> Self {
        // SAFETY: the program's own context.
        Self(unsafe { (*raw).cb[0] })
    }

    /// Leaves it for the next program.
    #[inline(always)]
    fn write(self, raw: *mut __sk_buff) {
        // SAFETY: the program's own context; the control block is the programs'
        // until the packet leaves them.
        unsafe { (*raw).cb[0] = self.0 };
    }

    /// The hook that the packet is at.
    #[inline(always)]
    pub fn hook(self) -> Option<Hook> {
        Hook::from_u8(self.0 as u8)
    }

    /// Whether the packet came out of the overlay at this hook.
    #[inline(always)]
    pub fn tunneled(self) -> bool {
        self.0 & Self::TUNNELED != 0
    }
}

/// What an overlay packet says of the backend that it is for, in the words of the control block
/// behind the note.
#[derive(Clone, Copy)]
pub struct Words(pub [u32; 3]);

impl Words {
    /// Leaves them for the next program.
    #[inline(always)]
    pub fn write(self, raw: *mut __sk_buff) {
        let [a, b, c] = self.0;
        // SAFETY: as in `Note::write`.
        unsafe { ((*raw).cb[1], (*raw).cb[2], (*raw).cb[3]) = (a, b, c) };
    }

    /// What the program before left.
    #[inline(always)]
    pub fn read(raw: *mut __sk_buff) -> Self {
        // SAFETY: the program's own context.
        Self(unsafe { [(*raw).cb[1], (*raw).cb[2], (*raw).cb[3]] })
    }
}

/// Goes on with a part. Returns only if it is not there.
#[inline(always)]
fn go_on<const PART: u32>(raw: *mut __sk_buff) {
    // SAFETY: the call does not come back; nothing here waits to be dropped.
    unsafe { maps::PARTS.tail_call(&TcContext::new(raw), PART) };
    set_apart::<PART>();
}

/// Keeps the calls apart: the kernel makes a jump of a call whose row is a constant, and the
/// compiler would make one call of all.
#[inline(always)]
fn set_apart<const PART: u32>() {
    // SAFETY: sets a scratch register.
    #[cfg(target_arch = "bpf")]
    unsafe {
        asm!("r0 = {part}", part = const PART, out("r0") _);
    }
}

/// Goes on with a part for XDP. Returns only if it is not there.
#[inline(always)]
pub fn go_on_xdp<const PART: u32>(raw: *mut xdp_md) {
    // SAFETY: the call does not come back; nothing here waits to be dropped.
    unsafe { maps::XDP_PARTS.tail_call(&XdpContext::new(raw), PART) };
    set_apart::<PART>();
}

/// [`go_on`] with the part of a hook for packets of IPv6 or IPv4.
#[inline(always)]
fn go_on_at(raw: *mut __sk_buff, hook: Hook, v6: bool) {
    match (hook, v6) {
        (Hook::PodFrom, false) => go_on::<{ Part::PodFrom4 as u32 }>(raw),
        (Hook::PodFrom, true) => go_on::<{ Part::PodFrom6 as u32 }>(raw),
        (Hook::PodTo, false) => go_on::<{ Part::PodTo4 as u32 }>(raw),
        (Hook::PodTo, true) => go_on::<{ Part::PodTo6 as u32 }>(raw),
        (Hook::NicIn, false) => go_on::<{ Part::NicIn4 as u32 }>(raw),
        (Hook::NicIn, true) => go_on::<{ Part::NicIn6 as u32 }>(raw),
        (Hook::NicOut, false) => go_on::<{ Part::NicOut4 as u32 }>(raw),
        (Hook::NicOut, true) => go_on::<{ Part::NicOut6 as u32 }>(raw),
        // Its program has no parts.
        (Hook::Xdp, _) => {}
    }
}

/// Goes on with the part for packets from the uplink that are for no pod of this node.
#[inline(always)]
pub fn go_on_to_uplink(raw: *mut __sk_buff, v6: bool) -> i32 {
    if v6 {
        go_on::<{ Part::Uplink6 as u32 }>(raw);
    } else {
        go_on::<{ Part::Uplink4 as u32 }>(raw);
    }
    missing(Origin::of(Hook::NicIn, &Skb::new(TcContext::new(raw))))
}

/// Goes on with the part for packets that another node sends to a backend of this one, as it
/// came out of the overlay here.
#[inline(always)]
pub fn go_on_directly(raw: *mut __sk_buff, frame: Frame) -> i32 {
    Note::new(Hook::NicIn, true).write(raw);
    match frame {
        Frame::V4 => go_on::<{ Part::Direct4 as u32 }>(raw),
        Frame::V6 => go_on::<{ Part::Direct6 as u32 }>(raw),
    }
    // What it is addressed to is no address of this node's.
    let origin = Origin::of(Hook::NicIn, &Skb::new(TcContext::new(raw)));
    origin.leave::<Ip4>(TcExit::DROP, Reason::PartMissing, None)
}

/// Goes on with the part that the packet is for: its family's of this hook, or
/// one for ICMP errors or fragments.
#[inline(always)]
pub fn dispatch(skb: &Skb, hook: Hook, frame: Frame, tunneled: bool) -> i32 {
    let raw = skb.raw();
    let note = Note::new(hook, tunneled);
    if is_error(skb, frame) {
        note.write(raw);
        match frame {
            Frame::V4 => go_on::<{ Part::Errors4 as u32 }>(raw),
            Frame::V6 => go_on::<{ Part::Errors6 as u32 }>(raw),
        }
    } else if is_fragment(skb, hook, frame) {
        note.write(raw);
        match frame {
            Frame::V4 => go_on::<{ Part::Fragments4 as u32 }>(raw),
            Frame::V6 => go_on::<{ Part::Fragments6 as u32 }>(raw),
        }
    } else {
        if hook == Hook::NicIn {
            note.write(raw);
        }
        match frame {
            Frame::V4 if is_for_uplink::<V4>(skb, hook) => return go_on_to_uplink(raw, false),
            Frame::V6 if is_for_uplink::<V6>(skb, hook) => return go_on_to_uplink(raw, true),
            Frame::V4 => go_on_at(raw, hook, false),
            Frame::V6 => go_on_at(raw, hook, true),
        }
    }
    missing(Origin::of(hook, skb))
}

/// Goes on with the part for most packets of a hook, from one for ICMP errors or
/// fragments.
#[inline(always)]
pub fn go_on_from(raw: *mut __sk_buff, hook: Hook, v6: bool) -> i32 {
    go_on_at(raw, hook, v6);
    missing(Origin::of(hook, &Skb::new(TcContext::new(raw))))
}

/// Goes on with the part for packets of this node's processes to its own addresses.
#[inline(always)]
pub fn go_on_to_loopback(raw: *mut __sk_buff, v6: bool) -> i32 {
    if v6 {
        go_on::<{ Part::Loopback6 as u32 }>(raw);
    } else {
        go_on::<{ Part::Loopback4 as u32 }>(raw);
    }
    missing(Origin::of(Hook::NicOut, &Skb::new(TcContext::new(raw))))
}

#[inline(always)]
fn missing(origin: Origin) -> i32 {
    origin.leave::<Ip4>(TcExit::NEXT, Reason::PartMissing, None)
}

/// Whether the packet may be an ICMP error, without options or extension headers:
/// all that the part for them takes.
#[inline(always)]
fn is_error(skb: &Skb, frame: Frame) -> bool {
    /// IPv4's version and a header without options.
    const PLAIN_V4: u8 = 0x45;
    /// ICMP types (RFC 792) of echoes: most of what is no error.
    const ECHO_REPLY: u8 = 0;
    const ECHO: u8 = 8;
    /// ICMPv6 types below are errors (RFC 4443 §2.1).
    const FIRST_INFORMATIONAL: u8 = 128;
    if config().features & Feature::ICMP_ERRORS == 0 {
        return false;
    }
    match frame {
        Frame::V4 => {
            matches!(skb.read::<u8>(ETH_LEN + 9), Ok(proto::ICMP))
                && matches!(skb.read::<u8>(ETH_LEN), Ok(PLAIN_V4))
                && matches!(skb.read::<u8>(ETH_LEN + 20), Ok(kind) if kind != ECHO && kind != ECHO_REPLY)
        }
        Frame::V6 => {
            matches!(skb.read::<u8>(ETH_LEN + 6), Ok(proto::ICMPV6))
                && matches!(skb.read::<u8>(ETH_LEN + 40), Ok(kind) if kind < FIRST_INFORMATIONAL)
        }
    }
}

/// Whether the packet may be a fragment that comes in.
#[inline(always)]
fn is_fragment(skb: &Skb, hook: Hook, frame: Frame) -> bool {
    /// Next header of IPv6's fragment header (RFC 8200 §4.5), where it comes first.
    const FRAGMENT: u8 = 44;
    /// IPv4's "more fragments" and offset.
    const PIECE: u16 = 0x3fff;
    if !matches!(hook, Hook::PodFrom | Hook::NicIn)
        || config().features & Feature::HOLD_FRAGMENTS == 0
    {
        return false;
    }
    match frame {
        Frame::V4 => {
            matches!(skb.read::<u16>(ETH_LEN + 6), Ok(piece) if u16::from_be(piece) & PIECE != 0)
        }
        Frame::V6 => matches!(skb.read::<u8>(ETH_LEN + 6), Ok(FRAGMENT)),
    }
}

/// Whether a packet from the uplink cannot be for a pod of this node. The part for
/// pods finds out about those that could.
#[inline(always)]
fn is_for_uplink<F: Family>(skb: &Skb, hook: Hook) -> bool {
    if hook != Hook::NicIn || config().features & Feature::UPLINK_SERVICES == 0 {
        return false;
    }
    match F::destination(skb, ETH_LEN) {
        Ok(dst) => !F::is_own_pod(config(), dst) || dst == F::vtep(config()),
        Err(_) => false,
    }
}
