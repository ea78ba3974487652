//! What runs inside the virtual machine: its steps, the script that is its first process, and the
//! lines by which that script tells the host what happens.

use std::fmt::Write;

/// Modules that the tests need, beside what they depend on.
pub const MODULES: [&str; 6] = ["veth", "vxlan", "bridge", "sch_ingress", "cls_bpf", "ipv6"];

/// Programs of the machine that the tests call.
pub const TOOLS: [&str; 4] = ["ip", "tc", "bridge", "bpftool"];

/// Begins a step's output.
pub const BEGIN: &str = "@@begin ";
/// Ends a step's output: name, exit code.
pub const END: &str = "@@end ";
/// All steps ran.
pub const DONE: &str = "@@done";

/// Where test programs are in the archive.
pub const PROGRAMS: &str = "/tests";
/// Where the object is in the archive.
pub const OBJECT: &str = "/tulle.bpf.o";

/// How long a step may take by the machine's own clock, in seconds.
pub const LIMIT: u32 = 1200;

/// A test program, and which of its tests run.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// The test target, which is also the step's name.
    pub name: &'static str,
    /// The package of the target.
    pub package: &'static str,
    /// Names of tests, in full; all if there are none.
    pub tests: &'static [&'static str],
    /// What a kernel without TCX links (before 6.6) can do of them, if that is less.
    pub without_tcx: Option<&'static [&'static str]>,
}

/// The steps in their order: verdicts first.
pub const STEPS: &[Step] = &[
    Step {
        name: "kernel_verify",
        package: "tulle-agent",
        tests: &[],
        without_tcx: None,
    },
    Step {
        name: "packets",
        package: "bpf-tests",
        tests: &["the_programs_pass_every_case"],
        without_tcx: None,
    },
    Step {
        name: "kernel_attach",
        package: "tulle-agent",
        tests: &[
            "links_outlive_the_agent_and_get_the_next_ones_programs",
            "from_filters_to_links_and_back",
        ],
        without_tcx: Some(&["a_place_that_another_filter_has_is_left_alone"]),
    },
    Step {
        name: "kernel_cleanup",
        package: "tulle-agent",
        tests: &["nothing_is_left_of_links", "the_probe_finds_this_kernel"],
        without_tcx: Some(&["nothing_is_left_of_filters", "the_probe_finds_this_kernel"]),
    },
    Step {
        name: "run_cluster",
        package: "tulle-agent",
        tests: &["a_service_spreads_over_both_nodes_in_both_families"],
        without_tcx: None,
    },
];

impl Step {
    /// Its tests on a kernel of this release.
    fn tests_on(&self, release: &str) -> &'static [&'static str] {
        match self.without_tcx {
            Some(tests) if !has_tcx(release) => tests,
            _ => self.tests,
        }
    }
}

/// Whether a kernel of this release has TCX links.
fn has_tcx(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 6)
}

/// The first process's script. `modules` are file names in `/modules`, in their order.
pub fn script(release: &str, modules: &[String], steps: &[&Step]) -> String {
    let mut text = String::from(
        "#!/bin/busybox sh\n\
         /bin/busybox mkdir -p /applets /proc /sys /dev /tmp /run\n\
         /bin/busybox --install -s /applets\n\
         export PATH=/bin:/applets RUST_TEST_THREADS=1\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sys /sys\n\
         mount -t devtmpfs dev /dev\n\
         mount -t tmpfs run /run\n\
         mount -t bpf bpf /sys/fs/bpf\n\
         stty -F /dev/ttyS1 raw\n\
         exec </dev/null >/dev/ttyS1 2>&1\n",
    );
    // Writing to a String cannot fail.
    for module in modules {
        let _ = writeln!(text, "insmod /modules/{module}.ko");
    }
    let _ = writeln!(
        text,
        "ip link set lo up\nexport TULLE_BPF_OBJECT={OBJECT}\n"
    );
    for step in steps {
        let _ = writeln!(
            text,
            "echo '{BEGIN}{name}'\n\
             timeout -s KILL {LIMIT} {PROGRAMS}/{name} --nocapture{exact}{tests}\n\
             echo \"{END}{name} $?\"",
            name = step.name,
            exact = if step.tests_on(release).is_empty() {
                ""
            } else {
                " --exact"
            },
            tests = step
                .tests_on(release)
                .iter()
                .fold(String::new(), |all, test| all + " " + test),
        );
    }
    let _ = writeln!(text, "echo '{DONE}'\npoweroff -f");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_loads_runs_and_tells() {
        let steps: Vec<&Step> = STEPS.iter().collect();
        let modules = ["veth".to_owned(), "vxlan".to_owned()];
        let text = script("6.1.0-56-cloud-amd64", &modules, &steps);
        let at = |what: &str| {
            text.find(what)
                .unwrap_or_else(|| panic!("{what} in\n{text}"))
        };
        assert!(at("insmod /modules/veth.ko") < at("insmod /modules/vxlan.ko"));
        let mut last = 0;
        for step in STEPS {
            let begin = at(&format!("{BEGIN}{}'", step.name));
            assert!(begin > last);
            last = at(&format!("{END}{} $?", step.name));
            assert!(begin < last);
        }
        assert!(last < at(DONE) && at(DONE) < at("poweroff"));
        assert!(text.contains("kernel_verify --nocapture\n"), "{text}");
        assert!(
            text.contains("packets --nocapture --exact the_programs_pass_every_case\n"),
            "{text}"
        );
    }

    #[test]
    fn older_kernels_get_the_tests_of_filters() {
        let steps: Vec<&Step> = STEPS.iter().collect();
        for (release, tcx) in [
            ("6.1.0-56-cloud-amd64", false),
            ("5.15.200", false),
            ("6.6.1", true),
            ("6.12.117+deb12-cloud-amd64", true),
            ("7.0", true),
        ] {
            let text = script(release, &[], &steps);
            assert_eq!(text.contains("from_filters_to_links"), tcx, "{release}");
            assert_eq!(
                text.contains("nothing_is_left_of_filters"),
                !tcx,
                "{release}"
            );
        }
    }
}
