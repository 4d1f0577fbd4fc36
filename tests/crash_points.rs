//! Promise: the daemon may die at every step of writing, renaming, truncating, fetching, pushing, refreshing, starting and
//! unmounting: every acknowledged change is there afterwards, the next flush brings exactly that to the bucket, nothing of
//! others is lost, nothing in the bucket dangles, `cache/` tells a reference client the truth, and no space is leaked.
//!
//! The steps are the fail points of the program (src/failpoint.rs). A first run records how often the scenario comes to
//! each; then it is killed at each of them, at the first time, the last, and some between.

mod support;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::contents::check_no_leak;
use support::model::{Files, check_bucket, check_mount, seeded, set};
use support::mount::{Lab, Machine, Mount, eventually};
use support::reference::check_truth;

const OPTIONS: &[&str] = &["--no-supervise", "--refresh", "3600", "--flush-after", "3600", "--flush-max-age", "3600"];
const LARGE: usize = 5 << 20;

/// What the script holds open, by a name of its own.
struct Hands<'a> {
    mount: &'a Mount<'a>,
    open: HashMap<&'static str, File>,
}

impl Hands<'_> {
    fn hold(&mut self, name: &'static str, options: &OpenOptions) -> io::Result<()> {
        self.open.insert(name, options.open(self.mount.path(name))?);
        Ok(())
    }

    fn write(&self, name: &str, text: &str, at: u64) -> io::Result<()> {
        self.open[name].write_all_at(text.as_bytes(), at)
    }

    fn close(&mut self, name: &str) -> io::Result<()> {
        drop(self.open.remove(name));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.mount.path(from), self.mount.path(to))
    }

    fn read(&self, name: &str) -> io::Result<()> {
        fs::read(self.mount.path(name)).map(drop)
    }

    fn flush(&self) -> io::Result<()> {
        let flushed = self.mount.flush().status.success();
        flushed.then_some(()).ok_or_else(|| io::Error::other("not flushed"))
    }
}

fn moved(files: &mut Files, from: &str, to: &str) {
    let bytes = files.remove(from).expect("there");
    files.insert(to.to_owned(), bytes);
}

/// One request of a program: what it does on the mount, and what it makes of the model.
type Step = (fn(&mut Hands<'_>) -> io::Result<()>, fn(&mut Files));

const NOTHING: fn(&mut Files) = |_| {};

const SCRIPT: &[Step] = &[
    (|h| h.hold("new", OpenOptions::new().write(true).create_new(true)), |f| set(f, "new", "")),
    (|h| h.write("new", "first", 0), |f| set(f, "new", "first")),
    (|h| h.write("new", " second", 5), |f| set(f, "new", "first second")),
    (|h| h.open["new"].sync_all(), NOTHING),
    (|h| h.close("new"), NOTHING),
    (|h| h.hold("remote", OpenOptions::new().write(true)), NOTHING),
    (|h| h.write("remote", "REMOTE", 0), |f| set(f, "remote", "REMOTE bytes")),
    (|h| h.close("remote"), NOTHING),
    (|h| h.read("second"), NOTHING),
    (|h| h.read("large"), NOTHING),
    (|h| h.rename("dir/x", "renamed"), |f| moved(f, "dir/x", "renamed")),
    (|h| h.hold("second", OpenOptions::new().write(true)), NOTHING),
    (|h| h.open["second"].set_len(3), |f| set(f, "second", "sec")),
    (|h| h.close("second"), NOTHING),
    (|h| h.hold("other", OpenOptions::new().write(true).truncate(true)), |f| set(f, "other", "")),
    (|h| h.write("other", "emptied first", 0), |f| set(f, "other", "emptied first")),
    (|h| h.close("other"), NOTHING),
    (|h| fs::remove_file(h.mount.path("gone")), |f| drop(f.remove("gone"))),
    (|h| h.flush(), NOTHING),
    (|h| h.hold("tmp", OpenOptions::new().write(true).create(true)), |f| set(f, "tmp", "")),
    (|h| h.write("tmp", "edited aside", 0), |f| set(f, "tmp", "edited aside")),
    (|h| h.close("tmp"), NOTHING),
    (|h| h.rename("tmp", "second"), |f| moved(f, "tmp", "second")),
    (|h| h.rename("dir", "elsewhere"), |f| moved(f, "dir/sub/y", "elsewhere/sub/y")),
    (
        |h| {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            let (a, b) = (h.mount.path("new"), h.mount.path("renamed"));
            Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
        },
        |f| {
            moved(f, "new", "aside");
            moved(f, "renamed", "new");
            moved(f, "aside", "renamed");
        },
    ),
    (|h| h.hold("late", OpenOptions::new().write(true).create_new(true)), |f| set(f, "late", "")),
    (|h| h.write("late", "late", 0), |f| set(f, "late", "late")),
    (|h| h.flush(), NOTHING),
    (|h| h.write("late", "LATE, after the flush", 0), |f| set(f, "late", "LATE, after the flush")),
    (|h| h.close("late"), NOTHING),
    (|h| fs::remove_file(h.mount.path("remote")), |f| drop(f.remove("remote"))),
    (|h| h.hold("again", OpenOptions::new().write(true).create_new(true)), |f| set(f, "again", "")),
    (|h| h.close("again"), NOTHING),
    // All is here then, so that the unmount may say so.
    (|h| ["new", "elsewhere/sub/y", "cached", "theirs"].iter().try_for_each(|name| h.read(name)), NOTHING),
];

/// What the mount may show after the scenario: the model, and what it becomes by the step that got no answer.
struct Played {
    acknowledged: Files,
    perhaps: Option<Files>,
}

/// A bucket, and a cache directory that holds a cached file and unpushed changes of a daemon that was killed; others have
/// changed the bucket since.
fn prepared(lab: &Lab, machine: &Machine<'_>) -> Files {
    let mut files = seeded(lab);
    let large: Vec<u8> = (0..LARGE).map(|i| (i >> 10) as u8).collect();
    lab.seed(&[("gone", b"to be removed"), ("cached", b"cached before"), ("large", &large)]);
    files.insert("large".into(), large);
    set(&mut files, "gone", "to be removed");
    let mount = machine.mount();
    assert_eq!(mount.read("cached"), "cached before");
    assert_eq!(mount.read("gone"), "to be removed");
    mount.write("left", "left behind");
    set(&mut files, "left", "left behind");
    mount.kill();
    lab.seed(&[("cached", b"changed by others"), ("theirs", b"new of others")]);
    set(&mut files, "cached", "changed by others");
    set(&mut files, "theirs", "new of others");
    files
}

/// Mounts, runs the script, unmounts; until the daemon dies.
fn play(machine: &Machine<'_>, failpoint: &str, mut files: Files) -> Played {
    let Ok(mount) = machine.try_mount(OPTIONS, &[("SWAMP_FAILPOINT", failpoint)]) else {
        return Played { acknowledged: files, perhaps: None };
    };
    let mut hands = Hands { mount: &mount, open: HashMap::new() };
    for (act, model) in SCRIPT {
        let mut after = files.clone();
        model(&mut after);
        if act(&mut hands).is_err() {
            drop(hands);
            mount.kill();
            return Played { acknowledged: files, perhaps: Some(after) };
        }
        files = after;
    }
    drop(hands);
    // Killed on the way or not: nothing changes any more.
    mount.unmount();
    Played { acknowledged: files, perhaps: None }
}

/// The promise, after the daemon died at a point.
fn check(lab: &Lab, machine: &Machine<'_>, played: Played, what: &str) {
    check_truth(&machine.cache_root().join("cache"), what);
    // The lock of the dead process is stale; another writer was here meanwhile.
    lab.server().set_clock_offset(40);
    lab.seed(&[("later", b"of others, later")]);
    let mount = machine.mount();
    let Played { mut acknowledged, mut perhaps } = played;
    for files in [Some(&mut acknowledged), perhaps.as_mut()].into_iter().flatten() {
        set(files, "later", "of others, later");
    }
    let names = mount.files();
    let shows = |files: &Files| {
        names.iter().eq(files.keys())
            && files.iter().all(|(n, b)| fs::read(mount.path(n)).is_ok_and(|found| found == *b))
    };
    let files = match perhaps {
        Some(after) if shows(&after) => after,
        _ => acknowledged,
    };
    check_mount(&mount, &files, what);
    mount.flushed();
    check_bucket(lab, &files, what);
    assert_eq!(mount.status()["conflicts"], serde_json::json!([]), "{what}");
    // But for the lock of the dead process, which the next writer takes over.
    let objects = lab.data_keys().into_iter().filter(|key| key != ".datastore.lock").count();
    assert_eq!(objects, files.len(), "{what}: {:?}", lab.server().keys());
    assert_eq!(mount.unmount(), 0, "{what}");
    check_truth(&machine.cache_root().join("cache"), &format!("{what}, unmounted"));
    check_no_leak(&machine.cache_root(), what);
}

/// All points that the program has, by its sources.
fn points_in_sources() -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if !path.ends_with("failpoint.rs") {
            let text = fs::read_to_string(path).unwrap();
            let calls = text.split("fail_point!(\"").skip(1);
            found.extend(calls.map(|rest| rest.split('"').next().unwrap().to_owned()));
        }
    }
    found.sort();
    found
}

/// How often an undisturbed run comes to each point.
fn recorded() -> BTreeMap<String, usize> {
    let lab = Lab::s3();
    let machine = lab.machine();
    let files = prepared(&lab, &machine);
    let record = tempfile::NamedTempFile::new().unwrap();
    let played = play(&machine, &format!("record={}", record.path().display()), files);
    check(&lab, &machine, played, "undisturbed");
    let mut counts = BTreeMap::new();
    for point in fs::read_to_string(record.path()).unwrap().lines() {
        *counts.entry(point.to_owned()).or_default() += 1;
    }
    counts
}

/// The first, the last, and some between.
fn chosen(count: usize, at_most: usize) -> Vec<usize> {
    if count <= at_most {
        return (1..=count).collect();
    }
    let mut chosen: Vec<usize> = (0..at_most).map(|i| 1 + i * (count - 1) / (at_most - 1)).collect();
    chosen.dedup();
    chosen
}

#[test]
fn death_at_any_step_loses_nothing() {
    let counts = recorded();
    assert_eq!(counts.keys().cloned().collect::<Vec<_>>(), points_in_sources(), "the scenario comes to every point");
    // More kills per point: SWAMP_TEST_KILLS=… cargo test --features failpoints --test crash_points
    let at_most = std::env::var("SWAMP_TEST_KILLS").map_or(2, |text| text.parse().unwrap());
    let kills: Vec<(&str, usize)> = counts
        .iter()
        .flat_map(|(point, count)| chosen(*count, at_most).into_iter().map(|n| (point.as_str(), n)))
        .collect();
    let (next, died) = (AtomicUsize::new(0), Mutex::new(BTreeMap::<&str, usize>::new()));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some((point, n)) = kills.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let what = format!("killed at {point}, time {n} of {}", counts[*point]);
                    let lab = Lab::s3();
                    let machine = lab.machine();
                    let files = prepared(&lab, &machine);
                    let (played, killed) = {
                        let played = play(&machine, &format!("{point}=kill:{n}"), files);
                        (played, !machine.cache_root().join("lock").metadata().is_ok_and(|meta| meta.len() == 0))
                    };
                    check(&lab, &machine, played, &what);
                    // Threads come to some points more or less often: at the first time nothing may vary.
                    assert!(killed || *n > 1, "{what}: it did not die");
                    *died.lock().unwrap().entry(point).or_default() += usize::from(killed);
                }
            });
        }
    });
    let died = died.into_inner().unwrap();
    eprintln!("killed {} times at {} points", died.values().sum::<usize>(), died.len());
    assert_eq!(died.len(), counts.len(), "every point killed once: {died:?}");
}

#[test]
fn a_fail_point_that_cannot_be_understood_is_refused() {
    let lab = Lab::dir();
    let machine = lab.machine();
    for order in ["nonsense", "write.before=explode", "write.before=kill:x"] {
        let status = machine.try_mount(OPTIONS, &[("SWAMP_FAILPOINT", order)]).err();
        // Only a point that is reached looks at the order.
        let status = status.unwrap_or_else(|| eventually("the end", || None));
        assert_eq!(status.code(), Some(2), "{order}");
    }
}
