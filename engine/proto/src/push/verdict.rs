//! What a provider's answer means for the notification, the device and the provider.
//!
//! Tables from RFC 8030 (Web Push), Firebase's `ErrorCode` of HTTP v1, and Apple's "Handling notification responses
//! from APNs". Not here: HTTP.

use serde_json::Value;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The provider has taken it.
    Sent,
    /// The device is no more: its subscription is to be removed. `since_ms`: not one that registered later.
    Gone {
        reason: String,
        since_ms: Option<u64>,
    },
    /// It never will be taken.
    Failed(String),
    /// Worth another try.
    Retry {
        reason: String,
        /// What was asked for, ms.
        after_ms: Option<u64>,
        /// The provider is in trouble or wants to be left alone, not just by this device.
        trouble: bool,
    },
    /// The provider does not take our credentials any more: make new ones and try again, once.
    Renew(String),
}

impl Verdict {
    fn gone(reason: impl Into<String>) -> Self {
        let (reason, since_ms) = (reason.into(), None);
        Self::Gone { reason, since_ms }
    }
}

/// A push service's answer (RFC 8030, 5 and 8.4; RFC 8292, 4).
#[must_use]
pub fn of_web(status: u16, after_ms: Option<u64>) -> Verdict {
    let told = |text: &str| format!("{text} (HTTP {status})");
    match status {
        200..=299 => Verdict::Sent,
        404 | 410 => Verdict::gone(told("the subscription has ended")),
        413 => Verdict::Failed(told("too large for the push service")),
        401 | 403 => Verdict::Failed(told("the push service does not accept the VAPID key")),
        408 | 425 | 429 | 500..=599 => Verdict::Retry {
            reason: told("the push service asks to try later"),
            after_ms,
            trouble: true,
        },
        _ => Verdict::Failed(told("refused by the push service")),
    }
}

/// FCM's answer: the `errorCode` of its details, else the status of the error.
#[must_use]
pub fn of_fcm(status: u16, body: &[u8], after_ms: Option<u64>) -> Verdict {
    if (200..=299).contains(&status) {
        return Verdict::Sent;
    }
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = body.get("error").unwrap_or(&Value::Null);
    let details = error.get("details").and_then(Value::as_array);
    let in_details = |name: &str| {
        let mut details = details.into_iter().flatten();
        details.find_map(|detail| detail.get(name).cloned())
    };
    let code = in_details("errorCode").or_else(|| error.get("status").cloned());
    let code = code.as_ref().and_then(Value::as_str).unwrap_or("");
    let told = format!(
        "FCM: {} (HTTP {status})",
        if code.is_empty() { "refused" } else { code }
    );
    let names_token = in_details("fieldViolations").is_some_and(|violations| {
        let mut all = violations.as_array().into_iter().flatten();
        all.any(|violation| violation.get("field").and_then(Value::as_str) == Some("message.token"))
    });
    match (status, code) {
        (_, "UNREGISTERED" | "SENDER_ID_MISMATCH") => Verdict::gone(told),
        (404, "" | "NOT_FOUND") => Verdict::gone(told),
        (400, _) if names_token => Verdict::gone(told),
        (_, "THIRD_PARTY_AUTH_ERROR") => Verdict::Failed(told),
        (401, _) => Verdict::Renew(told),
        (408 | 429 | 500..=599, _) => Verdict::Retry {
            reason: told,
            // "Start with an initial delay of one minute" where it does not say.
            after_ms: after_ms.or((status == 429).then_some(60_000)),
            trouble: true,
        },
        _ => Verdict::Failed(told),
    }
}

/// APNs' answer: its `reason`, and with 410 since when the device is no more.
#[must_use]
pub fn of_apns(status: u16, body: &[u8], after_ms: Option<u64>) -> Verdict {
    if status == 200 {
        return Verdict::Sent;
    }
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let reason = body
        .get("reason")
        .and_then(Value::as_str)
        .unwrap_or("refused");
    let told = format!("APNs: {reason} (HTTP {status})");
    match (status, reason) {
        (410, _) => Verdict::Gone {
            reason: told,
            since_ms: body.get("timestamp").and_then(Value::as_u64),
        },
        (400, "BadDeviceToken" | "DeviceTokenNotForTopic") => Verdict::gone(told),
        (403, "ExpiredProviderToken") => Verdict::Renew(told),
        // Too many for one device.
        (429, "TooManyRequests") => Verdict::Retry {
            reason: told,
            after_ms,
            trouble: false,
        },
        (429 | 500..=599, _) => Verdict::Retry {
            reason: told,
            after_ms,
            trouble: true,
        },
        _ => Verdict::Failed(told),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kind(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::Sent => "sent",
            Verdict::Gone { .. } => "gone",
            Verdict::Failed(_) => "failed",
            Verdict::Retry { trouble: true, .. } => "trouble",
            Verdict::Retry { .. } => "retry",
            Verdict::Renew(_) => "renew",
        }
    }

    #[test]
    fn push_services() {
        for (status, expected) in [
            (201, "sent"),
            (404, "gone"),
            (410, "gone"),
            (400, "failed"),
            (403, "failed"),
            (413, "failed"),
            (301, "failed"),
            (429, "trouble"),
            (503, "trouble"),
        ] {
            assert_eq!(kind(&of_web(status, None)), expected, "{status}");
        }
    }

    #[test]
    fn firebase() {
        let error = |code: &str| json!({"error": {"status": "X", "details": [{"@type": "t", "errorCode": code}]}});
        for (status, body, expected) in [
            (200, json!({"name": "projects/p/messages/1"}), "sent"),
            (404, error("UNREGISTERED"), "gone"),
            (403, error("SENDER_ID_MISMATCH"), "gone"),
            (400, error("INVALID_ARGUMENT"), "failed"),
            (
                400,
                json!({"error": {"status": "INVALID_ARGUMENT", "details": [
                {"fieldViolations": [{"field": "message.token"}]}]}}),
                "gone",
            ),
            (401, error("THIRD_PARTY_AUTH_ERROR"), "failed"),
            (
                401,
                json!({"error": {"status": "UNAUTHENTICATED"}}),
                "renew",
            ),
            (429, error("QUOTA_EXCEEDED"), "trouble"),
            (503, error("UNAVAILABLE"), "trouble"),
            (500, error("INTERNAL"), "trouble"),
            (404, Value::Null, "gone"),
            (
                403,
                json!({"error": {"status": "PERMISSION_DENIED"}}),
                "failed",
            ),
        ] {
            let verdict = of_fcm(status, body.to_string().as_bytes(), None);
            assert_eq!(kind(&verdict), expected, "{status} {body}");
        }
        let Verdict::Retry { after_ms, .. } = of_fcm(429, b"", None) else {
            panic!()
        };
        assert_eq!(after_ms, Some(60_000));
    }

    #[test]
    fn apple() {
        for (status, reason, expected) in [
            (200, "", "sent"),
            (410, "Unregistered", "gone"),
            (410, "ExpiredToken", "gone"),
            (400, "BadDeviceToken", "gone"),
            (400, "DeviceTokenNotForTopic", "gone"),
            (400, "BadTopic", "failed"),
            (403, "ExpiredProviderToken", "renew"),
            (403, "InvalidProviderToken", "failed"),
            (413, "PayloadTooLarge", "failed"),
            (429, "TooManyRequests", "retry"),
            (429, "TooManyProviderTokenUpdates", "trouble"),
            (503, "Shutdown", "trouble"),
        ] {
            let body = json!({ "reason": reason, "timestamp": 7 }).to_string();
            assert_eq!(
                kind(&of_apns(status, body.as_bytes(), None)),
                expected,
                "{reason}"
            );
        }
        let gone = of_apns(410, br#"{"reason":"Unregistered","timestamp":7}"#, None);
        assert!(matches!(
            gone,
            Verdict::Gone {
                since_ms: Some(7),
                ..
            }
        ));
    }
}
