//! The VXLAN device: what has to happen to it (pure), and doing it.

use datapath_common::Mac;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoVxlan, LinkAttribute, LinkMessage};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::link::{self, Link};
use super::netlink::{Netlink, NetlinkError};
use super::overlay::Overlay;

/// One step towards the wanted device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DeviceStep {
    /// Delete the device with this index, because it differs in something that
    /// cannot be changed in place.
    Delete {
        /// Interface index.
        index: u32,
        /// What differs, for the report.
        because: String,
    },
    /// Create it.
    Create,
    /// Set the address; the one it had.
    SetMac(Option<Mac>),
    /// Set the MTU; the one it had.
    SetMtu(u32),
    /// Switch learning off.
    StopLearning,
    /// Set it up.
    Up,
}

/// Something of somebody else sits where our device belongs.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceConflict {
    /// An interface of another kind has our name.
    #[error(
        "interface {name} exists but is a {kind} device, not a VXLAN device; remove or rename it, or choose another VNI"
    )]
    NotVxlan {
        /// The name.
        name: String,
        /// Its kind.
        kind: String,
    },
    /// Another VXLAN device already takes our packets.
    #[error(
        "VXLAN device {other} already uses VNI {vni} on UDP port {port}, and the kernel allows one device for each pair; remove {other}, or choose another VNI or port"
    )]
    VniTaken {
        /// The other device.
        other: String,
        /// The VNI of both.
        vni: u32,
        /// The port of both.
        port: u16,
    },
}

/// The steps from `existing`, the interface that has the wanted name, to what
/// `overlay` wants. A device that flannel left is adopted if it agrees in
/// everything that cannot be changed in place (FL-48).
pub(crate) fn plan(
    overlay: &Overlay,
    existing: Option<&Link>,
) -> Result<Vec<DeviceStep>, DeviceConflict> {
    let Some(link) = existing else {
        return Ok(vec![DeviceStep::Create, DeviceStep::Up]);
    };
    let Some(vxlan) = &link.vxlan else {
        let kind = if link.kind.is_empty() {
            "hardware"
        } else {
            &link.kind
        };
        return Err(DeviceConflict::NotVxlan {
            name: link.name.clone(),
            kind: kind.into(),
        });
    };
    let mut differs = Vec::new();
    if vxlan.vni != overlay.vni {
        differs.push(format!("its VNI is {}", vxlan.vni));
    }
    if vxlan.port != overlay.port {
        differs.push(format!("its port is {}", vxlan.port));
    }
    if vxlan.local != Some(overlay.local) {
        differs.push(match vxlan.local {
            Some(local) => format!("its local address is {local}"),
            None => "it has no local address".into(),
        });
    }
    if vxlan.uplink != Some(overlay.uplink) {
        differs.push("it is bound to another interface".into());
    }
    if let Some(option) = vxlan.foreign_option {
        differs.push(format!("it has {option}"));
    }
    if !differs.is_empty() {
        return Ok(vec![
            DeviceStep::Delete {
                index: link.index,
                because: differs.join(", "),
            },
            DeviceStep::Create,
            DeviceStep::Up,
        ]);
    }
    let mut steps = Vec::new();
    if vxlan.learning {
        steps.push(DeviceStep::StopLearning);
    }
    if link.mac != Some(overlay.mac) {
        steps.push(DeviceStep::SetMac(link.mac));
    }
    if link.mtu != overlay.mtu {
        steps.push(DeviceStep::SetMtu(link.mtu));
    }
    if !link.up {
        steps.push(DeviceStep::Up);
    }
    Ok(steps)
}

impl DeviceStep {
    /// The step as a sentence of the report.
    pub(crate) fn sentence(&self, overlay: &Overlay) -> String {
        let name = &overlay.device;
        match self {
            Self::Delete { because, .. } => format!("deleted {name}: {because}"),
            Self::Create => format!(
                "created {name}: VNI {}, port {}, local {}, MTU {}, MAC {}",
                overlay.vni, overlay.port, overlay.local, overlay.mtu, overlay.mac
            ),
            Self::SetMac(Some(was)) => {
                format!("set the MAC of {name} to {} (was {was})", overlay.mac)
            }
            Self::SetMac(None) => format!("set the MAC of {name} to {}", overlay.mac),
            Self::SetMtu(was) => format!("set the MTU of {name} to {} (was {was})", overlay.mtu),
            Self::StopLearning => format!("switched learning off on {name}"),
            Self::Up => format!("set {name} up"),
        }
    }
}

/// Takes one step; `index` is the device's, once it exists.
pub(crate) async fn take(
    netlink: &Netlink,
    overlay: &Overlay,
    step: &DeviceStep,
    index: u32,
) -> Result<(), NetlinkError> {
    let name = &overlay.device;
    let (what, message, flags) = match step {
        DeviceStep::Delete { index, .. } => (format!("delete {name}"), link::delete(*index), 0),
        DeviceStep::Create => (
            format!("create VXLAN device {name}"),
            creation(overlay),
            NLM_F_CREATE | NLM_F_EXCL,
        ),
        DeviceStep::SetMac(_) => (
            format!("set the MAC of {name} to {}", overlay.mac),
            link::set(index, LinkAttribute::Address(overlay.mac.octets().to_vec())),
            0,
        ),
        DeviceStep::SetMtu(_) => (
            format!("set the MTU of {name} to {}", overlay.mtu),
            link::set(index, LinkAttribute::Mtu(overlay.mtu)),
            0,
        ),
        DeviceStep::StopLearning => (
            format!("switch learning off on {name}"),
            stop_learning(index),
            0,
        ),
        DeviceStep::Up => (format!("set {name} up"), link::set_up(index), 0),
    };
    netlink.execute(&what, message, flags).await
}

/// The device as flannel makes it (FL-46); everything not named is the
/// kernel's default.
fn creation(overlay: &Overlay) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(overlay.device.clone()),
        LinkAttribute::Mtu(overlay.mtu),
        LinkAttribute::Address(overlay.mac.octets().to_vec()),
        link::vxlan_info(vec![
            InfoVxlan::Id(overlay.vni),
            InfoVxlan::Link(overlay.uplink),
            InfoVxlan::Local(overlay.local),
            InfoVxlan::Learning(false),
            InfoVxlan::Port(overlay.port),
        ]),
    ];
    RouteNetlinkMessage::NewLink(message)
}

fn stop_learning(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![link::vxlan_info(vec![InfoVxlan::Learning(false)])];
    RouteNetlinkMessage::NewLink(message)
}

/// The device that keeps ours from being created: same VNI and port.
pub(crate) fn occupant(overlay: &Overlay, links: &[Link]) -> Option<DeviceConflict> {
    links
        .iter()
        .filter(|link| link.name != overlay.device)
        .find(|link| {
            link.vxlan
                .as_ref()
                .is_some_and(|v| v.vni == overlay.vni && v.port == overlay.port)
        })
        .map(|link| DeviceConflict::VniTaken {
            other: link.name.clone(),
            vni: overlay.vni,
            port: overlay.port,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::link::Vxlan;
    use crate::net::overlay::tests::overlay;

    fn adopted() -> Link {
        let wanted = overlay();
        Link {
            index: 9,
            name: wanted.device.clone(),
            kind: "vxlan".into(),
            mac: Some(wanted.mac),
            mtu: wanted.mtu,
            up: true,
            vxlan: Some(Vxlan {
                vni: wanted.vni,
                port: wanted.port,
                local: Some(wanted.local),
                uplink: Some(wanted.uplink),
                learning: false,
                foreign_option: None,
            }),
            ..Link::default()
        }
    }

    fn with(change: impl FnOnce(&mut Link, &mut Vxlan)) -> Vec<DeviceStep> {
        let mut link = adopted();
        let mut vxlan = link.vxlan.take().unwrap_or_default();
        change(&mut link, &mut vxlan);
        link.vxlan = Some(vxlan);
        plan(&overlay(), Some(&link)).unwrap()
    }

    #[test]
    fn a_matching_device_is_left_alone() {
        assert_eq!(with(|_, _| ()), []);
    }

    #[test]
    fn a_missing_device_is_created() {
        assert_eq!(
            plan(&overlay(), None),
            Ok(vec![DeviceStep::Create, DeviceStep::Up])
        );
    }

    #[test]
    fn what_can_change_in_place_does() {
        assert_eq!(
            with(|link, vxlan| {
                link.mac = Some(Mac::new([2; 6]));
                link.mtu = 1400;
                link.up = false;
                vxlan.learning = true;
            }),
            [
                DeviceStep::StopLearning,
                DeviceStep::SetMac(Some(Mac::new([2; 6]))),
                DeviceStep::SetMtu(1400),
                DeviceStep::Up
            ]
        );
    }

    #[test]
    fn what_cannot_is_made_anew() {
        type Case = (fn(&mut Vxlan), &'static str);
        let cases: [Case; 6] = [
            (|v| v.vni = 7, "its VNI is 7"),
            (|v| v.port = 4789, "its port is 4789"),
            (|v| v.local = None, "it has no local address"),
            (
                |v| v.local = Some([192, 0, 2, 9].into()),
                "its local address is 192.0.2.9",
            ),
            (|v| v.uplink = Some(77), "it is bound to another interface"),
            (|v| v.foreign_option = Some("l2miss"), "it has l2miss"),
        ];
        for (change, because) in cases {
            assert_eq!(
                with(|_, vxlan| change(vxlan)),
                [
                    DeviceStep::Delete {
                        index: 9,
                        because: because.into()
                    },
                    DeviceStep::Create,
                    DeviceStep::Up
                ]
            );
        }
    }

    #[test]
    fn a_foreign_interface_with_our_name_is_refused() {
        let mut link = adopted();
        link.vxlan = None;
        link.kind = "dummy".into();
        let error = plan(&overlay(), Some(&link)).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("flannel.1 exists but is a dummy device")
        );
    }

    #[test]
    fn the_device_that_has_our_vni_is_named() {
        let mut link = adopted();
        assert_eq!(occupant(&overlay(), std::slice::from_ref(&link)), None);
        link.name = "vx0".into();
        let error = occupant(&overlay(), &[link]).unwrap();
        assert!(
            error
                .to_string()
                .starts_with("VXLAN device vx0 already uses VNI 1 on UDP port 8472")
        );
    }
}
