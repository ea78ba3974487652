use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as Blocking;

use admin_api::{Client, ClientError, Status, decode_response};

use super::*;
use crate::http::Health;
use crate::run::status::Names;

const LIMIT: Duration = Duration::from_secs(10);

struct Running {
    dir: tempfile::TempDir,
    asked: Option<mpsc::Receiver<Asking>>,
    publish: Option<watch::Sender<Arc<Snapshot>>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(snapshot: Snapshot) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (answers, publish, asked) = Answers::new(snapshot);
        let server = Server::bind(&dir.path().join("agent.sock")).unwrap();
        let thread = server.start(answers).unwrap();
        Self {
            dir,
            asked: Some(asked),
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

fn names() -> Names {
    Names {
        services: vec![admin_api::Service {
            number: 1,
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            port_name: String::new(),
            family: 4,
            frontends: Vec::new(),
        }],
        peers: Vec::new(),
        backends: vec![admin_api::BackendServices {
            family: 4,
            id: 3,
            services: vec!["shop/web".to_owned()],
        }],
    }
}

fn snapshot(pid: u32) -> Snapshot {
    Snapshot {
        health: Health::default(),
        status: Status {
            pid,
            ..Status::default()
        },
        has_names: true,
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
    assert!(client.warnings().unwrap().is_empty());
    let mut asked = running.asked.take().unwrap();
    let teller = std::thread::spawn(move || {
        while let Some(asking) = asked.blocking_recv() {
            asking.send(names()).unwrap();
        }
    });
    assert_eq!(client.services().unwrap().len(), 1);
    assert!(client.overlay().unwrap().is_empty());
    assert_eq!(client.backends().unwrap(), names().backends);
    drop(publish);
    running.thread.take().unwrap().join().unwrap();
    assert!(!running.path().exists());
    drop(client);
    teller.join().unwrap();
}

#[test]
fn names_of_a_busy_loop_are_refused_soon() {
    let running = Running::start(snapshot(1));
    let mut client = Client::connect(&running.path(), admin_api::DEFAULT_TIMEOUT).unwrap();
    let error = client.services().unwrap_err();
    let ClientError::Refused(refusal) = error else {
        panic!("{error}")
    };
    assert_eq!(refusal.kind, RefusalKind::Unavailable);
    assert!(refusal.message.contains("ask again"), "{refusal}");
    assert_eq!(
        client.status().unwrap().pid,
        1,
        "which the loop is not asked for"
    );
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
