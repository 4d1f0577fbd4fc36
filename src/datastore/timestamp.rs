//! Timestamps as the reference clients write them: ISO-8601 UTC, exactly three decimals, `Z`.
//!
//! Depends on nothing. Invariant: milliseconds are truncated towards the past, as JavaScript's dates are, never rounded.

use std::time::{SystemTime, UNIX_EPOCH};

use time::format_description::well_known::{Iso8601, Rfc3339};
use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time};

/// Nanoseconds per millisecond.
pub const NANOS_PER_MS: i64 = 1_000_000;

/// A timestamp as text, without an allocation.
#[derive(Clone, Copy, Debug)]
pub struct Canonical([u8; 24]);

impl Canonical {
    const TEMPLATE: [u8; 24] = *b"0000-00-00T00:00:00.000Z";
    /// Where the numbers stand in it, and how many digits they have: year to second, then milliseconds.
    const FIELDS: [(usize, usize); 7] = [(0, 4), (5, 2), (8, 2), (11, 2), (14, 2), (17, 2), (20, 3)];

    /// Milliseconds since the epoch, of the years 0 to 9999; others count as the epoch.
    pub fn of_millis(ms_since_epoch: i64) -> Self {
        let at = OffsetDateTime::from_unix_timestamp(ms_since_epoch.div_euclid(1000));
        let at = at.ok().filter(|at| (0..=9999).contains(&at.year())).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let numbers = [
            at.year().unsigned_abs(),
            u32::from(u8::from(at.month())),
            u32::from(at.day()),
            u32::from(at.hour()),
            u32::from(at.minute()),
            u32::from(at.second()),
            ms_since_epoch.rem_euclid(1000) as u32,
        ];
        let mut text = Self::TEMPLATE;
        for ((start, digits), mut number) in Self::FIELDS.into_iter().zip(numbers) {
            for digit in text[start..start + digits].iter_mut().rev() {
                *digit = b'0' + (number % 10) as u8;
                number /= 10;
            }
        }
        Self(text)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        // Digits and separators are text.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Renders nanoseconds since the epoch.
pub fn format_nanos(ns_since_epoch: i64) -> String {
    Canonical::of_millis(ns_since_epoch.div_euclid(NANOS_PER_MS)).as_str().to_owned()
}

/// Reads exactly the form that [`Canonical`] writes: milliseconds since the epoch. `None` for every other text.
pub fn parse_canonical_millis(text: &str) -> Option<i64> {
    let text: &[u8; 24] = text.as_bytes().try_into().ok()?;
    let mut numbers = [0u32; 7];
    let mut digits = Canonical::FIELDS.into_iter().zip(&mut numbers);
    digits.try_for_each(|((start, digits), number)| {
        *number = text[start..start + digits]
            .iter()
            .try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + u32::from(digit - b'0')))?;
        Some(())
    })?;
    let between = [4, 7, 10, 13, 16, 19, 23];
    if between.into_iter().any(|at| text[at] != Canonical::TEMPLATE[at]) {
        return None;
    }
    let [year, month, day, hour, minute, second, millis] = numbers;
    let [month, day, hour, minute, second] = [month, day, hour, minute, second].map(|number| number as u8);
    let date = Date::from_calendar_date(year as i32, Month::try_from(month).ok()?, day).ok()?;
    let at = date.with_hms(hour, minute, second).ok()?.assume_utc();
    Some(at.unix_timestamp() * 1000 + i64::from(millis))
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

    #[test]
    fn only_the_canonical_form_counts_as_canonical() {
        for text in ["1970-01-01T00:00:00.000Z", "2024-02-29T23:59:59.999Z", "0000-01-01T00:00:00.000Z"] {
            let millis = parse_canonical_millis(text).unwrap();
            assert_eq!(Canonical::of_millis(millis).as_str(), text);
        }
        for text in [
            "2023-02-29T00:00:00.000Z",
            "2024-01-02T24:00:00.000Z",
            "2024-01-02T03:04:60.000Z",
            "2024-01-02 03:04:05.678Z",
            "2024-01-02T03:04:05.678z",
            "+024-01-02T03:04:05.678Z",
            "2024-01-02T03:04:05.67Z",
        ] {
            assert_eq!(parse_canonical_millis(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_reads_back_to_the_millisecond(nanos in proptest::num::i64::ANY) {
            let floor = nanos.div_euclid(NANOS_PER_MS).checked_mul(NANOS_PER_MS);
            if let Some(floor) = floor {
                proptest::prop_assert_eq!(parse_nanos(&format_nanos(nanos)), Some(floor));
                proptest::prop_assert_eq!(parse_canonical_millis(&format_nanos(nanos)), Some(floor / NANOS_PER_MS));
            }
        }
    }
}
