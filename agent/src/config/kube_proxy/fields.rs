//! Every field of `KubeProxyConfiguration` (v1alpha1) and every flag of kube-proxy, and what
//! Tulle makes of it.

use super::values::{self, Converted};

/// A field, a flag, or both.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The field with those that it is in; empty if there is only a flag.
    pub path: &'static str,
    /// The flag, without the dashes; empty if there is only a field.
    pub flag: &'static str,
    /// Whether the flag can stand without a value.
    pub switch: bool,
    /// The modes of kube-proxy that it counts in; all of them if there is none.
    pub modes: &'static [Mode],
    /// What becomes of it.
    pub meaning: Meaning,
}

/// What becomes of a field.
#[derive(Clone, Copy, Debug)]
pub enum Meaning {
    /// It is this option of Tulle's.
    Option(&'static str, fn(&[String]) -> Converted),
    /// It means nothing to Tulle, which does this instead.
    Instead(&'static str),
    /// It is a way to call kube-proxy that has another name here.
    Refused(&'static str),
    /// It tells other fields apart only.
    Mode,
    /// The port of what this flag listens at, if that names none.
    PortOf(&'static str),
}

/// Modes of kube-proxy with fields of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// `iptables`, the default.
    Iptables,
    /// `ipvs`.
    Ipvs,
    /// `nftables`.
    Nftables,
}

impl Mode {
    /// The mode that `mode` or `--proxy-mode` says.
    pub fn named(text: &str) -> Self {
        match text {
            "ipvs" => Self::Ipvs,
            "nftables" => Self::Nftables,
            _ => Self::Iptables,
        }
    }

    /// As kube-proxy calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
            Self::Nftables => "nftables",
        }
    }
}

const fn option(
    path: &'static str,
    flag: &'static str,
    to: &'static str,
    convert: fn(&[String]) -> Converted,
) -> Field {
    Field {
        path,
        flag,
        switch: false,
        modes: &[],
        meaning: Meaning::Option(to, convert),
    }
}

const fn instead(path: &'static str, flag: &'static str, sentence: &'static str) -> Field {
    Field {
        path,
        flag,
        switch: false,
        modes: &[],
        meaning: Meaning::Instead(sentence),
    }
}

const fn listen_port(flag: &'static str, of: &'static str) -> Field {
    Field {
        path: "",
        flag,
        switch: false,
        modes: &[],
        meaning: Meaning::PortOf(of),
    }
}

const fn refused(flag: &'static str, sentence: &'static str) -> Field {
    Field {
        path: "",
        flag,
        switch: true,
        modes: &[],
        meaning: Meaning::Refused(sentence),
    }
}

impl Field {
    const fn switch(mut self) -> Self {
        self.switch = true;
        self
    }

    const fn of(mut self, modes: &'static [Mode]) -> Self {
        self.modes = modes;
        self
    }
}

const IPTABLES: &[Mode] = &[Mode::Iptables];
const IPVS: &[Mode] = &[Mode::Ipvs];
const NFTABLES: &[Mode] = &[Mode::Nftables];
const IPTABLES_OR_IPVS: &[Mode] = &[Mode::Iptables, Mode::Ipvs];
const RULES_OF_NETFILTER: &[Mode] = &[Mode::Iptables, Mode::Nftables];

const MARKS: &str = "packets are not marked";
const RULES: &str = "there are no rules of iptables, nftables or IPVS: the datapath is eBPF";
const LOCAL: &str = "which traffic is of this node's pods is told by the Node's podCIDRs";
const FLOWS: &str = "flows have a table of their own with times of their own, not the kernel's \
                     conntrack; --max-flows is its size";
const CLIENT: &str = "calls are few, and paced after errors; there is nothing to limit";
const LOGS: &str = "the log is text; --log says what is in it";
const WINDOWS: &str = "Tulle serves Linux";
const PROFILES: &str =
    "there is no profiling server; /debug at --metrics-address answers the node itself";

/// All of them.
pub const FIELDS: &[Field] = &[
    // Who and where.
    option("hostnameOverride", "hostname-override", "node", values::lower_case),
    option("clientConnection.kubeconfig", "", "kubeconfig", values::kubeconfig),
    option("", "master", "api-servers", values::server),
    instead("clientConnection.acceptContentTypes", "", CLIENT),
    instead("clientConnection.contentType", "kube-api-content-type", CLIENT),
    instead("clientConnection.qps", "kube-api-qps", CLIENT),
    instead("clientConnection.burst", "kube-api-burst", CLIENT),
    instead("configSyncPeriod", "config-sync-period", "objects are watched, and listed anew where a watch breaks"),
    // Probes and metrics.
    option("healthzBindAddress", "healthz-bind-address", "health-address", values::health_address),
    listen_port("healthz-port", "healthz-bind-address"),
    option("metricsBindAddress", "metrics-bind-address", "metrics-address", values::metrics_address),
    listen_port("metrics-port", "metrics-bind-address"),
    option("bindAddressHardFail", "", "bind-address-hard-fail", values::plain),
    instead("bindAddress", "bind-address", "health and metrics listen where --health-address and --metrics-address say, and the node's addresses are its Node's"),
    instead("enableProfiling", "profiling", PROFILES).switch(),
    instead("showHiddenMetricsForVersion", "show-hidden-metrics-for-version", "no metric is hidden"),
    // Services.
    option("nodePortAddresses", "nodeport-addresses", "node-port-addresses", values::joined),
    instead("clusterCIDR", "cluster-cidr", LOCAL),
    instead("detectLocalMode", "detect-local-mode", LOCAL),
    instead("detectLocal.bridgeInterface", "pod-bridge-interface", LOCAL),
    instead("detectLocal.interfaceNamePrefix", "pod-interface-name-prefix", LOCAL),
    instead("portRange", "proxy-port-range", "there is no proxy in user space that needs ports"),
    // Modes.
    Field {
        path: "mode",
        flag: "proxy-mode",
        switch: false,
        modes: &[],
        meaning: Meaning::Mode,
    },
    // Mode ipvs has these of iptables, and by flag nftables has its periods (conversion of v1alpha1).
    option("iptables.masqueradeAll", "", "masquerade-all", values::plain).of(IPTABLES_OR_IPVS),
    option("nftables.masqueradeAll", "", "masquerade-all", values::plain).of(NFTABLES),
    instead("iptables.masqueradeBit", "iptables-masquerade-bit", MARKS),
    instead("nftables.masqueradeBit", "", MARKS).of(NFTABLES),
    option("iptables.minSyncPeriod", "", "min-sync-period", values::plain).of(IPTABLES),
    option("nftables.minSyncPeriod", "", "min-sync-period", values::plain).of(NFTABLES),
    option("ipvs.minSyncPeriod", "ipvs-min-sync-period", "min-sync-period", values::plain).of(IPVS),
    option("", "iptables-min-sync-period", "min-sync-period", values::plain).of(RULES_OF_NETFILTER),
    option("iptables.syncPeriod", "", "sync-period", values::plain).of(IPTABLES),
    option("nftables.syncPeriod", "", "sync-period", values::plain).of(NFTABLES),
    option("ipvs.syncPeriod", "ipvs-sync-period", "sync-period", values::plain).of(IPVS),
    option("", "iptables-sync-period", "sync-period", values::plain).of(RULES_OF_NETFILTER),
    instead("iptables.localhostNodePorts", "iptables-localhost-nodeports", "node ports answer at the node's addresses that --node-port-addresses names, and at no others").switch().of(IPTABLES),
    option("ipvs.scheduler", "ipvs-scheduler", "scheduler", values::scheduler).of(IPVS),
    instead("ipvs.excludeCIDRs", "ipvs-exclude-cidrs", RULES).of(IPVS),
    instead("ipvs.strictARP", "ipvs-strict-arp", "addresses of Services are on no device, so that nobody answers ARP for them").switch().of(IPVS),
    instead("ipvs.tcpTimeout", "ipvs-tcp-timeout", FLOWS).of(IPVS),
    instead("ipvs.tcpFinTimeout", "ipvs-tcpfin-timeout", FLOWS).of(IPVS),
    instead("ipvs.udpTimeout", "ipvs-udp-timeout", FLOWS).of(IPVS),
    // Flows.
    instead("conntrack.max", "conntrack-max", FLOWS),
    instead("conntrack.maxPerCore", "conntrack-max-per-core", FLOWS),
    instead("conntrack.min", "conntrack-min", FLOWS),
    instead("conntrack.tcpEstablishedTimeout", "conntrack-tcp-timeout-established", FLOWS),
    instead("conntrack.tcpCloseWaitTimeout", "conntrack-tcp-timeout-close-wait", FLOWS),
    instead("conntrack.tcpBeLiberal", "conntrack-tcp-be-liberal", "packets outside TCP's window are not dropped").switch(),
    instead("conntrack.udpTimeout", "conntrack-udp-timeout", FLOWS),
    instead("conntrack.udpStreamTimeout", "conntrack-udp-timeout-stream", FLOWS),
    instead("udpIdleTimeout", "udp-timeout", FLOWS),
    // The process.
    option("logging.verbosity", "v", "log", values::verbosity),
    instead("logging.format", "logging-format", LOGS),
    instead("logging.flushFrequency", "log-flush-frequency", "each line is written at once"),
    instead("logging.vmodule", "vmodule", "--log takes a level for each part, such as info,tulle_agent::net=debug"),
    instead("logging.options", "", LOGS),
    instead("", "log-json-info-buffer-size", LOGS),
    instead("", "log-json-split-stream", LOGS).switch(),
    instead("", "log-text-info-buffer-size", LOGS),
    instead("", "log-text-split-stream", LOGS).switch(),
    instead("", "logtostderr", "the log goes to standard error").switch(),
    instead("", "alsologtostderr", "the log goes to standard error").switch(),
    instead("oomScoreAdj", "oom-score-adj", "the DaemonSet's priority class, or the systemd unit, says it"),
    instead("featureGates", "feature-gates", "there are none"),
    instead("winkernel", "", WINDOWS),
    instead("windowsRunAsService", "windows-service", WINDOWS).switch(),
    instead("", "enable-dsr", "--forwarding dsr is direct server return").switch(),
    instead("", "network-name", WINDOWS),
    instead("", "source-vip", WINDOWS),
    instead("", "root-hnsendpoint-name", WINDOWS),
    instead("", "forward-healthcheck-vip", WINDOWS).switch(),
    refused("cleanup", "run `tulle-agent cleanup`"),
    refused("init-only", "there is nothing to set up beforehand; leave it out"),
    refused("write-config-to", "run `tulle-agent config show`"),
];
