use super::*;
use crate::datastore::{Entry, RelPath};

macro_rules! golden {
    ($name:literal) => {
        &include_bytes!(concat!("../../../tests/golden/", $name))[..]
    };
}

fn cache() -> (tempfile::TempDir, CacheDir) {
    let directory = tempfile::tempdir().unwrap();
    let cache = CacheDir::open(directory.path()).unwrap();
    (directory, cache)
}

fn proof() -> VerifiedComplete {
    let (_guard, cache) = cache();
    verify_complete(&cache, &Index::empty()).unwrap().unwrap()
}

const AT: &str = "2050-01-02T03:04:11.006Z";

#[test]
fn the_golden_sidecars_are_reproduced_byte_for_byte() {
    let at = timestamp::parse_nanos(AT).unwrap();
    let table = [
        (
            Flavour::S3,
            "f8697f65978980ccb0b4a11f6a8bac7e",
            golden!("s3-sidecar-clean.json"),
            golden!("s3-sidecar-dirty.json"),
            golden!("s3-sidecar-fresh-dirty.json"),
        ),
        (
            Flavour::Gcs,
            "1700000000000014",
            golden!("gcs-sidecar-clean.json"),
            golden!("gcs-sidecar-dirty.json"),
            golden!("gcs-sidecar-fresh-dirty.json"),
        ),
    ];
    for (flavour, fingerprint, clean_golden, dirty_golden, fresh_golden) in table {
        let fingerprint = Fingerprint::from_record(fingerprint).unwrap();
        let clean = Sidecar::clean(None, &proof(), &Vouched::Monolith(fingerprint.clone()), at, at - 1);
        assert_eq!(clean.to_bytes(flavour), clean_golden);
        assert_eq!(clean.mark_dirty().to_bytes(flavour), dirty_golden);
        assert_eq!(Sidecar::dirty(None).to_bytes(flavour), fresh_golden);
        for golden in [clean_golden, dirty_golden, fresh_golden] {
            let SidecarRead::Present(read) = Sidecar::parse(golden, flavour) else { panic!() };
            assert_eq!(read.to_bytes(flavour), golden);
        }
    }
}

#[test]
fn what_is_not_understood_is_ignored() {
    let table = [
        "",
        "{",
        "[]",
        "null",
        "{}",
        r#"{"version":3,"remoteIndexETag":"e","lastVerifiedAt":"","localDirty":false}"#,
        r#"{"version":1,"lastVerifiedAt":"","localDirty":false}"#,
        r#"{"version":1,"remoteIndexETag":"e","localDirty":false}"#,
        r#"{"version":1,"remoteIndexETag":"e","lastVerifiedAt":""}"#,
        r#"{"version":1,"remoteIndexETag":5,"lastVerifiedAt":"","localDirty":false}"#,
        r#"{"version":1,"remoteIndexETag":"e","lastVerifiedAt":"","localDirty":"no"}"#,
        r#"{"version":1,"remoteIndexGeneration":"5","lastVerifiedAt":"","localDirty":false}"#,
        r#"{"version":2,"remoteIndexETag":"e","lastVerifiedAt":"","localDirty":false}"#,
        r#"{"version":2,"remoteIndexETag":"e","lastVerifiedAt":"","localDirty":false,"dirtyPaths":[1],"bulkInvalidated":false,"lazyPullActive":false,"dirtyPathsOverflowed":false}"#,
    ];
    for text in table {
        assert!(matches!(Sidecar::parse(text.as_bytes(), Flavour::S3), SidecarRead::Ignored(_)), "{text}");
    }
}

const V2: &str = r#"{"version":2,"remoteIndexETag":"abc","lastVerifiedAt":"2050-01-02T03:04:11.006Z","localDirty":false,"dirtyPaths":["a"],"bulkInvalidated":true,"lazyPullActive":false,"dirtyPathsOverflowed":true,"commitSeq":7,"lastCatalogHash":"h","future":{"x":1}}"#;

#[test]
fn unknown_fields_of_version_2_survive_and_a_commit_number_does_not() {
    let SidecarRead::Present(read) = Sidecar::parse(V2.as_bytes(), Flavour::S3) else { panic!() };
    let vouched = Vouched::Monolith(Fingerprint::from_record("def").unwrap());
    for next in [Sidecar::clean(Some(&read), &proof(), &vouched, 5, 1), Sidecar::lazy(Some(&read))] {
        let value: Value = serde_json::from_slice(&next.to_bytes(Flavour::S3)).unwrap();
        assert_eq!(
            (&value["version"], &value["lastCatalogHash"], &value["future"]["x"]),
            (&Value::from(2), &Value::from("h"), &Value::from(1))
        );
        assert!(value.get("commitSeq").is_none());
    }
    assert_eq!(Sidecar::lazy(Some(&read)).marks.unwrap().dirty_paths, ["a"]);
    assert!(Sidecar::clean(Some(&read), &proof(), &vouched, 5, 1).marks.unwrap().dirty_paths.is_empty());
}

#[test]
fn a_lazy_sidecar_claims_nothing() {
    let lazy = Sidecar::lazy(None);
    let value: Value = serde_json::from_slice(&lazy.to_bytes(Flavour::S3)).unwrap();
    assert_eq!(value["version"], 2);
    assert_eq!(
        (&value["lazyPullActive"], &value["localDirty"], &value["remoteIndexETag"]),
        (&Value::from(true), &Value::from(true), &Value::from(""))
    );
    assert_eq!(lazy.trusted(Some(0)), None);
}

#[test]
fn only_a_sidecar_beyond_doubt_is_trusted() {
    let at = timestamp::parse_nanos(AT).unwrap();
    let fingerprint = Fingerprint::from_record("abc").unwrap();
    let clean = Sidecar::clean(None, &proof(), &Vouched::Monolith(fingerprint.clone()), at, at - 1);
    assert_eq!(clean.trusted(Some(at - 1)), Some(Vouched::Monolith(fingerprint)));
    assert_eq!(clean.trusted(Some(at)), None, "a tie is unverified");
    assert_eq!(clean.trusted(None), None, "without a copy of the index");
    assert_eq!(clean.mark_dirty().trusted(Some(at - 1)), None);
    for text in ["", "0", "abc-2"] {
        let doubtful = Sidecar { fingerprint: text.into(), ..clean.clone() };
        assert_eq!(doubtful.trusted(Some(at - 1)), None, "{text}");
    }
    let SidecarRead::Present(marked) = Sidecar::parse(V2.as_bytes(), Flavour::S3) else { panic!() };
    assert_eq!(marked.trusted(Some(at - 1)), None);
}

#[test]
fn a_multipart_fingerprint_is_never_recorded() {
    for (text, recorded) in [("abc", true), ("abc-2", false)] {
        let index = Index::empty().with_fingerprint(Fingerprint::from_record(text).unwrap());
        assert_eq!(Vouched::of(&index, true).is_some(), recorded, "{text}");
    }
}

/// Under shards the fingerprint is `commitSeq`, which only a push sets; it proves nothing to us, the digest does.
#[test]
fn a_sidecar_for_shards_has_no_fingerprint_of_a_monolith() {
    let at = timestamp::parse_nanos(AT).unwrap();
    for (commit_seq, field) in [(Some(7), r#""commitSeq": 7,"#), (None, "")] {
        let vouched = Vouched::Shards { digest: "d".into(), commit_seq };
        let clean = Sidecar::clean(None, &proof(), &vouched, at, at - 1);
        let text = String::from_utf8(clean.to_bytes(Flavour::S3)).unwrap();
        let golden = format!(
            r#"{{"version": 2,"remoteIndexETag": "","lastVerifiedAt": "{AT}","localDirty": false,"dirtyPaths": [],"bulkInvalidated": false,"lazyPullActive": false,"dirtyPathsOverflowed": false,{field}"shardsDigest": "d"}}"#
        );
        let flat: String = text.lines().map(str::trim).collect();
        assert_eq!(flat, golden);
        let SidecarRead::Present(read) = Sidecar::parse(text.as_bytes(), Flavour::S3) else { panic!() };
        assert_eq!(read.trusted(Some(at - 1)), Some(Vouched::Shards { digest: "d".into(), commit_seq: None }));
        assert_eq!(Sidecar::lazy(Some(&read)).trusted(Some(at - 1)), None);
        assert!(Sidecar::lazy(Some(&read)).knows_shards(), "a lost list must not make a stale monolith count");
        let other = Vouched::Monolith(Fingerprint::from_record("e").unwrap());
        let turned_back = Sidecar::clean(Some(&read), &proof(), &other, at, at - 1);
        assert!(!turned_back.knows_shards() && turned_back.marks.unwrap().extra.is_empty());
    }
}

#[test]
fn the_verification_is_strictly_later_than_the_copy_of_the_index() {
    for (now, copy) in
        [(5_000_000, 4_999_999), (5_000_000, 5_000_000), (5_999_999, 5_000_001), (1, 77_000_001), (-5, -5)]
    {
        let at = timestamp::parse_nanos(&verified_after(now, copy)).unwrap();
        assert!(at > copy, "{now} {copy} {at}");
    }
}

#[test]
fn completeness_means_every_entry_with_its_size() {
    let (_guard, cache) = cache();
    let mut index = Index::empty();
    for name in ["a", "d/b"] {
        index.set(&RelPath::parse(name).unwrap(), &Entry { size: 1, ..Entry::default() });
    }
    std::fs::write(cache.path().join("a"), "1").unwrap();
    assert_eq!(verify_complete(&cache, &index).unwrap().unwrap_err().examples, ["d/b"]);
    std::fs::create_dir(cache.path().join("d")).unwrap();
    std::fs::write(cache.path().join("d/b"), "22").unwrap();
    assert_eq!(verify_complete(&cache, &index).unwrap().unwrap_err().count, 1);
    std::fs::write(cache.path().join("d/b"), "2").unwrap();
    assert!(verify_complete(&cache, &index).unwrap().is_ok());
    let odd = Index::parse(br#"{"version":1,"entries":{"../x":{"size":1}}}"#).unwrap();
    assert!(verify_complete(&cache, &odd).unwrap().is_err(), "what no tree can show is in no cache");
}
