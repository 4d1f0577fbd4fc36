//! The rules for bucket names, so that a typo is told before any request is made.
//!
//! Depends on nothing.

use super::ConfigError;

/// Checks the name of an S3 bucket: 3–63 of `[a-z0-9.-]`, beginning and ending with a letter or digit, no two dots in a
/// row, and not an IP address.
pub fn check_s3_bucket(name: &str) -> Result<(), ConfigError> {
    let refuse = |reason| Err(ConfigError::Bucket { name: name.to_owned(), store: "an S3", reason });
    if name.len() < 3 {
        return refuse("it has fewer than 3 characters");
    }
    if name.len() > 63 {
        return refuse("it has more than 63 characters");
    }
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        return refuse("it has upper-case letters; only a-z, 0-9, '.' and '-' are allowed");
    }
    if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-') {
        return refuse("only a-z, 0-9, '.' and '-' are allowed");
    }
    let alphanumeric_ends = [name.bytes().next(), name.bytes().last()]
        .into_iter()
        .all(|end| end.is_some_and(|b| b.is_ascii_alphanumeric()));
    if !alphanumeric_ends {
        return refuse("it must begin and end with a letter or a digit");
    }
    if name.contains("..") {
        return refuse("it has two dots in a row");
    }
    if name.parse::<std::net::Ipv4Addr>().is_ok() {
        return refuse("it looks like an IP address");
    }
    Ok(())
}

/// Checks the name of a bucket of Google Cloud Storage: `[a-z0-9._-]`, beginning and ending with a letter or digit, 3–63
/// characters (with dots up to 222, and 63 between them), no `goog` in front, no `google` anywhere, not an IP address.
pub fn check_gcs_bucket(name: &str) -> Result<(), ConfigError> {
    let refuse = |reason| Err(ConfigError::Bucket { name: name.to_owned(), store: "a Google Cloud Storage", reason });
    if name.len() < 3 {
        return refuse("it has fewer than 3 characters");
    }
    if name.len() > 222 || name.split('.').any(|part| part.len() > 63) {
        return refuse("it has more than 63 characters (222 with dots, and 63 between two of them)");
    }
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        return refuse("it has upper-case letters; only a-z, 0-9, '.', '-' and '_' are allowed");
    }
    if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b)) {
        return refuse("only a-z, 0-9, '.', '-' and '_' are allowed");
    }
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.ends_with(|c: char| c.is_ascii_alphanumeric()) {
        return refuse("it must begin and end with a letter or a digit");
    }
    if name.contains("..") {
        return refuse("it has two dots in a row");
    }
    if name.starts_with("goog") {
        return refuse("names that begin with \"goog\" are reserved");
    }
    if name.contains("google") || name.contains("g00gle") {
        return refuse("names that hold \"google\" are reserved");
    }
    if name.parse::<std::net::Ipv4Addr>().is_ok() {
        return refuse("it looks like an IP address");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_google_accepts_and_gives_the_rule_otherwise() {
        let dotted = format!("{0}.{0}.{0}", "a".repeat(63));
        for name in ["abc", "my_bucket", "my-bucket.example.org", "0numbers9", "a_b", dotted.as_str()] {
            assert_eq!(check_gcs_bucket(name), Ok(()), "{name}");
        }
        let (long, longer) = ("a".repeat(64), format!("{0}.{0}.{0}.{0}", "a".repeat(60)));
        for (name, rule) in [
            ("ab", "fewer than 3"),
            (long.as_str(), "more than 63"),
            (longer.as_str(), "222"),
            ("My-Bucket", "upper-case"),
            ("my bucket", "only a-z"),
            ("_bucket", "begin and end"),
            ("bucket-", "begin and end"),
            ("a..b", "two dots"),
            ("goog-data", "reserved"),
            ("my-google-data", "reserved"),
            ("my-g00gle-data", "reserved"),
            ("192.168.0.1", "IP address"),
        ] {
            let error = check_gcs_bucket(name).expect_err(name).to_string();
            assert!(error.contains(rule) && error.contains("Google Cloud Storage"), "{name}: {error}");
        }
    }

    #[test]
    fn accepts_what_s3_accepts_and_gives_the_rule_otherwise() {
        let long = "a".repeat(63);
        for name in ["abc", "my-bucket", "my.bucket.2026", "0numbers9", long.as_str(), "status", "1.2.3.4.5", "a--b"] {
            assert_eq!(check_s3_bucket(name), Ok(()), "{name}");
        }
        let too_long = "a".repeat(64);
        for (name, rule) in [
            ("", "fewer than 3"),
            ("ab", "fewer than 3"),
            (too_long.as_str(), "more than 63"),
            ("My-Bucket", "upper-case"),
            ("my_bucket", "only a-z"),
            ("my bucket", "only a-z"),
            ("bücket", "only a-z"),
            ("-bucket", "begin and end"),
            ("bucket-", "begin and end"),
            (".bucket", "begin and end"),
            ("bucket.", "begin and end"),
            ("my..bucket", "two dots"),
            ("192.168.0.1", "IP address"),
        ] {
            let error = check_s3_bucket(name).expect_err(name).to_string();
            assert!(error.contains(rule), "{name}: {error}");
        }
    }
}
