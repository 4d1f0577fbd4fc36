//! Timestamps as the reference clients write them: ISO-8601 UTC, exactly three decimals, `Z`.
//!
//! Depends on nothing. Invariant: milliseconds are truncated towards the past, as JavaScript's dates are, never rounded.

use std::time::{SystemTime, UNIX_EPOCH};

use time::format_description::well_known::{Iso8601, Rfc3339};
use time::{Date, OffsetDateTime, PrimitiveDateTime, Time};

/// Nanoseconds per millisecond.
pub const NANOS_PER_MS: i64 = 1_000_000;

/// Renders nanoseconds since the epoch.
pub fn format_nanos(ns_since_epoch: i64) -> String {
    // Every i64 lies between the years 1677 and 2262.
    let at =
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(ns_since_epoch)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.millisecond()
    )
}

/// Reads any ISO-8601 date and time, with `Z`, an offset, or (taken as UTC) neither; `None` when it is none, or beyond
/// what fits nanoseconds in 64 bits.
pub fn parse_nanos(text: &str) -> Option<i64> {
    let text = text.trim();
    let moment = OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| OffsetDateTime::parse(text, &Iso8601::DEFAULT))
        .or_else(|_| PrimitiveDateTime::parse(text, &Iso8601::DEFAULT).map(PrimitiveDateTime::assume_utc))
        .or_else(|_| {
            Date::parse(text, &Iso8601::DEFAULT).map(|d| PrimitiveDateTime::new(d, Time::MIDNIGHT).assume_utc())
        })
        .ok()?;
    i64::try_from(moment.unix_timestamp_nanos()).ok()
}

/// This machine's clock.
pub fn now_nanos() -> i64 {
    system_time_nanos(SystemTime::now())
}

/// A point of time of the standard library, clamped to what 64 bits hold.
pub fn system_time_nanos(at: SystemTime) -> i64 {
    match at.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
    }
}

/// The store's clock as nanoseconds.
pub fn from_store(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_are_truncated_towards_the_past() {
        let table = [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_999_999, "1970-01-01T00:00:00.001Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (-1_000_001, "1969-12-31T23:59:59.998Z"),
            (946_684_799_999_999_999, "1999-12-31T23:59:59.999Z"),
            (i64::MAX, "2262-04-11T23:47:16.854Z"),
            (i64::MIN, "1677-09-21T00:12:43.145Z"),
        ];
        for (nanos, text) in table {
            assert_eq!(format_nanos(nanos), text);
        }
    }

    #[test]
    fn every_iso_form_is_read() {
        let expected = Some(1_704_164_645_678_000_000);
        for text in [
            "2024-01-02T03:04:05.678Z",
            "2024-01-02T03:04:05.678000000Z",
            "2024-01-02T04:04:05.678+01:00",
            "20240102T030405.678Z",
            "2024-01-02T03:04:05.678",
        ] {
            assert_eq!(parse_nanos(text), expected, "{text}");
        }
        assert_eq!(parse_nanos("2024-01-02T03:04:05Z"), Some(1_704_164_645_000_000_000));
        for bad in ["", "yesterday", "9999-01-01T00:00:00Z", "2024-13-01T00:00:00Z"] {
            assert_eq!(parse_nanos(bad), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_reads_back_to_the_millisecond(nanos in proptest::num::i64::ANY) {
            let floor = nanos.div_euclid(NANOS_PER_MS).checked_mul(NANOS_PER_MS);
            if let Some(floor) = floor {
                proptest::prop_assert_eq!(parse_nanos(&format_nanos(nanos)), Some(floor));
            }
        }
    }
}
