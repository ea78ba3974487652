//! The programs' parts: a program at a hook looks at the packet's family and
//! goes on with the part for it by a tail call. Each part has a stack of its own
//! and is verified by itself.

macro_rules! parts {
    ($(#[$doc:meta])* $parts:ident: $($name:ident = $number:literal, $program:literal;)+) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u32)]
        pub enum $parts {
            $(#[doc = concat!("`", $program, "`")] $name = $number,)+
        }

        impl $parts {
            /// Every part, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The program's name.
            pub const fn program(self) -> &'static str {
                match self { $(Self::$name => $program,)+ }
            }
        }

        const _: () = { $(assert!($program.len() <= 15);)+ };
    };
}

parts! {
    /// A classifier that another one goes on with. The number is its row in
    /// `tulle_parts`.
    Part:
    PodFrom4 = 0, "tulle_pod_from4";
    PodFrom6 = 1, "tulle_pod_from6";
    PodTo4 = 2, "tulle_pod_to4";
    PodTo6 = 3, "tulle_pod_to6";
    NicIn4 = 4, "tulle_nic_in4";
    NicIn6 = 5, "tulle_nic_in6";
    NicOut4 = 6, "tulle_nic_out4";
    NicOut6 = 7, "tulle_nic_out6";
    Errors4 = 8, "tulle_errors4";
    Errors6 = 9, "tulle_errors6";
    Fragments4 = 10, "tulle_frags4";
    Fragments6 = 11, "tulle_frags6";
    Uplink4 = 12, "tulle_uplink4";
    Uplink6 = 13, "tulle_uplink6";
    Loopback4 = 14, "tulle_loopback4";
    Loopback6 = 15, "tulle_loopback6";
    Direct4 = 16, "tulle_direct4";
    Direct6 = 17, "tulle_direct6";
}

parts! {
    /// A program that `tulle_xdp` goes on with ([`crate::Feature::XDP_SERVICES`]). The
    /// number is its row in `tulle_xdp_parts`.
    XdpPart:
    Serve4 = 0, "tulle_xdp_svc4";
    Serve6 = 1, "tulle_xdp_svc6";
    Answer4 = 2, "tulle_xdp_ans4";
    Answer6 = 3, "tulle_xdp_ans6";
}

/// Name of the array of parts for XDP, likewise.
pub const XDP_PARTS: &str = "tulle_xdp_parts";

/// Name of the array of parts. It belongs to one loading of the programs, so it
/// is none of the maps that the next one takes over.
pub const PARTS: &str = "tulle_parts";
