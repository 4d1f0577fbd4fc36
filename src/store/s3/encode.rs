//! Percent-encoding where the SDK leaves it to us: the source of a copy, and the keys of a listing.
//!
//! Pure functions.

/// Encodes a key for `x-amz-copy-source`: everything but unreserved characters and `/`.
pub(super) fn encode(key: &str) -> String {
    let mut encoded = String::with_capacity(key.len());
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Decodes a key of a listing with `encoding-type=url`, where some stores write a space as `+`. `None` for what is no
/// encoding of UTF-8.
pub(super) fn decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_survives_the_round_trip() {
        for key in ["a/b c", "100%", "a+b", "é/ü", "a//b", "..", "\u{1}\n", "%41", "~-._"] {
            assert_eq!(decode(&encode(key)).as_deref(), Some(key));
        }
        assert_eq!(encode("a b/+%é"), "a%20b/%2B%25%C3%A9");
        assert_eq!(decode("a+b%2Bc").as_deref(), Some("a b+c"));
        for broken in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(decode(broken), None, "{broken}");
        }
    }
}
