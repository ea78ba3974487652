//! A container as a node's runtime makes it of the DaemonSet in `deploy/`: capabilities, mounts,
//! namespaces and system calls of the manifest, run by `runc` in a node's network namespace.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container as Spec, PodSpec};
use serde::Deserialize;
use serde_json::{Value, json};
use testkit::Node;
use testkit::process::Process;

/// What the manifest says of the agent's pod.
pub struct Manifest {
    pod: PodSpec,
}

impl Manifest {
    /// The DaemonSet that one applies.
    pub fn read() -> Self {
        Self::of("tulle.yaml", "tulle")
    }

    /// A DaemonSet of a file in `deploy/manifests`, by its name.
    pub fn of(file: &str, name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../deploy/manifests")
            .join(file);
        let text = fs::read_to_string(&path).unwrap();
        let daemon = serde_norway::Deserializer::from_str(&text)
            .map(|document| Value::deserialize(document).unwrap())
            .find(|object| object["kind"] == "DaemonSet" && object["metadata"]["name"] == name)
            .unwrap();
        let daemon: DaemonSet = serde_json::from_value(daemon).unwrap();
        let pod = daemon.spec.template.spec.unwrap();
        assert_eq!(pod.host_network, Some(true));
        Self { pod }
    }

    /// The agent's container.
    pub fn agent(&self) -> &Spec {
        &self.pod.containers[0]
    }

    /// The first of the containers that run before.
    pub fn init(&self) -> &Spec {
        &self.pod.init_containers.as_ref().unwrap()[0]
    }

    /// The capabilities that it adds, as the kernel names them.
    pub fn capabilities(&self) -> Vec<String> {
        let context = self.agent().security_context.as_ref().unwrap();
        let capabilities = context.capabilities.as_ref().unwrap();
        assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
        let add = capabilities.add.iter().flatten();
        add.map(|name| format!("CAP_{name}")).collect()
    }

    /// Where a volume is on the host; nowhere if it is an object of the cluster.
    fn host_path(&self, volume: &str) -> Option<&str> {
        let mut volumes = self.pod.volumes.iter().flatten();
        let volume = volumes.find(|v| v.name == volume).unwrap();
        assert!(volume.host_path.is_some() || volume.config_map.is_some());
        volume.host_path.as_ref().map(|at| at.path.as_str())
    }
}

/// A container on a test node.
#[derive(Clone)]
pub struct Container<'a> {
    manifest: &'a Manifest,
    spec: &'a Spec,
    node: &'a Node,
    binary: &'a Path,
    state: &'a Path,
    /// What it may do: the manifest's unless a test takes some away.
    pub capabilities: Vec<String>,
    /// Whether it is among the host's processes, as the manifest says unless a test changes it.
    pub host_pid: bool,
    /// Variables beside the manifest's.
    pub env: Vec<(String, String)>,
}

impl<'a> Container<'a> {
    /// `spec` of the manifest with `binary` in the place of the image's, which reads its objects
    /// from `state`.
    pub fn new(
        manifest: &'a Manifest,
        spec: &'a Spec,
        node: &'a Node,
        binary: &'a str,
        state: &'a Path,
    ) -> Self {
        Self {
            manifest,
            spec,
            node,
            binary: Path::new(binary),
            state,
            capabilities: manifest.capabilities(),
            host_pid: manifest.pod.host_pid == Some(true),
            env: Vec::new(),
        }
    }

    /// Starts it; it ends with what is returned.
    pub fn start(&self) -> Running {
        let runtime = self.node.directory().join("runc");
        let id = format!("{}-{}", self.node.ns().name(), unique());
        let log = self.node.directory().join(format!("{id}.log"));
        let process = Process::spawn("container", self.command(&runtime, &id), &log).unwrap();
        Running {
            process,
            runtime,
            id,
        }
    }

    /// Runs it to its end.
    pub fn output(&self) -> Output {
        let runtime = self.node.directory().join("runc");
        let id = format!("{}-{}", self.node.ns().name(), unique());
        self.command(&runtime, &id).output().unwrap()
    }

    /// The runtime's call, in the foreground.
    fn command(&self, runtime: &Path, id: &str) -> Command {
        let bundle = self.node.directory().join(format!("bundle-{id}"));
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let config = serde_json::to_vec_pretty(&self.config()).unwrap();
        fs::write(bundle.join("config.json"), config).unwrap();
        let mut command = Command::new("runc");
        command.arg("--root").arg(runtime);
        command.args(["run", "--bundle"]);
        command.arg(&bundle).arg(id);
        command
    }

    /// The runtime's configuration. Source: OCI runtime specification 1.0; paths that are hidden and
    /// read-only are those of every container that is not privileged.
    fn config(&self) -> Value {
        let context = self.spec.security_context.as_ref().unwrap();
        let mut env = vec!["PATH=/usr/bin:/usr/sbin".to_owned()];
        for variable in self.spec.env.iter().flatten() {
            let of_node = variable.value_from.is_some();
            let value = if of_node {
                self.node.name()
            } else {
                variable.value.as_deref().unwrap()
            };
            env.push(format!("{}={value}", variable.name));
        }
        env.push(format!("TULLE_STATE={}", self.state.display()));
        env.push(format!("TULLE_UPLINK={}", testkit::cluster::UPLINK));
        env.extend(
            self.env
                .iter()
                .map(|(name, value)| format!("{name}={value}")),
        );
        let mut args = vec!["/program".to_owned()];
        args.extend(self.spec.args.iter().flatten().cloned());
        let mut namespaces = vec![
            json!({ "type": "mount" }),
            json!({ "type": "ipc" }),
            json!({ "type": "cgroup" }),
            json!({ "type": "network", "path": self.node.ns().path() }),
        ];
        if !self.host_pid {
            namespaces.push(json!({ "type": "pid" }));
        }
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": { "uid": 0, "gid": 0 },
                "args": args,
                "env": env,
                "cwd": "/",
                "capabilities": {
                    "bounding": self.capabilities,
                    "effective": self.capabilities,
                    "permitted": self.capabilities,
                },
                "noNewPrivileges": context.allow_privilege_escalation == Some(false),
            },
            "root": { "path": "rootfs", "readonly": context.read_only_root_filesystem == Some(true) },
            "mounts": self.mounts(),
            "linux": {
                "namespaces": namespaces,
                "maskedPaths": [
                    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
                    "/sys/devices/virtual/powercap", "/sys/firmware",
                ],
                "readonlyPaths": [
                    "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
                ],
                "seccomp": self.seccomp(),
            },
        })
    }

    fn mounts(&self) -> Value {
        let bind = |from: &Path, to: &Path, options: &[&str]| json!({ "type": "bind", "source": from, "destination": to, "options": options });
        let mut mounts = vec![
            json!({ "type": "proc", "source": "proc", "destination": "/proc" }),
            json!({ "type": "tmpfs", "source": "tmpfs", "destination": "/dev" }),
            json!({ "type": "sysfs", "source": "sysfs", "destination": "/sys",
                "options": ["ro", "nosuid", "noexec", "nodev"] }),
            // In the place of the image: the program, and the libraries that one for tests needs.
            bind(self.binary, Path::new("/program"), &["bind", "ro"]),
            bind(self.state, self.state, &["bind", "ro"]),
        ];
        for library in ["/usr", "/lib", "/lib64"].map(Path::new) {
            mounts.push(bind(library, library, &["rbind", "ro"]));
        }
        for mount in self.spec.volume_mounts.iter().flatten() {
            let propagation = match mount.mount_propagation.as_deref() {
                None | Some("None") => "rprivate",
                Some("HostToContainer") => "rslave",
                other => panic!("{other:?} is for privileged containers"),
            };
            let write = if mount.read_only == Some(true) {
                "ro"
            } else {
                "rw"
            };
            let Some(path) = self.manifest.host_path(&mount.name) else {
                continue;
            };
            let host = self.on_node(path);
            fs::create_dir_all(&host).unwrap();
            let to = Path::new(&mount.mount_path);
            mounts.push(bind(&host, to, &["rbind", propagation, write]));
        }
        mounts.into()
    }

    /// The node's own directory in the place of the host's.
    fn on_node(&self, path: &str) -> PathBuf {
        match path {
            "/sys/fs/bpf" => self.node.bpffs(),
            "/run/tulle" => self.node.run_dir(),
            "/var/lib/tulle" => self.node.directory().join("lib"),
            other => other.into(),
        }
    }

    /// What containerd's default profile refuses a container with these capabilities, as far as
    /// it is known by name: system calls that it lets nobody make, and those of capabilities that
    /// are not there. All else it allows.
    fn seccomp(&self) -> Value {
        let has = |name: &str| self.capabilities.iter().any(|have| have == name);
        let mut refused = vec![
            "add_key",
            "create_module",
            "get_kernel_syms",
            "io_uring_enter",
            "io_uring_register",
            "io_uring_setup",
            "kexec_file_load",
            "kexec_load",
            "keyctl",
            "migrate_pages",
            "move_pages",
            "nfsservctl",
            "pivot_root",
            "request_key",
            "swapoff",
            "swapon",
            "sysfs",
            "_sysctl",
            "uselib",
            "userfaultfd",
            "ustat",
            "vm86",
            "vm86old",
        ];
        for (capabilities, calls) in [
            (&["CAP_SYS_ADMIN", "CAP_BPF"][..], &["bpf"][..]),
            (&["CAP_SYS_ADMIN", "CAP_PERFMON"], &["perf_event_open"]),
            (
                &["CAP_SYS_ADMIN"],
                &[
                    "fanotify_init",
                    "fsconfig",
                    "fsmount",
                    "fsopen",
                    "fspick",
                    "lookup_dcookie",
                    "mount",
                    "mount_setattr",
                    "move_mount",
                    "open_tree",
                    "quotactl",
                    "quotactl_fd",
                    "setdomainname",
                    "sethostname",
                    "setns",
                    "umount",
                    "umount2",
                    "unshare",
                ],
            ),
            (
                &["CAP_SYS_PTRACE"],
                &["kcmp", "pidfd_getfd", "process_madvise"],
            ),
            (&["CAP_DAC_READ_SEARCH"], &["open_by_handle_at"]),
            (&["CAP_SYS_BOOT"], &["reboot"]),
            (&["CAP_SYS_CHROOT"], &["chroot"]),
            (
                &["CAP_SYS_MODULE"],
                &[
                    "delete_module",
                    "finit_module",
                    "init_module",
                    "query_module",
                ],
            ),
            (
                &["CAP_SYS_NICE"],
                &["get_mempolicy", "mbind", "set_mempolicy"],
            ),
            (&["CAP_SYS_PACCT"], &["acct"]),
            (&["CAP_SYS_RAWIO"], &["ioperm", "iopl"]),
            (
                &["CAP_SYS_TIME"],
                &["clock_settime", "settimeofday", "stime"],
            ),
            (&["CAP_SYS_TTY_CONFIG"], &["vhangup"]),
            (&["CAP_SYSLOG"], &["syslog"]),
        ] {
            if !capabilities.iter().any(|capability| has(capability)) {
                refused.extend(calls);
            }
        }
        let mut rules =
            vec![json!({ "names": refused, "action": "SCMP_ACT_ERRNO", "errnoRet": 1 })];
        if !has("CAP_SYS_ADMIN") {
            // As if the kernel did not have it: the C library does without.
            rules.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }));
        }
        json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules })
    }
}

/// A container that runs.
pub struct Running {
    /// The runtime's process, which hands on signals and ends with the container.
    pub process: Process,
    runtime: PathBuf,
    id: String,
}

impl Running {
    /// Ends what is in it by SIGKILL.
    pub fn kill(&mut self) {
        let mut command = Command::new("runc");
        command.arg("--root").arg(&self.runtime);
        let output = command.args(["kill", &self.id, "KILL"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        self.process.wait(Duration::from_secs(10)).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut command = Command::new("runc");
        command.arg("--root").arg(&self.runtime);
        // It may have ended by itself.
        let _ = command.args(["delete", "--force", &self.id]).output();
    }
}

fn unique() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
