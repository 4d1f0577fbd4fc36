//! Promise: what fsync acknowledged survives a power cut of this machine, contents, names and removals alike; what a flush
//! acknowledged does too; no hole is ever taken for data; the next flush brings everything to the bucket; and `cache/` still
//! tells a reference client the truth.
//!
//! The cache directory lies on an ext4 file system whose power is cut (support/disk.rs) after each step of a scenario.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::disk::Disk;
use support::model::{Files, check_bucket, start_flush};
use support::mount::{Lab, Machine, Mount, eventually};
use support::reference::check_truth;

/// What must be there after a cut, and which names may be either way.
#[derive(Default)]
struct Model {
    now: Files,
    durable: Files,
    /// Written since the last sync of their bytes.
    unsynced: BTreeSet<&'static str>,
    /// Renamed, removed or made since the last sync of anything.
    unsynced_names: BTreeSet<&'static str>,
}

impl Model {
    fn put(&mut self, name: &'static str, bytes: Vec<u8>) {
        self.now.insert(name.to_owned(), bytes);
        self.unsynced.insert(name);
        self.unsynced_names.insert(name);
    }

    fn remove(&mut self, name: &'static str) -> Vec<u8> {
        self.unsynced_names.insert(name);
        self.unsynced.remove(name);
        self.now.remove(name).expect("there")
    }

    fn rename(&mut self, from: &'static str, to: &'static str) {
        let synced = !self.unsynced.contains(from);
        let bytes = self.remove(from);
        self.put(to, bytes);
        if synced {
            self.unsynced.remove(to);
        }
    }

    fn synced(&mut self, name: &'static str) {
        self.unsynced.remove(name);
        self.names_synced();
    }

    fn names_synced(&mut self) {
        for name in std::mem::take(&mut self.unsynced_names) {
            match self.now.get(name) {
                Some(bytes) => self.durable.insert(name.to_owned(), bytes.clone()),
                None => self.durable.remove(name),
            };
        }
    }

    fn flushed(&mut self) {
        self.durable = self.now.clone();
        self.unsynced.clear();
        self.unsynced_names.clear();
    }

    /// Names of which nothing was acknowledged that would survive.
    fn either_way(&self, name: &str) -> bool {
        self.unsynced.contains(name) || self.unsynced_names.contains(name)
    }
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| seed.wrapping_add((i >> 9) as u8) | 1).collect()
}

fn write_synced(mount: &Mount<'_>, name: &str, bytes: &[u8]) {
    let file = File::create(mount.path(name)).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.sync_all().unwrap();
}

/// What is done on the mount, and what it makes of the model.
struct Step {
    what: &'static str,
    act: fn(&Mount<'_>),
    model: fn(&mut Model),
}

const STEPS: &[Step] = &[
    Step {
        what: "a new file, fsynced",
        act: |mount| write_synced(mount, "new", &pattern(3, 700_000)),
        model: |model| {
            model.put("new", pattern(3, 700_000));
            model.synced("new");
        },
    },
    Step {
        what: "a file of the bucket, replaced and fsynced",
        act: |mount| write_synced(mount, "old", &pattern(5, 90_000)),
        model: |model| {
            model.put("old", pattern(5, 90_000));
            model.synced("old");
        },
    },
    Step {
        what: "a file of the bucket, changed in its middle and fdatasynced",
        act: |mount| {
            let file = OpenOptions::new().write(true).open(mount.path("edited")).unwrap();
            file.write_all_at(&pattern(7, 5000), 150_000).unwrap();
            file.sync_data().unwrap();
        },
        model: |model| {
            let mut bytes = model.now["edited"].clone();
            bytes[150_000..155_000].copy_from_slice(&pattern(7, 5000));
            model.put("edited", bytes);
            model.synced("edited");
        },
    },
    Step {
        what: "a file that nobody synced",
        act: |mount| mount.write("loose", pattern(9, 300_000)),
        model: |model| model.put("loose", pattern(9, 300_000)),
    },
    Step {
        what: "names changed, then the directory fsynced",
        act: |mount| {
            fs::rename(mount.path("new"), mount.path("moved")).unwrap();
            fs::remove_file(mount.path("gone")).unwrap();
            fs::rename(mount.path("from"), mount.path("to")).unwrap();
            File::open(mount.path("")).unwrap().sync_all().unwrap();
        },
        model: |model| {
            model.rename("new", "moved");
            model.remove("gone");
            model.rename("from", "to");
            model.names_synced();
        },
    },
    Step {
        what: "a large file fetched and recorded",
        act: |mount| {
            let before = mount.status()["cachedFiles"].as_u64().unwrap();
            assert!(fs::read(mount.path("fetched")).unwrap() == pattern(11, 5 << 20));
            eventually("the record", || (mount.status()["cachedFiles"].as_u64()? > before).then_some(()));
        },
        model: |_| {},
    },
    Step { what: "a flush", act: |mount| mount.flushed(), model: |model| model.flushed() },
    Step {
        what: "more changes after the flush",
        act: |mount| {
            let file = OpenOptions::new().append(true).open(mount.path("moved")).unwrap();
            std::io::Write::write_all(&mut &file, b"appended").unwrap();
            file.sync_all().unwrap();
            fs::rename(mount.path("edited"), mount.path("old")).unwrap();
            write_synced(mount, "last", b"the last");
        },
        model: |model| {
            let bytes = [model.now["moved"].clone(), b"appended".to_vec()].concat();
            model.put("moved", bytes);
            model.synced("moved");
            model.rename("edited", "old");
            model.put("last", b"the last".to_vec());
            model.synced("last");
        },
    },
];

fn prepared(lab: &Lab) -> Model {
    let files: [(&str, Vec<u8>); 5] = [
        ("old", pattern(21, 50_000)),
        ("edited", pattern(22, 400_000)),
        ("gone", pattern(23, 10)),
        ("from", pattern(24, 20_000)),
        ("fetched", pattern(11, 5 << 20)),
    ];
    let borrowed: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, &bytes[..])).collect();
    lab.seed(&borrowed);
    let now: BTreeMap<_, _> = files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
    Model { durable: now.clone(), now, ..Model::default() }
}

fn options(disk: &Disk) -> Vec<String> {
    let cache = disk.path().join("cache-root");
    let mut options: Vec<String> = ["--refresh", "3600", "--flush-after", "3600", "--flush-max-age", "3600"]
        .into_iter()
        .chain(["--cache-dir", cache.to_str().unwrap()])
        .map(str::to_owned)
        .collect();
    // The disk must have room for all of it.
    options.extend(["--cache-size".to_owned(), "64M".to_owned()]);
    options
}

fn mounted<'a>(machine: &'a Machine<'_>, disk: &Disk) -> Mount<'a> {
    let options = options(disk);
    machine.mount_with(&options.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The promise, after the power came back.
fn check(lab: &Lab, machine: &Machine<'_>, disk: &Disk, model: &Model, what: &str) {
    check_truth(&disk.path().join("cache-root/cache"), what);
    // A lock that died with the machine is stale by now.
    lab.server().set_clock_offset(40);
    let mount = mounted(machine, disk);
    let names = mount.files();
    for name in names.iter().filter(|name| !model.either_way(name)) {
        assert!(model.durable.contains_key(name), "{what}: {name} is back");
    }
    for (name, bytes) in model.durable.iter().filter(|(name, _)| !model.either_way(name)) {
        let found = fs::read(mount.path(name)).unwrap_or_else(|error| panic!("{what}: {name}: {error}"));
        assert!(found == *bytes, "{what}: {name} has {} bytes that are not the {}", found.len(), bytes.len());
    }
    let shown: Files = names.iter().map(|name| (name.clone(), fs::read(mount.path(name)).unwrap())).collect();
    mount.flushed();
    check_bucket(lab, &shown, what);
    assert_eq!(mount.status()["conflicts"], serde_json::json!([]), "{what}");
    assert_eq!(mount.unmount(), 0, "{what}");
    check_truth(&disk.path().join("cache-root/cache"), &format!("{what}, unmounted"));
}

/// Plays the first steps, cuts the power, and checks.
fn cut_after(steps: &[Step]) -> Option<()> {
    let disk = Disk::new(96)?;
    let lab = Lab::s3();
    let machine = lab.machine();
    let mut model = prepared(&lab);
    let mount = mounted(&machine, &disk);
    for step in steps {
        (step.act)(&mount);
        (step.model)(&mut model);
    }
    let what = format!("cut after {}", steps.last().map_or("the start", |step| step.what));
    disk.cut();
    mount.kill();
    disk.restore();
    check(&lab, &machine, &disk, &model, &what);
    Some(())
}

#[test]
fn what_was_synced_survives_a_power_cut_after_any_step() {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let count = next.fetch_add(1, Ordering::SeqCst);
                    if count > STEPS.len() || cut_after(&STEPS[..count]).is_none() {
                        break;
                    }
                }
            });
        }
    });
}

#[test]
fn a_power_cut_in_the_middle_of_a_push_loses_nothing() {
    for (operation, key) in [("PutObject", "moved"), ("PutObject", ""), ("DeleteObject", "gone")] {
        let Some(disk) = Disk::new(96) else { return };
        let lab = Lab::s3();
        let machine = lab.machine();
        let mut model = prepared(&lab);
        let mount = mounted(&machine, &disk);
        for step in &STEPS[..5] {
            (step.act)(&mount);
            (step.model)(&mut model);
        }
        // Everything but the loose file was synced, and that one has all its bytes too after this.
        File::open(mount.path("loose")).unwrap().sync_all().unwrap();
        model.synced("loose");
        let key = if key.is_empty() { lab.index_key() } else { key };
        let gate = lab.server().hold(operation, key);
        let mut flush = start_flush(&machine);
        gate.arrived_blocking(1);
        disk.cut();
        mount.kill();
        flush.wait().unwrap();
        gate.open();
        lab.server().clear_faults();
        disk.restore();
        check(&lab, &machine, &disk, &model, &format!("cut in {operation} {key}"));
    }
}

#[test]
fn the_cut_takes_what_nobody_synced() {
    // Or the tests above would prove nothing.
    let Some(disk) = Disk::new(16) else { return };
    fs::write(disk.path().join("synced"), "synced").unwrap();
    File::open(disk.path().join("synced")).unwrap().sync_all().unwrap();
    fs::write(disk.path().join("loose"), "loose").unwrap();
    disk.cut();
    disk.restore();
    assert_eq!(fs::read(disk.path().join("synced")).unwrap(), b"synced");
    assert!(fs::read(disk.path().join("loose")).is_err());
}
