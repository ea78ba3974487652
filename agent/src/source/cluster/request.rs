//! Lists and watches over HTTP: pages and lines in, each object still as the server wrote it.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, BodyStream, LengthLimitError, Limited};
use kube::Client;
use kube::client::Body;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use tokio_util::io::StreamReader;

use super::access::chain;

/// Until the first octet of an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Between two pieces of a list.
const PIECE: Duration = Duration::from_secs(30);
/// Largest page; 500 objects of the largest size that etcd takes are more, and nobody has those.
const MOST_PAGE: usize = 256 << 20;
/// Largest event: an object of the size that etcd takes, twice for what JSON adds.
const MOST_LINE: usize = 4 << 20;
/// Largest refusal that is read.
const MOST_REFUSAL: usize = 64 << 10;

/// Why a list or watch ended.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The version that was asked for is history (410).
    #[error("the API server has forgotten the version that was asked for")]
    Gone,
    /// The server refused.
    #[error("the API server says {code}: {message}")]
    Refused {
        /// HTTP status.
        code: StatusCode,
        /// What it said.
        message: String,
        /// When it wants to be asked again.
        after: Option<Duration>,
    },
    /// Nothing came for too long.
    #[error("the API server was silent for {} s", .0.as_secs())]
    Silent(Duration),
    /// The connection broke, or there is none.
    #[error("{0}")]
    Broken(String),
    /// What came is not what the API promises.
    #[error("the API server's answer cannot be read: {0}")]
    Garbled(String),
}

impl Trouble {
    /// Whether asking differently may help: the server does not know a parameter.
    pub fn is_unknown_parameter(&self) -> bool {
        matches!(self, Self::Refused { code, .. }
            if *code == StatusCode::BAD_REQUEST || *code == StatusCode::UNPROCESSABLE_ENTITY)
    }

    /// Whether a connection that holds brought nothing of use.
    pub const fn is_useless(&self) -> bool {
        matches!(self, Self::Silent(_) | Self::Garbled(_))
    }

    /// The refusal's status.
    pub const fn code(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Gone | Self::Silent(_) | Self::Broken(_) | Self::Garbled(_) => None,
        }
    }

    /// A word for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Silent(_) => "silent",
            Self::Broken(_) => "broken",
            Self::Garbled(_) => "garbled",
            Self::Refused { code, .. } => match code.as_u16() {
                401 => "unauthorized",
                403 => "forbidden",
                429 => "throttled",
                500.. => "server_error",
                _ => "refused",
            },
        }
    }
}

/// A page of a list.
#[derive(Debug, Deserialize)]
pub struct Page {
    /// Version and continuation.
    #[serde(default)]
    pub metadata: PageMeta,
    /// Objects; `null` in an empty list of some servers.
    #[serde(default)]
    pub items: Option<Vec<Box<RawValue>>>,
}

/// `ListMeta`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PageMeta {
    /// Version of the whole list.
    #[serde(default)]
    pub resource_version: String,
    /// Where to go on; empty on the last page.
    #[serde(default, rename = "continue")]
    pub next: String,
}

/// An event of a watch.
#[derive(Debug, Deserialize)]
pub struct Event<'a> {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`.
    #[serde(rename = "type")]
    pub kind: &'a str,
    /// The object; a `Status` of an error.
    #[serde(borrow)]
    pub object: &'a RawValue,
}

/// What is asked of any object before it is decoded.
#[derive(Debug, Deserialize)]
pub struct Head {
    /// Its metadata.
    pub metadata: HeadMeta,
}

/// `ObjectMeta`, what the source reads of it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeadMeta {
    /// Name.
    pub name: Option<String>,
    /// Namespace.
    pub namespace: Option<String>,
    /// Version.
    pub resource_version: Option<String>,
    /// Those that the source reads.
    pub annotations: Option<HeadAnnotations>,
}

/// Annotations that say something to the source.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct HeadAnnotations {
    /// Of the bookmark behind the first list of a watch.
    #[serde(rename = "k8s.io/initial-events-end")]
    pub initial_events_end: Option<String>,
    /// Of an `EndpointSlice`: when the change happened that it tells of (RFC 3339).
    #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    pub last_change: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    code: u16,
    message: String,
    details: Option<Details>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Details {
    retry_after_seconds: Option<u64>,
}

/// What an in-stream error says.
pub fn error(status: &RawValue) -> Trouble {
    match serde_json::from_str::<Status>(status.get()) {
        Ok(status) => refused(status.code, status.message, status.details),
        Err(error) => Trouble::Garbled(error.to_string()),
    }
}

fn refused(code: u16, message: String, details: Option<Details>) -> Trouble {
    if code == 410 {
        return Trouble::Gone;
    }
    let after = details.and_then(|details| details.retry_after_seconds);
    Trouble::Refused {
        code: StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        message,
        after: after.map(Duration::from_secs),
    }
}

/// Fetches a page.
///
/// # Errors
///
/// No answer, a refusal, or one that is no list.
pub async fn page(client: &Client, request: Request<Vec<u8>>) -> Result<Page, Trouble> {
    let body = send(client, request).await?;
    let mut text = Vec::new();
    let mut pieces = BodyStream::new(body);
    while let Some(piece) = timeout(PIECE, pieces.next())
        .await
        .map_err(|_| Trouble::Silent(PIECE))?
    {
        let piece = piece.map_err(|e| broken(&e))?;
        if let Ok(data) = piece.into_data() {
            text.extend_from_slice(&data);
        }
        if text.len() > MOST_PAGE {
            return Err(Trouble::Garbled(format!(
                "a page of more than {MOST_PAGE} octets"
            )));
        }
    }
    serde_json::from_slice(&text).map_err(|e| Trouble::Garbled(e.to_string()))
}

/// A watch's events, a line each.
pub struct Lines(futures::stream::BoxStream<'static, Result<String, Trouble>>);

impl Lines {
    /// The next line; nothing at the stream's end.
    ///
    /// # Errors
    ///
    /// The connection broke, or nothing came for `patience`.
    pub async fn next(&mut self, patience: Duration) -> Result<Option<String>, Trouble> {
        let line = timeout(patience, self.0.next()).await;
        line.map_err(|_| Trouble::Silent(patience))?.transpose()
    }
}

/// Begins a watch.
///
/// # Errors
///
/// No answer, or a refusal.
pub async fn watch(client: &Client, request: Request<Vec<u8>>) -> Result<Lines, Trouble> {
    let body = send(client, request).await?;
    let pieces = BodyStream::new(body)
        .try_filter_map(async |piece| Ok(piece.into_data().ok()))
        .map_err(|error| std::io::Error::other(broken(&error)));
    let reader = StreamReader::new(Box::pin(pieces));
    let lines = FramedRead::new(reader, LinesCodec::new_with_max_length(MOST_LINE));
    let lines = lines.map_err(|error| match error {
        LinesCodecError::MaxLineLengthExceeded => {
            Trouble::Garbled(format!("an event of more than {MOST_LINE} octets"))
        }
        LinesCodecError::Io(error) => Trouble::Broken(error.to_string()),
    });
    Ok(Lines(lines.boxed()))
}

/// The body of an answer that is none of refusal.
async fn send(client: &Client, request: Request<Vec<u8>>) -> Result<Body, Trouble> {
    let answer = timeout(ANSWER, client.send(request.map(Body::from))).await;
    let answer = answer
        .map_err(|_| Trouble::Silent(ANSWER))?
        .map_err(|e| broken(&e))?;
    let code = answer.status();
    if code.is_success() {
        return Ok(answer.into_body());
    }
    Err(refusal(code, answer).await)
}

fn broken(error: &kube::Error) -> Trouble {
    Trouble::Broken(match error {
        // It says no more than that it has a cause.
        kube::Error::Service(cause) => chain(cause.as_ref()),
        other => chain(other),
    })
}

async fn refusal(code: StatusCode, answer: Response<Body>) -> Trouble {
    let after = answer.headers().get(header::RETRY_AFTER);
    let after = after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let body = timeout(
        PIECE,
        Limited::new(answer.into_body(), MOST_REFUSAL).collect(),
    )
    .await;
    let text = match body {
        Ok(Ok(body)) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => "more than can be read".to_owned(),
        Ok(Err(_)) | Err(_) => String::new(),
    };
    let status: Status = serde_json::from_str(&text).unwrap_or_default();
    let message = if status.message.is_empty() {
        // A proxy's page, mostly: its first line says enough.
        text.lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(200)
            .collect()
    } else {
        status.message
    };
    let mut trouble = refused(code.as_u16(), message, status.details);
    if let (Trouble::Refused { after: wait, .. }, Some(seconds)) = (&mut trouble, after) {
        *wait = Some(Duration::from_secs(seconds));
    }
    trouble
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_keep_their_objects_as_they_came() {
        let line = r#"{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"7"}}}"#;
        let event: Event<'_> = serde_json::from_str(line).unwrap();
        assert_eq!(event.kind, "ADDED");
        let head: Head = serde_json::from_str(event.object.get()).unwrap();
        assert_eq!(head.metadata.resource_version.as_deref(), Some("7"));
        assert!(
            serde_json::from_str::<Event<'_>>(&line[..40]).is_err(),
            "cut"
        );
    }

    #[test]
    fn refusals_are_understood() {
        let raw = |text: &str| serde_json::from_str::<Box<RawValue>>(text).unwrap();
        let gone = raw(r#"{"kind":"Status","code":410,"reason":"Expired","message":"too old"}"#);
        assert!(matches!(error(&gone), Trouble::Gone));
        let busy = raw(r#"{"code":429,"message":"slow down","details":{"retryAfterSeconds":7}}"#);
        let Trouble::Refused { code, after, .. } = error(&busy) else {
            panic!("no refusal");
        };
        assert_eq!((code.as_u16(), after), (429, Some(Duration::from_secs(7))));
        assert_eq!(error(&busy).reason(), "throttled");
        assert!(matches!(error(&raw("7")), Trouble::Garbled(_)));
    }
}
