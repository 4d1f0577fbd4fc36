//! How one entry lies in memory: a few dozen bytes instead of a handful of strings.
//!
//! Depends on timestamps of the format. Invariants: what is decoded is what was encoded, text by text; two entries are equal
//! exactly if their encodings are, but for the order of fields that are not ours. What looks as every client writes it
//! (dates with three decimals, hashes in lower-case hex) takes its binary form, everything else stays text.

use serde_json::{Map, Value};

use super::entry::{Entry, EntryKind};
use crate::datastore::timestamp::{self, Canonical, NANOS_PER_MS};

const HAS_MTIME: u8 = 1;
const HAS_HASH: u8 = 2;
const HAS_MODE: u8 = 4;
const HAS_EXTRA: u8 = 8;
const TEXT_MODIFIED: u8 = 16;
const TEXT_MTIME: u8 = 32;
const TEXT_HASH: u8 = 64;

/// A point of time in an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment<'a> {
    /// In the form that every client writes; ms since the epoch.
    Millis(i64),
    /// Anything else.
    Text(&'a str),
}

impl<'a> Moment<'a> {
    pub fn of(text: &'a str) -> Self {
        timestamp::parse_canonical_millis(text).map_or(Self::Text(text), Self::Millis)
    }

    /// Lends the text.
    pub fn with_text<T>(self, use_it: impl FnOnce(&str) -> T) -> T {
        match self {
            Self::Millis(millis) => use_it(Canonical::of_millis(millis).as_str()),
            Self::Text(text) => use_it(text),
        }
    }

    fn nanos(self) -> Option<i64> {
        match self {
            Self::Millis(millis) => millis.checked_mul(NANOS_PER_MS),
            Self::Text(text) => timestamp::parse_nanos(text),
        }
    }
}

/// The hash of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hash<'a> {
    /// SHA-256, written in lower-case hex.
    Sha256([u8; 32]),
    /// Anything else.
    Text(&'a str),
}

impl<'a> Hash<'a> {
    pub fn of(text: &'a str) -> Self {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let mut hash = [0; 32];
        if pairs.len() != hash.len() || !rest.is_empty() {
            return Self::Text(text);
        }
        for (byte, [high, low]) in hash.iter_mut().zip(pairs) {
            match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => *byte = high << 4 | low,
                _ => return Self::Text(text),
            }
        }
        Self::Sha256(hash)
    }

    pub fn with_text<T>(self, use_it: impl FnOnce(&str) -> T) -> T {
        match self {
            Self::Sha256(hash) => {
                let mut text = [0; 64];
                for (pair, byte) in text.as_chunks_mut::<2>().0.iter_mut().zip(hash) {
                    *pair = [byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]);
                }
                // Hexadecimal digits are text.
                use_it(str::from_utf8(&text).unwrap_or_default())
            }
            Self::Text(text) => use_it(text),
        }
    }
}

/// The fields of an entry, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fields<'a> {
    pub size: u64,
    pub last_modified: Moment<'a>,
    pub local_mtime: Option<Moment<'a>>,
    pub sha256: Option<Hash<'a>>,
    pub mode: Option<&'a str>,
    /// [`Entry::extra`] as JSON.
    pub extra: Option<&'a str>,
}

impl<'a> Fields<'a> {
    /// The fields of `entry`, whose extra fields are `extra`.
    pub fn of(entry: &'a Entry, extra: Option<&'a str>) -> Self {
        Self {
            size: entry.size,
            last_modified: Moment::of(&entry.last_modified),
            local_mtime: entry.local_mtime.as_deref().map(Moment::of),
            sha256: entry.sha256.as_deref().map(Hash::of),
            mode: entry.mode.as_deref(),
            extra,
        }
    }

    pub fn extra(&self) -> Option<Map<String, Value>> {
        // It was written by serde_json.
        self.extra.and_then(|json| serde_json::from_str(json).ok())
    }

    pub fn kind(&self) -> EntryKind {
        EntryKind::of_mode(self.mode)
    }

    pub fn mtime_nanos(&self) -> Option<i64> {
        self.local_mtime.and_then(Moment::nanos).or_else(|| self.last_modified.nanos())
    }

    pub fn to_entry(self) -> Entry {
        Entry {
            size: self.size,
            last_modified: self.last_modified.with_text(str::to_owned),
            local_mtime: self.local_mtime.map(|at| at.with_text(str::to_owned)),
            sha256: self.sha256.map(|hash| hash.with_text(str::to_owned)),
            mode: self.mode.map(str::to_owned),
            extra: self.extra().map(Box::new),
        }
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut flags = 0;
        let at = out.len();
        out.push(flags);
        put_number(out, self.size);
        flags |= put_moment(out, self.last_modified, TEXT_MODIFIED);
        if let Some(moment) = self.local_mtime {
            flags |= HAS_MTIME | put_moment(out, moment, TEXT_MTIME);
        }
        match self.sha256 {
            Some(Hash::Sha256(hash)) => {
                flags |= HAS_HASH;
                out.extend_from_slice(&hash);
            }
            Some(Hash::Text(text)) => {
                flags |= HAS_HASH | TEXT_HASH;
                put_text(out, text);
            }
            None => {}
        }
        for (text, flag) in [(self.mode, HAS_MODE), (self.extra, HAS_EXTRA)] {
            if let Some(text) = text {
                flags |= flag;
                put_text(out, text);
            }
        }
        out[at] = flags;
    }

    pub fn decode(cursor: &mut Cursor<'a>) -> Self {
        let flags = cursor.byte();
        let has = |flag: u8| flags & flag != 0;
        Self {
            size: cursor.number(),
            last_modified: cursor.moment(has(TEXT_MODIFIED)),
            local_mtime: has(HAS_MTIME).then(|| cursor.moment(has(TEXT_MTIME))),
            sha256: has(HAS_HASH).then(|| match has(TEXT_HASH) {
                true => Hash::Text(cursor.text()),
                false => Hash::Sha256(cursor.array()),
            }),
            mode: has(HAS_MODE).then(|| cursor.text()),
            extra: has(HAS_EXTRA).then(|| cursor.text()),
        }
    }
}

/// Seven bits a byte, the lowest first.
pub(super) fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Returns `flag` if it is text.
fn put_moment(out: &mut Vec<u8>, moment: Moment<'_>, flag: u8) -> u8 {
    match moment {
        // The sign goes to the lowest bit, so that times around the epoch are short.
        Moment::Millis(millis) => put_number(out, (millis << 1 ^ millis >> 63) as u64),
        Moment::Text(text) => {
            put_text(out, text);
            return flag;
        }
    }
    0
}

/// Reads what the functions above wrote; beyond its end there are zeros.
pub(super) struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub fn number(&mut self) -> u64 {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte();
            number |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                break;
            }
        }
        number
    }

    pub fn text(&mut self) -> &'a str {
        let length = usize::try_from(self.number()).unwrap_or(usize::MAX).min(self.0.len());
        let (text, rest) = self.0.split_at(length);
        self.0 = rest;
        // It was text when it was written.
        str::from_utf8(text).unwrap_or_default()
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let Some((array, rest)) = self.0.split_first_chunk() else { return [0; N] };
        self.0 = rest;
        *array
    }

    fn moment(&mut self, is_text: bool) -> Moment<'a> {
        if is_text {
            return Moment::Text(self.text());
        }
        let folded = self.number();
        Moment::Millis((folded >> 1) as i64 ^ -((folded & 1) as i64))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts() -> impl Strategy<Value = String> {
        let hash = "[0-9a-fA-F]{64}";
        let date = "(19|20|99)[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]\\.[0-9]{3}Z";
        prop_oneof!["[a-z]{0,3}", hash, "[0-9a-f]{64}", date, Just("100755".to_owned())]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            size in any::<u64>(),
            text in texts(),
            optional in proptest::array::uniform3(proptest::option::of(texts())),
            extra in proptest::option::of("[a-z]{1,4}"),
        ) {
            let [local_mtime, sha256, mode] = optional;
            let extra = extra.map(|name| Box::new(Map::from_iter([(name, Value::Null)])));
            let entry = Entry { size, last_modified: text, local_mtime, sha256, mode, extra };
            let json = entry.extra.as_ref().map(|extra| serde_json::to_string(extra).unwrap());
            let fields = Fields::of(&entry, json.as_deref());
            let mut bytes = Vec::new();
            fields.encode(&mut bytes);
            bytes.push(0xFF);
            let mut cursor = Cursor(&bytes);
            let decoded = Fields::decode(&mut cursor);
            prop_assert_eq!(cursor.0, &[0xFF][..]);
            prop_assert_eq!(decoded, fields);
            prop_assert_eq!((decoded.kind(), decoded.mtime_nanos()), (entry.kind(), entry.mtime_nanos()));
            prop_assert_eq!(decoded.to_entry(), entry);
        }
    }

    #[test]
    fn an_entry_as_clients_write_it_is_small() {
        let entry = Entry {
            size: 4096,
            last_modified: "2026-04-28T08:05:37.123Z".into(),
            local_mtime: Some("2026-04-28T08:05:37.000Z".into()),
            sha256: Some("ab".repeat(32)),
            ..Entry::default()
        };
        let mut bytes = Vec::new();
        Fields::of(&entry, None).encode(&mut bytes);
        assert_eq!(bytes.len(), 1 + 2 + 6 + 6 + 32);
    }
}
