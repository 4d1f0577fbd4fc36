//! Several writers at once, through pull and push: both versions survive, and nothing old replaces anything new.

mod support;

use support::bucket::each;
use support::hooked::{HookedStore, Verdict};
use support::machine::*;
use swamp_mount::datastore::*;
use swamp_mount::sync::offline::*;

#[tokio::test]
async fn a_removal_of_what_somebody_changed_since_is_no_removal() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
        let second = Machine::new(&store);
        second.pull().await;
        second.write("a", "newer", 10);
        second.push().await;
        first.remove("a");
        first.mark(&["a"], false);
        first.push().await;
        assert_eq!(contents(&store), pairs(&[("a", "newer"), ("dir/b", "two")]));
    })
    .await;
}

#[tokio::test]
async fn an_old_version_is_never_pushed_over_a_new_one() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
        let second = Machine::new(&store);
        second.pull().await;
        second.write("a", "newer", 10);
        second.push().await;
        let report = first.push().await;
        assert_eq!((report.uploaded, report.outdated), (0, vec!["a".to_owned()]));
        assert_eq!(store.text("a").unwrap(), "newer");
        first.pull().await;
        assert_eq!(first.read("a").unwrap(), "newer");
    })
    .await;
}

#[tokio::test]
async fn a_same_size_edit_reaches_the_bucket_and_the_others() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
        let second = Machine::new(&store);
        second.pull().await;
        first.write("a", "ONE", 10);
        assert_eq!(first.push().await.uploaded, 1);
        assert!(first.is_clean());
        assert_eq!(second.pull().await.downloaded, 1);
        assert_eq!(second.read("a").unwrap(), "ONE");
    })
    .await;
}

#[tokio::test]
async fn a_touched_file_with_the_same_bytes_is_not_uploaded() {
    each(async |kind| {
        let (_, first) = two_files(kind).await;
        first.write("a", "one", 5);
        let report = first.push().await;
        assert_eq!((report.uploaded, report.clean), (0, true));
    })
    .await;
}

#[tokio::test]
async fn when_both_sides_changed_both_versions_survive_a_push() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
        let second = Machine::new(&store);
        second.pull().await;
        second.write("a", "theirs", 10);
        second.push().await;
        first.write("a", "ours", 5);
        let report = first.push().await;
        assert_eq!(report.conflicts.len(), 1);
        assert_eq!(store.text("a").unwrap(), "theirs");
        assert_eq!(store.text(&report.conflicts[0]).unwrap(), "ours");
        assert!(listed(&store).contains(&report.conflicts[0]));
        first.pull().await;
        assert!(first.is_clean());
        assert_eq!(first.read("a").unwrap(), "theirs");
    })
    .await;
}

#[tokio::test]
async fn when_both_sides_changed_a_pull_keeps_our_version_beside_theirs() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
        let second = Machine::new(&store);
        second.pull().await;
        second.write("a", "theirs", 10);
        second.push().await;
        first.write("a", "ours", 5);
        first.write("dir/b", "two edited", 5);
        first.write("new", "n", 5);
        let report = first.pull().await;
        assert_eq!(report.conflicts.len(), 1);
        assert_eq!(report.unpushed.len(), 3);
        assert!(!report.clean && !first.is_clean());
        assert_eq!(first.read("a").unwrap(), "theirs");
        assert_eq!(first.read(&report.conflicts[0]).unwrap(), "ours");
        assert_eq!(first.read("dir/b").unwrap(), "two edited");
        assert_eq!(first.push().await.uploaded, 3);
        assert!(first.is_clean());
    })
    .await;
}

#[tokio::test]
async fn when_both_sides_made_the_same_change_there_is_no_conflict() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
        let second = Machine::new(&store);
        second.pull().await;
        for machine in [&first, &second] {
            machine.write("a", "same", 10);
        }
        second.push().await;
        let report = first.push().await;
        assert!(report.conflicts.is_empty() && report.clean, "{report:?}");
        // Against a client that records no hash, the bytes themselves are compared.
        add_foreign(&store, "x", "content");
        first.write("x", "content", 77);
        assert!(first.pull().await.conflicts.is_empty());
        assert!(first.is_clean());
    })
    .await;
}

#[tokio::test]
async fn a_file_that_was_removed_there_goes_here_unless_it_was_edited() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
        first.write("c", "three", 50);
        first.push().await;
        let second = Machine::new(&store);
        second.pull().await;
        second.remove("a");
        second.remove("c");
        second.mark(&["a", "c"], false);
        second.push().await;
        first.write("c", "edited", 5);
        let report = first.pull().await;
        assert_eq!((report.removed, first.read("a")), (1, None));
        assert_eq!(first.read("c").unwrap(), "edited");
        first.push().await;
        assert_eq!(store.text("c").unwrap(), "edited");
    })
    .await;
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_not_written_to() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
        store.ignores_conditions.store(true, std::sync::atomic::Ordering::Relaxed);
        first.write("a", "edited", 5);
        let before = contents(&store);
        assert!(matches!(first.try_push().await, Err(OfflineError::NoConditions)));
        assert_eq!(contents(&store), before);
        assert!(store.text(LOCK_KEY).is_none());
        let options = OfflineOptions { unsafe_no_conditional_writes: true, ..Machine::options() };
        push(&Datastore::new(store.clone()), &first.root(), &options, &()).await.unwrap();
        assert_eq!(store.text("a").unwrap(), "edited");
    })
    .await;
}

#[tokio::test]
async fn lost_answers_lose_nothing() {
    each(async |kind| {
        for key in ["c", INDEX_KEY, LOCK_KEY] {
            let (store, first) = two_files(kind).await;
            first.write("c", "three", 5);
            store.lose_answer("put", key);
            let report = first.push().await;
            assert_eq!(report.conflicts, Vec::<String>::new(), "{key}");
            assert_eq!(listed(&store), ["a", "c", "dir/b"], "{key}");
            assert!(first.is_clean(), "{key}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_new_name_that_somebody_took_first_keeps_both() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
        first.write("c", "ours", 5);
        store.before("put", "c", |store| add_foreign(store, "c", "theirs"));
        let report = first.push().await;
        assert_eq!(store.text("c").unwrap(), "theirs");
        assert_eq!(store.text(&report.conflicts[0]).unwrap(), "ours");
    })
    .await;
}

#[tokio::test]
async fn a_push_compares_bytes_before_it_speaks_of_a_conflict() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
        add_foreign(&store, "x", "content");
        add_foreign(&store, "y", "theirs");
        first.write("x", "content", 77);
        first.write("y", "ourown", 77);
        let report = first.push().await;
        assert_eq!((report.conflicts.len(), report.uploaded), (1, 1), "{report:?}");
        assert_eq!((store.text("x").unwrap(), store.text("y").unwrap()), ("content".into(), "theirs".into()));
        assert_eq!(first.pull().await.downloaded, 1);
        assert!(first.is_clean());
    })
    .await;
}

/// Lets another writer act when everything is uploaded and the lock is about to be taken for the index.
fn before_the_merge(store: &HookedStore, act: impl FnOnce(&HookedStore) + Send + 'static) {
    let (mut writes_of_the_lock, mut act) = (0, Some(act));
    store.hook(move |store, op, key| {
        writes_of_the_lock += u32::from(op == "put" && key == LOCK_KEY);
        // The first takes it, the second proves that conditions are honoured.
        if writes_of_the_lock == 3
            && let Some(act) = act.take()
        {
            act(store);
        }
        Verdict::Proceed
    });
}

#[tokio::test]
async fn a_file_that_changes_while_its_removal_is_pushed_stays() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
        first.remove("a");
        first.mark(&["a"], false);
        before_the_merge(&store, |store| add_foreign(store, "a", "newer"));
        assert_eq!(first.push().await.removed, 0);
        assert_eq!(contents(&store), pairs(&[("a", "newer"), ("dir/b", "two")]));
        assert!(!first.is_clean());
    })
    .await;
}

#[tokio::test]
async fn an_object_that_was_replaced_without_a_condition_before_our_entry_keeps_both() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
        first.write("a", "ours", 5);
        before_the_merge(&store, |store| add_foreign(store, "a", "theirs"));
        let report = first.push().await;
        assert_eq!(store.text("a").unwrap(), "theirs");
        assert_eq!(store.text(&report.conflicts[0]).unwrap(), "ours");
        assert_eq!(contents(&store).len(), 3);
    })
    .await;
}

#[tokio::test]
async fn a_new_version_with_the_old_size_and_time_is_pulled() {
    each(async |kind| {
        let (_, first) = two_files(kind).await;
        let second = Machine::new(&first.store);
        second.pull().await;
        let time = std::fs::metadata(first.path("a")).unwrap().modified().unwrap();
        first.write("a", "ONE", 1);
        first.push().await;
        first.write("a", "eno", 1);
        std::fs::File::options().write(true).open(first.path("a")).unwrap().set_modified(time).unwrap();
        first.push().await;
        second.pull().await;
        assert_eq!(second.read("a").unwrap(), "eno");
    })
    .await;
}
