//! Real kernel mounts of the real binary: a lab has a bucket (an S3 server in this process, or a directory), and any number
//! of machines, each with a state directory of its own.
//!
//! Everything that was started is unmounted and reaped when it is dropped, also when the test fails.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use swamp_mount::store::{ObjectStore, RequestPolicy};
use tempfile::TempDir;

use super::bucket::{Bucket, KINDS, kind};
use super::server::Server;

const MONOLITH: &str = ".datastore-index.json";
const META: &str = "_index/_meta.json";
const EMPTY_META: &str = r#"{"version":2,"partitions":[],"commitSeq":0}"#;

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Polls until `check` gives something.
pub fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "timed out waiting for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One bucket, whose index is one object, or, when the environment has `SWAMP_TEST_LAYOUT=shards`, sharded.
pub struct Lab {
    bucket: Bucket,
    sharded: bool,
}

impl Lab {
    /// One with each kind of bucket.
    pub fn each() -> impl Iterator<Item = Self> {
        KINDS.iter().map(|kind| Self::over(Bucket::new(kind)))
    }

    /// One with each kind of server, whose protocol can be made to fail.
    pub fn each_server() -> impl Iterator<Item = Self> {
        Self::each().filter(|lab| lab.bucket.has_server())
    }

    fn over(bucket: Bucket) -> Self {
        let sharded = std::env::var("SWAMP_TEST_LAYOUT").is_ok_and(|layout| layout == "shards");
        if sharded {
            bucket.set(META, EMPTY_META);
        }
        Self { bucket, sharded }
    }

    /// With an S3 server and a layout, whatever the environment has.
    pub fn s3_laid_out(sharded: bool) -> Self {
        let bucket = Bucket::new(kind("s3"));
        if sharded {
            bucket.set(META, EMPTY_META);
        }
        Self { bucket, sharded }
    }

    /// A client of the bucket in this process.
    pub async fn connect(&self, policy: RequestPolicy) -> Arc<dyn ObjectStore> {
        self.bucket.connect("", policy).await
    }

    /// The object of the index that has the entries of files at the root.
    pub fn index_key(&self) -> &'static str {
        if self.sharded { "_index/_root.json" } else { MONOLITH }
    }

    /// The objects of the index.
    fn index_keys(&self) -> Vec<String> {
        let is_index = |key: &String| match self.sharded {
            true => key.starts_with("_index/") && key != META,
            false => key == MONOLITH,
        };
        self.keys().into_iter().filter(is_index).collect()
    }

    /// All keys in order, without those of the index.
    pub fn data_keys(&self) -> Vec<String> {
        let is_data = |key: &String| key != MONOLITH && !key.starts_with("_index/");
        self.keys().into_iter().filter(is_data).collect()
    }

    /// With a server for Google.
    pub fn gcs() -> Self {
        Self::over(Bucket::new(kind("gcs")))
    }

    /// With an S3 server.
    pub fn s3() -> Self {
        Self::over(Bucket::new(kind("s3")))
    }

    /// With a directory.
    pub fn dir() -> Self {
        Self::over(Bucket::new(kind("dir")))
    }

    /// What kind of bucket it has, for messages.
    pub fn kind(&self) -> &'static str {
        self.bucket.kind.name
    }

    /// The server.
    pub fn server(&self) -> &Server {
        self.bucket.server()
    }

    /// The SOURCE to give to the program.
    pub fn source(&self) -> String {
        self.bucket.source()
    }

    /// A new machine that uses the bucket.
    pub fn machine(&self) -> Machine<'_> {
        let home = tempfile::tempdir().expect("a directory");
        for name in ["state", "mnt"] {
            std::fs::create_dir(home.path().join(name)).expect("made");
        }
        Machine { lab: self, home }
    }

    /// The object's bytes.
    pub fn object(&self, key: &str) -> Option<Vec<u8>> {
        self.bucket.bytes(key)
    }

    /// Places an object behind everybody's back.
    pub fn put_object(&self, key: &str, bytes: &[u8]) {
        self.bucket.set(key, bytes);
    }

    /// Removes an object behind everybody's back.
    pub fn remove_object(&self, key: &str) {
        self.bucket.remove(key);
    }

    /// All keys in order.
    pub fn keys(&self) -> Vec<String> {
        self.bucket.keys()
    }

    /// The entries of the index in the bucket.
    pub fn entries(&self) -> serde_json::Map<String, Value> {
        let mut entries = serde_json::Map::new();
        let keys = self.index_keys();
        assert!(self.sharded || !keys.is_empty(), "there is no index");
        for key in keys {
            let index: Value = serde_json::from_slice(&self.object(&key).expect("listed")).expect("JSON");
            entries.extend(index["entries"].as_object().expect("entries").clone());
        }
        entries
    }

    /// Places files with entries, as a reference client would have pushed them.
    pub fn seed(&self, files: &[(&str, &[u8])]) {
        let mut entries = if self.index_keys().is_empty() { serde_json::Map::new() } else { self.entries() };
        for (path, bytes) in files {
            self.put_object(path, bytes);
            entries.insert((*path).to_owned(), entry(path, bytes));
        }
        self.write_entries(entries);
    }

    /// Replaces the entries of the index.
    pub fn write_entries(&self, entries: serde_json::Map<String, Value>) {
        if self.sharded {
            return self.write_shards(entries);
        }
        let index = serde_json::json!({"version": 1, "lastPulled": "2026-01-02T03:04:05.678Z", "entries": entries});
        self.put_object(MONOLITH, index.to_string().as_bytes());
    }

    /// As a push of a client that knows shards, without looking at what is there.
    fn write_shards(&self, entries: serde_json::Map<String, Value>) {
        let mut shards: BTreeMap<String, serde_json::Map<String, Value>> =
            self.index_keys().into_iter().map(|key| (key, serde_json::Map::new())).collect();
        for (path, entry) in entries {
            let key = format!("_index/{}.json", swamp_mount::datastore::partition::ours(&path));
            shards.entry(key).or_default().insert(path, entry);
        }
        let name = |key: &String| key.trim_start_matches("_index/").trim_end_matches(".json").to_owned();
        let partitions: Vec<String> = shards.keys().map(name).collect();
        for (key, entries) in shards {
            let shard = serde_json::json!({"version": 1, "entries": entries});
            self.put_object(&key, shard.to_string().as_bytes());
        }
        let meta = serde_json::json!({"version": 2, "partitions": partitions, "commitSeq": 1});
        self.put_object(META, meta.to_string().as_bytes());
    }
}

/// The entry of a file, with its hash.
pub fn entry(path: &str, bytes: &[u8]) -> Value {
    let digests = swamp_mount::sync::hash::digest_blocking(&swamp_mount::store::Body::Bytes(bytes.to_vec().into()));
    serde_json::json!({
        "key": path, "size": bytes.len(), "lastModified": "2026-01-02T03:04:05.678Z",
        "localMtime": "2026-01-01T00:00:00.123Z", "sha256": digests.expect("in memory").sha256,
    })
}

/// A machine: a state directory, a mountpoint, an environment.
pub struct Machine<'a> {
    lab: &'a Lab,
    home: TempDir,
}

impl Machine<'_> {
    /// The SOURCE that it mounts.
    pub fn source(&self) -> String {
        self.lab.source()
    }

    /// Where it mounts.
    pub fn mountpoint(&self) -> PathBuf {
        self.home.path().canonicalize().expect("there").join("mnt")
    }

    /// The one cache root of this machine.
    pub fn cache_root(&self) -> PathBuf {
        let base = self.home.path().join("state/swamp-mount");
        let mut roots = std::fs::read_dir(base).expect("mounted once").flatten().map(|e| e.path());
        roots.find(|path| path.join("state.db").exists()).expect("a cache root")
    }

    /// The program with this machine's environment.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_swamp-mount"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("XDG_STATE_HOME", self.home.path().join("state")).current_dir(self.home.path());
        command.envs(self.lab.bucket.env());
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().expect("starts")
    }

    /// Mounts, with quick refresh off and no background flush, so that tests decide when either happens.
    pub fn mount(&self) -> Mount<'_> {
        self.mount_with(&["--refresh", "3600", "--flush-after", "3600", "--flush-max-age", "3600"])
    }

    /// Mounts with these options.
    pub fn mount_with(&self, options: &[&str]) -> Mount<'_> {
        let mounted = self.try_mount(options, &[]);
        mounted.unwrap_or_else(|status| panic!("swamp-mount ended with {status}:\n{}", self.log()))
    }

    /// Mounts with these options and these additions to the environment; how the daemon ended, if it did before that.
    pub fn try_mount(&self, options: &[&str], env: &[(&str, &str)]) -> Result<Mount<'_>, ExitStatus> {
        let log = std::fs::File::options().create(true).append(true).open(self.log_path()).expect("a log");
        let mut command = self.command();
        command.args(options).arg("--foreground").arg("-v").arg(self.lab.source()).arg(self.mountpoint());
        command.envs(env.iter().copied()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let path = self.mountpoint();
        let mut mount = Mount { machine: self, child: Some(command.spawn().expect("starts")) };
        let ended = eventually("the mount", || {
            let child = mount.child.as_mut().expect("just started");
            if let Some(status) = child.try_wait().expect("waited") {
                return Some(Some(status));
            }
            // A dead mount from before is not the new one, and mount ids are used again.
            let output = self.run(&["status", path_str(&path), "--json"]);
            let status: Value = serde_json::from_slice(&output.stdout).ok()?;
            let answers = status["pid"] == child.id() && status["phase"] == "mounted";
            answers.then_some(None)
        });
        ended.map_or(Ok(mount), Err)
    }

    fn log_path(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// What the daemons printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        detach(&self.mountpoint());
        self.kill_the_background();
    }
}

impl Machine<'_> {
    /// What a failed test left in the background. A process id in a file may be somebody else's by now.
    fn kill_the_background(&self) {
        let roots = std::fs::read_dir(self.home.path().join("state/swamp-mount")).into_iter().flatten().flatten();
        for lock in roots.map(|root| root.path().join("lock")) {
            let holder: Value =
                std::fs::read(lock).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
            let Some(pid) = holder["pid"].as_i64().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) else {
                continue;
            };
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(&*self.home.path().to_string_lossy()) {
                // Gone meanwhile is as good.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// A mounted datastore.
pub struct Mount<'a> {
    machine: &'a Machine<'a>,
    child: Option<Child>,
}

impl Mount<'_> {
    /// A path below the mountpoint.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.machine.mountpoint().join(relative)
    }

    /// Reads a file through the mount.
    pub fn read(&self, relative: &str) -> String {
        std::fs::read_to_string(self.path(relative))
            .unwrap_or_else(|e| panic!("{relative}: {e}\n{}", self.machine.log()))
    }

    /// Writes a file through the mount, making its directories.
    pub fn write(&self, relative: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(relative);
        std::fs::create_dir_all(path.parent().expect("below the mountpoint")).expect("made");
        std::fs::write(path, bytes).unwrap_or_else(|e| panic!("{relative}: {e}\n{}", self.machine.log()));
    }

    /// Every file below the mountpoint, sorted.
    pub fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        let root = self.path("");
        let mut todo = vec![root.clone()];
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(&dir).expect("listed") {
                let entry = entry.expect("listed");
                if entry.file_type().expect("known").is_dir() {
                    todo.push(entry.path());
                } else {
                    found.push(path_str(entry.path().strip_prefix(&root).expect("below")).to_owned());
                }
            }
        }
        found.sort();
        found
    }

    /// `swamp-mount status --json`.
    pub fn status(&self) -> Value {
        let output = self.machine.run(&["status", path_str(&self.machine.mountpoint()), "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The same; nothing while nobody answers.
    pub fn try_status(&self) -> Option<Value> {
        let output = self.machine.run(&["status", path_str(&self.machine.mountpoint()), "--json"]);
        serde_json::from_slice(&output.stdout).ok()
    }

    /// `swamp-mount flush`.
    pub fn flush(&self) -> Output {
        self.machine.run(&["flush", path_str(&self.machine.mountpoint())])
    }

    /// `swamp-mount flush`, which must succeed.
    pub fn flushed(&self) {
        let output = self.flush();
        assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), self.machine.log());
    }

    /// `swamp-mount unmount`, and the end of the daemon; gives the exit code of the command.
    pub fn unmount(mut self) -> i32 {
        let output = self.machine.run(&["unmount", path_str(&self.machine.mountpoint())]);
        if let Some(child) = &mut self.child {
            eventually("the daemon's end", || child.try_wait().expect("waited"));
        }
        self.child = None;
        output.status.code().expect("not killed")
    }

    /// `kill -9` of the process that does the work; the supervisor stays.
    pub fn crash(&self) {
        let worker = rustix::process::Pid::from_raw(self.worker().cast_signed()).expect("a pid");
        rustix::process::kill_process(worker, rustix::process::Signal::KILL).expect("killed");
    }

    /// The process that does the work.
    pub fn worker(&self) -> u32 {
        self.status()["worker_pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a pid")
    }

    /// Waits until the worker after so many crashes answers.
    pub fn restarted(&self, times: u64) {
        eventually("the next worker", || {
            let status = self.try_status()?;
            (status["restarts"] == times && status["phase"] == "mounted").then_some(())
        });
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("running").id()
    }

    /// Waits for the daemon's end by itself; gives its exit code.
    pub fn wait(mut self) -> Option<i32> {
        let mut child = self.child.take().expect("running");
        eventually("the daemon's end", || child.try_wait().expect("waited")).code()
    }

    /// `kill -9` of the daemon, which takes its worker along. The dead mount stays, as after a crash.
    pub fn kill(mut self) {
        if let Some(mut child) = self.child.take() {
            let workers = children(child.id());
            child.kill().expect("killed");
            child.wait().expect("reaped");
            wait_for_end(&workers);
        }
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let workers = children(child.id());
            detach(&self.machine.mountpoint());
            // Already gone is fine; what matters is that it is gone afterwards.
            let _ = child.kill();
            let _ = child.wait();
            if !std::thread::panicking() {
                wait_for_end(&workers);
            }
            if std::thread::panicking() {
                eprintln!("---- log of the mount ----\n{}", self.machine.log());
            }
        }
    }
}

fn children(pid: u32) -> Vec<String> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().map(str::to_owned).collect()
}

/// The kernel kills a worker with its supervisor, a moment later; nobody may find it at work then.
fn wait_for_end(workers: &[String]) {
    // The first thread may be gone while another one still holds the files, and with them the lock of the cache.
    let at_work = |pid: &String| {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        stat.contains("(swamp-mount)") && (!stat.contains(") Z ") || threads > 1)
    };
    eventually("the worker's end", || (!workers.iter().any(at_work)).then_some(()));
}

fn path_str(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Whether something is mounted at exactly this path.
pub fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

fn detach(path: &Path) {
    while is_mounted(path) {
        if rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).is_err() {
            break;
        }
    }
}
