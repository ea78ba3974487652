//! kube-apiserver as a process.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hyper::Method;
use rcgen::KeyPair;

use crate::error::{Context, Error, Result};
use crate::netns::NetNs;
use crate::process::Process;
use crate::wait;

use super::super::client::Client;
use super::super::{Authority, Kubeconfig, TOKEN, USER};
use super::{Etcd, Programs, command, free_port, write};

/// The test's own token, for a user who may do everything.
const ADMIN: &str = "testkit-admin";
/// For its start; the first needs tens of seconds on a small machine.
const LIMIT: Duration = Duration::from_mins(3);

/// A running kube-apiserver with its etcd. Both are killed on drop.
#[derive(Debug)]
pub struct RealServer {
    // It ends before the etcd that it asks.
    process: Process,
    _etcd: Etcd,
    address: SocketAddr,
    authority: String,
    client: Client,
}

/// Files that kube-apiserver is told of.
struct Files {
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    tokens: PathBuf,
    signing_key: PathBuf,
    signing_public: PathBuf,
}

impl RealServer {
    /// Starts both in a namespace, in the calling thread's if none is said, and waits until the
    /// API is ready. Files and logs go to the directory, which is made; port 0 takes a free one.
    pub fn start(
        ns: Option<&NetNs>,
        address: SocketAddr,
        programs: &Programs,
        directory: &Path,
    ) -> Result<Self> {
        std::fs::create_dir_all(directory).trying(|| format!("make {}", directory.display()))?;
        let port = match address.port() {
            0 => free_port(ns, address.ip())?,
            port => port,
        };
        let address = SocketAddr::new(address.ip(), port);
        let authority = Authority::new("testkit-real")?;
        let files = Files::write(directory, &authority, address)?;
        let etcd = Etcd::start(ns, &programs.etcd, directory)?;
        let mut command = command(ns, &programs.kube_apiserver)?;
        arguments(&mut command, address, &files, &etcd.url(), directory);
        let log = directory.join("kube-apiserver.log");
        let process = Process::spawn("kube-apiserver", command, &log)?;
        let authority = authority.pem();
        let mut server = Self {
            process,
            _etcd: etcd,
            address,
            client: Client::new(ns, address, Some(&authority), Some(ADMIN))?,
            authority,
        };
        server.wait_ready()?;
        Ok(server)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let waited = wait::until("kube-apiserver is not ready", LIMIT, || {
            self.process.check_running()?;
            let answer = self.client.request(&Method::GET, "/readyz", "", "");
            Ok(answer.is_ok_and(|a| a.status == 200).then_some(()))
        });
        let log = self.process.log_tail();
        waited.map_err(|error| match error {
            Error::Timeout { what, limit, .. } => Error::Timeout {
                what,
                limit,
                detail: format!("; the end of its log:\n{log}"),
            },
            other => other,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A client who may do everything.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its process, to be stopped and killed.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Writes a kubeconfig for a user who may do everything into a directory.
    pub fn kubeconfig(&self, directory: &Path) -> Result<Kubeconfig> {
        self.kubeconfig_at(directory, self.address, ADMIN)
    }

    /// Writes a kubeconfig for another address, such as a proxy's, and a token. [`TOKEN`] is that
    /// of [`USER`], who may do what the roles in the cluster say.
    pub fn kubeconfig_at(
        &self,
        directory: &Path,
        at: SocketAddr,
        token: &str,
    ) -> Result<Kubeconfig> {
        let url = format!("https://{at}");
        Kubeconfig::write(directory, &url, Some(&self.authority), token)
    }
}

impl Files {
    fn write(directory: &Path, authority: &Authority, address: SocketAddr) -> Result<Self> {
        let files = Self {
            authority: directory.join("ca.crt"),
            certificate: directory.join("server.crt"),
            key: directory.join("server.key"),
            tokens: directory.join("tokens.csv"),
            signing_key: directory.join("service-accounts.key"),
            signing_public: directory.join("service-accounts.pub"),
        };
        let names = [
            "localhost",
            "kubernetes.default.svc",
            "127.0.0.1",
            "10.96.0.1",
        ];
        let mut names: Vec<String> = names.map(str::to_owned).into();
        names.push(address.ip().to_string());
        let identity = authority.server(&names)?;
        let failed = |e| Error::Invalid(format!("make a key for service accounts: {e}"));
        let signing = KeyPair::generate().map_err(failed)?;
        write(&files.authority, &authority.pem())?;
        write(&files.certificate, &identity.certificate)?;
        write(&files.signing_public, &signing.public_key_pem())?;
        let tokens = format!(
            "{ADMIN},testkit,1,\"system:masters\"\n{TOKEN},{USER},2,\"system:serviceaccounts\"\n"
        );
        for (path, text) in [
            (&files.key, identity.key.as_str()),
            (&files.signing_key, &signing.serialize_pem()),
            (&files.tokens, &tokens),
        ] {
            write(path, text)?;
            let owner_only = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(path, owner_only)
                .trying(|| format!("guard {}", path.display()))?;
        }
        Ok(files)
    }
}

fn arguments(command: &mut Command, at: SocketAddr, files: &Files, etcd: &str, directory: &Path) {
    let mut flag = |name: &str, value: &dyn AsRef<std::ffi::OsStr>| {
        let mut argument = std::ffi::OsString::from(format!("--{name}="));
        argument.push(value);
        command.arg(argument);
    };
    flag("etcd-servers", &etcd);
    flag("bind-address", &at.ip().to_string());
    flag("advertise-address", &at.ip().to_string());
    flag("secure-port", &at.port().to_string());
    flag("cert-dir", &directory);
    flag("tls-cert-file", &files.certificate);
    flag("tls-private-key-file", &files.key);
    flag("client-ca-file", &files.authority);
    flag("token-auth-file", &files.tokens);
    flag("authorization-mode", &"RBAC");
    flag("service-account-issuer", &"https://kubernetes.default.svc");
    flag("service-account-key-file", &files.signing_public);
    flag("service-account-signing-key-file", &files.signing_key);
    flag("service-cluster-ip-range", &"10.96.0.0/16,fd96::/112");
    flag("allow-privileged", &"true");
    // There is no controller that would make service accounts for pods.
    flag("disable-admission-plugins", &"ServiceAccount");
}
