//! What the S3 store promises when requests, answers and bodies go wrong, and how it splits what is large.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use support::s3_server::{ACCESS_KEY, Action, BUCKET, Fault, REGION, S3Server, SECRET_KEY};
use support::stores::{collect, put, quick_policy, read, request, s3};
use swamp_mount::store::{
    Body, Condition, CopySource, Fetched, GetRequest, ListRequest, ObjectStore, PartLimits, Precondition, PutRequest,
    RequestPolicy, S3Options, S3Store, StoreErrorKind, UserMetadata, get_bytes,
};

/// A policy whose deadlines a test can wait for.
fn impatient() -> RequestPolicy {
    RequestPolicy { timeout: Duration::from_millis(400), ..quick_policy() }
}

async fn started() -> (S3Server, S3Store) {
    let server = S3Server::s3();
    let store = s3(&server, "", quick_policy()).await;
    (server, store)
}

#[tokio::test]
async fn a_write_is_repeated_exactly_when_that_can_do_no_harm() {
    use StoreErrorKind::{Forbidden, Other, Server, Throttled, Undecided};
    let unconditional = || Precondition::None;
    let conditional = || Precondition::Absent;
    // What happens (once, or every time), the precondition, how it ends, how many requests it takes.
    type Case = (Action, usize, Precondition, Result<(), StoreErrorKind>, usize);
    let cases: Vec<Case> = vec![
        (Action::LoseAnswer, 1, unconditional(), Ok(()), 2),
        (Action::LoseAnswer, 1, conditional(), Err(Undecided), 1),
        (Action::StatusAfterEffect(500), 1, unconditional(), Ok(()), 2),
        (Action::StatusAfterEffect(500), 1, conditional(), Err(Undecided), 1),
        (Action::Status(503), 2, unconditional(), Ok(()), 3),
        (Action::Status(503), 2, conditional(), Ok(()), 3),
        (Action::Status(429), 2, conditional(), Ok(()), 3),
        (Action::Status(409), 1, conditional(), Ok(()), 2),
        (Action::Status(503), 9, conditional(), Err(Throttled), 3),
        (Action::Status(500), 9, unconditional(), Err(Server), 3),
        (Action::Status(403), 9, unconditional(), Err(Forbidden), 1),
        (Action::Status(412), 9, conditional(), Err(StoreErrorKind::Precondition), 1),
        (Action::Status(501), 9, conditional(), Err(Other), 1),
        (Action::Status(400), 9, unconditional(), Err(Other), 1),
    ];
    for (action, times, precondition, expected, requests) in cases {
        let (server, store) = started().await;
        server.inject(Fault::on("PutObject", action.clone()).key("k").times(times));
        let outcome = store.put(request("k", "content", precondition.clone())).await;
        let case = format!("{action:?} {times} {precondition:?}: {outcome:?}");
        assert_eq!(outcome.map(|_| ()).map_err(|error| error.kind), expected, "{case}");
        assert_eq!(server.count("PutObject", "k"), requests, "{case}");
        let effect = !matches!(action, Action::Status(_)) || expected.is_ok();
        assert_eq!(server.get_object("k").is_some(), effect, "{case}");
    }
}

#[tokio::test]
async fn reads_and_listings_are_repeated_unless_the_answer_is_final() {
    use StoreErrorKind::*;
    let cases = [
        (500, 2, None, 3),
        (503, 2, None, 3),
        (429, 9, Some(Throttled), 3),
        (403, 9, Some(Forbidden), 1),
        (404, 9, Some(NotFound), 1),
    ];
    for (status, times, expected, requests) in cases {
        let (server, store) = started().await;
        server.put_object("k", "content");
        server.inject(Fault::any(Action::Status(status)).times(times));
        let got = store.get(GetRequest::whole("k")).await.err().map(|error| error.kind);
        assert_eq!((got, server.count("GetObject", "k")), (expected, requests), "{status}");
        server.clear_faults();
        if status != 404 {
            server.inject(Fault::on("ListObjectsV2", Action::Status(status)).times(times));
            let listed = store.list(ListRequest::default()).await.err().map(|error| error.kind);
            assert_eq!((listed, server.count("ListObjectsV2", "")), (expected, requests), "{status}");
        }
    }
}

#[tokio::test]
async fn a_conditional_delete_whose_answer_is_lost_is_undecided() {
    let (server, store) = started().await;
    let fingerprint = put(&store, "k", "content").await;
    server.inject(Fault::on("DeleteObject", Action::LoseAnswer).times(1));
    assert_eq!(store.delete("k", Some(&fingerprint)).await.unwrap_err().kind, StoreErrorKind::Undecided);
    put(&store, "k", "content").await;
    server.inject(Fault::on("DeleteObject", Action::LoseAnswer).times(1));
    store.delete("k", None).await.unwrap();
    assert!(server.keys().is_empty());
}

#[tokio::test]
async fn a_refusal_says_who_refused_what_and_where_to_look() {
    let (server, store) = started().await;
    server.inject(Fault::any(Action::Status(403)));
    let error = store.put(request("some/key", "x", Precondition::None)).await.unwrap_err();
    let text = error.to_string();
    for part in
        ["cannot write \"some/key\"", "HTTP 403", "AccessDenied", "request test-0", "credentials", "AWS_PROFILE"]
    {
        assert!(text.contains(part), "{part:?} is missing in {text:?}");
    }
    let options = S3Options {
        endpoint_url: Some(server.endpoint()),
        region: Some(REGION.to_owned()),
        ..S3Options::new(BUCKET, "")
    };
    server.clear_faults();
    let impostor = S3Store::connect_with_key(options.clone(), ACCESS_KEY, "wrong").await.unwrap();
    assert_eq!(impostor.list(ListRequest::default()).await.unwrap_err().kind, StoreErrorKind::Forbidden);
    let genuine = S3Store::connect_with_key(options, ACCESS_KEY, SECRET_KEY).await.unwrap();
    genuine.list(ListRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_missing_bucket_and_a_proxys_page_are_no_missing_objects() {
    let (server, store) = started().await;
    let options = S3Options {
        endpoint_url: Some(server.endpoint()),
        policy: quick_policy(),
        ..S3Options::new("no-such-bucket", "")
    };
    let nowhere = S3Store::connect_with_key(options, ACCESS_KEY, SECRET_KEY).await.unwrap();
    for error in [
        nowhere.get(GetRequest::whole("k")).await.err().unwrap(),
        nowhere.list(ListRequest::default()).await.unwrap_err(),
        nowhere.put(request("k", "x", Precondition::None)).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, StoreErrorKind::NoSuchBucket, "{error}");
    }
    let page = format!("<html><title>Welcome to the hotel</title>{}</html>", "x".repeat(1000));
    server.inject(Fault::any(Action::Answer(404, page.clone())));
    let error = store.get(GetRequest::whole("k")).await.err().unwrap();
    assert_eq!(error.kind, StoreErrorKind::Other, "{error}");
    assert!(error.message.contains("Welcome to the hotel") && error.message.len() < 600, "{error}");
    server.clear_faults();
    server.inject(Fault::any(Action::Answer(200, page)));
    let error = store.list(ListRequest::default()).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Server, "{error}");
    assert!(error.message.contains("Welcome to the hotel"), "{error}");
}

#[tokio::test]
async fn nothing_waits_for_ever() {
    let server = S3Server::s3();
    let store = s3(&server, "", impatient()).await;
    server.put_object("k", vec![1u8; 100_000]);
    let begun = Instant::now();
    server.inject(Fault::on("HeadObject", Action::Stall));
    assert_eq!(store.head("k").await.unwrap_err().kind, StoreErrorKind::Unreachable);
    assert_eq!(server.count("HeadObject", "k"), 3);
    server.inject(Fault::on("PutObject", Action::Stall));
    let error = store.put(request("new", "x", Precondition::Absent)).await.unwrap_err();
    assert_eq!((error.kind, server.count("PutObject", "new")), (StoreErrorKind::Undecided, 1));
    server.inject(Fault::on("GetObject", Action::StallBody(1000)).times(1));
    let error = read(&store, GetRequest::whole("k")).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unreachable, "{error}");
    assert!(error.message.contains("stalled"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(15));
    read(&store, GetRequest::whole("k")).await.unwrap();
}

#[tokio::test]
async fn a_body_that_ends_early_is_an_error_after_the_bytes_that_came() {
    let (server, store) = started().await;
    server.put_object("k", vec![1u8; 100_000]);
    for range in [None, Some(0..50_000)] {
        server.inject(Fault::on("GetObject", Action::CutBody(1000)).times(1));
        let get = GetRequest { range, ..GetRequest::whole("k") };
        let Fetched::Object { info, body, .. } = store.get(get).await.unwrap() else { panic!() };
        assert_eq!(info.size, 100_000);
        let error = collect(body).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Unreachable, "{error}");
    }
}

#[tokio::test]
async fn a_small_object_is_read_again_when_its_body_breaks_off() {
    let (server, store) = started().await;
    server.put_object("k", vec![1u8; 100_000]);
    server.inject(Fault::on("GetObject", Action::CutBody(1000)).times(2));
    let (_, bytes) = get_bytes(&store, GetRequest::whole("k"), 100_000).await.unwrap().unwrap();
    assert_eq!(bytes.len(), 100_000);
    let error = get_bytes(&store, GetRequest::whole("k"), 99_999).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Other, "{error}");
    server.inject(Fault::on("GetObject", Action::CutBody(1000)));
    let error = get_bytes(&store, GetRequest::whole("k"), 100_000).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unreachable, "{error}");
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_unreachable_and_never_undecided() {
    let server = S3Server::s3();
    let store = s3(&server, "", quick_policy()).await;
    drop(server);
    for precondition in [Precondition::None, Precondition::Absent] {
        let error = store.put(request("k", "x", precondition)).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Unreachable, "{error}");
    }
    assert_eq!(store.head("k").await.unwrap_err().kind, StoreErrorKind::Unreachable);
}

#[tokio::test]
async fn the_stores_clock_comes_with_every_answer_that_dates_something() {
    let (server, store) = started().await;
    server.set_clock_offset(-5000);
    let about = |date: Option<time::OffsetDateTime>| {
        let ahead = (date.expect("a date") - time::OffsetDateTime::now_utc()).whole_seconds();
        assert!((-5060..=-4999).contains(&ahead), "{ahead}");
    };
    about(store.put(request("k", "x", Precondition::None)).await.unwrap().server_date);
    let head = store.head("k").await.unwrap();
    about(head.server_date);
    about(head.last_modified);
    let (info, _) = read(&store, GetRequest::whole("k")).await.unwrap();
    about(info.server_date);
    about(info.last_modified);
}

#[tokio::test]
async fn a_store_that_ignores_conditions_cannot_mix_two_versions() {
    let (server, store) = started().await;
    let old = put(&store, "k", "old").await;
    put(&store, "k", "new").await;
    server.inject(Fault::any(Action::IgnoreConditions));
    // The way to find out what kind of store this is.
    store.put(request("k", "newer", Precondition::Absent)).await.unwrap();
    let error = store.get(GetRequest::whole("k").with(Condition::IfMatch(old))).await.err().unwrap();
    assert_eq!(error.kind, StoreErrorKind::Precondition, "{error}");
}

const MIB: usize = 1 << 20;

fn small_parts(store: S3Store) -> S3Store {
    store.with_part_limits(PartLimits {
        multipart_from: 2 * MIB as u64,
        upload_part: MIB as u64,
        copy_single_max: 2 * MIB as u64,
        copy_part: MIB as u64,
        concurrency: 4,
    })
}

fn varied(size: usize) -> Bytes {
    (0..size).map(|at| (at * 31 + at / 251) as u8).collect()
}

#[tokio::test]
async fn large_bodies_go_in_parts_and_arrive_whole() {
    let (server, store) = started().await;
    let store = small_parts(store);
    let content = varied(5 * MIB + 17);
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), &content).unwrap();
    let file = Arc::new(std::fs::File::open(path.path()).unwrap());
    let metadata = UserMetadata::from([("id".to_owned(), "1".to_owned())]);
    for body in [Body::Bytes(content.clone()), Body::File { file, size: content.len() as u64 }] {
        server.inject(Fault::on("UploadPart", Action::LoseAnswer).times(1));
        server.inject(Fault::on("UploadPart", Action::Status(503)).skip(3).times(1));
        let write = PutRequest { body, metadata: metadata.clone(), ..request("big", "", Precondition::None) };
        let stored = store.put(write).await.unwrap();
        assert!(server.get_object("big").unwrap().bytes == content);
        let fingerprint = stored.fingerprint.unwrap();
        assert!(fingerprint.as_str().ends_with("-6") && !fingerprint.is_recordable(), "{fingerprint}");
        let (info, read_back) =
            read(&store, GetRequest::whole("big").with(Condition::IfMatch(fingerprint))).await.unwrap();
        assert!(read_back == content);
        assert_eq!(info.metadata, metadata);
    }
    assert!(server.open_uploads().is_empty());
    let whole = PutRequest { single_part: true, ..request("index", content, Precondition::None) };
    assert!(store.put(whole).await.unwrap().fingerprint.unwrap().is_recordable());
    assert_eq!(server.count("PutObject", "index"), 1);
}

#[tokio::test]
async fn the_completion_of_an_upload_decides_its_precondition() {
    let (server, store) = started().await;
    let store = small_parts(store);
    let content = varied(3 * MIB);
    let first = store.put(request("big", content.clone(), Precondition::Absent)).await.unwrap().fingerprint.unwrap();
    let error = store.put(request("big", content.clone(), Precondition::Absent)).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Precondition, "{error}");
    // Somebody else writes while the parts are on their way.
    let gate = server.hold("CompleteMultipartUpload", "big");
    let (writing, ()) = tokio::join!(store.put(request("big", content.clone(), Precondition::Match(first))), async {
        gate.arrived(1).await;
        server.put_object("big", "theirs");
        gate.open();
    });
    assert_eq!(writing.unwrap_err().kind, StoreErrorKind::Precondition);
    assert_eq!(server.get_object("big").unwrap().bytes, "theirs");
    assert!(server.open_uploads().is_empty(), "a failed upload must be aborted");
}

#[tokio::test]
async fn an_upload_whose_completion_is_lost_is_undecided() {
    for (action, effect) in [(Action::LoseAnswer, true), (Action::Status(500), false)] {
        let (server, store) = started().await;
        let store = small_parts(store);
        server.inject(Fault::on("CompleteMultipartUpload", action.clone()).times(1));
        let error = store.put(request("big", varied(3 * MIB), Precondition::None)).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Undecided, "{action:?}: {error}");
        assert_eq!(server.get_object("big").is_some(), effect, "{action:?}");
        assert_eq!(server.count("CompleteMultipartUpload", "big"), 1);
        assert!(server.open_uploads().is_empty(), "{action:?}");
    }
}

#[tokio::test]
async fn an_upload_that_fails_or_is_cancelled_leaves_no_parts() {
    let (server, store) = started().await;
    let store = small_parts(store);
    server.inject(Fault::on("UploadPart", Action::Status(403)).skip(1).times(1));
    let error = store.put(request("big", varied(4 * MIB), Precondition::None)).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Forbidden);
    assert!(server.open_uploads().is_empty());
    let gate = server.hold("UploadPart", "big");
    let writing = {
        let store = store.clone();
        tokio::spawn(async move { store.put(request("big", varied(4 * MIB), Precondition::None)).await })
    };
    gate.arrived(1).await;
    assert_eq!(server.open_uploads().len(), 1);
    writing.abort();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !server.open_uploads().is_empty() {
        assert!(Instant::now() < deadline, "a cancelled upload must be aborted");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn large_objects_are_copied_in_parts_of_one_version() {
    let (server, store) = started().await;
    let store = small_parts(store);
    let content = varied(4 * MIB + 5);
    let version = store.put(request("big one", content.clone(), Precondition::None)).await.unwrap().fingerprint;
    let source = CopySource { key: "big one".to_owned(), size: content.len() as u64, if_match: version };
    let copied = store.copy(source.clone(), "copy", Precondition::Absent, UserMetadata::new()).await.unwrap();
    assert!(server.get_object("copy").unwrap().bytes == content);
    assert_eq!(server.count("UploadPartCopy", "copy"), 5);
    assert_eq!(server.count("CopyObject", "copy"), 0);
    let again = store.copy(source.clone(), "copy", Precondition::Absent, UserMetadata::new()).await.unwrap_err();
    assert_eq!(again.kind, StoreErrorKind::Precondition, "{again}");
    // The source changes between two parts; the caller named no version.
    let gate = server.hold("UploadPartCopy", "copy");
    let unpinned = CopySource { if_match: None, ..source };
    let precondition = Precondition::Match(copied.fingerprint.unwrap());
    let (copying, ()) = tokio::join!(store.copy(unpinned, "copy", precondition, UserMetadata::new()), async {
        gate.arrived(1).await;
        server.put_object("big one", vec![0u8; 4 * MIB + 5]);
        gate.open();
    });
    assert_eq!(copying.unwrap_err().kind, StoreErrorKind::Precondition);
    assert!(server.get_object("copy").unwrap().bytes == content);
    assert!(server.open_uploads().is_empty());
}
