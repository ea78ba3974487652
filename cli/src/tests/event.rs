use super::*;

const STYLE: Style = Style {
    color: false,
    width: Some(100),
};

fn event() -> Event {
    let mut event: Event = bytemuck::Zeroable::zeroed();
    event.time = 5_000_000;
    event.ifindex = 7;
    event.len = 74;
    event.kind = EventKind::Drop as u8;
    event.reason = Reason::NoEndpoints as u8;
    event.version = 4;
    event.proto = proto::TCP;
    event.src[..4].copy_from_slice(&[10, 244, 0, 5]);
    event.dst[..4].copy_from_slice(&[10, 96, 0, 1]);
    (event.sport, event.dport) = (40_000, 80);
    event
}

fn text(event: &Event) -> String {
    let (event, kind) = parse(bytemuck::bytes_of(event)).unwrap();
    let names = |ifindex| (ifindex == 7).then(|| "veth7".to_owned());
    let line = line(&event, kind, 3_600_000_000_000, &names);
    let json = serde_json::to_string(&line).unwrap();
    assert_eq!(serde_json::from_str::<EventLine>(&json).unwrap(), line);
    render(&line, STYLE)
}

#[test]
fn a_loss_names_reason_packet_and_place() {
    assert_eq!(
        text(&event()),
        "01:00:00.005  drop   no_endpoints            \
         TCP 10.244.0.5:40000 → 10.96.0.1:80  74 B  veth7 pod_from\n"
    );
}

#[test]
fn a_flow_names_its_backend_and_brackets_ports_of_ipv6() {
    let mut event = event();
    event.kind = EventKind::FlowOpened as u8;
    event.version = 6;
    event.src = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    event.dst = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    event.backend = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
    event.backend_port = 8080;
    assert_eq!(
        text(&event),
        "01:00:00.005  flow   TCP [fd00::1]:40000 → [fd00::2]:80  to [fd00::3]:8080  \
         74 B  veth7 pod_from\n"
    );
}

#[test]
fn what_was_not_parsed_or_has_no_ports_shows_none() {
    let mut ping = event();
    (ping.proto, ping.sport, ping.dport) = (proto::ICMP, 0, 0);
    assert!(
        text(&ping).contains("ICMP 10.244.0.5 → 10.96.0.1  74 B"),
        "{}",
        text(&ping)
    );
    let mut short = event();
    (short.version, short.ifindex, short.reason, short.hook) = (0, 9, 200, 9);
    assert_eq!(
        text(&short),
        "01:00:00.005  drop   reason_200              packet  74 B  if9 ?\n"
    );
}

#[test]
fn records_of_another_length_or_kind_are_none() {
    assert!(parse(&[0; 79]).is_none());
    assert!(parse(&[0; 80]).is_none(), "kind 0");
}
