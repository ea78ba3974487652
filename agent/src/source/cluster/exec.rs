//! Credentials that a program of the kubeconfig's gives (`users[].user.exec`, API
//! `client.authentication.k8s.io`). It runs beside everything else, and for a limited time: a program
//! that hangs holds up no watch.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::jiff::Timestamp;
use kube::config::{AuthInfo, ExecConfig, ExecInteractiveMode};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::json;
use tokio::process::{Child, Command};

/// For one run.
const PATIENCE: Duration = Duration::from_secs(20);
/// Of what a program complains, at most.
const MOST_WORDS: usize = 300;

/// What a program gave.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
    expiration_timestamp: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Credential {
    status: Option<Status>,
}

/// Runs the program of these credentials, if they are a program's, and puts what it gives in its place.
/// Says until when that is good, where the program does.
///
/// # Errors
///
/// A sentence that names the program.
pub async fn resolve(auth: &mut AuthInfo) -> Result<Option<Timestamp>, String> {
    let Some(exec) = auth.exec.take() else {
        return Ok(None);
    };
    let name = exec.command.clone().unwrap_or_default();
    let status = run(&exec, PATIENCE)
        .await
        .map_err(|problem| format!("users[].user.exec.command {name:?} {problem}"))?;
    if let (Some(certificate), Some(key)) =
        (&status.client_certificate_data, &status.client_key_data)
    {
        auth.client_certificate_data = Some(base64(certificate));
        auth.client_key_data = Some(base64(key).into());
    }
    auth.token = status.token.map(|token| token.trim().to_owned().into());
    let end = status.expiration_timestamp.map(|end| end.trim().parse());
    end.transpose().map_err(|error| {
        format!(
            "users[].user.exec.command {name:?} gave an expirationTimestamp that is none: {error}"
        )
    })
}

async fn run(exec: &ExecConfig, patience: Duration) -> Result<Status, String> {
    let name = exec.command.as_deref().filter(|name| !name.is_empty());
    let name = name.ok_or("is missing")?;
    if exec.interactive_mode == Some(ExecInteractiveMode::Always) {
        return Err("asks for a terminal (interactiveMode: Always), and an agent has none".into());
    }
    let mut command = Command::new(name);
    command
        .args(exec.args.iter().flatten())
        .env("KUBERNETES_EXEC_INFO", info(exec)?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    for variable in exec.env.iter().flatten() {
        if let (Some(name), Some(value)) = (variable.get("name"), variable.get("value")) {
            command.env(name, value);
        }
    }
    let hint = |error: io::Error| {
        let hint = exec.install_hint.as_deref().unwrap_or_default();
        format!("cannot be run: {error} {hint}")
            .trim_end()
            .to_owned()
    };
    let child = command.spawn().map_err(hint)?;
    let group = Group::of(&child);
    let ended = tokio::time::timeout(patience, child.wait_with_output()).await;
    let Ok(ended) = ended else {
        return Err(format!("has not ended after {} s", patience.as_secs()));
    };
    let output = ended.map_err(|error| format!("cannot be waited for: {error}"))?;
    group.let_go();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said: String = said.trim().chars().take(MOST_WORDS).collect();
        return Err(format!("failed ({}): {said}", output.status));
    }
    // Some programs write YAML, of which JSON is a part.
    let credential: Credential = serde_norway::from_slice(&output.stdout).map_err(|error| {
        // It may have printed a secret: nothing of it is repeated.
        let at = error.location();
        let at = at.map(|at| format!(" (line {}, column {})", at.line(), at.column()));
        format!("printed no ExecCredential{}", at.unwrap_or_default())
    })?;
    let status = credential.status.ok_or("gave no status")?;
    let has_pair = status.client_certificate_data.is_some() && status.client_key_data.is_some();
    if status.token.as_deref().is_none_or(str::is_empty) && !has_pair {
        return Err("gave neither a token nor a certificate with its key".into());
    }
    Ok(status)
}

/// What the program is told.
fn info(exec: &ExecConfig) -> Result<String, String> {
    let mut spec = json!({"interactive": false});
    if exec.provide_cluster_info {
        let cluster = exec.cluster.as_ref().map(serde_json::to_value).transpose();
        let cluster = cluster.map_err(|error| format!("cannot be told of the cluster: {error}"))?;
        spec["cluster"] = cluster.unwrap_or_default();
    }
    let info = json!({"apiVersion": exec.api_version, "kind": "ExecCredential", "spec": spec});
    Ok(info.to_string())
}

/// As kubeconfigs have it.
fn base64(pem: &str) -> String {
    let text = serde_json::to_value(ByteString(pem.as_bytes().to_vec())).ok();
    let text = text.as_ref().and_then(serde_json::Value::as_str);
    text.unwrap_or_default().to_owned()
}

/// The processes of a program: with the first of them, those that it began end.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        Self(pid.map(Pid::from_raw))
    }

    /// It ended by itself, and its number may be another's soon.
    fn let_go(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may be gone.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn script(text: &str) -> ExecConfig {
        let config = json!({
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "/bin/sh",
            "args": ["-c", text],
            "env": [{"name": "NAME", "value": "ada"}],
            "interactiveMode": "IfAvailable",
        });
        serde_json::from_value(config).unwrap()
    }

    fn ran(exec: &ExecConfig, patience: Duration) -> Result<Status, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        // Beside it the thread goes on.
        runtime.block_on(async {
            let other = tokio::spawn(async {
                let began = Instant::now();
                tokio::time::sleep(Duration::from_millis(10)).await;
                began.elapsed()
            });
            let ran = run(exec, patience).await;
            assert!(other.await.unwrap() < Duration::from_millis(700));
            ran
        })
    }

    #[test]
    fn credentials_and_their_end_are_read() {
        let text = r#"sleep 1; echo '{"kind": "ExecCredential", "status": {"token": "'"$NAME"'",
            "expirationTimestamp": "2040-01-01T00:00:00Z"}}'"#;
        let status = ran(&script(text), PATIENCE).unwrap();
        assert_eq!(status.token.as_deref(), Some("ada"));
        let end = status.expiration_timestamp.unwrap();
        assert_eq!(end, "2040-01-01T00:00:00Z");
        // YAML, and what the program is told.
        let text =
            r#"printf 'status:\n  token: %s\n' "$(echo "$KUBERNETES_EXEC_INFO" | tr -d '{}\":,')""#;
        let status = ran(&script(text), PATIENCE).unwrap();
        let told = status.token.unwrap();
        assert!(told.contains("client.authentication.k8s.io/v1"), "{told}");
        assert!(told.contains("interactivefalse"), "{told}");
    }

    #[test]
    fn a_program_that_hangs_ends_with_all_that_it_began() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let exec = script(&format!("sleep 987 & echo $! >{path}; wait"));
        let said = ran(&exec, Duration::from_secs(1)).unwrap_err();
        assert_eq!(said, "has not ended after 1 s");
        let pid = std::fs::read_to_string(path).unwrap();
        let runs = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        let end = Instant::now() + Duration::from_secs(10);
        while runs() {
            assert!(Instant::now() < end, "{pid} runs");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn what_went_wrong_is_said() {
        let mut missing = script("");
        missing.command = Some("/no/such/program".into());
        missing.install_hint = Some("get it from somewhere".into());
        let mut asks = script("");
        asks.interactive_mode = Some(ExecInteractiveMode::Always);
        for (exec, words) in [
            (script("echo a-secret-token"), "printed no ExecCredential"),
            (script("echo 'status: {token: \"\"}'"), "neither a token"),
            (missing, "get it from somewhere"),
            (asks, "interactiveMode"),
            (script("echo no key >&2; exit 3"), "no key"),
            (script("echo {"), "ExecCredential"),
            (script("echo '{\"status\": {}}'"), "neither a token"),
        ] {
            let said = ran(&exec, PATIENCE).unwrap_err();
            assert!(said.contains(words), "{said}");
            assert!(!said.contains("secret"), "{said}");
        }
    }

    #[test]
    fn what_a_program_gave_is_in_its_place() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let text = r#"echo '{"status": {"clientCertificateData": "abc", "clientKeyData": "k",
            "expirationTimestamp": "2040-01-01T01:00:00+01:00"}}'"#;
        let mut auth = AuthInfo {
            exec: Some(script(text)),
            ..AuthInfo::default()
        };
        let end = runtime.block_on(resolve(&mut auth)).unwrap();
        assert_eq!(end.unwrap().to_string(), "2040-01-01T00:00:00Z");
        assert!(auth.exec.is_none());
        assert_eq!(auth.client_certificate_data.as_deref(), Some("YWJj"));
        assert!(auth.client_key_data.is_some() && auth.token.is_none());
        auth.exec = Some(script("exit 1"));
        let said = runtime.block_on(resolve(&mut auth)).unwrap_err();
        assert!(
            said.contains("users[].user.exec.command \"/bin/sh\" failed"),
            "{said}"
        );
    }
}
