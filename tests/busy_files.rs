//! Promise: a file that never rests is pushed all the same, and never in conflict with an earlier state of itself.

mod support;

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::mount::{Lab, Mount, eventually};

/// Writes to a file without a pause, of changing length, until `pushed` is true.
fn write_until(mount: &Mount<'_>, size: u64, pushed: impl FnOnce()) {
    let file = std::fs::File::options().create(true).truncate(false).write(true).open(mount.path("busy")).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0u64;
            while !done.load(Ordering::Relaxed) {
                round += 1;
                file.write_all_at(round.to_string().as_bytes(), round * 7919 % size).unwrap();
                if round.is_multiple_of(16) {
                    file.set_len(size + round % 1000).unwrap();
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        pushed();
        done.store(true, Ordering::Relaxed);
    });
}

fn check(lab: &Lab, mount: &Mount<'_>) {
    mount.flushed();
    let status = mount.status();
    assert_eq!(status["conflicts"].as_array().map(Vec::len), Some(0), "{status}");
    assert_eq!(mount.files(), ["busy"]);
    let bytes = std::fs::read(mount.path("busy")).unwrap();
    assert!(lab.object("busy").unwrap() == bytes, "the bucket has what the mount shows");
    assert_eq!(lab.entries()["busy"]["size"], bytes.len());
}

#[test]
fn a_small_file_that_never_rests_reaches_the_bucket_again_and_again() {
    for lab in [Lab::s3(), Lab::dir()] {
        let machine = lab.machine();
        let mount = machine.mount_with(&["--refresh", "1", "--flush-after", "1", "--flush-max-age", "1"]);
        write_until(&mount, 200_000, || {
            let mut last = None;
            for state in ["first", "second", "third"] {
                let now = eventually(&format!("the {state} state in the bucket"), || {
                    let object = lab.object("busy");
                    (object.is_some() && object != last).then_some(object)
                });
                last = now;
            }
        });
        check(&lab, &mount);
        assert_eq!(mount.unmount(), 0);
    }
}

#[test]
fn a_large_file_that_is_written_while_it_is_uploaded_has_no_conflict_with_itself() {
    for lab in [Lab::s3(), Lab::dir()] {
        let machine = lab.machine();
        let mount = machine.mount();
        mount.write("busy", vec![7; 6 << 20]);
        write_until(&mount, 6 << 20, || {
            // What it answers does not matter while the file keeps changing.
            mount.flush();
        });
        check(&lab, &mount);
        assert_eq!(mount.unmount(), 0);
    }
}
