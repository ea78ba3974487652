//! From a request to its answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::SystemTime;

use http_body_util::{BodyExt, Collected, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use hyper::{Method, Request, Response};

use super::fault::{Asked, Effect};
use super::record::Recorded;
use super::reply::{Body, Fate, Reply};
use super::request::{Target, Verb};
use super::shared::Shared;
use super::status::Failure;
use super::wire::Control;
use super::write::{self, Sent};
use super::{discovery, read, watch};

/// Most octets of a request's body, as kube-apiserver has it.
const BODY_MAX: usize = 3 << 20;

/// What is known of a request's connection.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) shared: Arc<Shared>,
    pub(super) listener: usize,
    /// The client's certificate, DER.
    pub(super) certificate: Option<Vec<u8>>,
    pub(super) control: Arc<Control>,
}

/// Answers a request, or lets its connection suffer.
pub(super) async fn serve(
    peer: Arc<Peer>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let header = |name| parts.headers.get(name).and_then(|v| v.to_str().ok());
    let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
    let target = Target::parse(&parts.method, path, query);
    let number = peer.shared.record().begin(Recorded {
        at: SystemTime::now(),
        listener: peer.listener,
        method: parts.method.to_string(),
        path: path.to_owned(),
        query: query.to_owned(),
        verb: target.as_ref().map(|t| t.verb),
        resource: target.as_ref().map_or_else(String::new, Target::resource),
        user: String::new(),
        agent: header(USER_AGENT).unwrap_or_default().to_owned(),
        status: None,
    });
    let body = Limited::new(body, BODY_MAX).collect().await;
    let body = body.map(Collected::to_bytes);
    let user = peer
        .shared
        .access()
        .user(header(AUTHORIZATION), peer.certificate.as_deref());
    let name = user.clone().unwrap_or_default();
    peer.shared.record().identify(number, &name);
    let asked = Asked {
        verb: target.as_ref().map(|t| t.verb),
        resource: target
            .as_ref()
            .map_or_else(String::new, |t| t.kind.plural.to_owned()),
        user: name,
    };
    let effects = peer.shared.faults.at_request(&asked);
    let content_type = header(CONTENT_TYPE).unwrap_or_default();
    let reply = match body {
        Ok(body) => {
            let asked = Question {
                method: &parts.method,
                path,
                target,
                user,
                asked,
                content_type,
                body,
            };
            asked.answer(&peer, &effects)
        }
        Err(_) => Err(Failure::new(
            413,
            "the request's body cannot be read or is too large",
        )),
    };
    let reply = reply.unwrap_or_else(Reply::from);
    let (reply, fate) = reply.suffer(&effects).await;
    match fate {
        Fate::Serve => {}
        Fate::Reset => {
            peer.control.reset();
            std::future::pending::<()>().await;
        }
        Fate::Hang => std::future::pending::<()>().await,
    }
    peer.shared.record().answer(number, reply.status.as_u16());
    Ok(reply.into_response())
}

struct Question<'a> {
    method: &'a Method,
    path: &'a str,
    target: Option<Target>,
    user: Result<String, Failure>,
    asked: Asked,
    content_type: &'a str,
    body: Bytes,
}

impl Question<'_> {
    fn answer(self, peer: &Peer, effects: &[Effect]) -> Result<Reply, Failure> {
        let prevented =
            |effect: &Effect| matches!(effect, Effect::Answer(_) | Effect::Reset | Effect::Hang);
        if effects.iter().any(prevented) {
            // What does not reach its handler changes nothing.
            return Err(Failure::new(503, "prevented by a fault of the test"));
        }
        let shared = &peer.shared;
        let Some(target) = self.target else {
            if !discovery::is_public(self.path) {
                self.user?;
            }
            let known = discovery::answer(self.method, self.path);
            return known.ok_or_else(|| {
                Failure::new(404, "the server could not find the requested resource")
            });
        };
        shared.access().check(&self.user?, &target)?;
        let sent = Sent {
            content_type: self.content_type,
            body: &self.body,
        };
        match target.verb {
            Verb::Get => read::get(shared, &target),
            Verb::List => read::list(shared, &target, effects),
            Verb::Watch => watch::watch(shared, &target, self.asked, effects, &peer.control),
            Verb::Create => write::create(shared, &target, sent),
            Verb::Update => write::update(shared, &target, sent),
            Verb::Patch => write::patch(shared, &target, sent),
            Verb::Delete => write::delete(shared, &target, sent),
            Verb::DeleteCollection => write::delete_all(shared, &target),
        }
    }
}
