//! The name under which our version of a conflict goes on: `name.conflict-<host>-<utc time>.ext`.
//!
//! Depends on paths and timestamps only. Invariant: the name is a valid path, at most 255 bytes long, and free.

use super::{RelPath, format_nanos};

const NAME_MAX: usize = 255;

/// A free name beside `path` for our version of it.
///
/// `host` is this machine's name, `at` the time in ns since the epoch, `taken` says whether a path exists.
pub fn conflict_name(path: &RelPath, host: &str, at: i64, taken: &dyn Fn(&str) -> bool) -> RelPath {
    let host: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).take(63).collect();
    let time: String = format_nanos(at).chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    let (stem, extension) = match path.name().rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() && extension.len() <= 16 => (stem, format!(".{extension}")),
        _ => (path.name(), String::new()),
    };
    let mut number = 1u32;
    loop {
        let again = if number == 1 { String::new() } else { format!("-{number}") };
        let mark = format!(".conflict-{host}-{time}{again}{extension}");
        let mut keep = stem.len().min(NAME_MAX.saturating_sub(mark.len()));
        while !stem.is_char_boundary(keep) {
            keep -= 1;
        }
        let name = format!("{}{mark}", &stem[..keep]);
        let candidate = match path.parent() {
            Some(parent) if !parent.is_empty() => format!("{parent}/{name}"),
            _ => name,
        };
        if let Ok(found) = RelPath::parse(&candidate)
            && !taken(&candidate)
        {
            return found;
        }
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_whose_version_it_is_and_are_free() {
        let at = super::super::parse_nanos("2026-11-21T03:04:05.006Z").unwrap();
        let table = [
            ("a/report.yaml", "a/report.conflict-box-20261121T030405006Z.yaml"),
            ("noext", "noext.conflict-box-20261121T030405006Z"),
            (".hidden", ".hidden.conflict-box-20261121T030405006Z"),
        ];
        for (path, expected) in table {
            let path = RelPath::parse(path).unwrap();
            assert_eq!(conflict_name(&path, "box", at, &|_| false).as_str(), expected);
            let second = conflict_name(&path, "box", at, &|name| name == expected);
            assert_ne!(second.as_str(), expected);
        }
        let long = RelPath::parse(&format!("d/{}é.yaml", "x".repeat(248))).unwrap();
        assert!(conflict_name(&long, "box", at, &|_| false).name().len() <= 255);
    }
}
