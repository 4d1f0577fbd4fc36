//! Listing: a walk of the tree in the bytewise order of keys, with the odd objects merged in.
//!
//! Depends on `root`, `names` and `meta`. Blocking. Invariant: a page is found by where the last one ended, not by a
//! position, so that objects which come or go between two pages neither hide nor repeat others.

use std::io;
use std::iter::Peekable;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::names;
use super::root::Root;
use super::{DEFAULT_PAGE, meta};
use crate::store::{ListPage, ListRequest, Listed};

/// What the walk goes through and where it is.
struct Walk {
    /// Full prefix of the keys to list.
    prefix: String,
    delimiter: Option<char>,
    /// Only keys after this one.
    after: Option<String>,
    /// The common prefix that was last put on a page; keys below it are covered.
    group: Option<String>,
    limit: usize,
    odd: Peekable<std::vec::IntoIter<(String, Stat)>>,
    /// How many bytes of a full key the store's own prefix takes.
    strip: usize,
    page: ListPage,
    /// The last key or group on the page, as a continuation.
    last: Option<String>,
}

/// Lists one page below `store_prefix`.
pub(super) fn page(root: &Root, store_prefix: &str, request: &ListRequest) -> io::Result<ListPage> {
    let prefix = format!("{store_prefix}{}", request.prefix);
    let (after, group) = match request.continuation.as_deref().and_then(|token| token.split_at_checked(1)) {
        Some(("k", key)) => (Some(key.to_owned()), None),
        Some(("p", group)) => (Some(group.to_owned()), Some(group.to_owned())),
        Some(_) => return Err(io::Error::new(io::ErrorKind::InvalidInput, "the continuation is not one of ours")),
        None => (None, None),
    };
    let mut walk = Walk {
        delimiter: request.delimiter,
        after,
        group,
        limit: request.max_keys.map_or(DEFAULT_PAGE, |keys| usize::try_from(keys).unwrap_or(DEFAULT_PAGE)).max(1),
        odd: odd_objects(root)?.into_iter().peekable(),
        strip: store_prefix.len(),
        page: ListPage::default(),
        last: None,
        prefix,
    };
    // Where every plain key with the prefix lies.
    let start = walk.prefix.rfind('/').map_or(String::new(), |end| walk.prefix[..=end].to_owned());
    let dir = match names::plain(start.trim_end_matches('/')) {
        None if !start.is_empty() => None,
        _ if start.ends_with("//") => None,
        _ => root.open_dir(start.trim_end_matches('/'))?,
    };
    let mut flow = ControlFlow::Continue(());
    if let Some(dir) = dir {
        flow = walk.directory(&dir, &start)?;
    }
    while flow.is_continue() {
        let Some((key, stat)) = walk.odd.next() else { break };
        flow = walk.emit(key, &stat);
    }
    if flow.is_break() {
        walk.page.continuation = walk.last;
    }
    Ok(walk.page)
}

impl Walk {
    /// Walks a directory; `base` is the beginning of the keys in it, empty or ending in `/`.
    fn directory(&mut self, dir: &OwnedFd, base: &str) -> io::Result<ControlFlow<()>> {
        for (name, is_dir) in entries(dir, base)? {
            let key = format!("{base}{name}");
            if is_dir {
                if !self.enters(&key) {
                    continue;
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let child = match rustix::fs::openat(dir, name.trim_end_matches('/'), flags, Mode::empty()) {
                    Ok(child) => child,
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                    Err(error) => return Err(error.into()),
                };
                if self.directory(&child, &key)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            } else {
                if !self.wants(&key) {
                    continue;
                }
                let stat = match rustix::fs::statat(dir, name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => stat,
                    Ok(_) | Err(Errno::NOENT) => continue,
                    Err(error) => return Err(error.into()),
                };
                while let Some((odd, stat)) = self.odd.next_if(|(odd, _)| *odd < key) {
                    if self.emit(odd, &stat).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                // A left-over of a process that died between the two: the plain object is the newer.
                self.odd.next_if(|(odd, _)| *odd == key);
                if self.emit(key, &stat).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Whether a directory can hold keys for this page.
    fn enters(&self, base: &str) -> bool {
        let in_prefix = base.starts_with(&self.prefix) || self.prefix.starts_with(base);
        let ahead = self.after.as_deref().is_none_or(|after| base > after || after.starts_with(base));
        let grouped = self.group.as_deref().is_some_and(|group| base.starts_with(group));
        in_prefix && ahead && !grouped
    }

    /// Whether a key belongs on this page or a later one.
    fn wants(&self, key: &str) -> bool {
        key.starts_with(&self.prefix)
            && self.after.as_deref().is_none_or(|after| key > after)
            && !self.group.as_deref().is_some_and(|group| key.starts_with(group))
    }

    /// Puts a key, or the group that it belongs to, on the page; breaks when the page is full and there is more.
    fn emit(&mut self, key: String, stat: &Stat) -> ControlFlow<()> {
        if !self.wants(&key) {
            return ControlFlow::Continue(());
        }
        if self.page.objects.len() + self.page.prefixes.len() >= self.limit {
            return ControlFlow::Break(());
        }
        let below = &key[self.prefix.len()..];
        let group = self.delimiter.and_then(|delimiter| below.find(delimiter).map(|at| at + delimiter.len_utf8()));
        if let Some(end) = group {
            let group = key[..self.prefix.len() + end].to_owned();
            self.page.prefixes.push(group[self.strip..].to_owned());
            self.last = Some(format!("p{group}"));
            self.group = Some(group);
        } else {
            self.page.objects.push(Listed {
                key: key[self.strip..].to_owned(),
                size: meta::size(stat),
                fingerprint: meta::fingerprint(stat),
                last_modified: meta::last_modified(stat),
            });
            self.last = Some(format!("k{key}"));
        }
        ControlFlow::Continue(())
    }
}

/// Names in a directory in the order of the keys that begin with them; directories end in `/`.
fn entries(dir: &OwnedFd, base: &str) -> io::Result<Vec<(String, bool)>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else {
            tracing::warn!(directory = base, name = ?entry.file_name(), "a file whose name is not UTF-8 is left out");
            continue;
        };
        if matches!(name, "." | "..") || (base.is_empty() && name == names::PRIVATE) {
            continue;
        }
        let mut kind = entry.file_type();
        if kind == FileType::Unknown {
            kind = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
        }
        match kind {
            FileType::Directory => names.push((format!("{name}/"), true)),
            FileType::RegularFile => names.push((name.to_owned(), false)),
            _ => {}
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// All odd objects in the order of their keys.
fn odd_objects(root: &Root) -> io::Result<Vec<(String, Stat)>> {
    let Some(dir) = root.open_dir(names::ODD)? else { return Ok(Vec::new()) };
    let mut objects = Vec::new();
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let Some(content) = entry.file_name().to_str().ok().and_then(|name| name.strip_suffix(".key")) else {
            continue;
        };
        let stat = match rustix::fs::statat(&dir, content, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        let path = names::odd_key(&format!("{}/{content}", names::ODD));
        let Some(key) = root.read_small(&path)? else { continue };
        match String::from_utf8(key) {
            Ok(key) => objects.push((key, stat)),
            Err(error) => tracing::warn!(%error, path, "the key of an odd object cannot be read"),
        }
    }
    objects.sort_unstable_by(|left, right| left.0.cmp(&right.0));
    Ok(objects)
}
