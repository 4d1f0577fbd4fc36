//! The command line as a user meets it, as far as no mount is needed: usage, sources, exit codes, the lock on a cache root,
//! and what `status` finds. Every command runs the real binary with a state directory of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use swamp_mount::config::{CacheConfig, Environment, Invocation, Source, StoreConfig};
use swamp_mount::mount::instance::Instance;
use swamp_mount::mount::registry::Registration;
use swamp_mount::sync::status::Pending;
use tempfile::TempDir;

struct Home {
    dir: TempDir,
}

impl Home {
    fn new() -> Self {
        let home = Self { dir: tempfile::tempdir().expect("a directory") };
        for name in ["bucket", "mnt", "state"] {
            std::fs::create_dir(home.path(name)).expect("made");
        }
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().expect("there").join(name)
    }

    fn source(&self) -> String {
        format!("file://{}", self.path("bucket").display())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_swamp-mount"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("XDG_STATE_HOME", self.path("state")).current_dir(self.dir.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().expect("starts")
    }

    fn store(&self) -> StoreConfig {
        StoreConfig::new(Source::parse(&self.source(), None).expect("a source"))
    }

    fn cache(&self, given: Option<&Path>) -> CacheConfig {
        let state = self.path("state");
        let environment = Environment::of(1, [("XDG_STATE_HOME", state.to_str().expect("UTF-8"))]);
        CacheConfig::resolve(&self.store(), given, Invocation::User, &environment).expect("a cache root")
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn usage_errors_exit_with_2_and_say_what_is_wrong() {
    let home = Home::new();
    let source = home.source();
    for (arguments, words) in [
        (&[][..], "SOURCE"),
        (&["my-bucket"], "MOUNTPOINT"),
        (&["my-bucket", "mnt", "more"], "more"),
        (&["--nonsense"], "--nonsense"),
        (&["az://bucket", "mnt"], "gs://BUCKET[/PREFIX], file:///DIR"),
        (&["https://bucket", "mnt"], "file:///DIR"),
        (&["file://relative/dir", "mnt"], "three slashes"),
        (&["/srv/data", "mnt"], "file:///srv/data"),
        (&["My_Bucket", "mnt"], "upper-case"),
        (&["gs://my-google-bucket", "mnt"], "reserved"),
        (&["s3://b", "mnt"], "fewer than 3"),
        (&["s3://bucket/a", "mnt", "--prefix", "b"], "give it once"),
        (&["my-bucket", "mnt", "--refresh", "often"], "--refresh"),
        (&["my-bucket", "mnt", "--refresh", "0"], "at least 1 second"),
        (&["my-bucket", "mnt", "--request-timeout", "0.5"], "between 1 and 600"),
        (&["my-bucket", "mnt", "--request-timeout", "601"], "between 1 and 600"),
        (&["my-bucket", "mnt", "--umask", "999"], "octal"),
        (&["my-bucket", "mnt", "--sync", "always"], "--sync"),
        (&["my-bucket", "mnt", "--upload-concurrency", "0"], "between 1 and 1000"),
        (&["my-bucket", "mnt", "--endpoint-url", "localhost:9000"], "http://"),
        (&["my-bucket", "mnt", "-o", "ro,frobnicate"], "frobnicate"),
        (&["my-bucket", "mnt", "-o", "uid=nobody"], "--uid"),
        (&["flush"], "MOUNTPOINT|SOURCE"),
        (&["flush", "az://bucket"], "file:///DIR"),
        (&["unmount"], "MOUNTPOINT"),
        (&["unmount", "mnt", "--timeout=-1"], "--timeout"),
        (&["pull", &source], "CACHE_DIR"),
        (&["verify"], "SOURCE"),
        (&["lock", "steal", &source], "steal"),
    ] {
        let output = home.run(arguments);
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains(words), "{arguments:?}: {error}");
    }
}

#[test]
fn help_and_version_exit_with_0() {
    let home = Home::new();
    for arguments in [&["--help"][..], &["--version"], &["status", "--help"], &["lock", "release", "--help"]] {
        let output = home.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(!output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_mount_that_cannot_be_made_exits_with_1_says_why_and_leaves_nothing() {
    let home = Home::new();
    let source = home.source();
    std::fs::create_dir(home.path("full")).expect("made");
    std::fs::write(home.path("full/letter"), "").expect("made");
    std::os::unix::fs::symlink("state", home.path("link")).expect("made");
    let bucket = home.path("bucket/inside");
    std::fs::create_dir(&bucket).expect("made");
    for (arguments, words) in [
        (&[&*source, "missing"][..], "mkdir"),
        (&[&*source, "full/letter"], "not a directory"),
        (&[&*source, "full"], "not empty"),
        (&[&*source, "bucket/inside"], "must lie apart"),
        (&[&*source, "mnt", "--cache-dir", "mnt/cache"], "must lie apart"),
        (&[&*source, "mnt", "--cache-dir", "bucket/cache"], "must lie apart"),
        (&[&*source, "mnt", "--foreground", "--cache-dir", "full"], "which is not ours"),
        (&[&*source, "mnt", "--cache-dir", "link"], "symbolic link"),
    ] {
        let output = home.run(arguments);
        let error = stderr(&output);
        // Where FUSE itself is missing, that is said first or instead; it is a failure too.
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
        assert!(error.contains(words) || error.contains("fuse3"), "{arguments:?}: {error}");
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
    assert!(!mounts.contains(&*home.path("mnt").to_string_lossy()), "{mounts}");
}

#[test]
fn a_second_process_on_a_cache_root_is_told_who_has_it() {
    let home = Home::new();
    let root = home.path("cache-root");
    let cache = home.cache(Some(&root));
    let held = Instance::acquire(&cache, &home.source(), Some(Path::new("/some/where"))).expect("free");
    let source = home.source();
    let cache_dir = root.to_string_lossy().into_owned();
    std::fs::create_dir(root.join("cache")).expect("made");
    let inner = root.join("cache").to_string_lossy().into_owned();
    for arguments in [
        &["flush", &*source, "--cache-dir", &*cache_dir][..],
        &["pull", &*source, &*inner],
        &["push", &*source, &*inner],
    ] {
        let output = home.run(arguments);
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
        for words in [&*std::process::id().to_string(), "/some/where"] {
            assert!(error.contains(words), "{arguments:?}: {words:?} is missing: {error}");
        }
    }
    drop(held);
    let other = format!("file://{}", home.path("mnt").display());
    let output = home.run(&["flush", &other, "--cache-dir", &cache_dir]);
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains(&format!("holds the state of {source}, not of {other}")), "{error}");
}

#[test]
fn the_default_cache_root_of_a_source_is_always_the_same() {
    let home = Home::new();
    let environment = |endpoint: &str| {
        let state = home.path("state");
        let variables = [("XDG_STATE_HOME", state.to_str().expect("UTF-8")), ("AWS_ENDPOINT_URL", endpoint)];
        Environment::of(1, variables)
    };
    let root = |source: &str, prefix: Option<&str>, endpoint: Option<&str>, environment: &Environment| {
        let store = StoreConfig {
            source: Source::parse(source, prefix).expect("a source"),
            endpoint_url: endpoint.map(str::to_owned),
            ..home.store()
        };
        CacheConfig::resolve(&store, None, Invocation::User, environment).expect("a cache root").root
    };
    let none = environment("");
    let base = root("my-bucket", None, None, &none);
    assert!(base.starts_with(home.path("state/swamp-mount")), "{base:?}");
    assert!(base.file_name().expect("a name").to_string_lossy().starts_with("my-bucket-"), "{base:?}");
    assert_eq!(base, root("s3://my-bucket/", None, None, &none));
    let prefixed = root("s3://my-bucket/a/b", None, None, &none);
    assert_eq!(prefixed, root("my-bucket", Some("/a/b/"), None, &none));
    let elsewhere = root("my-bucket", None, Some("http://Host:9000/"), &none);
    assert_eq!(elsewhere, root("my-bucket", None, None, &environment("http://host:9000")));
    let link = home.path("link-to-bucket");
    std::os::unix::fs::symlink(home.path("bucket"), &link).expect("made");
    let dir = root(&home.source(), None, None, &none);
    assert_eq!(dir, root(&format!("file://{}", link.display()), None, None, &none));
    assert_eq!(dir, root(&home.source(), None, None, &environment("http://host:9000")));
    let roots = [&base, &prefixed, &elsewhere, &dir];
    for (at, one) in roots.iter().enumerate() {
        assert!(roots[at + 1..].iter().all(|other| one != other), "{roots:?}");
    }
}

#[test]
fn status_lists_what_ended_mounts_left_and_nothing_else() {
    let home = Home::new();
    let output = home.run(&["status"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "no mounts\n"));
    let cache = home.cache(None);
    let instance = Instance::acquire(&cache, &home.source(), None).expect("free");
    let registration = Registration::new(instance.root(), &cache, &home.store(), Some(Path::new("/some/where")));
    drop(instance);
    registration.ended(Pending { files: 2, bytes: 2048, ..Pending::default() });

    let text = stdout(&home.run(&["status"]));
    for words in [&*home.source(), "not mounted, was at /some/where", "2 files (2.00 KiB)", "swamp-mount flush file://"]
    {
        assert!(text.contains(words), "{words:?} is missing: {text}");
    }
    let report: serde_json::Value = serde_json::from_slice(&home.run(&["status", "--json"]).stdout).expect("JSON");
    assert_eq!(report["mounts"], serde_json::json!([]));
    assert_eq!(report["leftovers"][0]["pending"]["files"], 2);

    std::fs::remove_dir_all(&cache.root).expect("removed");
    assert_eq!(stdout(&home.run(&["status"])), "no mounts\n");
}

#[test]
fn commands_on_a_mountpoint_without_a_mount_fail_with_advice() {
    let home = Home::new();
    for arguments in [&["unmount", "mnt"][..], &["flush", "./mnt"], &["status", "mnt"], &["status", "mnt", "--json"]] {
        let output = home.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(stderr(&output).contains("swamp-mount status"), "{arguments:?}: {}", stderr(&output));
    }
    let output = home.run(&["flush", &home.source()]);
    assert_eq!(output.status.code(), Some(0), "nothing was left: {}", stderr(&output));
}

#[test]
fn verify_and_lock_status_work_on_an_empty_directory_and_name_a_missing_one() {
    let home = Home::new();
    let output = home.run(&["verify", &home.source()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for words in ["reachable    yes", "latency", "entries      0", "conditions"] {
        assert!(stdout(&output).contains(words), "{words:?} is missing: {}", stdout(&output));
    }
    let output = home.run(&["lock", "status", &home.source()]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "the lock is free\n"));
    let missing = format!("{}-missing", home.source());
    for arguments in [&["verify", &*missing][..], &["lock", "status", &missing]] {
        let output = home.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(stderr(&output).contains("-missing"), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_held_lock_is_released_by_force_alone() {
    let home = Home::new();
    let body = r#"{"holder":"me@host","hostname":"host","pid":5,"acquiredAt":"2026-01-01T00:00:00.000Z","ttlMs":30000,"nonce":"n-1"}"#;
    let lock = home.path("bucket/.datastore.lock");
    std::fs::write(&lock, body).expect("written");
    let source = home.source();
    let output = home.run(&["lock", "status", &source]);
    assert!(stdout(&output).contains("me@host") && stdout(&output).contains("n-1"), "{}", stdout(&output));
    let output = home.run(&["lock", "release", &source]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--force") && lock.exists(), "{}", stderr(&output));
    let output = home.run(&["lock", "release", &source, "--force", "--nonce", "other"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(lock.exists(), "{}", stderr(&output));
    let output = home.run(&["lock", "release", &source, "--force"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!lock.exists());
}

#[test]
fn a_rehearsal_of_mount_does_nothing() {
    use std::os::unix::process::CommandExt;
    let home = Home::new();
    let rehearse = |options: &str| {
        let mut command = home.command();
        command.arg0("mount.fuse.swamp-mount").args([&*home.source(), "mnt", "-f", "-n", "-o", options]);
        command.output().expect("starts")
    };
    let output = rehearse("rw,dev,suid,noauto,_netdev,x-systemd.automount,cache_dir=/nowhere");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output = rehearse("rw,wrong");
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}

#[test]
fn what_is_pushed_from_one_cache_directory_is_pulled_into_another() {
    let home = Home::new();
    let source = home.source();
    std::fs::create_dir_all(home.path("one/data")).expect("made");
    std::fs::write(home.path("one/data/a.txt"), "hello").expect("written");
    let output = home.run(&["push", &source, "one"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).starts_with("pushed 1 files (5 B)"), "{}", stdout(&output));
    let output = home.run(&["pull", &source, "two"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).starts_with("pulled 1 files (5 B)"), "{}", stdout(&output));
    assert_eq!(std::fs::read(home.path("two/data/a.txt")).expect("there"), b"hello");
    assert_eq!(stdout(&home.run(&["pull", &source, "two"])), "up to date\n");
    let output = home.run(&["verify", &source]);
    assert!(stdout(&output).contains("entries      1"), "{}", stdout(&output));
}
