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
    read(&document, &run(), |line, field| Place::File {
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
fn what_kubeadm_writes_says_two_things_that_mean_nothing() {
    let reading = read_text(KUBEADM);
    assert_eq!(reading.errors, [""; 0]);
    assert_eq!(
        said_of(&reading),
        ["kubeconfig=/var/lib/kube-proxy/kubeconfig.conf"]
    );
    assert_eq!(reading.notes.len(), 2, "{:?}", reading.notes);
    assert!(reading.notes[0].starts_with("c:3: bindAddress means nothing here: "));
    assert!(reading.notes[1].starts_with("c:11: clusterCIDR means nothing here: "));
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
            "metrics-address=[::]:9",
            "min-sync-period=20ms",
            "node-port-addresses=192.0.2.0/24,2001:db8::/32",
            "node=node-7",
            "scheduler=wlc",
        ]
    );
    assert_eq!(reading.notes.len(), 1, "{:?}", reading.notes);
    let nft = read_text("mode: nftables\nnftables: {masqueradeAll: true}\n");
    assert_eq!(said_of(&nft), ["masquerade-all=true"]);
}

#[test]
fn what_is_wrong_or_unknown_is_told_with_its_line() {
    let reading = read_text("mode: ''\nnodePortAddresses:\n- 192.0.2.1\nfuture: {x: 1}\n");
    assert_eq!(reading.errors.len(), 1);
    let error = &reading.errors[0];
    assert!(error.starts_with("c:2: nodePortAddresses: "), "{error}");
    assert!(error.contains("no network"), "{error}");
    assert_eq!(
        reading.notes,
        ["c:4: future.x: kube-proxy has no such field; nothing comes of it"]
    );
}

fn read_flags(line: &[&str]) -> Reading {
    let run = run();
    let words = ["run"].iter().chain(line);
    let matches = run.clone().try_get_matches_from(words).unwrap();
    flags(&matches, &run)
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
    let clean = read_flags(&["--cleanup"]);
    assert!(clean.errors[0].contains("tulle-agent cleanup"), "{clean:?}");
}

/// kube-proxy's own as of 1.36, without those that Tulle has under the same name.
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
