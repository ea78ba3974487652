use datapath_common::{Ip4, Ip6, Mac, Via};

use super::*;

fn peers() -> Vec<PeerRow> {
    let via = |next_hop| Via {
        kind: ViaKind::Vxlan as u8,
        ifindex: 2,
        node: Ip4::new([192, 168, 1, 3]),
        next_hop: Ip4::new(next_hop),
        dst_mac: Mac::new([2, 0, 0, 0, 0, 3]),
        src_mac: Mac::new([2, 0, 0, 0, 0, 1]),
        ..Via::KERNEL
    };
    let six = Ip6::new([0xfd, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0]);
    vec![
        PeerRow::new(64, six, via([192, 168, 1, 3])).unwrap(),
        PeerRow::new(24, Ip4::new([10, 244, 9, 0]), Via::KERNEL).unwrap(),
        PeerRow::new(24, Ip4::new([10, 244, 3, 0]), via([192, 168, 0, 254])).unwrap(),
    ]
}

#[test]
fn without_an_agent_addresses_are_left() {
    let node = NodeRow {
        addr: Ip4::new([192, 168, 1, 3]),
        vtep_mac: Mac::new([2, 0, 0, 0, 0, 3]),
    };
    let report = rows(&peers(), &[node], None, &Names::default(), &|_| {
        Some("eth0".into())
    });
    assert_eq!(
        render(
            &report,
            Style {
                color: false,
                width: Some(100)
            }
        ),
        "\
This node: VTEP 02:00:00:00:00:01

POD NETWORK      NODE  ADDRESS      VTEP MAC           NEXT HOP       INTERFACE
10.244.3.0/24    -     192.168.1.3  02:00:00:00:00:03  192.168.0.254  eth0
10.244.9.0/24    -     -            -                  kernel         -
fd00:0:0:3::/64  -     192.168.1.3  02:00:00:00:00:03  direct         eth0

Overlay packets are accepted from
NODE  ADDRESS      VTEP MAC
-     192.168.1.3  02:00:00:00:00:03
"
    );
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
}

#[test]
fn an_empty_overlay_says_so() {
    let report = rows(&[], &[], None, &Names::default(), &|_| None);
    assert_eq!(
        render(&report, Style::default()),
        "\
This node: VTEP not known (no other node yet)

no pod networks of other nodes

no nodes whose overlay packets are accepted
"
    );
}

#[test]
fn a_prefix_longer_than_the_address_is_no_row() {
    assert_eq!(PeerRow::new(33, Ip4::new([10, 0, 0, 0]), Via::KERNEL), None);
    assert_eq!(
        PeerRow::new(1 << 20, Ip4::new([10, 0, 0, 0]), Via::KERNEL),
        None
    );
}

#[test]
fn nodes_that_answer_clients_are_shown() {
    let mut peers = peers();
    peers[2].via.flags = Via::DIRECT;
    let report = rows(&peers, &[], None, &Names::default(), &|_| None);
    let style = Style {
        color: false,
        width: None,
    };
    let text = render(&report, style);
    let row = text.lines().find(|line| line.starts_with("10.244.3.0/24"));
    assert!(row.unwrap().ends_with("yes"), "{text}");
    let row = text.lines().find(|line| line.starts_with("10.244.9.0/24"));
    assert!(row.unwrap().ends_with('-'), "{text}");
}
