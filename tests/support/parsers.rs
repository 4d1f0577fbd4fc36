//! Every parser of bytes from outside, with what must hold whatever the bytes are: tests/hostile_bytes.rs feeds them damaged
//! documents, the targets in fuzz/ whatever libFuzzer finds.
//!
//! Depends on the crate only, so that fuzz/ can take this file as it is.

use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use swamp_mount::cache::RangeSet;
use swamp_mount::cache::rows::{Attrs, CommittedRow, ContentRow, DeltaRow, PendingDelete};
use swamp_mount::cache::saved_base::BaseRecord;
use swamp_mount::config::{Environment, RepoConfig, Source};
use swamp_mount::datastore::index::{Document, Meta, MetaRead, Part, PartStamp};
use swamp_mount::datastore::sidecar::{Flavour, Sidecar, SidecarRead};
use swamp_mount::datastore::{Index, LockBody, RelPath, classify, parse_nanos, partition};
use swamp_mount::mount::control::{Request, Response};

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// A path that is safe to be joined to a directory.
fn assert_beneath(path: &str) {
    assert!(!path.is_empty() && Path::new(path).components().all(|c| matches!(c, Component::Normal(_))), "{path:?}");
}

/// The index of version 1, which is also the form of a shard.
pub fn index(bytes: &[u8]) {
    let Ok(document) = Document::parse(bytes) else { return };
    let written = document.to_bytes();
    let again = Document::parse(&written).expect("what we write we can read");
    assert_eq!(again.to_bytes(), written);
    assert_eq!(again.len(), document.len());
    check_view(Index::monolith(document, PartStamp::default()));
}

/// A list of shards and shards, separated by NUL: every second one is not listed.
pub fn shards(bytes: &[u8]) {
    let mut pieces = bytes.split(|byte| *byte == 0);
    let Ok(MetaRead::Shards(meta)) = Meta::parse(pieces.next().unwrap_or_default(), None) else { return };
    let mut parts = BTreeMap::new();
    for (at, piece) in pieces.enumerate() {
        let Ok(document) = Document::parse(piece) else { continue };
        let name = meta.partitions.iter().nth(at).map_or_else(|| format!("part-{at}"), ToString::to_string);
        parts.insert(Arc::from(name.as_str()), Part::new(&name, Arc::new(document), PartStamp::default(), at % 2 == 0));
    }
    check_view(Index::sharded(meta, parts));
}

/// What is shown is safe, found again by its name, and goes when it is removed.
fn check_view(index: Index) {
    let _ = (index.problems(), index.is_fully_representable(), index.marked_directories().count());
    let paths: Vec<RelPath> = index.entries().map(|entry| entry.path()).take(50).collect();
    let mut changed = index.clone();
    for path in &paths {
        assert_beneath(path.as_str());
        let entry = index.get(path.as_str()).expect("what is listed is found");
        assert!(index.names(path.as_str()));
        changed.set(path, &entry);
        assert_eq!(changed.get(path.as_str()), Some(entry));
        changed.remove(path.as_str());
        assert_eq!(changed.get(path.as_str()), None);
    }
    assert!(index.changed_since(&index).is_empty());
    assert!(index.changed_since(&changed).len() >= paths.len());
}

/// `_index/_meta.json`.
pub fn meta(bytes: &[u8]) {
    if let Ok(MetaRead::Shards(meta)) = Meta::parse(bytes, None) {
        assert_eq!(Meta::parse(&meta.to_bytes(), None), Ok(MetaRead::Shards(meta)));
    }
}

/// The sidecar of a cache directory.
pub fn sidecar(bytes: &[u8]) {
    for flavour in [Flavour::S3, Flavour::Gcs] {
        if let SidecarRead::Present(sidecar) = Sidecar::parse(bytes, flavour) {
            assert!(Sidecar::parse(&sidecar.to_bytes(flavour), flavour).sidecar().is_some());
            let _ = sidecar.trusted(Some(0));
        }
    }
}

/// The body of a lock.
pub fn lock(bytes: &[u8]) {
    let _ = LockBody::parse(bytes);
}

/// Both directions of the control socket.
pub fn control(bytes: &[u8]) {
    same_again::<Request>(bytes);
    same_again::<Response>(bytes);
}

/// The columns of state.db.
pub fn rows(bytes: &[u8]) {
    same_again::<DeltaRow>(bytes);
    same_again::<PendingDelete>(bytes);
    same_again::<CommittedRow>(bytes);
    same_again::<Attrs>(bytes);
    same_again::<BaseRecord>(bytes);
    same_again::<ContentRow>(bytes);
    if let Ok(ContentRow { present: Some(mut present), .. }) = serde_json::from_slice(bytes) {
        check_ranges(&mut present);
    }
}

fn check_ranges(present: &mut RangeSet) {
    let whole = 0..u64::MAX;
    let missing: u64 = present.gaps(&whole).iter().map(|gap| gap.end - gap.start).sum();
    assert_eq!(present.total().checked_add(missing), Some(u64::MAX), "{present:?}");
    present.insert(10..20);
    assert!(present.contains(&(10..20)) && present.gaps(&(10..20)).is_empty());
    present.insert(whole.clone());
    assert!(present.contains(&whole));
}

fn same_again<T: DeserializeOwned + Serialize>(bytes: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(bytes) {
        let written = serde_json::to_vec(&value).expect("what was read can be written");
        let again: T = serde_json::from_slice(&written).expect("what we write we can read");
        assert_eq!(serde_json::to_vec(&again).expect("written"), written);
    }
}

/// Names of the index, and what is derived from them.
pub fn paths(bytes: &[u8]) {
    let text = text(bytes);
    let _ = (classify(&text), partition::ours(&text), partition::candidates(&text), parse_nanos(&text));
    if let Ok(path) = RelPath::parse(&text) {
        assert_beneath(path.as_str());
    }
}

/// SOURCE on the command line.
pub fn sources(bytes: &[u8]) {
    let _ = Source::parse(&text(bytes), None);
    let _ = Source::parse("bucket", Some(&text(bytes)));
}

/// `.swamp.yaml`, and `SWAMP_DATASTORE`.
pub fn repo(bytes: &[u8]) {
    let text = text(bytes);
    let dir = Path::new("/no/such/repository");
    let environment = Environment::of(1000, [("HOME", "/no/such/home"), ("NAME", "value")]);
    let check = |parsed: RepoConfig| {
        let usual = parsed.usual_cache_dir(&environment);
        assert!(usual.is_none_or(|dir| dir.parent() == Some(Path::new("/no/such/home/.swamp/repos"))));
    };
    let _ = RepoConfig::parse(dir, &text, &environment).map(check);
    let environment = Environment::of(1000, [("SWAMP_DATASTORE", &*text)]);
    let _ = RepoConfig::parse(dir, "", &environment);
}
