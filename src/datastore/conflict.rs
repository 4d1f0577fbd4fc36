//! Names for our version when another writer's keeps the name.
//!
//! Pure. Invariant: the name is free, valid, in the same directory, synced like any file, and keeps the extension, so that
//! programs still recognise the content.

use super::path::MAX_COMPONENT;
use super::{RelPath, is_internal, timestamp};

/// `name.conflict-<host>-<utc time>.ext`, with a number when that is taken.
pub fn conflict_name(path: &RelPath, host: &str, now_nanos: i64, is_taken: impl Fn(&RelPath) -> bool) -> RelPath {
    let stamp: String =
        timestamp::format_nanos(now_nanos).chars().take(19).filter(|c| *c != '-' && *c != ':').collect();
    let host: String = host
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' })
        .take(40)
        .collect();
    let (stem, extension) = match path.name().rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() && extension.len() <= 32 => (stem, format!(".{extension}")),
        _ => (path.name(), String::new()),
    };
    for number in 1_u64.. {
        let number = if number == 1 { String::new() } else { format!("-{number}") };
        let mark = format!(".conflict-{host}-{stamp}Z{number}{extension}");
        let mut end = stem.len().min(MAX_COMPONENT.saturating_sub(mark.len()));
        while !stem.is_char_boundary(end) {
            end -= 1;
        }
        let name = format!("{}{mark}", &stem[..end]);
        let full = path.parent().map_or_else(|| name.clone(), |parent| format!("{parent}/{name}"));
        match RelPath::parse(&full) {
            Ok(candidate) if !is_internal(&full) && !is_taken(&candidate) => return candidate,
            _ => {}
        }
    }
    // The numbers do not end before the names do.
    path.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text).unwrap()
    }

    #[test]
    fn a_conflict_keeps_directory_and_extension() {
        let at = timestamp::parse_nanos("2026-11-21T02:36:46.999Z").unwrap();
        let table = [
            ("a/notes.md", "box", "a/notes.conflict-box-20261121T023646Z.md"),
            ("Makefile", "a.b/c d", "Makefile.conflict-a-b-c-d-20261121T023646Z"),
            (".bashrc", "h", ".bashrc.conflict-h-20261121T023646Z"),
            ("x.tar.gz", "h", "x.tar.conflict-h-20261121T023646Z.gz"),
        ];
        for (name, host, expected) in table {
            assert_eq!(conflict_name(&path(name), host, at, |_| false).as_str(), expected);
        }
        let second = conflict_name(&path("a.md"), "h", at, |p| !p.as_str().contains("Z-2"));
        assert_eq!(second.as_str(), "a.conflict-h-20261121T023646Z-2.md");
    }

    #[test]
    fn long_names_still_fit() {
        for stem in ["x".repeat(250), "é".repeat(125)] {
            let name = conflict_name(&path(&format!("{stem}.yaml")), &"h".repeat(99), 0, |_| false);
            assert!(name.name().len() <= 255 && name.name().ends_with(".yaml"));
        }
    }
}
