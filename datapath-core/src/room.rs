//! What the overlay, and links as narrow, have room for.

use datapath_common::{Address, Backend, Config, ViaKind};

use crate::{
    ETH_LEN, Family, Headers, Packet, Tables, flow::is_same, hooks::is_behind_bridge,
    service::Client,
};

/// What Linux says of a packet whose segments are of different sizes (SCTP):
/// only its own stack can take it apart, and `bpf_skb_adjust_room` refuses it.
const GSO_BY_FRAGS: u32 = 0xffff;

/// A packet's length and the payload in each of its segments, in one register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent(u64);

impl Extent {
    #[inline(always)]
    pub(crate) fn of<P: Packet>(packet: &P) -> Self {
        Self((packet.gso_size() as u64) << 32 | packet.length() as u64)
    }

    /// Payload octets in each segment of a segmentation-offload packet, else 0.
    #[inline(always)]
    const fn gso_size(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether only the kernel can put the packet into the overlay.
    #[inline(always)]
    pub(crate) const fn needs_kernel(self) -> bool {
        self.gso_size() == GSO_BY_FRAGS
    }

    /// Whether the packet, or each segment of it, fits the overlay.
    #[inline(always)]
    pub(crate) const fn fits_overlay<A>(self, config: &Config, h: &Headers<A>) -> bool {
        let gso = self.gso_size();
        let size = if gso == 0 {
            (self.0 as u32).wrapping_sub(ETH_LEN as u32)
        } else {
            gso + (h.l4 - ETH_LEN) as u32 + h.l4_len as u32
        };
        size <= config.overlay_mtu as u32
    }
}

/// Whether the overlay has room for a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Room {
    /// For all of it.
    Enough,
    /// For the pieces that the kernel makes of it.
    Divided,
    /// None.
    No,
}

impl Room {
    #[inline(always)]
    pub(crate) fn of<A: Address>(extent: Extent, config: &Config, h: &Headers<A>) -> Self {
        if extent.needs_kernel() {
            return Self::Divided;
        }
        if !extent.fits_overlay(config, h) {
            if A::VERSION == 4 && !h.dont_fragment {
                Self::Divided
            } else {
                Self::No
            }
        } else if A::VERSION == 4 && h.follows_large {
            // Connection tracking lets no fragment through without all others of its datagram.
            Self::Divided
        } else {
            Self::Enough
        }
    }
}

/// What there is to know, before a flow is opened, of the way to a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Way(u64);

impl Way {
    const BRIDGED: u64 = 1 << 0;
    const DIVIDED: u64 = 1 << 1;
    const TOO_NARROW: u64 = 1 << 2;
    const HAIRPIN: u64 = 1 << 3;

    /// Of a client's packet to a backend.
    #[inline(always)]
    pub(crate) fn to<F: Family, P: Packet, T: Tables<F::Addr>>(
        packet: &P,
        tables: &T,
        h: &Headers<F::Addr>,
        backend: &Backend<F::Addr>,
        client: Client,
    ) -> Self {
        let facts = way_apart::<F, T>(tables, h, backend, Extent::of(packet), client);
        // A verifier would go all the way to the program's end for each combination.
        Self(packet.opaque(facts))
    }

    /// Whether the backend is a pod behind the bridge.
    #[inline(always)]
    pub(crate) const fn is_bridged(self) -> bool {
        self.0 & Self::BRIDGED != 0
    }

    /// Whether only the frontend's address as the source brings the answer back.
    #[inline(always)]
    pub(crate) const fn is_hairpin(self) -> bool {
        self.0 & Self::HAIRPIN != 0
    }

    /// Whether the kernel is to make pieces of the packet.
    #[inline(always)]
    pub(crate) const fn divides(self) -> bool {
        self.0 & Self::DIVIDED != 0
    }

    /// Whether the packet does not go through, nor may pieces of it.
    #[inline(always)]
    pub(crate) const fn is_too_narrow(self) -> bool {
        self.0 & Self::TOO_NARROW != 0
    }
}

/// A function of its own, for its stack.
#[inline(never)]
fn way_apart<F: Family, T: Tables<F::Addr>>(
    tables: &T,
    h: &Headers<F::Addr>,
    backend: &Backend<F::Addr>,
    extent: Extent,
    client: Client,
) -> u64 {
    let (config, kind) = (tables.config(), backend.via.kind);
    let bridged = kind == ViaKind::Kernel as u8 && is_behind_bridge::<F>(config, backend.addr);
    // What the loopback device takes need not fit any other. A veth that is not
    // skipped takes only what fits its pod's end.
    let limited = match client {
        _ if kind == ViaKind::Vxlan as u8 => true,
        Client::Loopback => kind != ViaKind::Host as u8,
        Client::Node => kind == ViaKind::Local as u8 || bridged,
        Client::Pod | Client::Outside => false,
    };
    let room = if limited {
        Room::of(extent, config, h)
    } else if bridged && client == Client::Outside && !extent.fits_overlay(config, h) {
        // What may be too large for the bridge the kernel fragments or refuses.
        Room::Divided
    } else {
        Room::Enough
    };
    let mut facts = match room {
        Room::Enough => 0,
        Room::Divided => Way::DIVIDED,
        Room::No => Way::TOO_NARROW,
    };
    if bridged {
        facts |= Way::BRIDGED;
    }
    // Between two addresses of the node's own nothing is in the way of the answer.
    let host = kind == ViaKind::Host as u8 && client == Client::Node;
    if client != Client::Loopback && (host || is_same(backend.addr, h.src)) {
        facts |= Way::HAIRPIN;
    }
    facts
}
