//! Sizes as users write them: `500M`, `10GiB`, `1.5T`.
//!
//! Pure. `K`, `M`, `G`, `T` are powers of 1024, with or without `iB`; `KB`, `MB`, … are powers of 1000.

/// Smallest cache, in bytes: below it every other file would be streamed.
const LEAST: u64 = 1 << 20;

/// Bytes in a size for the cache.
///
/// # Errors
/// What is expected instead.
pub fn parse_cache_size(text: &str) -> Result<u64, String> {
    let wrong = || "it is not a size, such as 500M or 10GiB".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let unit = unit.trim_start().to_ascii_uppercase();
    let (letter, base) = match (unit.strip_suffix("IB"), unit.strip_suffix('B')) {
        (Some(letter), _) if !letter.is_empty() => (letter, 1024.0),
        (_, Some(letter)) => (letter, 1000.0),
        _ => (unit.as_str(), 1024.0),
    };
    let power = ["", "K", "M", "G", "T", "P"].iter().position(|known| *known == letter).ok_or_else(wrong)?;
    let bytes = number * f64::powi(base, i32::try_from(power).map_err(|_| wrong())?);
    if !bytes.is_finite() || bytes > 9e18 {
        return Err(wrong());
    }
    let bytes = bytes as u64;
    if bytes < LEAST { Err("it must be at least 1M".to_owned()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_users_write_them() {
        for (text, bytes) in [
            ("1048576", 1 << 20),
            ("2000000B", 2_000_000),
            ("500M", 500 << 20),
            ("500m", 500 << 20),
            ("500MiB", 500 << 20),
            ("500MB", 500_000_000),
            ("10 GiB", 10 << 30),
            ("1.5G", 3 << 29),
            ("2T", 2 << 40),
        ] {
            assert_eq!(parse_cache_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "0", "1", "1023K", "-1G", "1X", "1GG", "1.2.3G", "iB", "99999999P", "1e9", "NaN"] {
            assert!(parse_cache_size(text).is_err(), "{text}");
        }
    }
}
