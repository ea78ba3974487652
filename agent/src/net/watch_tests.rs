use super::*;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::RouteHeader;

const NONE: NetChanged = NetChanged {
    pods: false,
    overlay: false,
    uplink: false,
};
const PODS: NetChanged = NetChanged { pods: true, ..NONE };
const OVERLAY: NetChanged = NetChanged {
    overlay: true,
    ..NONE
};

fn sorter() -> Sorter {
    Sorter {
        interest: Interest {
            uplink: "eth0".into(),
            device: "flannel.1".into(),
            own_pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
        },
        names: HashMap::from([(2, "eth0".into()), (3, "flannel.1".into())]),
        heard: HashMap::new(),
    }
}

fn link(index: u32, name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::IfName(name.into())];
    message
}

fn address(index: u32) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    RouteNetlinkMessage::NewAddress(message)
}

fn pod_neighbour(mac: u8) -> NeighbourMessage {
    let mac = Some(Mac::new([mac; 6]));
    rows::neighbour_message(7, "10.244.1.5".parse().unwrap(), mac)
}

#[test]
fn links_are_known_by_name() {
    use RouteNetlinkMessage::{DelLink, NewLink};
    let mut sorter = sorter();
    assert_eq!(sorter.sort(&NewLink(link(7, "veth7"))), PODS);
    assert_eq!(sorter.sort(&NewLink(link(1, "lo"))), NONE);
    assert_eq!(sorter.sort(&DelLink(link(3, "flannel.1"))), OVERLAY);
    assert_eq!(
        sorter.sort(&address(3)),
        NONE,
        "the name went with the link"
    );
    assert_eq!(sorter.sort(&NewLink(link(8, "flannel.1"))), OVERLAY);
    assert_eq!(sorter.sort(&address(8)), OVERLAY);
    let renamed = sorter.sort(&NewLink(link(2, "old0")));
    assert_eq!(renamed, NetChanged::ALL);
}

#[test]
fn routes_to_single_hosts_of_ours_are_pods() {
    let mut sorter = sorter();
    let mut message = super::super::routes::unreachable("10.244.1.5/32".parse().unwrap());
    assert_eq!(
        sorter.sort(&RouteNetlinkMessage::NewRoute(message.clone())),
        PODS
    );
    message.header.table = RouteHeader::RT_TABLE_MAIN + 1;
    assert_eq!(
        sorter.sort(&RouteNetlinkMessage::NewRoute(message)),
        NONE,
        "the local table holds every address"
    );
    let message = super::super::routes::unreachable("10.244.2.0/24".parse().unwrap());
    assert_eq!(
        sorter.sort(&RouteNetlinkMessage::DelRoute(message)),
        NetChanged {
            pods: false,
            ..NetChanged::ALL
        }
    );
}

#[test]
fn a_gateway_of_pods_is_news() {
    let mut sorter = sorter();
    let at = |ip: &str| rows::address_message(7, ip.parse().unwrap(), 24);
    let gateway = RouteNetlinkMessage::NewAddress(at("10.244.1.1"));
    assert_eq!(sorter.sort(&gateway), PODS);
    let gone = RouteNetlinkMessage::DelAddress(at("10.244.1.1"));
    assert_eq!(sorter.sort(&gone), PODS);
    let other = RouteNetlinkMessage::NewAddress(at("172.17.0.1"));
    assert_eq!(sorter.sort(&other), NONE);
}

#[test]
fn a_pods_neighbour_is_news_when_its_mac_changes() {
    use RouteNetlinkMessage::{DelNeighbour, NewNeighbour};
    let mut sorter = sorter();
    assert_eq!(sorter.sort(&NewNeighbour(pod_neighbour(2))), PODS);
    assert_eq!(sorter.sort(&NewNeighbour(pod_neighbour(2))), NONE);
    assert_eq!(sorter.sort(&NewNeighbour(pod_neighbour(4))), PODS);
    assert_eq!(sorter.sort(&DelNeighbour(pod_neighbour(4))), NONE);
    assert_eq!(sorter.sort(&NewNeighbour(pod_neighbour(4))), PODS);
}

#[test]
fn on_the_device_only_lasting_entries_count() {
    use RouteNetlinkMessage::{DelNeighbour, NewNeighbour};
    let mut sorter = sorter();
    let ip = "10.244.2.0".parse().unwrap();
    let permanent = rows::neighbour_message(3, ip, Some(Mac::new([2; 6])));
    let unresolved = rows::neighbour_message(3, ip, None);
    let forward = rows::forward_message(3, Mac::new([2; 6]), None);
    assert_eq!(sorter.sort(&NewNeighbour(permanent)), OVERLAY);
    assert_eq!(sorter.sort(&NewNeighbour(unresolved.clone())), NONE);
    assert_eq!(sorter.sort(&DelNeighbour(unresolved)), OVERLAY);
    assert_eq!(sorter.sort(&NewNeighbour(forward)), OVERLAY);
}

#[test]
fn a_datagram_may_hold_several_messages_and_rubbish() {
    let mut datagram = Vec::new();
    for index in 1..=3 {
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewLink(link(index, "veth")));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        datagram.extend(bytes);
    }
    assert_eq!(Messages(&datagram).count(), 3);
    datagram.extend([200, 0, 0, 0, 1]);
    assert_eq!(Messages(&datagram).count(), 3);
    assert_eq!(Messages(&[0; 64]).count(), 0);
    assert_eq!(Messages(&[3]).count(), 0);
}
