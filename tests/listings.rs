//! Promise: a listing has every name that stays exactly once, and what others changed as soon as the mount knows it, although
//! the kernel answers most listings from its own memory.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use support::mount::{Lab, entry, eventually};

const STABLE: usize = 2500;

fn stable(number: usize) -> String {
    format!("d/stable-{number:05}")
}

fn seeded() -> Lab {
    let lab = Lab::s3();
    let names: Vec<String> = (0..STABLE).map(stable).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
    lab.seed(&files);
    lab
}

/// How often each name is listed.
fn count(names: impl Iterator<Item = std::io::Result<fs::DirEntry>>) -> BTreeMap<String, usize> {
    names.fold(BTreeMap::new(), |mut counts, name| {
        *counts.entry(name.unwrap().file_name().into_string().unwrap()).or_default() += 1;
        counts
    })
}

fn check(counts: &BTreeMap<String, usize>) {
    let stable = counts.keys().filter(|name| name.starts_with("stable-")).count();
    assert_eq!(stable, STABLE);
    assert!(counts.values().all(|times| *times == 1), "listed twice: {counts:?}");
}

fn list(dir: &Path) -> BTreeMap<String, usize> {
    let counts = count(fs::read_dir(dir).unwrap());
    check(&counts);
    counts
}

/// Adds and removes entries as a client elsewhere.
fn change_index(lab: &Lab, change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) {
    let mut entries = lab.entries();
    change(&mut entries);
    lab.write_entries(entries);
}

#[test]
fn every_name_that_stays_is_listed_once_whatever_others_do_meanwhile() {
    let lab = seeded();
    let machine = lab.machine();
    let mount = machine.mount_with(&["--refresh", "1", "--flush-after", "3600", "--flush-max-age", "3600"]);
    let dir = mount.path("d");
    let (over, listings) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    list(&dir);
                    listings.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // One that stops in the middle, and goes on when the directory has changed.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let mut names = fs::read_dir(&dir).unwrap();
                let first: Vec<_> = names.by_ref().take(STABLE / 3).collect();
                std::thread::sleep(std::time::Duration::from_millis(30));
                check(&count(first.into_iter().chain(names)));
            }
        });
        scope.spawn(|| {
            for number in 0.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let name = dir.join(format!("local-{}", number % 7));
                fs::write(&name, "").unwrap();
                assert!(list(&dir).contains_key(name.file_name().unwrap().to_str().unwrap()), "created");
                let other = dir.join("renamed");
                fs::rename(&name, &other).unwrap();
                let names = list(&dir);
                assert!(
                    names.contains_key("renamed") && !names.contains_key(name.file_name().unwrap().to_str().unwrap())
                );
                fs::remove_file(&other).unwrap();
                assert!(!list(&dir).contains_key("renamed"), "removed");
            }
        });
        let shows = |name: &str, there: bool| {
            eventually(name, || (list(&dir).contains_key(name) == there).then_some(()));
        };
        for round in 0..4 {
            let name = format!("remote-{round}");
            change_index(&lab, |entries| drop(entries.insert(format!("d/{name}"), entry(&name, b"far"))));
            shows(&name, true);
            change_index(&lab, |entries| drop(entries.remove(&format!("d/{name}"))));
            shows(&name, false);
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(listings.into_inner() > 10);
}

#[test]
fn a_directory_that_is_kept_open_shows_what_changed_when_it_is_read_again() {
    let lab = seeded();
    let machine = lab.machine();
    let mount = machine.mount_with(&["--refresh", "1"]);
    let mut dir = rustix::fs::Dir::new(fs::File::open(mount.path("d")).unwrap()).unwrap();
    let mut names = move || {
        dir.rewind();
        std::iter::from_fn(|| dir.read()).map(|name| name.unwrap().file_name().to_str().unwrap().to_owned()).collect()
    };
    let before: Vec<String> = names();
    assert_eq!(before.len(), STABLE + 2);
    fs::write(mount.path("d/local"), "").unwrap();
    assert!(names().contains(&"local".to_owned()));
    change_index(&lab, |entries| drop(entries.insert("d/remote".into(), entry("remote", b"far"))));
    eventually("the new file", || names().contains(&"remote".to_owned()).then_some(()));
}

#[test]
fn what_changed_while_the_worker_was_dead_is_listed() {
    let lab = seeded();
    let machine = lab.machine();
    let mount = machine.mount_with(&["--refresh", "1"]);
    list(&mount.path("d"));
    list(&mount.path("d"));
    change_index(&lab, |entries| drop(entries.insert("d/remote".into(), entry("remote", b"far"))));
    mount.crash();
    mount.restarted(1);
    eventually("the new file", || list(&mount.path("d")).contains_key("remote").then_some(()));
}

#[test]
fn whoever_looks_at_attributes_and_whoever_does_not_see_the_same_names() {
    let lab = seeded();
    let machine = lab.machine();
    let mount = machine.mount();
    let run = |command: &str| {
        let output =
            std::process::Command::new("sh").arg("-c").arg(command).current_dir(mount.path("")).output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let found = run("find . -type f | sort");
    assert_eq!(found.lines().count(), STABLE);
    for _ in 0..3 {
        assert_eq!(run("find . -type f | sort"), found);
        assert_eq!(run("ls -l d | grep -c '^-.* 1 .*stable-'").trim(), STABLE.to_string());
        assert_eq!(run("du -a --apparent-size -b d | grep -c '^1[[:space:]]'").trim(), STABLE.to_string());
    }
}
