//! The binary, and an agent that lends it names.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use admin_api::{
    BackendServices, Overlay, Peer, Request, Response, SOCKET_NAME, Service, Status, Warning,
    decode_request, encode_response,
};
use serde_json::Value;

/// How to call the binary, with a run directory of its own.
pub struct Tulle {
    pins: PathBuf,
    run_dir: tempfile::TempDir,
}

/// What it did.
pub struct Run {
    pub ok: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Tulle {
    pub fn new(pins: &Path) -> Self {
        Self {
            pins: pins.into(),
            run_dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tulle"));
        // By the environment: the live tests cover that as well.
        command
            .env("TULLE_BPFFS", &self.pins)
            .env("TULLE_RUN_DIR", self.run_dir.path())
            .args(args);
        command
    }

    pub fn run(&self, args: &[&str]) -> Run {
        let output = self.command(args).output().unwrap();
        Run {
            ok: output.status.success(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn ok(&self, args: &[&str]) -> Run {
        let run = self.run(args);
        assert!(run.ok, "{args:?}: {}", run.stderr);
        run
    }

    pub fn json(&self, args: &[&str]) -> Value {
        let mut all = vec!["-o", "json"];
        all.extend(args);
        serde_json::from_str(&self.ok(&all).stdout).unwrap()
    }

    /// Answers at the socket until the test's process ends.
    pub fn serve(&self) {
        let listener = UnixListener::bind(self.run_dir.path().join(SOCKET_NAME)).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let lines = BufReader::new(stream.try_clone().unwrap());
                for line in lines.lines() {
                    let response = answer(decode_request(&line.unwrap()).unwrap());
                    stream
                        .write_all(encode_response(&response).unwrap().as_bytes())
                        .unwrap();
                }
            }
        });
    }
}

fn answer(request: Request) -> Response {
    let warning = Warning {
        file: "web.yaml".into(),
        object: "Service default/web".into(),
        field: "spec.ports".into(),
        message: "no port; add one".into(),
    };
    match request {
        Request::Status => Response::Status(Box::new(Status {
            agent_version: "0.1.0".into(),
            node: "n1".into(),
            started_at_secs: tulle_cli::format::unix_nanos().unwrap() / 1_000_000_000 - 7_500,
            overlay: Some(Overlay {
                device: "flannel.1".into(),
                mtu: 1450,
                vni: 1,
                port: 8472,
                address: Some([192, 168, 0, 1].into()),
                vtep_mac: None,
            }),
            warnings: [warning].into(),
            ..Status::default()
        })),
        Request::Services => Response::Services(vec![Service {
            number: 7,
            namespace: "default".into(),
            name: "web".into(),
            port_name: "http".into(),
            family: 4,
            frontends: Vec::new(),
        }]),
        Request::Overlay => Response::Overlay(vec![Peer {
            node: "n2".into(),
            address: [192, 168, 0, 2].into(),
            pod_cidrs: vec!["10.244.1.0/24".into()],
            vtep_mac: None,
        }]),
        Request::Backends => Response::Backends(vec![BackendServices {
            family: 4,
            id: 3,
            services: vec!["default/old".into()],
        }]),
        Request::Warnings => Response::Warnings(vec![warning]),
    }
}
