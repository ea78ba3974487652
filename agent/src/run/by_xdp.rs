//! Whether `tulle_xdp` serves services, and why not.

use admin_api::Feature;
use datapath_common::Feature as Bit;

use super::serving::Serving;
use super::shared::Shared;
use crate::args::{OverlayArgs, Xdp, XdpServices};
use crate::kernel::XdpMode;
use crate::net::Uplink;

/// Whether it is to, where it is attached; else why not.
pub(super) fn wanted(args: &OverlayArgs, uplink: &Uplink) -> Result<(), &'static str> {
    match args.xdp_services {
        XdpServices::Off => Err("switched off"),
        _ if args.xdp == Xdp::Off => Err("XDP is off"),
        XdpServices::Auto if uplink.kind == "veth" && args.xdp == Xdp::Native => Err(
            "the other end of a veth takes what XDP sends only if it has an XDP program, too; \
             --xdp-services on if it has",
        ),
        XdpServices::Auto if uplink.vlans => Err(
            "there are VLAN devices upon the uplink, and XDP does not see tags that its driver \
             takes off; --xdp-services on if it leaves them",
        ),
        XdpServices::Auto | XdpServices::On => Ok(()),
    }
}

/// What became of it, where clients outside are served at all.
pub(super) fn feature(shared: &Shared, serving: &Serving) -> Option<Feature> {
    let choice = serving.xdp.as_ref()?;
    if serving.datapath.effective().features & Bit::UPLINK_SERVICES == 0 {
        return None;
    }
    let wanted = wanted(&shared.args.overlay, &shared.uplink);
    let refused = serving.datapath.xdp_refused();
    let (chosen, why) = served(wanted, choice.mode, refused);
    Some(Feature {
        name: "services for clients outside".to_owned(),
        chosen: chosen.to_owned(),
        why,
    })
}

fn served(
    wanted: Result<(), &'static str>,
    mode: XdpMode,
    refused: Option<&str>,
) -> (&'static str, String) {
    let why_not = match (wanted, refused) {
        (Err(why), _) => why.to_owned(),
        (Ok(()), _) if mode == XdpMode::Off => "XDP is off".to_owned(),
        (Ok(()), Some(refused)) => refused.to_owned(),
        (Ok(()), None) => {
            let how = "to backends on other nodes; to all others by classifiers";
            return ("by XDP", how.to_owned());
        }
    };
    ("by classifiers", why_not)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use datapath_common::Mac;

    use super::*;

    #[derive(clap::Parser)]
    struct Args {
        #[command(flatten)]
        overlay: OverlayArgs,
    }

    fn asked(args: &[&str], kind: &str, vlans: bool) -> Result<(), &'static str> {
        let args = Args::parse_from([&["tulle-agent"], args].concat());
        let uplink = Uplink {
            name: "eth0".into(),
            index: 2,
            mac: Mac::new([2; 6]),
            mtu: 1500,
            addresses4: Vec::new(),
            addresses6: Vec::new(),
            carrier: true,
            kind: kind.into(),
            vlans,
        };
        wanted(&args.overlay, &uplink)
    }

    #[test]
    fn what_may_be_lost_is_asked_for_only() {
        assert_eq!(asked(&[], "", false), Ok(()));
        assert_eq!(asked(&["--xdp", "generic"], "veth", false), Ok(()));
        let veth = asked(&["--xdp", "native"], "veth", false).unwrap_err();
        assert!(veth.contains("veth"), "{veth}");
        let tags = asked(&[], "", true).unwrap_err();
        assert!(tags.contains("VLAN"), "{tags}");
        let on = ["--xdp", "native", "--xdp-services", "on"];
        assert_eq!(asked(&on, "veth", true), Ok(()));
        assert_eq!(
            asked(&["--xdp-services", "off"], "", false),
            Err("switched off")
        );
        assert_eq!(asked(&["--xdp", "off"], "", false), Err("XDP is off"));
    }

    #[test]
    fn it_says_who_serves_and_why() {
        let all = served(Ok(()), XdpMode::Native, None);
        assert_eq!(all.0, "by XDP");
        let cases = [
            (Err("switched off"), XdpMode::Native, None, "switched off"),
            (Ok(()), XdpMode::Off, None, "XDP is off"),
            (Ok(()), XdpMode::Generic, Some("too large"), "too large"),
        ];
        for (wanted, mode, refused, why) in cases {
            let (chosen, told) = served(wanted, mode, refused);
            assert_eq!((chosen, told.as_str()), ("by classifiers", why));
        }
    }
}
