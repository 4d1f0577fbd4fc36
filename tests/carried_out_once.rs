//! Promise: what was under way when the daemon crashed is carried out once, and whoever waits for it gets its answer.

mod support;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::symlink;

use support::mount::{Lab, Mount};

const OPTIONS: &[&str] = &["--refresh", "3600", "--flush-after", "3600", "--flush-max-age", "3600"];

type Step = (&'static str, fn(&Mount<'_>) -> io::Result<()>, &'static [(&'static str, &'static str)]);

/// One operation each, and what it makes of the files of the bucket.
const STEPS: &[Step] = &[
    (
        "create",
        |m| fs::File::create_new(m.path("dir/new")).map(drop),
        &[("dir/a", "a"), ("dir/b", "b"), ("dir/new", "")],
    ),
    (
        "create, and write to it",
        |m| fs::File::create_new(m.path("dir/new"))?.write_all(b"text"),
        &[("dir/a", "a"), ("dir/b", "b"), ("dir/new", "text")],
    ),
    ("mkdir", |m| fs::create_dir(m.path("dir/sub")), &[("dir/a", "a"), ("dir/b", "b")]),
    ("symlink", |m| symlink("a", m.path("dir/link")), &[("dir/a", "a"), ("dir/b", "b"), ("dir/link", "a")]),
    ("unlink", |m| fs::remove_file(m.path("dir/a")), &[("dir/b", "b")]),
    ("rmdir", |m| fs::remove_dir(m.path("dir/empty")), &[("dir/a", "a"), ("dir/b", "b")]),
    ("rename", |m| fs::rename(m.path("dir/a"), m.path("dir/c")), &[("dir/b", "b"), ("dir/c", "a")]),
    ("rename over", |m| fs::rename(m.path("dir/a"), m.path("dir/b")), &[("dir/b", "a")]),
    ("rename of a directory", |m| fs::rename(m.path("dir"), m.path("moved")), &[("moved/a", "a"), ("moved/b", "b")]),
    (
        "exchange",
        |m| {
            let (from, to) = (m.path("dir/a"), m.path("dir/b"));
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            Ok(rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags)?)
        },
        &[("dir/a", "b"), ("dir/b", "a")],
    ),
    (
        "rename to a free name only",
        |m| {
            let (from, to) = (m.path("dir/a"), m.path("dir/c"));
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            Ok(rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags)?)
        },
        &[("dir/b", "b"), ("dir/c", "a")],
    ),
    (
        "setxattr of a new one only",
        |m| Ok(rustix::fs::setxattr(m.path("dir/a"), "user.new", b"v", rustix::fs::XattrFlags::CREATE)?),
        &[("dir/a", "a"), ("dir/b", "b")],
    ),
    ("removexattr", |m| Ok(rustix::fs::removexattr(m.path("dir/b"), "user.old")?), &[("dir/a", "a"), ("dir/b", "b")]),
    ("truncate", |m| fs::File::create(m.path("dir/a")).map(drop), &[("dir/a", ""), ("dir/b", "b")]),
];

#[test]
fn what_was_under_way_is_carried_out_once() {
    for point in ["rows.before_commit", "rows.after_commit"] {
        for (what, act, expected) in STEPS {
            let what = format!("{what}, killed at {point}");
            let lab = Lab::dir();
            lab.seed(&[("dir/a", b"a"), ("dir/b", b"b")]);
            let machine = lab.machine();
            let trigger = tempfile::NamedTempFile::new().unwrap().into_temp_path();
            let now = trigger.to_path_buf();
            fs::remove_file(&now).unwrap();
            let order = format!("{point}=when:{}", now.display());
            let mount = machine.try_mount(OPTIONS, &[("SWAMP_FAILPOINT", &order)]).unwrap();
            fs::create_dir(mount.path("dir/empty")).unwrap();
            rustix::fs::setxattr(mount.path("dir/b"), "user.old", b"v", rustix::fs::XattrFlags::CREATE).unwrap();
            fs::write(&now, "").unwrap();
            let outcome = act(&mount);
            assert!(!now.exists(), "{what}: it did not die");
            outcome.unwrap_or_else(|error| panic!("{what}: {error}\n{}", machine.log()));
            let shown: Vec<(String, String)> = mount.files().into_iter().map(|n| (n.clone(), mount.read(&n))).collect();
            let shown: Vec<(&str, &str)> = shown.iter().map(|(n, b)| (&**n, &**b)).collect();
            assert_eq!(shown, *expected, "{what}");
            assert_eq!(mount.path("dir/sub").is_dir(), what.starts_with("mkdir"), "{what}");
            assert_eq!(mount.path("dir/empty").is_dir(), !what.contains("directory") && !what.starts_with("rmdir"));
            mount.restarted(1);
            mount.flushed();
            for (name, bytes) in *expected {
                assert_eq!(lab.object(name).as_deref(), Some(bytes.as_bytes()), "{what}: {name}");
            }
            assert_eq!(lab.data_keys().len(), expected.len(), "{what}: {:?}", lab.data_keys());
            assert_eq!(mount.unmount(), 0, "{what}");
        }
    }
}
