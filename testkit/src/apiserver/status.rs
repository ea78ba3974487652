//! What the API answers when it does not do what was asked.

use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Value, json};

/// A failure as the API tells it: an HTTP status and an object `Status`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// HTTP status.
    pub code: u16,
    /// Machine-readable reason.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Sent as `Retry-After`, in whole seconds.
    pub retry_after: Option<Duration>,
    /// `details.causes[0].reason`, if there is one.
    pub cause: Option<String>,
}

impl Failure {
    /// With the usual reason for a status.
    pub fn new(code: u16, message: impl Into<String>) -> Self {
        let reason = match code {
            400 => "BadRequest",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            405 => "MethodNotAllowed",
            409 => "Conflict",
            410 => "Expired",
            413 => "RequestEntityTooLarge",
            415 => "UnsupportedMediaType",
            422 => "Invalid",
            429 => "TooManyRequests",
            500 => "InternalError",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "",
        };
        Self {
            code,
            reason: reason.to_owned(),
            message: message.into(),
            retry_after: None,
            cause: None,
        }
    }

    /// With another reason.
    #[must_use]
    pub fn reason(mut self, reason: &str) -> Self {
        reason.clone_into(&mut self.reason);
        self
    }

    /// With `Retry-After`.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    pub(super) fn cause(mut self, cause: &str) -> Self {
        self.cause = Some(cause.to_owned());
        self
    }

    /// A version whose history is gone.
    pub(super) fn too_old(asked: u64, oldest: u64) -> Self {
        Self::new(410, format!("too old resource version: {asked} ({oldest})"))
    }

    /// A version that is not reached yet.
    pub(super) fn too_large(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        Self::new(504, message)
            .retry_after(Duration::from_secs(1))
            .cause("ResourceVersionTooLarge")
    }

    pub(super) fn not_found(plural: &str, name: &str) -> Self {
        Self::new(404, format!("{plural} {name:?} not found"))
    }

    /// The object `Status`.
    pub fn body(&self) -> Value {
        let mut details = json!({});
        if let Some(after) = self.retry_after {
            details["retryAfterSeconds"] = after.as_secs().into();
        }
        if let Some(cause) = &self.cause {
            details["causes"] = json!([{"reason": cause, "message": self.message}]);
        }
        let mut body = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if details != json!({}) {
            body["details"] = details;
        }
        body
    }

    pub(super) fn http(&self) -> StatusCode {
        StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}
