use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::config::{command, tree};

fn run() -> Command {
    command().find_subcommand("run").unwrap().clone()
}

fn read_text(text: &str) -> Reading {
    let document = tree::documents(text).unwrap().remove(0);
    let path = Arc::new(PathBuf::from("c"));
    let mode = mode_of(&document).unwrap_or(Mode::Iptables);
    read(&document, &run(), mode, |line, field| Place::File {
        path: Arc::clone(&path),
        line,
        field: field.to_owned(),
    })
}

fn said_of(reading: &Reading) -> Vec<String> {
    let mut said: Vec<String> = reading
        .said
        .iter()
        .map(|said| format!("{}={}", said.option, said.values.join("|")))
        .collect();
    said.sort();
    said
}

/// As `kubeadm init` writes it where nobody sets anything.
const KUBEADM: &str = r#"
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVIP: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"#;

#[test]
fn what_kubeadm_writes_says_nothing_that_counts() {
    let reading = read_text(KUBEADM);
    assert_eq!(reading.errors, [""; 0]);
    assert_eq!(said_of(&reading), [""; 0]);
    let starts = [
        "c:3: bindAddress means nothing here: ",
        "c:9: clientConnection.kubeconfig means nothing here: there is no ",
        "c:11: clusterCIDR means nothing here: ",
        "c:2: nodePortAddresses is not set: ",
    ];
    assert_eq!(reading.notes.len(), starts.len(), "{:?}", reading.notes);
    for (note, start) in reading.notes.iter().zip(starts) {
        assert!(note.starts_with(start), "{note}");
    }
}

#[test]
fn fields_that_make_sense_are_read() {
    let reading = read_text(
        "mode: ipvs\nhostnameOverride: Node-7\nhealthzBindAddress: 127.0.0.1\n\
         metricsBindAddress: '[::]:9'\nbindAddressHardFail: true\n\
         nodePortAddresses: [192.0.2.0/24, '2001:db8::/32']\n\
         iptables: {masqueradeAll: true, minSyncPeriod: 9s}\n\
         ipvs: {scheduler: wlc, minSyncPeriod: 20ms, strictARP: true}\nlogging: {verbosity: 4}\n",
    );
    assert_eq!(reading.errors, [""; 0]);
    assert_eq!(
        said_of(&reading),
        [
            "bind-address-hard-fail=true",
            "health-address=127.0.0.1:10256",
            "log=info,tulle_agent=debug",
            "masquerade-all=true",
            "metrics-address=[::]:9",
            "min-sync-period=20ms",
            "node-port-addresses=192.0.2.0/24,2001:db8::/32",
            "node=node-7",
            "scheduler=wlc",
        ]
    );
    let notes = reading.notes.join("\n");
    assert_eq!(reading.notes.len(), 2, "{notes}");
    assert!(
        notes.contains("ipvs.strictARP means nothing here: addresses"),
        "{notes}"
    );
    assert!(
        notes.contains("minSyncPeriod means nothing here: it is of kube-proxy's mode iptables")
    );
    let nft = read_text("mode: nftables\nnftables: {masqueradeAll: true}\n");
    assert_eq!(said_of(&nft), ["masquerade-all=true"]);
}

#[test]
fn what_is_wrong_or_unknown_is_told_with_its_line() {
    let reading = read_text("mode: nftables\nnodePortAddresses:\n- 192.0.2.1\nfuture: {x: 1}\n");
    assert_eq!(reading.errors.len(), 1);
    let error = &reading.errors[0];
    assert!(error.starts_with("c:2: nodePortAddresses: "), "{error}");
    assert!(error.contains("no network"), "{error}");
    assert_eq!(
        reading.notes,
        ["c:4: future.x: kube-proxy has no such field; nothing comes of it"]
    );
    let lost = read_text("hostnameOverride: 1.10\n");
    assert!(lost.errors[0].contains("in quotes"), "{lost:?}");
}

fn read_flags(line: &[&str]) -> Reading {
    let run = run();
    let words = ["run"].iter().chain(line);
    let matches = run.clone().try_get_matches_from(words).unwrap();
    let mode = mode_of_flags(&matches).unwrap_or(Mode::Iptables);
    flags(&matches, &run, mode)
}

#[test]
fn flags_are_taken() {
    let reading = read_flags(&[
        "--hostname-override=Node-1",
        "--cluster-cidr",
        "10.42.0.0/16",
        "--proxy-mode=ipvs",
        "--ipvs-strict-arp",
        "--conntrack-max-per-core=0",
        "--oom-score-adj",
        "-999",
        "--healthz-bind-address=",
        "--metrics-port=0",
        "--nodeport-addresses",
        "192.0.2.0/24",
        "--master",
        "https://192.0.2.9:6443",
        "-v",
        "2",
    ]);
    assert_eq!(reading.errors, [""; 0]);
    assert_eq!(
        said_of(&reading),
        [
            "api-servers=192.0.2.9:6443",
            "health-address=off",
            "log=info",
            "metrics-address=off",
            "node-port-addresses=192.0.2.0/24",
            "node=node-1",
        ]
    );
    assert_eq!(reading.notes.len(), 4, "{:?}", reading.notes);
    let periods = ["--iptables-min-sync-period=5s", "--iptables-sync-period=1m"];
    let rules = read_flags(&[&["--proxy-mode=nftables"][..], &periods].concat());
    assert_eq!(said_of(&rules), ["min-sync-period=5s", "sync-period=1m"]);
    let empty = ["--hostname-override=", "--master=", "--nodeport-addresses="];
    let empty = read_flags(&[&empty[..], &["--ipvs-strict-arp=f", "--profiling=0"]].concat());
    assert_eq!(empty, Reading::default());
    let joined = read_flags(&["--healthz-bind-address=192.0.2.1", "--healthz-port=9999"]);
    assert_eq!(said_of(&joined), ["health-address=192.0.2.1:9999"]);
    let off = read_flags(&["--healthz-bind-address=0.0.0.0:10256", "--healthz-port=0"]);
    assert_eq!(said_of(&off), ["health-address=off"]);
    let scheduler = read_flags(&["--proxy-mode=ipvs", "--ipvs-scheduler=nq"]);
    assert!(
        scheduler.notes[0].contains("no scheduler nq"),
        "{scheduler:?}"
    );
    let clean = read_flags(&["--cleanup"]);
    assert!(clean.errors[0].contains("tulle-agent cleanup"), "{clean:?}");
}

/// The fields of v1alpha1's types.go and the flags of options.go in Kubernetes 1.30 to 1.36.
const KUBE_PROXY_S: &str = "
featureGates clientConnection.kubeconfig clientConnection.acceptContentTypes
clientConnection.contentType clientConnection.qps clientConnection.burst logging.format
logging.flushFrequency logging.verbosity logging.vmodule logging.options hostnameOverride
bindAddress healthzBindAddress metricsBindAddress bindAddressHardFail enableProfiling
showHiddenMetricsForVersion mode iptables.masqueradeBit iptables.masqueradeAll
iptables.localhostNodePorts iptables.syncPeriod iptables.minSyncPeriod ipvs.syncPeriod
ipvs.minSyncPeriod ipvs.scheduler ipvs.excludeCIDRs ipvs.strictARP ipvs.tcpTimeout
ipvs.tcpFinTimeout ipvs.udpTimeout nftables.masqueradeBit nftables.masqueradeAll
nftables.syncPeriod nftables.minSyncPeriod winkernel detectLocalMode detectLocal.bridgeInterface
detectLocal.interfaceNamePrefix clusterCIDR nodePortAddresses oomScoreAdj conntrack.maxPerCore
conntrack.min conntrack.tcpEstablishedTimeout conntrack.tcpCloseWaitTimeout
conntrack.tcpBeLiberal conntrack.udpTimeout conntrack.udpStreamTimeout configSyncPeriod
portRange windowsRunAsService";
const KUBE_PROXY_S_FLAGS: &str = "
bind-address bind-address-hard-fail cleanup cluster-cidr config config-sync-period
conntrack-max-per-core conntrack-min conntrack-tcp-be-liberal conntrack-tcp-timeout-close-wait
conntrack-tcp-timeout-established conntrack-udp-timeout conntrack-udp-timeout-stream
detect-local-mode feature-gates healthz-bind-address healthz-port hostname-override init-only
iptables-localhost-nodeports iptables-masquerade-bit iptables-min-sync-period
iptables-sync-period ipvs-exclude-cidrs ipvs-min-sync-period ipvs-scheduler ipvs-strict-arp
ipvs-sync-period ipvs-tcp-timeout ipvs-tcpfin-timeout ipvs-udp-timeout kube-api-burst
kube-api-content-type kube-api-qps kubeconfig log-flush-frequency log-json-info-buffer-size
log-json-split-stream log-text-info-buffer-size log-text-split-stream logging-format
masquerade-all master metrics-bind-address metrics-port nodeport-addresses oom-score-adj
pod-bridge-interface pod-interface-name-prefix profiling proxy-mode proxy-port-range
show-hidden-metrics-for-version v vmodule write-config-to";

#[test]
fn everything_that_kube_proxy_knows_is_known() {
    let own: Vec<String> = options::of(&run())
        .filter_map(|arg| arg.get_long().map(str::to_owned))
        .collect();
    for path in KUBE_PROXY_S.split_whitespace() {
        assert!(is_known(path), "{path}");
    }
    for flag in KUBE_PROXY_S_FLAGS.split_whitespace() {
        let known = FIELDS.iter().any(|field| field.flag == flag);
        assert!(
            known || flag == "config" || own.iter().any(|own| own == flag),
            "{flag}"
        );
    }
    // And no field that kube-proxy has not, but those of former versions.
    let former = ["conntrack.max", "udpIdleTimeout"];
    for field in FIELDS.iter().filter(|field| !field.path.is_empty()) {
        let there = KUBE_PROXY_S
            .split_whitespace()
            .any(|path| path == field.path);
        assert!(there || former.contains(&field.path), "{}", field.path);
    }
}

#[test]
fn each_field_is_there_once_and_goes_to_an_option() {
    let run = run();
    let mut paths: Vec<&str> = FIELDS.iter().map(|field| field.path).collect();
    paths.retain(|path| !path.is_empty());
    let mut flags: Vec<&str> = FIELDS.iter().map(|field| field.flag).collect();
    flags.retain(|flag| !flag.is_empty());
    for mut names in [paths, flags] {
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
    for field in FIELDS {
        if let Meaning::Option(to, _) = field.meaning {
            assert!(options::named(&run, to).is_some(), "{to} of {field:?}");
        }
    }
}
