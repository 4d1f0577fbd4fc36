//! Promise: whatever is done, and whenever the daemon is killed, a mount shows what a plain model shows, and so does the
//! bucket after the next flush.

mod support;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use support::model::{Files, check_bucket, check_mount, seeded, start_flush};
use support::mount::{Lab, Mount};

/// A change of random kind on the mount and the model. Names are few, so that changes meet each other.
fn random_change(random: &mut fastrand::Rng, mount: &Mount<'_>, files: &mut Files) {
    let name = |random: &mut fastrand::Rng| {
        let dir = ["", "dir/", "dir/sub/", "e/"][random.usize(..4)];
        format!("{dir}n{}", random.usize(..4))
    };
    let existing =
        |random: &mut fastrand::Rng, files: &Files| files.keys().nth(random.usize(..files.len().max(1))).cloned();
    let length = random.usize(..3000);
    let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
    let (kind, at) = (random.usize(..8), random.usize(..4000));
    let (new, old) = (name(random), existing(random, files));
    match (kind, old) {
        (0 | 1, _) => {
            mount.write(&new, &bytes);
            files.insert(new, bytes);
        }
        (2, Some(old)) => {
            let file = OpenOptions::new().write(true).open(mount.path(&old)).unwrap();
            file.write_all_at(&bytes, at as u64).unwrap();
            if !bytes.is_empty() {
                let content = files.get_mut(&old).unwrap();
                content.resize(content.len().max(at + bytes.len()), 0);
                content[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
        (3, Some(old)) => {
            OpenOptions::new().write(true).open(mount.path(&old)).unwrap().set_len(at as u64).unwrap();
            files.get_mut(&old).unwrap().resize(at, 0);
        }
        (4, Some(old)) => {
            fs::remove_file(mount.path(&old)).unwrap();
            files.remove(&old);
        }
        (5, Some(old)) => {
            fs::create_dir_all(mount.path(&new).parent().unwrap()).unwrap();
            fs::rename(mount.path(&old), mount.path(&new)).unwrap();
            let content = files.remove(&old).unwrap();
            files.insert(new, content);
        }
        (6, Some(old)) if files.contains_key(&new) => {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            renameat_with(CWD, mount.path(&old), CWD, mount.path(&new), RenameFlags::EXCHANGE).unwrap();
            let (a, b) = (files[&old].clone(), files[&new].clone());
            files.insert(old, b);
            files.insert(new, a);
        }
        (7, _) if mount.path("dir").exists() && !mount.path("moved").exists() => {
            fs::rename(mount.path("dir"), mount.path("moved")).unwrap();
            let moved: Vec<String> = files.keys().filter(|n| n.starts_with("dir/")).cloned().collect();
            for name in moved {
                let content = files.remove(&name).unwrap();
                files.insert(name.replacen("dir", "moved", 1), content);
            }
        }
        _ => {}
    }
}

#[test]
fn a_mount_that_is_killed_again_and_again_agrees_with_a_plain_model() {
    // Another seed: SWAMP_TEST_SEED=… cargo test --test crash_random
    let seed = std::env::var("SWAMP_TEST_SEED").map_or(20_260_428, |text| text.parse().unwrap());
    let mut random = fastrand::Rng::with_seed(seed);
    let lab = Lab::s3();
    let mut files = seeded(&lab);
    let machine = lab.machine();
    let mut operations = 0;
    for round in 0..20u32 {
        // Flushes in the background run into the changes and into the kill. The dead one's lock is stale at once.
        lab.server().set_clock_offset(i64::from(round) * 40);
        let mount = machine.mount_with(&["--refresh", "1", "--flush-after", "1", "--flush-max-age", "1"]);
        check_mount(&mount, &files, &format!("round {round}"));
        let mut flush = random.bool().then(|| start_flush(&machine));
        for _ in 0..random.usize(1..60) {
            random_change(&mut random, &mount, &mut files);
            operations += 1;
            if random.usize(..12) == 0 {
                std::thread::sleep(std::time::Duration::from_millis(random.u64(..80)));
            }
        }
        mount.kill();
        if let Some(flush) = &mut flush {
            flush.wait().unwrap();
        }
    }
    lab.server().set_clock_offset(20 * 40);
    let mount = machine.mount();
    check_mount(&mount, &files, "in the end");
    mount.flushed();
    check_mount(&mount, &files, "flushed");
    check_bucket(&lab, &files, "in the end");
    assert_eq!(mount.status()["conflicts"], serde_json::json!([]));
    assert_eq!(lab.data_keys().len(), files.len(), "{:?}", lab.server().keys());
    assert_eq!(mount.unmount(), 0);
    let elsewhere = lab.machine();
    check_mount(&elsewhere.mount(), &files, "elsewhere");
    println!("soak: operations={operations} crashes=20 losses=0");
}
