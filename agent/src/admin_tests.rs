use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as Blocking;

use admin_api::{Client, ClientError, Status, decode_response};

use super::*;
use crate::run::status::Names;

const LIMIT: Duration = Duration::from_secs(10);

struct Running {
    dir: tempfile::TempDir,
    publish: Option<watch::Sender<Arc<Snapshot>>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(snapshot: Snapshot) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (publish, snapshots) = watch::channel(Arc::new(snapshot));
        let server = Server::bind(&dir.path().join("agent.sock")).unwrap();
        let thread = server.start(snapshots).unwrap();
        Self {
            dir,
            publish: Some(publish),
            thread: Some(thread),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    fn client(&self) -> Client {
        Client::connect(&self.path(), LIMIT).unwrap()
    }
}

fn snapshot(pid: u32) -> Snapshot {
    Snapshot {
        status: Status {
            pid,
            ..Status::default()
        },
        names: Some(Arc::new(Names::default())),
    }
}

#[test]
fn answers_come_from_the_last_snapshot_and_the_socket_goes_with_the_publisher() {
    let mut running = Running::start(snapshot(1));
    let mode = std::fs::metadata(running.path())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut client = running.client();
    assert_eq!(client.status().unwrap().pid, 1);
    let publish = running.publish.take().unwrap();
    publish.send(Arc::new(snapshot(2))).unwrap();
    assert_eq!(client.status().unwrap().pid, 2);
    assert!(client.services().unwrap().is_empty());
    assert!(client.overlay().unwrap().is_empty());
    assert!(client.backends().unwrap().is_empty());
    assert!(client.warnings().unwrap().is_empty());
    drop(publish);
    running.thread.take().unwrap().join().unwrap();
    assert!(!running.path().exists());
}

#[test]
fn names_that_are_not_there_yet_are_refused() {
    let mut early = Snapshot::default();
    early.status.waiting_for = Some("the Node a".into());
    let running = Running::start(early);
    let error = running.client().services().unwrap_err();
    let ClientError::Refused(refusal) = error else {
        panic!("{error}")
    };
    assert_eq!(refusal.kind, RefusalKind::Unavailable);
    assert!(
        refusal.message.contains("waits for the Node a"),
        "{refusal}"
    );
}

#[test]
fn a_dead_agents_socket_is_replaced_and_a_living_ones_is_not() {
    let running = Running::start(snapshot(1));
    let error = Server::bind(&running.path()).unwrap_err();
    assert!(matches!(error, SocketError::Taken { .. }), "{error}");
    assert_eq!(running.client().status().unwrap().pid, 1);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    drop(Server::bind(&path).unwrap());
    assert!(!path.exists(), "gone with its server");
    let error = Server::bind(&dir.path().join("no/agent.sock")).unwrap_err();
    assert!(error.to_string().contains("--run-dir"), "{error}");
    std::fs::write(&path, "a file").unwrap();
    let error = Server::bind(&path).unwrap_err();
    assert!(matches!(error, SocketError::Bind { .. }), "{error}");
    assert_eq!(
        std::fs::read(&path).unwrap(),
        b"a file",
        "not ours to remove"
    );
}

#[test]
fn nonsense_gets_a_refusal_and_holds_nobody_up() {
    let running = Running::start(snapshot(7));
    let silent: Vec<Blocking> = (0..4)
        .map(|_| Blocking::connect(running.path()).unwrap())
        .collect();
    let mut stream = Blocking::connect(running.path()).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    // Longer than any request, and no end of line.
    stream
        .write_all(&vec![b'x'; MAX_REQUEST_BYTES + 1])
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let Response::Refused(refusal) = decode_response(&text).unwrap() else {
        panic!("{text}")
    };
    assert_eq!(refusal.kind, RefusalKind::Malformed);
    assert_eq!(running.client().status().unwrap().pid, 7);
    drop(silent);
}
