//! The pipeline over plain memory: one test for each sentence of
//! `docs/datapath.md` that a packet can show.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod plain;

use datapath_common::{
    BackendState, Config, Direction, Feature, Flow, FlowKey, FlowState, FrontendFlags, FrontendKey,
    Ip4, Network, Reason, proto,
};
use datapath_core::{
    Decision, ETH_LEN, Family, Headers, V4, Verdict, icmp::IcmpError, pod_from, quoted, to_pod,
};
use etherparse::PacketBuilder;
use plain::{Bytes, Plain, local, vxlan};

const CLIENT: [u8; 4] = [10, 244, 1, 10];
const NEIGHBOUR: [u8; 4] = [10, 244, 1, 11];
const REMOTE: [u8; 4] = [10, 244, 2, 10];
const VIP: [u8; 4] = [10, 96, 0, 10];
const FREE: [u8; 4] = [10, 96, 0, 99];

fn config() -> Config {
    Config {
        pod_net4: Ip4::new([10, 244, 1, 0]),
        pod_mask4: Ip4::new([255, 255, 255, 0]),
        ..Config::EMPTY
    }
}

fn tables() -> Plain<Ip4> {
    let mut tables = Plain::new(config());
    tables.pods.insert(Ip4::new(CLIENT), local(10));
    tables.pods.insert(Ip4::new(NEIGHBOUR), local(11));
    tables
        .peers
        .push((Ip4::new([10, 244, 2, 0]), 24, vxlan([192, 168, 77, 12])));
    tables
}

fn web(tables: &mut Plain<Ip4>, flags: u16) -> u32 {
    let key = FrontendKey {
        addr: Ip4::new(VIP),
        port: 80,
        proto: proto::TCP,
        scope: 0,
    };
    tables.service(
        key,
        &[
            (Ip4::new(REMOTE), 8080, vxlan([192, 168, 77, 12])),
            (Ip4::new(NEIGHBOUR), 8080, local(11)),
        ],
        flags,
    )
}

fn tcp(src: [u8; 4], dst: [u8; 4], sport: u16, dport: u16, flags: u8) -> Vec<u8> {
    tcp_ttl(src, dst, sport, dport, flags, 64)
}

fn tcp_ttl(src: [u8; 4], dst: [u8; 4], sport: u16, dport: u16, flags: u8, ttl: u8) -> Vec<u8> {
    let mut builder = PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(src, dst, ttl)
        .tcp(sport, dport, 1, 1024);
    if flags & 2 != 0 {
        builder = builder.syn();
    }
    if flags & 16 != 0 {
        builder = builder.ack(1);
    }
    if flags & 1 != 0 {
        builder = builder.fin();
    }
    let mut frame = Vec::new();
    builder.write(&mut frame, b"hello").unwrap();
    frame
}

const SYN: u8 = 2;
const SYN_ACK: u8 = 18;
const ACK: u8 = 16;
const FIN: u8 = 17;

fn from<'t>(tables: &'t Plain<Ip4>, frame: &[u8]) -> Decision<'t, Ip4> {
    let packet = Bytes::new(frame);
    let mut headers = Headers::EMPTY;
    V4::parse(&packet, ETH_LEN, &mut headers).unwrap();
    pod_from::<V4, _, _>(&packet, tables, &mut headers)
}

fn reply<'t>(tables: &'t Plain<Ip4>, frame: &[u8]) -> Decision<'t, Ip4> {
    let packet = Bytes::new(frame);
    let mut headers = Headers::EMPTY;
    V4::parse(&packet, ETH_LEN, &mut headers).unwrap();
    let via = &tables.pods[&headers.dst];
    to_pod::<V4, _>(tables, &mut headers, via, Reason::Decapsulated, false)
}

fn forward_key(sport: u16) -> FlowKey<Ip4> {
    FlowKey {
        src: Ip4::new(CLIENT),
        dst: Ip4::new(VIP),
        sport,
        dport: 80,
        proto: proto::TCP,
        direction: Direction::Forward as u8,
        reserved: 0,
    }
}

/// A client port whose SYN goes to the backend `addr`.
fn port_for(tables: &Plain<Ip4>, addr: [u8; 4]) -> u16 {
    (40_000..41_000)
        .find(|port| {
            let decision = from(tables, &tcp(CLIENT, VIP, *port, 80, SYN));
            decision.rewrite.dst == Ip4::new(addr)
        })
        .expect("both backends are chosen by some port")
}

#[test]
fn pod_to_pod_without_a_service() {
    let tables = tables();
    let local = from(&tables, &tcp(CLIENT, NEIGHBOUR, 1, 2, SYN));
    assert_eq!(
        (local.verdict, local.reason),
        (Verdict::Deliver, Reason::DeliveredLocal)
    );
    assert_eq!(local.via.unwrap().ifindex, 11);
    let remote = from(&tables, &tcp(CLIENT, REMOTE, 1, 2, SYN));
    assert_eq!(
        (remote.verdict, remote.reason),
        (Verdict::Encapsulate, Reason::Encapsulated)
    );
    assert!((32_768..61_000).contains(&remote.outer_port));
    let away = from(&tables, &tcp(CLIENT, [192, 0, 2, 1], 1, 2, SYN));
    assert_eq!(
        (away.verdict, away.reason),
        (Verdict::Kernel, Reason::NotOurs)
    );
    let nobody = from(&tables, &tcp(CLIENT, [10, 244, 1, 99], 1, 2, SYN));
    assert_eq!(
        (nobody.verdict, nobody.reason),
        (Verdict::Kernel, Reason::NotOurs)
    );
    assert!(tables.flows.borrow().is_empty(), "no service, no flow");
}

#[test]
fn kp_62_a_flow_keeps_its_backend_and_opens_two_rows() {
    let mut tables = tables();
    web(&mut tables, FrontendFlags::FLOWS_DECIDE);
    let first = from(&tables, &tcp(CLIENT, VIP, 40_000, 80, SYN));
    assert_eq!(tables.flows.borrow().len(), 2);
    let chosen = first.rewrite.dst;
    // The segment now says otherwise; the flow stays.
    tables.slots.swap(1, 2);
    for flags in [ACK, ACK, FIN] {
        let next = from(&tables, &tcp(CLIENT, VIP, 40_000, 80, flags));
        assert_eq!(next.rewrite.dst, chosen);
    }
    assert_eq!(tables.flows.borrow().len(), 2);
    assert_eq!(
        tables.flow_at(forward_key(40_000)).unwrap().state,
        FlowState::Closing as u8
    );
}

#[test]
fn data_of_an_unchanged_service_needs_no_row() {
    let mut tables = tables();
    web(&mut tables, 0);
    let syn = from(&tables, &tcp(CLIENT, VIP, 40_000, 80, SYN));
    tables.flows.borrow_mut().clear();
    let data = from(&tables, &tcp(CLIENT, VIP, 40_000, 80, ACK));
    assert_eq!(data.rewrite, syn.rewrite);
    assert!(tables.flows.borrow().is_empty());
}

#[test]
fn kp_60_the_reply_carries_the_frontend() {
    let mut tables = tables();
    web(&mut tables, 0);
    let port = port_for(&tables, REMOTE);
    let answer = reply(&tables, &tcp(REMOTE, CLIENT, 8080, port, SYN_ACK));
    assert_eq!(
        (answer.verdict, answer.reason),
        (Verdict::Deliver, Reason::ReplyTranslated)
    );
    assert_eq!(
        (answer.rewrite.src, answer.rewrite.sport),
        (Ip4::new(VIP), 80)
    );
    assert_eq!(
        (answer.rewrite.dst, answer.rewrite.dport),
        (Ip4::new(CLIENT), port)
    );
    let row = tables.flow_at(forward_key(port)).unwrap();
    assert_eq!(
        row.state,
        FlowState::Established as u8,
        "the forward row follows"
    );
    let stranger = reply(&tables, &tcp(REMOTE, CLIENT, 8081, port, SYN_ACK));
    assert_eq!(stranger.reason, Reason::Decapsulated);
}

#[test]
fn a_draining_backend_keeps_its_tcp_flows_only() {
    let mut tables = tables();
    let first = web(&mut tables, FrontendFlags::FLOWS_DECIDE);
    let port = port_for(&tables, REMOTE);
    tables.backends[first as usize].state = BackendState::Draining as u8;
    tables.slots[1] = first + 1;
    let data = from(&tables, &tcp(CLIENT, VIP, port, 80, ACK));
    assert_eq!(data.rewrite.dst, Ip4::new(REMOTE), "open flows finish");
    let again = from(&tables, &tcp(CLIENT, VIP, port, 80, SYN));
    assert_eq!(
        again.rewrite.dst,
        Ip4::new(NEIGHBOUR),
        "a new connection moves"
    );
}

#[test]
fn lost_rows_come_back_where_that_is_expected() {
    let mut tables = tables();
    web(&mut tables, 0);
    let port = port_for(&tables, REMOTE);
    tables.flows.borrow_mut().clear();
    let data = tcp(CLIENT, VIP, port, 80, ACK);
    assert_eq!(from(&tables, &data).rewrite.dst, Ip4::new(REMOTE));
    assert!(tables.flows.borrow().is_empty(), "an unchanged service");

    for front in tables.fronts.values_mut() {
        front.flags |= FrontendFlags::FLOWS_MAY_BE_LOST;
    }
    let back = tcp(REMOTE, CLIENT, 8080, port, ACK);
    for lost in [Direction::Forward, Direction::Reply] {
        assert_eq!(from(&tables, &data).rewrite.dst, Ip4::new(REMOTE));
        assert_eq!(tables.flows.borrow().len(), 2);
        assert_eq!(reply(&tables, &back).reason, Reason::ReplyTranslated);
        let gone = |key: &FlowKey<Ip4>| key.direction != lost as u8;
        tables.flows.borrow_mut().retain(|key, _| gone(key));
        assert_eq!(from(&tables, &data).rewrite.dst, Ip4::new(REMOTE));
        let flows = tables.flows.borrow();
        assert_eq!(flows.len(), 2, "{lost:?}");
        let established = FlowState::Established as u8;
        assert!(flows.values().all(|row| row.get().state == established));
    }
}

#[test]
fn a_recycled_backend_id_is_not_followed() {
    let mut tables = tables();
    let first = web(&mut tables, FrontendFlags::FLOWS_DECIDE);
    let port = port_for(&tables, REMOTE);
    tables.backends[first as usize].generation += 1;
    tables.backends[first as usize].addr = Ip4::new([10, 244, 2, 99]);
    tables.slots[1] = first + 1;
    let data = from(&tables, &tcp(CLIENT, VIP, port, 80, ACK));
    assert_eq!(data.rewrite.dst, Ip4::new(NEIGHBOUR));
}

#[test]
fn kp_53_no_endpoints_is_refused() {
    let mut tables = tables();
    let key = FrontendKey {
        addr: Ip4::new(VIP),
        port: 80,
        proto: proto::TCP,
        scope: 0,
    };
    tables.service(key, &[], 0);
    let refused = from(&tables, &tcp(CLIENT, VIP, 40_000, 80, SYN));
    assert_eq!(
        (refused.verdict, refused.reason),
        (Verdict::Refuse, Reason::NoEndpoints)
    );
    assert_eq!(refused.error, IcmpError::PortUnreachable);
    assert!(tables.flows.borrow().is_empty(), "KP-59: no poison state");
}

#[test]
fn kp_28_a_wrong_port_of_a_service_address_is_refused() {
    let mut tables = tables();
    web(&mut tables, 0);
    let refused = from(&tables, &tcp(CLIENT, VIP, 40_000, 81, SYN));
    assert_eq!(
        (refused.verdict, refused.reason),
        (Verdict::Refuse, Reason::NoSuchPort)
    );
}

#[test]
fn kp_29_a_free_address_of_services_is_nowhere() {
    let mut tables = tables();
    web(&mut tables, 0);
    tables.config.features |= Feature::SERVICE_NETWORKS;
    tables.networks = [VIP, FREE]
        .map(|addr| (Ip4::new(addr), Network::SERVICES))
        .into();
    let dropped = from(&tables, &tcp(CLIENT, FREE, 40_000, 80, SYN));
    assert_eq!(
        (dropped.verdict, dropped.reason),
        (Verdict::Drop, Reason::FreeServiceAddress)
    );
    let refused = from(&tables, &tcp(CLIENT, VIP, 40_000, 81, SYN));
    assert_eq!(refused.reason, Reason::NoSuchPort, "in use");
    tables.config.features &= !Feature::SERVICE_NETWORKS;
    let passed = from(&tables, &tcp(CLIENT, FREE, 40_000, 80, SYN));
    assert_eq!(passed.reason, Reason::NotOurs, "no network is services'");
    tables.config.features |= Feature::SERVICE_NETWORKS;
    tables.networks.insert(Ip4::new(FREE), Network::DIRECT);
    let left = from(&tables, &tcp(CLIENT, FREE, 40_000, 80, SYN));
    assert_eq!(
        (left.verdict, left.reason),
        (Verdict::Kernel, Reason::NotOurs)
    );
}

#[test]
fn ttl_is_checked_before_anything_is_opened() {
    let mut tables = tables();
    web(&mut tables, 0);
    for dst in [VIP, REMOTE, NEIGHBOUR] {
        let spent = from(&tables, &tcp_ttl(CLIENT, dst, 40_000, 80, SYN, 1));
        assert_eq!(
            (spent.verdict, spent.reason),
            (Verdict::Refuse, Reason::TtlExceeded)
        );
        assert_eq!(spent.error, IcmpError::TimeExceeded);
    }
    assert!(tables.flows.borrow().is_empty());
}

#[test]
fn what_does_not_fit_the_overlay_is_answered_or_left_to_the_kernel() {
    let mut tables = tables();
    web(&mut tables, 0);
    let port = port_for(&tables, REMOTE);
    let big = |dst: [u8; 4], dport: u16, df: bool| {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(CLIENT, dst, 64)
            .tcp(port, dport, 1, 9);
        builder.ack(1).write(&mut frame, &[0; 1411]).unwrap();
        frame[20] = if df { 0x40 } else { 0 };
        frame
    };
    let service = from(&tables, &big(VIP, 80, true));
    assert_eq!(
        (service.verdict, service.error),
        (Verdict::Refuse, IcmpError::TooBig)
    );
    let divided = from(&tables, &big(VIP, 80, false));
    assert_eq!(
        (divided.verdict, divided.reason, divided.rewrite.dst),
        (
            Verdict::Kernel,
            Reason::TranslatedToKernel,
            Ip4::new(REMOTE)
        )
    );
    let df = from(&tables, &big(REMOTE, 80, true));
    assert_eq!((df.verdict, df.reason), (Verdict::Refuse, Reason::TooBig));
    let plain = from(&tables, &big(REMOTE, 80, false));
    assert_eq!(
        (plain.verdict, plain.reason),
        (Verdict::Kernel, Reason::SlowPath)
    );
    let frame = big(REMOTE, 80, true);
    let segments = Bytes {
        frame: &frame,
        gso_size: 1398,
    };
    let mut headers = Headers::EMPTY;
    V4::parse(&segments, ETH_LEN, &mut headers).unwrap();
    let decision = pod_from::<V4, _, _>(&segments, &tables, &mut headers);
    assert_eq!(decision.verdict, Verdict::Encapsulate, "each segment fits");
}

#[test]
fn a_pod_reaches_itself_through_its_service_kp_110() {
    let mut tables = tables();
    let key = FrontendKey {
        addr: Ip4::new(VIP),
        port: 80,
        proto: proto::TCP,
        scope: 0,
    };
    tables.service(key, &[(Ip4::new(CLIENT), 8080, local(10))], 0);
    let there = from(&tables, &tcp(CLIENT, VIP, 40_000, 80, SYN));
    assert_eq!(there.verdict, Verdict::Deliver);
    assert_eq!(
        (there.rewrite.src, there.rewrite.sport),
        (Ip4::new(VIP), 40_000)
    );
    assert_eq!(
        (there.rewrite.dst, there.rewrite.dport),
        (Ip4::new(CLIENT), 8080)
    );
    let back = from(&tables, &tcp(CLIENT, VIP, 8080, 40_000, SYN_ACK));
    assert_eq!(
        (back.verdict, back.reason),
        (Verdict::Deliver, Reason::ReplyTranslated)
    );
    assert_eq!((back.rewrite.src, back.rewrite.sport), (Ip4::new(VIP), 80));
    assert_eq!(
        (back.rewrite.dst, back.rewrite.dport),
        (Ip4::new(CLIENT), 40_000)
    );
}

#[test]
fn limits_and_a_full_table_have_names() {
    let mut tables = tables();
    web(&mut tables, 0);
    tables.grants.set(1);
    assert_eq!(
        from(&tables, &tcp(CLIENT, VIP, 40_000, 80, SYN)).reason,
        Reason::Encapsulated
    );
    let limited = from(&tables, &tcp(CLIENT, VIP, 40_001, 80, SYN));
    assert_eq!(limited.reason, Reason::NewFlowLimit);
    tables.grants.set(9);
    tables.flow_limit = 2;
    let full = from(&tables, &tcp(CLIENT, VIP, 40_002, 80, SYN));
    assert_eq!(
        (full.verdict, full.reason),
        (Verdict::Drop, Reason::FlowTableFull)
    );
}

#[test]
fn an_idle_flow_has_expired() {
    let mut tables = tables();
    web(&mut tables, FrontendFlags::FLOWS_DECIDE);
    let _ = from(&tables, &tcp(CLIENT, VIP, 40_000, 80, SYN));
    let opened = tables.flow_at(forward_key(40_000)).unwrap().opened;
    tables
        .now
        .set(tables.now.get() + tables.config.idle.tcp_opening + 1);
    let _ = from(&tables, &tcp(CLIENT, VIP, 40_000, 80, SYN));
    let row = tables.flow_at(forward_key(40_000)).unwrap();
    assert!(row.opened > opened, "opened anew");
}

/// Slots of a segment are chosen evenly, and both addresses and ports matter.
#[test]
fn kp_101_the_hash_spreads() {
    for n in [2u32, 3, 10] {
        let mut hits = vec![0u32; n as usize];
        for i in 0..30_000u32 {
            let src = Ip4::new((0x0af4_0000 + i / 100).to_be_bytes());
            let hash = datapath_core::flow_hash(src, Ip4::new(VIP), 30_000 + i as u16 % 100, 80, 6);
            hits[datapath_core::reduce(hash, n) as usize] += 1;
        }
        let even = 30_000.0 / f64::from(n);
        let chi: f64 = hits
            .iter()
            .map(|h| (f64::from(*h) - even).powi(2) / even)
            .sum();
        assert!(chi < 30.0, "{n} slots: {hits:?}, chi-square {chi}");
    }
}

#[test]
fn an_error_is_translated_only_for_the_sender_of_what_it_quotes() {
    let mut tables = tables();
    web(&mut tables, 0);
    let port = port_for(&tables, REMOTE);
    let sent = tcp(CLIENT, REMOTE, port, 8080, ACK);
    for (to, known) in [(CLIENT, true), (NEIGHBOUR, false)] {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([192, 0, 2, 1], to, 64)
            .icmpv4_raw(3, 1, [0; 4])
            .write(&mut frame, &sent[ETH_LEN..])
            .unwrap();
        let packet = Bytes::new(&frame);
        let mut headers = Headers::EMPTY;
        V4::parse(&packet, ETH_LEN, &mut headers).unwrap();
        let quoted = quoted::quoted::<V4, _>(&packet, &headers).unwrap();
        let new = quoted::translation::<V4, _>(&tables, &headers, &quoted);
        assert_eq!(
            new.map(|new| new.quoted_dst),
            known.then_some(Ip4::new(VIP))
        );
    }
}

/// Who has moved ports, and clients from outside masqueraded.
fn tables_with_ports() -> Plain<Ip4> {
    let mut tables = tables();
    tables.config.features |= Feature::UPLINK_SERVICES;
    (tables.config.snat_first, tables.config.snat_ports) = (2000, 8);
    tables
}

/// The only row of a direction.
fn only_row(tables: &Plain<Ip4>, direction: Direction) -> (FlowKey<Ip4>, Flow<Ip4>) {
    let flows = tables.flows.borrow();
    let mut rows = flows
        .iter()
        .filter(|(key, _)| key.direction == direction as u8)
        .map(|(key, row)| (*key, row.get()));
    let row = rows.next().unwrap();
    assert!(rows.next().is_none(), "more than one");
    row
}

#[test]
fn a_lock_that_is_not_had_changes_no_port() {
    let mut tables = tables_with_ports();
    web(&mut tables, 0);
    let syn = tcp(CLIENT, VIP, 40_000, 80, SYN);
    tables.locked.set(true);
    assert_ne!(from(&tables, &syn).verdict, Verdict::Drop);
    let (_, forward) = only_row(&tables, Direction::Forward);
    assert_eq!(forward.nat_port, 0);
    let (key, reply) = only_row(&tables, Direction::Reply);
    assert_eq!((key.dport, reply.nat_port), (40_000, 0));

    // A dead flow's row is not taken over without the lock, and nothing changes.
    tables.flows.borrow_mut().clear();
    let dead = Flow {
        port: 81,
        seen: tables.now.get() - tables.config.idle.tcp_opening - 9,
        ..reply
    };
    tables.flows.borrow_mut().insert(key, plain::leak(dead));
    assert_eq!(from(&tables, &syn).verdict, Verdict::Drop);
    assert_eq!(tables.flows.borrow().len(), 1);
    assert_eq!(tables.flow_at(key).unwrap().port, 81);
    assert!(tables.asking.borrow().is_empty());

    tables.locked.set(false);
    assert_ne!(from(&tables, &syn).verdict, Verdict::Drop);
    assert_eq!(tables.flow_at(key).unwrap().port, 80);
    assert_eq!(only_row(&tables, Direction::Forward).1.nat_port, 0);
    assert!(tables.asking.borrow().is_empty());
}

#[test]
fn a_living_flow_s_row_moves_the_port_also_without_the_lock() {
    let mut tables = tables_with_ports();
    web(&mut tables, 0);
    let syn = tcp(CLIENT, VIP, 40_000, 80, SYN);
    let _ = from(&tables, &syn);
    let (key, reply) = only_row(&tables, Direction::Reply);
    tables.flows.borrow_mut().clear();
    let other = Flow { port: 81, ..reply };
    tables.flows.borrow_mut().insert(key, plain::leak(other));
    tables.locked.set(true);
    // All other ports have the same lock here.
    assert_eq!(from(&tables, &syn).reason, Reason::SnatPortsExhausted);
    tables.locked.set(false);
    assert_ne!(from(&tables, &syn).verdict, Verdict::Drop);
    let (_, forward) = only_row(&tables, Direction::Forward);
    assert!((2000..2008).contains(&forward.nat_port));
    assert_eq!(tables.flow_at(key).unwrap().port, 81);
    assert_eq!(tables.asking.borrow().len(), 1);
}

#[test]
fn a_masqueraded_flow_keeps_its_port_while_the_lock_is_another_s() {
    let mut tables = tables_with_ports();
    web(
        &mut tables,
        FrontendFlags::MASQUERADE_PODS | FrontendFlags::FLOWS_MAY_BE_LOST,
    );
    let _ = from(&tables, &tcp(CLIENT, VIP, 40_000, 80, SYN));
    let (key, reply) = only_row(&tables, Direction::Reply);
    assert!((2000..2008).contains(&key.dport), "masqueraded");
    // Evicted; another flow had the port since, and is over.
    let dead = Flow {
        nat_port: 50_000,
        seen: tables.now.get() - tables.config.idle.tcp_opening - 9,
        ..reply
    };
    for there in [None, Some(dead)] {
        tables.flows.borrow_mut().remove(&key);
        if there.is_some() {
            // It comes just after the look that finds none.
            tables.comes.set(Some((key, dead)));
        }
        tables.locked.set(true);
        let data = tcp(CLIENT, VIP, 40_000, 80, ACK);
        let sent = from(&tables, &data);
        assert_eq!(sent.rewrite.sport, key.dport);
        let row = only_row(&tables, Direction::Forward).1;
        assert_eq!(row.nat_port, key.dport);
        tables.locked.set(false);
        if there.is_some() {
            assert!(
                tables.now.get() - row.seen >= 2,
                "the next packet tries again"
            );
            tables.flows.borrow_mut().remove(&key);
        }
        let sent = from(&tables, &data);
        assert_eq!(sent.rewrite.sport, key.dport);
        assert_eq!(tables.flow_at(key).unwrap().nat_port, 40_000);
    }
}
