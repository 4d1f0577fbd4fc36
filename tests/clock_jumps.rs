//! Promise: nothing depends on what time it is: the clock of a machine that jumps, back and forth and while it is mounted,
//! loses no write, hides no file and makes no conflict.

mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::mount::{Lab, Mount, eventually};

const OPTIONS: [&str; 6] = ["--refresh", "1", "--flush-after", "3600", "--flush-max-age", "3600"];
const DAY: i64 = 24 * 3600;
/// Seconds off, one after another.
const JUMPS: &[i64] = &[0, -400 * DAY, 3650 * DAY, -3, 30, -16 * 60, 0];
/// Further off, S3 takes no signature.
const SMALL_JUMPS: &[i64] = &[0, -600, 600, -3, 30];

/// Stands before libc: CLOCK_REALTIME is off by the seconds in a file, which may change at any time.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *off;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("SWAMP_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *map = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (map != MAP_FAILED) off = map;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, time);
    if (!failed && off && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += *off;
    return failed;
}
"#;

/// The clock of one machine.
struct Clock {
    dir: tempfile::TempDir,
    off: File,
}

impl Clock {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let off = File::options().create_new(true).read(true).write(true).open(dir.path().join("off")).unwrap();
        let clock = Self { dir, off };
        clock.set(0);
        std::fs::write(clock.path("shim.c"), SHIM).unwrap();
        // Whoever builds this has the compiler, which Rust links with.
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(clock.path("shim.so")).arg(clock.path("shim.c"));
        assert!(compiler.arg("-ldl").status().unwrap().success(), "cc");
        clock
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn set(&self, seconds: i64) {
        self.off.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }

    fn env(&self) -> [(&'static str, String); 2] {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        [("LD_PRELOAD", text(self.path("shim.so"))), ("SWAMP_TEST_CLOCK", text(self.path("off")))]
    }
}

fn time(mount: &Mount<'_>, name: &str) -> String {
    mount.status()[name].as_str().unwrap_or_default().to_owned()
}

fn shows(mount: &Mount<'_>, name: &str, text: &str) {
    eventually(name, || std::fs::read_to_string(mount.path(name)).ok().filter(|found| found == text));
}

fn names(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|name| name.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn a_clock_that_jumps_loses_and_hides_nothing() {
    std::thread::scope(|scope| {
        #[cfg(feature = "gcs")]
        scope.spawn(|| jump(&Lab::gcs(), JUMPS));
        scope.spawn(|| jump(&Lab::dir(), JUMPS));
        scope.spawn(|| jump(&Lab::s3(), SMALL_JUMPS));
    });
}

#[test]
fn a_clock_that_the_store_refuses_is_named_and_what_was_written_waits() {
    // The client learns from answers how far off this machine is, but not before the first of them.
    let (lab, clock) = (Lab::s3(), Clock::new());
    let machine = lab.machine();
    let env = clock.env();
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mount = machine.try_mount(&OPTIONS, &env).unwrap();
    for (number, off) in [3650 * DAY, -400 * DAY, 3650 * DAY, 0].into_iter().enumerate() {
        let name = format!("file-{number}");
        mount.write(&name, "text");
        clock.set(off);
        let flushed = mount.flush();
        let said = String::from_utf8(flushed.stderr).unwrap();
        let named = said.contains("the clock of this machine");
        assert!(flushed.status.success() || named, "{said}");
        assert_eq!(mount.read(&name), "text");
    }
    mount.flushed();
    let pushed: Vec<String> = lab.data_keys();
    assert_eq!(pushed, (0..4).map(|number| format!("file-{number}")).collect::<Vec<_>>());
    assert_eq!(mount.unmount(), 0);
}

fn jump(lab: &Lab, jumps: &[i64]) {
    lab.seed(&[("shared", b"seed"), ("other", b"seed")]);
    let (here, there, clock) = (lab.machine(), lab.machine(), Clock::new());
    let furthest = *jumps.iter().max().expect("some");
    let env = clock.env();
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let steady = there.mount_with(&OPTIONS);
    let mut mount = here.try_mount(&OPTIONS, &env).unwrap();
    let mut expected = vec!["other".to_owned(), "shared".to_owned()];
    for (number, off) in jumps.iter().enumerate() {
        // While it is mounted, and with something that waits to be pushed.
        let name = format!("new-{number}");
        mount.write(&name, "before the jump");
        clock.set(*off);
        let text = format!("written at {off}");
        mount.write("shared", &text);
        mount.flushed();
        assert_eq!(lab.object(&name).as_deref(), Some(&b"before the jump"[..]), "{off}");
        assert_eq!(lab.object("shared").as_deref(), Some(text.as_bytes()), "{off}");
        shows(&steady, "shared", &text);
        shows(&steady, &name, "before the jump");
        // And the other way.
        steady.write("other", &text);
        steady.write(&name, &text);
        steady.flushed();
        shows(&mount, "other", &text);
        shows(&mount, &name, &text);
        expected.push(name);
        if number % 2 == 1 {
            // Over an unmount, and over a crash.
            mount.write("kept", &text);
            if number % 4 == 1 {
                assert_eq!(mount.unmount(), 0);
            } else {
                mount.kill();
            }
            clock.set(-off / 2);
            mount = here.try_mount(&OPTIONS, &env).unwrap();
            assert_eq!(mount.read("kept"), text, "{off}");
            assert_eq!(mount.read("shared"), text, "{off}");
            mount.flushed();
        }
    }
    expected.push("kept".to_owned());
    expected.sort();
    clock.set(furthest);
    mount.write("last", "last");
    mount.flushed();
    assert!(time(&mount, "lastFlush") > time(&steady, "lastRefresh"), "the clock of the test had no effect");
    expected.push("last".to_owned());
    expected.sort();
    for mount in [&mount, &steady] {
        eventually("all files", || (names(&mount.path("")) == expected).then_some(()));
        let status = mount.status();
        assert_eq!(status["conflicts"], serde_json::json!([]), "{status}");
        assert_eq!(status["pending"]["files"], 0, "{status}");
    }
    let listed: BTreeSet<String> = lab.entries().keys().cloned().collect();
    assert_eq!(listed.into_iter().collect::<Vec<_>>(), expected);
    assert_eq!((mount.unmount(), steady.unmount()), (0, 0));
}
