//! Lines on the socket.

use serde::{Deserialize, Serialize};

use crate::types::{BackendServices, Peer, Service, Status, Warning};

/// Version of the lines.
pub const VERSION: u32 = 1;
/// A longer request is refused, line end included.
pub const MAX_REQUEST_BYTES: usize = 4 << 10;
/// A longer answer is not read, line end included: 100,000 services fit.
pub const MAX_RESPONSE_BYTES: usize = 64 << 20;

/// What a client may ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// How the agent does.
    Status,
    /// Names and addresses behind service numbers.
    Services,
    /// Nodes behind underlay addresses.
    Overlay,
    /// Services that backends belong to.
    Backends,
    /// What is wrong with the objects at the moment.
    Warnings,
}

/// What the agent answers: the variant of the request's name, or a refusal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Services`].
    Services(Vec<Service>),
    /// To [`Request::Overlay`].
    Overlay(Vec<Peer>),
    /// To [`Request::Backends`].
    Backends(Vec<BackendServices>),
    /// To [`Request::Warnings`].
    Warnings(Vec<Warning>),
    /// To a request that the agent does not answer.
    Refused(Refusal),
}

/// Why a request was not answered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub kind: RefusalKind,
    /// For people.
    pub message: String,
}

/// Kinds of [`Refusal`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The line is no request: not JSON, no version, no request, or too long.
    Malformed,
    /// Another [`VERSION`].
    Version,
    /// A request that this agent does not know.
    UnknownRequest,
    /// The agent cannot answer now.
    Unavailable,
    /// A kind that this reader does not know.
    #[serde(other)]
    Other,
}

/// A line that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The line is not JSON, or not of the shape that the version promises.
    #[error("not a line of the agent's protocol: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The other side speaks another version.
    #[error(
        "the agent speaks version {theirs} of the socket protocol, this program version {VERSION}: \
         use programs of one release"
    )]
    Version {
        /// Version of the line.
        theirs: u32,
    },
}

#[derive(Serialize, Deserialize)]
struct RequestLine<T> {
    version: u32,
    request: T,
}

#[derive(Serialize, Deserialize)]
struct ResponseLine<T> {
    version: u32,
    response: T,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

/// The line for a request, with its line end.
///
/// # Errors
///
/// Only if JSON cannot be written.
pub fn encode_request(request: Request) -> Result<String, WireError> {
    line(&RequestLine {
        version: VERSION,
        request,
    })
}

/// The request in a line, with or without its line end.
///
/// # Errors
///
/// The refusal to send back.
pub fn decode_request(line: &str) -> Result<Request, Refusal> {
    let refuse = |kind, message| Refusal { kind, message };
    if line.len() > MAX_REQUEST_BYTES {
        let message = format!(
            "request of {} bytes; at most {MAX_REQUEST_BYTES}",
            line.len()
        );
        return Err(refuse(RefusalKind::Malformed, message));
    }
    let malformed = |e: serde_json::Error| {
        refuse(
            RefusalKind::Malformed,
            format!(
                "not a request: {e}; a request is {{\"version\":{VERSION},\"request\":\"status\"}}"
            ),
        )
    };
    let VersionOnly { version } = serde_json::from_str(line).map_err(malformed)?;
    if version != VERSION {
        let message = format!("request of version {version}, this agent speaks version {VERSION}");
        return Err(refuse(RefusalKind::Version, message));
    }
    let line: RequestLine<serde_json::Value> = serde_json::from_str(line).map_err(malformed)?;
    Request::deserialize(&line.request).map_err(|_| {
        let message = format!(
            "unknown request {}; known are status, services, overlay, backends, warnings",
            line.request
        );
        refuse(RefusalKind::UnknownRequest, message)
    })
}

/// The line for an answer, with its line end.
///
/// # Errors
///
/// Only if JSON cannot be written.
pub fn encode_response(response: &Response) -> Result<String, WireError> {
    line(&ResponseLine {
        version: VERSION,
        response,
    })
}

/// The answer in a line, with or without its line end.
///
/// # Errors
///
/// [`WireError`]; a [`Response::Refused`] is an answer, not an error.
pub fn decode_response(line: &str) -> Result<Response, WireError> {
    let VersionOnly { version: theirs } = serde_json::from_str(line)?;
    if theirs != VERSION {
        return Err(WireError::Version { theirs });
    }
    let line: ResponseLine<Response> = serde_json::from_str(line)?;
    Ok(line.response)
}

fn line<T: Serialize>(value: &T) -> Result<String, WireError> {
    // `to_string` never writes a line end inside: JSON strings escape it.
    let mut text = serde_json::to_string(value)?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_the_documented_line() {
        let line = encode_request(Request::Status).unwrap();
        assert_eq!(line, "{\"version\":1,\"request\":\"status\"}\n");
        for request in [
            Request::Status,
            Request::Services,
            Request::Overlay,
            Request::Backends,
            Request::Warnings,
        ] {
            assert_eq!(
                decode_request(&encode_request(request).unwrap()).unwrap(),
                request
            );
        }
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let kind = |line: &str| decode_request(line).unwrap_err().kind;
        assert_eq!(kind("hello"), RefusalKind::Malformed);
        assert_eq!(kind("{\"request\":\"status\"}"), RefusalKind::Malformed);
        assert_eq!(kind("{\"version\":1}"), RefusalKind::Malformed);
        assert_eq!(
            kind("{\"version\":2,\"request\":\"status\"}"),
            RefusalKind::Version
        );
        assert_eq!(
            kind("{\"version\":1,\"request\":\"reboot\"}"),
            RefusalKind::UnknownRequest
        );
        assert_eq!(
            kind(&" ".repeat(MAX_REQUEST_BYTES + 1)),
            RefusalKind::Malformed
        );
        let refusal = decode_request("{\"version\":1,\"request\":\"reboot\"}").unwrap_err();
        assert!(refusal.message.contains("\"reboot\""), "{refusal}");
        assert!(refusal.message.contains("services"), "{refusal}");
    }

    #[test]
    fn an_answer_survives_the_way_and_stays_on_one_line() {
        let warning = Warning {
            file: "web.yaml".into(),
            object: "Service default/web".into(),
            field: "spec.ports[0].port".into(),
            message: "two\nlines".into(),
        };
        let status = Status {
            node: "n1".into(),
            last_sync_micros: Some(1_234),
            warnings: [warning].into(),
            ..Status::default()
        };
        let response = Response::Status(Box::new(status));
        let line = encode_response(&response).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        assert_eq!(decode_response(&line).unwrap(), response);
    }

    #[test]
    fn answers_of_later_agents_are_read() {
        let line = r#"{"version":1,"response":{"refused":{"kind":"too_busy","message":"m"}}}"#;
        let Response::Refused(refusal) = decode_response(line).unwrap() else {
            panic!("{line}")
        };
        assert_eq!(refusal.kind, RefusalKind::Other);
        let line = r#"{"version":1,"response":{"warnings":[{"file":"f","object":"o","field":"x",
            "message":"m","since":7}]}}"#;
        assert!(matches!(decode_response(line).unwrap(), Response::Warnings(w) if w.len() == 1));
        let line = r#"{"version":3,"response":{"novel":[]}}"#;
        assert!(matches!(
            decode_response(line),
            Err(WireError::Version { theirs: 3 })
        ));
    }
}
