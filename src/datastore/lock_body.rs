//! What a lock object says.
//!
//! Pure data. Invariant: a body without a nonce or with a `ttlMs` that is no positive number is no readable body, and a
//! lock that cannot be read never goes stale by itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::store::Fingerprint;

/// The body of a lock, its fields in the reference clients' order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LockBody {
    /// `user@host`.
    pub holder: String,
    /// Host of the holder.
    #[serde(default)]
    pub hostname: String,
    /// Process of the holder.
    #[serde(default)]
    pub pid: u64,
    /// When it was taken or last renewed, by the holder's clock.
    #[serde(default)]
    pub acquired_at: String,
    /// How long it lives without a renewal.
    pub ttl_ms: u64,
    /// Whose lock it is: stays through renewals.
    pub nonce: String,
}

impl LockBody {
    /// JSON indented by two spaces.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Strings and numbers into memory: cannot fail.
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }

    /// Reads a body; `None` when it is not one that can go stale.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(bytes).ok().filter(|body| body.ttl_ms > 0 && !body.nonce.is_empty())
    }

    /// How long it lives without a renewal.
    pub fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms)
    }
}

/// A lock object as it was read.
#[derive(Clone, Debug)]
pub struct LockStatus {
    /// Its body; `None` when it cannot be read.
    pub body: Option<LockBody>,
    /// The first 256 bytes as they are.
    pub raw: String,
    /// Its version.
    pub fingerprint: Option<Fingerprint>,
    /// When the store saw it written.
    pub last_modified: Option<OffsetDateTime>,
    /// The store's clock in the same answer.
    pub server_date: Option<OffsetDateTime>,
}

impl LockStatus {
    /// Time since its last renewal, by the store's clock alone.
    pub fn age(&self) -> Option<Duration> {
        let age = self.server_date? - self.last_modified?;
        Duration::try_from(age).ok()
    }

    /// Whether its time to live has passed, by the store's clock alone.
    pub fn is_stale(&self) -> bool {
        matches!((&self.body, self.age()), (Some(body), Some(age)) if age > body.ttl())
    }

    /// Who holds it, for messages.
    pub fn holder(&self) -> String {
        match &self.body {
            Some(body) => format!("{} (process {} since {})", body.holder, body.pid, body.acquired_at),
            None => format!("an unreadable lock ({:?})", self.raw),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_golden_lock_is_reproduced_byte_for_byte() {
        let body = LockBody {
            holder: "golden@golden-host".into(),
            hostname: "golden-host".into(),
            pid: 4242,
            acquired_at: "2050-01-02T03:04:12.006Z".into(),
            ttl_ms: 30_000,
            nonce: "00112233-4455-4677-8899-aabbccddeeff".into(),
        };
        for golden in
            [&include_bytes!("../../tests/golden/s3-lock.json")[..], include_bytes!("../../tests/golden/gcs-lock.json")]
        {
            assert_eq!(body.to_bytes(), golden);
            assert_eq!(LockBody::parse(golden), Some(body.clone()));
        }
    }

    #[test]
    fn extra_fields_are_fine_and_a_body_without_ttl_never_goes_stale() {
        let good = r#"{"holder":"a@b","ttlMs":5,"nonce":"n","runId":[1]}"#;
        let at = OffsetDateTime::UNIX_EPOCH;
        let status = |text: &str| LockStatus {
            body: LockBody::parse(text.as_bytes()),
            raw: text.into(),
            fingerprint: None,
            last_modified: Some(at),
            server_date: Some(at + Duration::from_secs(3600)),
        };
        assert!(status(good).is_stale());
        for bad in [
            "",
            "x",
            "{}",
            r#"{"holder":"a@b","nonce":"n"}"#,
            r#"{"holder":"a@b","ttlMs":0,"nonce":"n"}"#,
            r#"{"holder":"a@b","ttlMs":-5,"nonce":"n"}"#,
            r#"{"holder":"a@b","ttlMs":"5","nonce":"n"}"#,
            r#"{"holder":"a@b","ttlMs":5}"#,
        ] {
            assert!(!status(bad).is_stale(), "{bad}");
        }
        assert!(!LockStatus { server_date: None, ..status(good) }.is_stale());
        assert!(!LockStatus { server_date: Some(at), last_modified: Some(at), ..status(good) }.is_stale());
    }
}
