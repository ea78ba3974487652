//! Answers, whole or as a stream, and what faults make of them.

use std::io;
use std::time::Duration;

use futures::StreamExt;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::Value;
use tokio::sync::mpsc;

use super::fault::{Break, Effect};
use super::status::Failure;

/// Body of an answer. Its error ends the connection.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Octets of a body that is sent slowly.
const PIECE: usize = 16 << 10;

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) content: Content,
    retry_after: Option<Duration>,
    content_type: String,
}

#[derive(Debug)]
pub(super) enum Content {
    Whole(Bytes),
    Stream(mpsc::Receiver<io::Result<Bytes>>),
}

/// What becomes of an answer's connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Serve,
    Reset,
    Hang,
}

impl Reply {
    pub(super) fn text(status: StatusCode, content_type: &str, text: impl Into<Bytes>) -> Self {
        Self {
            status,
            content: Content::Whole(text.into()),
            retry_after: None,
            content_type: content_type.to_owned(),
        }
    }

    pub(super) fn json(status: StatusCode, value: &Value) -> Self {
        Self::bytes(status, value.to_string())
    }

    pub(super) fn bytes(status: StatusCode, text: impl Into<Bytes>) -> Self {
        Self::text(status, "application/json", text)
    }

    pub(super) fn stream(receiver: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self {
            content: Content::Stream(receiver),
            ..Self::bytes(StatusCode::OK, Bytes::new())
        }
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let body = match self.content {
            Content::Whole(bytes) => {
                let full = Full::new(bytes);
                full.map_err(|never| match never {}).boxed_unsync()
            }
            Content::Stream(mut receiver) => {
                let parts = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx));
                StreamBody::new(parts.map(|part| part.map(Frame::data))).boxed_unsync()
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        if let Ok(value) = HeaderValue::from_str(&self.content_type) {
            headers.insert(CONTENT_TYPE, value);
        }
        if let Some(after) = self.retry_after {
            headers.insert(RETRY_AFTER, after.as_secs().into());
        }
        headers.insert("Audit-Id", HeaderValue::from_static("testkit"));
        response
    }

    /// What faults make of the answer, except what a watch does by itself.
    pub(super) async fn suffer(mut self, effects: &[Effect]) -> (Self, Fate) {
        for effect in effects {
            match effect {
                Effect::Reset => return (self, Fate::Reset),
                Effect::Hang => return (self, Fate::Hang),
                Effect::Answer(failure) => self = failure.clone().into(),
                Effect::ContentType(name) => self.content_type.clone_from(name),
                Effect::Slow(pause) => {
                    tokio::time::sleep(*pause).await;
                    if let Content::Whole(bytes) = &self.content {
                        self.content = Content::Stream(slowly(bytes.clone(), *pause));
                    }
                }
                Effect::Break { after, how } => match self.content {
                    Content::Whole(bytes) => {
                        let Some(receiver) = broken(&bytes, *after, *how) else {
                            self.content = Content::Whole(bytes);
                            return (self, Fate::Reset);
                        };
                        self.content = Content::Stream(receiver);
                    }
                    Content::Stream(_) => {}
                },
                Effect::Expired
                | Effect::NoBookmarks
                | Effect::NoWatchList
                | Effect::ErrorEvent { .. }
                | Effect::Twice
                | Effect::Replay(_) => {}
            }
        }
        (self, Fate::Serve)
    }
}

impl From<Failure> for Reply {
    fn from(failure: Failure) -> Self {
        Self {
            retry_after: failure.retry_after,
            ..Self::json(failure.http(), &failure.body())
        }
    }
}

fn slowly(bytes: Bytes, pause: Duration) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        for from in (0..bytes.len()).step_by(PIECE) {
            let piece = bytes.slice(from..bytes.len().min(from + PIECE));
            if sender.send(Ok(piece)).await.is_err() {
                return; // the client is gone
            }
            tokio::time::sleep(pause).await;
        }
    });
    receiver
}

/// The first octets of a body, and its end; none if that is a reset before the first of them.
fn broken(bytes: &Bytes, after: usize, how: Break) -> Option<mpsc::Receiver<io::Result<Bytes>>> {
    if how == Break::Reset {
        return None;
    }
    let (sender, receiver) = mpsc::channel(2);
    let piece = bytes.slice(..after.min(bytes.len()));
    tokio::spawn(async move {
        // A client that is gone needs no end.
        let _ = sender.send(Ok(piece)).await;
        match how {
            Break::Silence => sender.closed().await,
            _ => drop(sender.send(Err(cut())).await),
        }
    });
    Some(receiver)
}

/// What ends a connection in the midst of a body.
pub(super) fn cut() -> io::Error {
    io::Error::other("cut by a fault of the test")
}
