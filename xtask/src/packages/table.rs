//! The packages of Debian 12 that Tulle's development needs.

use super::{Package, Purpose};

/// The compiler, which the image takes whatever compiles the programs.
pub const COMPILER: &str = "rustc-web";

/// Everything, in the order in which it is named to the user.
pub const PACKAGES: &[Package] = &[
    package(
        COMPILER,
        "Rust compiler for the eBPF programs and the image",
        &[],
        Purpose::DebianToolchain,
    ),
    package(
        "libstd-rust-web-dev-bpf",
        "Rust `core` for the BPF target",
        &[],
        Purpose::DebianToolchain,
    ),
    package(
        "g++",
        "links bpf-linker (C++ runtime of LLVM)",
        &["g++"],
        Purpose::BuildLinker,
    ),
    package(
        "llvm-22-dev",
        "LLVM, which bpf-linker is built with",
        &[],
        Purpose::BuildLinker,
    ),
    package(
        "libpolly-22-dev",
        "part of LLVM that bpf-linker links",
        &[],
        Purpose::BuildLinker,
    ),
    package(
        "libzstd-dev",
        "compression that bpf-linker links",
        &[],
        Purpose::BuildLinker,
    ),
    package(
        "zlib1g-dev",
        "compression that bpf-linker links",
        &[],
        Purpose::BuildLinker,
    ),
    package(
        "llvm-22",
        "llvm-strip, for the finished object",
        &["llvm-strip-22", "llvm-strip"],
        Purpose::Build,
    ),
    package(
        "bpftool",
        "loads the object and shows maps and programs",
        &["bpftool"],
        Purpose::Load,
    ),
    package(
        "rust-web-src",
        "Rust's standard library, compiled for the image",
        &[],
        Purpose::Image,
    ),
    package(
        "musl-tools",
        "C library that the image's programs are linked with",
        &[],
        Purpose::Image,
    ),
    package(
        "libunwind-22-dev",
        "names functions where one of these programs panics",
        &[],
        Purpose::Image,
    ),
    package(
        "iproute2",
        "ip, tc, bridge: the network of test hosts",
        &["ip"],
        Purpose::Run,
    ),
    package(
        "tcpdump",
        "captures what is on the wire",
        &["tcpdump"],
        Purpose::Run,
    ),
    package("iperf3", "measures throughput", &["iperf3"], Purpose::Run),
    package(
        "nftables",
        "rules of the kernel's own path in comparisons",
        &["nft"],
        Purpose::Run,
    ),
    package(
        "iptables",
        "the same, for the older of kube-proxy's modes",
        &["iptables-legacy"],
        Purpose::Run,
    ),
    package(
        "ipvsadm",
        "the same, where the kernel has IPVS",
        &["ipvsadm"],
        Purpose::Run,
    ),
    package("ipset", "sets that go with it", &["ipset"], Purpose::Run),
    package(
        "etcd-server",
        "store of a real kube-apiserver in tests",
        &["etcd"],
        Purpose::Run,
    ),
    package(
        "runc",
        "runs the agent in a container, as nodes do",
        &["runc"],
        Purpose::Run,
    ),
    package(
        "ethtool",
        "shows and sets offloads of interfaces",
        &["ethtool"],
        Purpose::Run,
    ),
    package(
        "qemu-system-x86",
        "emulates a machine that boots another kernel",
        &["qemu-system-x86_64"],
        Purpose::Kernels,
    ),
    package(
        "busybox-static",
        "shell and commands inside that machine",
        &[],
        Purpose::Kernels,
    ),
    package(
        "xz-utils",
        "unpacks that kernel's modules",
        &["xz"],
        Purpose::Kernels,
    ),
];

const fn package(
    name: &'static str,
    why: &'static str,
    programs: &'static [&'static str],
    purpose: Purpose,
) -> Package {
    Package {
        name,
        why,
        programs,
        purpose,
    }
}
