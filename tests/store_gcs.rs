//! What the store on Google Cloud Storage promises when requests, answers and bodies go wrong, and how it sends what is
//! large.
#![cfg(feature = "gcs")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use support::gcs_server::{Action, BUCKET, Fault, GcsServer};
use support::stores::{collect, gcs, put, quick_policy, read, request};
use swamp_mount::store::{
    Body, Condition, CopySource, Fetched, Fingerprint, GcsOptions, GcsStore, GetRequest, ListRequest, ObjectStore,
    Precondition, PutRequest, RequestPolicy, StoreErrorKind, UserMetadata, get_bytes,
};

async fn started() -> (GcsServer, GcsStore) {
    let server = GcsServer::gcs();
    let store = gcs(&server, "", quick_policy()).await;
    (server, store)
}

fn varied(size: usize) -> Bytes {
    (0..size).map(|at| (at * 7 + at / 251) as u8).collect()
}

#[tokio::test]
async fn a_fingerprint_is_the_generation_in_decimal() {
    let (server, store) = started().await;
    let fingerprint = put(&store, "k", "content").await;
    let generation = server.get_object("k").unwrap().generation.to_string();
    assert_eq!(fingerprint.as_str(), generation);
    assert!(fingerprint.is_recordable());
    let listed = store.list(ListRequest::default()).await.unwrap().objects;
    assert_eq!(listed[0].fingerprint.as_ref(), Some(&fingerprint));
    assert_eq!(store.head("k").await.unwrap().fingerprint, Some(fingerprint.clone()));
    store.put(request("k", "more", Precondition::Match(fingerprint))).await.unwrap();
    let sent: Vec<_> = server.requests().into_iter().filter(|r| r.operation == "PutObject").collect();
    assert_eq!(sent[1].if_match, Some(generation));
    assert!(server.requests().iter().all(|request| !request.authorized), "an emulator is sent no credentials");
}

#[tokio::test]
async fn the_date_of_a_dated_read_is_that_of_the_generation_that_was_read() {
    let (server, store) = started().await;
    put(&store, "k", "old").await;
    let gate = support::gcs_server::Gate::default();
    server.inject(Fault::on("HeadObject", Action::Hold(gate.clone())).times(1));
    let (read, ()) = tokio::join!(read(&store, GetRequest::whole("k").dated()), async {
        gate.arrived(1).await;
        server.put_object("k", "new");
        server.set_last_modified("k", time::macros::datetime!(2031-02-03 04:05:06 UTC));
        gate.open();
    });
    let (info, content) = read.unwrap();
    assert_eq!(content, b"new");
    assert_eq!(info.last_modified, Some(time::macros::datetime!(2031-02-03 04:05:06 UTC)));
    let known = info.fingerprint.unwrap();
    server.clear_requests();
    let same = store.get(GetRequest::whole("k").dated().with(Condition::IfNoneMatch(known))).await.unwrap();
    assert!(matches!(same, Fetched::NotModified));
    assert_eq!(server.requests().len(), 1, "what did not change needs no date");
}

#[tokio::test]
async fn what_is_no_generation_matches_no_object_and_is_not_sent() {
    let (server, store) = started().await;
    let real = put(&store, "k", "content").await;
    server.clear_requests();
    for text in ["d41d8cd98f00b204e9800998ecf8427e".to_owned(), format!("0{real}"), format!("{real}-2")] {
        let foreign = Fingerprint::from_record(&text).unwrap();
        let outcomes = [
            store.put(request("k", "x", Precondition::Match(foreign.clone()))).await.err(),
            store.get(GetRequest::whole("k").with(Condition::IfMatch(foreign.clone()))).await.err(),
            store.delete("k", Some(&foreign)).await.err(),
        ];
        for error in outcomes {
            assert_eq!(error.map(|error| error.kind), Some(StoreErrorKind::Precondition), "{text}");
        }
        assert!(server.requests().is_empty(), "{text}");
        let changed = store.get(GetRequest::whole("k").with(Condition::IfNoneMatch(foreign))).await.unwrap();
        assert!(matches!(changed, Fetched::Object { .. }), "{text}");
        server.clear_requests();
    }
}

#[tokio::test]
async fn a_write_is_repeated_exactly_when_that_can_do_no_harm() {
    use StoreErrorKind::{Forbidden, Other, Server, Throttled, Undecided};
    let unconditional = || Precondition::None;
    let conditional = || Precondition::Absent;
    type Case = (Action, usize, Precondition, Result<(), StoreErrorKind>, usize);
    let cases: Vec<Case> = vec![
        (Action::LoseAnswer, 1, unconditional(), Ok(()), 2),
        (Action::LoseAnswer, 1, conditional(), Err(Undecided), 1),
        (Action::StatusAfterEffect(500), 1, unconditional(), Ok(()), 2),
        (Action::StatusAfterEffect(503), 1, conditional(), Err(Undecided), 1),
        (Action::Status(503), 2, unconditional(), Ok(()), 3),
        (Action::Status(429), 2, conditional(), Ok(()), 3),
        (Action::Status(429), 9, conditional(), Err(Throttled), 3),
        (Action::Status(500), 9, unconditional(), Err(Server), 3),
        (Action::Status(401), 9, unconditional(), Err(Forbidden), 1),
        (Action::Status(403), 9, unconditional(), Err(Forbidden), 1),
        (Action::Status(412), 9, conditional(), Err(StoreErrorKind::Precondition), 1),
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
async fn both_protocols_answers_end_as_the_same_error() {
    use StoreErrorKind::*;
    for (status, kind) in [
        (401, Forbidden),
        (403, Forbidden),
        (404, NotFound),
        (412, Precondition),
        (429, Throttled),
        (503, Throttled),
        (500, Server),
    ] {
        let (server, store) = started().await;
        server.put_object("k", "content");
        server.inject(Fault::any(Action::Status(status)));
        let data = store.get(GetRequest::whole("k")).await.err().unwrap();
        let control = store.head("k").await.unwrap_err();
        assert_eq!((data.kind, control.kind), (kind, kind), "{status}: {data} / {control}");
        assert_eq!(server.count("GetObject", "k"), server.count("HeadObject", "k"), "{status}: repeated alike");
        for error in [data, control] {
            let text = error.to_string();
            assert_eq!(text.contains("application default credentials"), kind == Forbidden, "{text}");
            assert!(!text.contains("AWS"), "{text}");
        }
    }
}

#[tokio::test]
async fn a_conditional_delete_whose_answer_is_lost_is_undecided() {
    let (server, store) = started().await;
    for action in [Action::LoseAnswer, Action::StatusAfterEffect(503)] {
        let fingerprint = put(&store, "k", "content").await;
        server.inject(Fault::on("DeleteObject", action.clone()).times(1));
        let error = store.delete("k", Some(&fingerprint)).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Undecided, "{action:?}: {error}");
        put(&store, "k", "content").await;
        server.inject(Fault::on("DeleteObject", action).times(1));
        store.delete("k", None).await.unwrap();
        assert!(server.keys().is_empty());
    }
}

#[tokio::test]
async fn a_missing_bucket_and_a_proxys_page_are_no_missing_objects() {
    let (server, store) = started().await;
    let options = GcsOptions {
        endpoint_url: Some(server.endpoint()),
        policy: quick_policy(),
        ..GcsOptions::new("no-such-bucket", "")
    };
    let elsewhere = GcsStore::connect(options).await.unwrap();
    let missing = [
        elsewhere.head("k").await.err(),
        elsewhere.get(GetRequest::whole("k")).await.err(),
        elsewhere.put(request("k", "x", Precondition::None)).await.err(),
        elsewhere.list(ListRequest::default()).await.err(),
        elsewhere.delete("k", None).await.err(),
    ];
    for error in missing {
        assert_eq!(error.map(|error| error.kind), Some(StoreErrorKind::NoSuchBucket));
    }
    server.inject(Fault::any(Action::Answer(404, "<html>no such page</html>".to_owned())));
    let read = store.get(GetRequest::whole("k")).await.err().unwrap();
    assert!(!read.is_not_found(), "{read}");
    assert!(read.to_string().contains("no such page"), "{read}");
    let head = store.head("k").await.unwrap_err();
    assert!(!head.is_not_found(), "{head}");
}

#[tokio::test]
async fn nothing_waits_for_ever() {
    let server = GcsServer::gcs();
    let policy = RequestPolicy { timeout: Duration::from_millis(400), attempts: 1, ..quick_policy() };
    let store = gcs(&server, "", policy).await;
    put(&store, "k", "content").await;
    server.inject(Fault::any(Action::Stall));
    let begun = Instant::now();
    assert_eq!(store.head("k").await.unwrap_err().kind, StoreErrorKind::Unreachable);
    assert_eq!(store.get(GetRequest::whole("k")).await.err().unwrap().kind, StoreErrorKind::Unreachable);
    let conditional = store.put(request("k", "x", Precondition::Absent)).await.unwrap_err();
    assert_eq!(conditional.kind, StoreErrorKind::Undecided);
    assert!(begun.elapsed() < Duration::from_secs(10));
    server.clear_faults();
    server.inject(Fault::on("GetObject", Action::StallBody(3)));
    let Fetched::Object { body, .. } = store.get(GetRequest::whole("k")).await.unwrap() else { panic!() };
    assert_eq!(collect(body).await.unwrap_err().kind, StoreErrorKind::Unreachable);
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_unreachable_and_never_undecided() {
    let endpoint = GcsServer::gcs().endpoint();
    let options = GcsOptions { endpoint_url: Some(endpoint), policy: quick_policy(), ..GcsOptions::new(BUCKET, "") };
    let store = GcsStore::connect(options).await.unwrap();
    let write = store.put(request("k", "x", Precondition::Absent)).await.unwrap_err();
    assert_eq!(write.kind, StoreErrorKind::Unreachable, "{write}");
    let known = Fingerprint::from_record("17").unwrap();
    let delete = store.delete("k", Some(&known)).await.unwrap_err();
    assert_eq!(delete.kind, StoreErrorKind::Unreachable, "{delete}");
    assert_eq!(store.head("k").await.unwrap_err().kind, StoreErrorKind::Unreachable);
}

#[tokio::test]
async fn bytes_that_do_not_have_the_checksum_of_the_object_are_refused() {
    let (server, store) = started().await;
    put(&store, "k", "content").await;
    server.corrupt("k", "CONTENT");
    let error = read(&store, GetRequest::whole("k")).await.err().unwrap();
    assert_eq!(error.kind, StoreErrorKind::Server, "{error}");
    assert!(error.to_string().contains("CRC32C"), "{error}");
    server.clear_requests();
    assert!(get_bytes(&store, GetRequest::whole("k"), 100).await.is_err());
    assert_eq!(server.count("GetObject", "k"), 3, "perhaps only the way was bad");
}

#[tokio::test]
async fn a_store_that_says_it_keeps_other_bytes_is_not_believed() {
    for (size, crc32c, wrong) in
        [(7, "AAAAAA==", Some("CRC32C")), (6, CONTENT_CRC32C, Some("6 of 7")), (7, CONTENT_CRC32C, None)]
    {
        let (server, store) = started().await;
        let object = serde_json::json!({"name": "k", "generation": "17", "size": size.to_string(), "crc32c": crc32c});
        server.inject(Fault::on("PutObject", Action::Answer(200, object.to_string())));
        let outcome = store.put(request("k", "content", Precondition::None)).await;
        match wrong {
            None => assert_eq!(outcome.unwrap().fingerprint.unwrap().as_str(), "17"),
            Some(words) => {
                let error = outcome.unwrap_err();
                assert_eq!(error.kind, StoreErrorKind::Server, "{error}");
                assert!(error.to_string().contains(words), "{error}");
            }
        }
    }
}

/// The checksum of the bytes `content` as the interface writes it.
const CONTENT_CRC32C: &str = "Ya91Mw==";

/// A file that changes after its checksum was taken.
#[tokio::test]
async fn content_that_changes_while_it_is_sent_is_not_stored() {
    for resumable_from in [0, 1 << 40] {
        let (server, store) = started().await;
        let store = store.with_resumable_from(resumable_from);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), varied(100_000)).unwrap();
        let body = Body::File { file: Arc::new(file.reopen().unwrap()), size: 100_000 };
        let operation = if resumable_from == 0 { "StartUpload" } else { "PutObject" };
        // The first attempt is refused after the checksum was taken; the file changes before the second.
        let gate = support::gcs_server::Gate::default();
        server.inject(Fault::on(operation, Action::Hold(gate.clone())).times(1));
        server.inject(Fault::on(operation, Action::Status(503)).times(1));
        let write = PutRequest { body, ..request("k", "", Precondition::None) };
        let (outcome, ()) = tokio::join!(store.put(write), async {
            gate.arrived(1).await;
            std::fs::write(file.path(), vec![7u8; 100_000]).unwrap();
            gate.open();
        });
        let error = outcome.unwrap_err();
        assert!(!error.is_transient() && error.message.contains("checksum"), "{error}");
        assert!(server.keys().is_empty());
    }
}

#[tokio::test]
async fn a_resumable_upload_goes_on_where_it_was_cut() {
    let (server, store) = started().await;
    let store = store.with_resumable_from(1 << 20);
    let content = varied(5 << 20);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &content).unwrap();
    for precondition in [Precondition::None, Precondition::Absent] {
        server.remove("k");
        server.clear_requests();
        server.inject(Fault::on("ContinueUpload", Action::CutRequest(1 << 20)).times(1));
        let body = Body::File { file: Arc::new(file.reopen().unwrap()), size: content.len() as u64 };
        let stored = store.put(PutRequest { body, ..request("k", "", precondition) }).await.unwrap();
        let object = server.get_object("k").unwrap();
        assert!(object.bytes == content);
        assert_eq!(stored.fingerprint.unwrap().as_str(), object.generation.to_string());
        assert_eq!(server.count("StartUpload", "k"), 1, "it did not begin anew");
        let ranges: Vec<_> =
            server.requests().into_iter().filter(|r| r.operation == "ContinueUpload").filter_map(|r| r.range).collect();
        assert_eq!(ranges.len(), 2, "{ranges:?}");
        assert!(ranges[0].starts_with("bytes 0-") && !ranges[1].starts_with("bytes 0-"), "{ranges:?}");
    }
}

#[tokio::test]
async fn progress_renews_the_patience_with_a_resumable_upload() {
    let (server, store) = started().await;
    let store = store.with_resumable_from(0);
    let content = varied(6 << 20);
    server.inject(Fault::on("ContinueUpload", Action::CutRequest(1 << 20)).times(5));
    store.put(request("k", content.clone(), Precondition::Absent)).await.unwrap();
    assert!(server.get_object("k").unwrap().bytes == content);
    assert_eq!(server.count("ContinueUpload", "k"), 6);
    server.inject(Fault::on("ContinueUpload", Action::Status(503)));
    let error = store.put(request("other", content, Precondition::Absent)).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Undecided, "{error}");
    assert_eq!(server.count("ContinueUpload", "other"), 3);
}

#[tokio::test]
async fn a_resumable_upload_whose_last_answer_is_lost_learns_that_it_is_done() {
    let (server, store) = started().await;
    let store = store.with_resumable_from(0);
    server.inject(Fault::on("ContinueUpload", Action::LoseAnswer).times(1));
    let stored = store.put(request("k", "content", Precondition::Absent)).await.unwrap();
    assert_eq!(stored.fingerprint.unwrap().as_str(), server.get_object("k").unwrap().generation.to_string());
    assert!(server.open_uploads().is_empty());
}

#[tokio::test]
async fn the_end_of_a_resumable_upload_decides_its_precondition() {
    let (server, store) = started().await;
    let store = store.with_resumable_from(0);
    let gate = support::gcs_server::Gate::default();
    server.inject(Fault::on("ContinueUpload", Action::Hold(gate.clone())).times(1));
    let (outcome, ()) = tokio::join!(store.put(request("k", "ours", Precondition::Absent)), async {
        gate.arrived(1).await;
        server.put_object("k", "theirs");
        gate.open();
    });
    assert_eq!(outcome.unwrap_err().kind, StoreErrorKind::Precondition);
    assert_eq!(server.get_object("k").unwrap().bytes, "theirs");
}

#[tokio::test]
async fn a_copy_goes_on_until_the_store_says_that_it_is_done() {
    let (server, store) = started().await;
    let content = varied(1000);
    let source = put(&store, "source", content.clone()).await;
    server.set_copy_step(300);
    server.inject(Fault::on("CopyObject", Action::Status(503)).skip(2).times(1));
    let metadata = UserMetadata::from([("id".to_owned(), "new".to_owned())]);
    let from = CopySource { key: "source".to_owned(), size: 1000, if_match: Some(source) };
    store.copy(from.clone(), "target", Precondition::None, metadata.clone()).await.unwrap();
    assert!(server.get_object("target").unwrap().bytes == content);
    assert_eq!(store.head("target").await.unwrap().metadata, metadata);
    assert_eq!(server.count("CopyObject", "target"), 5);
    // Half-way, the source changes.
    let gate = support::gcs_server::Gate::default();
    server.inject(Fault::on("CopyObject", Action::Hold(gate.clone())).key("other").skip(1).times(1));
    let (outcome, ()) = tokio::join!(store.copy(from, "other", Precondition::Absent, metadata), async {
        gate.arrived(1).await;
        server.put_object("source", "changed");
        gate.open();
    });
    assert_eq!(outcome.unwrap_err().kind, StoreErrorKind::Precondition);
    assert!(server.get_object("other").is_none());
}

#[tokio::test]
async fn a_store_that_ignores_conditions_cannot_mix_two_versions() {
    let (server, store) = started().await;
    let old = put(&store, "k", "old").await;
    put(&store, "k", "new").await;
    server.inject(Fault::on("GetObject", Action::IgnoreConditions));
    let error = store.get(GetRequest::whole("k").with(Condition::IfMatch(old))).await.err().unwrap();
    assert_eq!(error.kind, StoreErrorKind::Precondition, "{error}");
}

#[tokio::test]
async fn a_body_that_ends_early_is_an_error_after_the_bytes_that_came() {
    let (server, store) = started().await;
    let content = varied(200_000);
    put(&store, "k", content.clone()).await;
    for range in [None, Some(1000..150_000)] {
        server.inject(Fault::on("GetObject", Action::CutBody(70_000)).times(1));
        let get = GetRequest { range: range.clone(), ..GetRequest::whole("k") };
        let Fetched::Object { body, .. } = store.get(get.clone()).await.unwrap() else { panic!() };
        assert_eq!(collect(body).await.unwrap_err().kind, StoreErrorKind::Unreachable, "{range:?}");
        assert!(read(&store, get).await.is_ok(), "{range:?}");
    }
}
