//! A machine: the engine of a mount, driven by path in this process, without a kernel or through a mount of it. Thousands of
//! cases take minutes, and a crash is the end of its runtime: every task stops where it waits, and only what is on disk stays.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use swamp_mount::cache::rows::Kind;
use swamp_mount::datastore::Datastore;
use swamp_mount::store::ObjectStore;
use swamp_mount::sync::{Engine, EngineOptions};
use swamp_mount::tree::{Ino, ROOT};
use swamp_mount::volume::{Handle, OpenOutcome, OpenRequest, PushSelection, RenameMode, Volume, VolumeError};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::model::Files;
use super::mounted::Mounted;

/// Why something did not work, in words.
pub type Outcome<T> = Result<T, String>;

pub fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// See the module.
pub struct Host {
    name: String,
    home: TempDir,
    store: Arc<dyn ObjectStore>,
    running: Option<(Runtime, Arc<Engine>)>,
    /// Whether it gets a mount when it starts.
    mounts: bool,
    mounted: Option<Mounted>,
}

impl Host {
    /// A machine with an empty cache directory, not started.
    pub fn new(name: &str, store: Arc<dyn ObjectStore>) -> Self {
        // In memory where that is possible: what is proved here is not the disk.
        let home = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        Self { name: name.to_owned(), home, store, running: None, mounts: false, mounted: None }
    }

    /// The same with a kernel mount, through which its files are touched.
    pub fn with_mount(name: &str, store: Arc<dyn ObjectStore>) -> Self {
        let mut host = Self::new(name, store);
        host.mounts = true;
        host
    }

    fn options(&self) -> EngineOptions {
        EngineOptions {
            cache_root: self.home.path().to_owned(),
            read_only: false,
            refresh: Duration::from_secs(3600),
            flush_after: Duration::from_secs(3600),
            flush_max_age: Duration::from_secs(3600),
            unsafe_no_conditional_writes: false,
            fsync_waits_for_bucket: false,
            upload_concurrency: 8,
            download_concurrency: 8,
            uid: 0,
            gid: 0,
            umask: 0o022,
            key_prefix_len: 0,
            cache_size: None,
            host: self.name.clone(),
            incarnation: Default::default(),
        }
    }

    /// Starts on what is in the cache directory.
    pub fn start(&mut self) -> Outcome<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let engine =
            runtime.block_on(Engine::start(self.options(), Datastore::new(self.store.clone()))).map_err(words)?;
        let (runtime, engine) = self.running.insert((runtime, engine));
        self.mounted = if self.mounts { Some(Mounted::new(engine, runtime)?) } else { None };
        Ok(())
    }

    /// Its way to the bucket.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.store)
    }

    /// `kill -9`.
    pub fn crash(&mut self) {
        if let Some((runtime, engine)) = self.running.take() {
            // Tasks first, or one of them might go on while the rest is taken apart.
            runtime.shutdown_timeout(Duration::from_secs(10));
            if let Some(mounted) = self.mounted.take() {
                mounted.end();
            }
            assert_eq!(Arc::strong_count(&engine), 1, "something of the dead process goes on");
        }
    }

    /// A clean end without a push.
    pub fn close(&mut self) {
        if let Some((runtime, engine)) = &self.running {
            runtime.block_on(engine.close());
        }
        self.crash();
    }

    /// Its directory `cache/`.
    pub fn cache(&self) -> std::path::PathBuf {
        self.home.path().join("cache")
    }

    fn parts(&self) -> Outcome<(&Runtime, &Arc<Engine>, &Arc<Volume>)> {
        let (runtime, engine) = self.running.as_ref().ok_or("not started")?;
        Ok((runtime, engine, engine.volume()))
    }

    /// Its names and contents, for what happens in the middle of a request.
    pub fn volume(&self) -> Arc<Volume> {
        Arc::clone(self.parts().expect("started").2)
    }

    /// What waits for the next push.
    pub fn pending(&self) -> Vec<String> {
        let plan = self.volume().plan_push(PushSelection::Everything);
        plan.rows.into_iter().map(|row| row.path.to_string()).collect()
    }

    /// `swamp-mount flush`.
    pub fn flush(&self) -> Outcome<()> {
        let (runtime, engine, _) = self.parts()?;
        runtime.block_on(engine.flush()).map_err(words)
    }

    /// A flush that ends when `until` does: whether it came to its own end.
    pub fn flush_until(&self, until: impl Future<Output = ()>) -> Outcome<Option<Outcome<()>>> {
        let (runtime, engine, _) = self.parts()?;
        Ok(runtime.block_on(async {
            tokio::select! {
                biased;
                flushed = engine.flush() => Some(flushed.map_err(words)),
                () = until => None,
            }
        }))
    }

    /// One look at the bucket.
    pub fn refresh(&self) -> Outcome<()> {
        let (runtime, engine, _) = self.parts()?;
        runtime.block_on(engine.refresh()).map_err(words)
    }

    /// Conflicts that `status` tells of.
    pub fn conflicts(&self) -> Vec<String> {
        self.parts().map(|(_, engine, _)| engine.status().conflicts).unwrap_or_default()
    }

    fn find(&self, path: &str) -> Outcome<Ino> {
        let (_, _, volume) = self.parts()?;
        let mut at = ROOT;
        for name in path.split('/') {
            at = volume.lookup(at, name).map_err(words)?.ino;
            // The kernel would forget it some time; nothing here looks at the count.
        }
        Ok(at)
    }

    /// The directory of a path, made where it is missing, and the last name.
    fn place<'a>(&self, path: &'a str) -> Outcome<(Ino, &'a str)> {
        let (_, _, volume) = self.parts()?;
        let (dirs, name) = path.rsplit_once('/').map_or((None, path), |(dirs, name)| (Some(dirs), name));
        let mut at = ROOT;
        for dir in dirs.into_iter().flat_map(|dirs| dirs.split('/')) {
            at = match volume.lookup(at, dir) {
                Err(VolumeError::NotFound) => volume.mkdir(at, dir, 0o755, 0, 0).map_err(words)?.ino,
                found => found.map_err(words)?.ino,
            };
        }
        Ok((at, name))
    }

    fn open(&self, ino: Ino, request: OpenRequest) -> Outcome<Handle> {
        let (runtime, engine, volume) = self.parts()?;
        for _ in 0..2 {
            match volume.open(ino, request).map_err(words)? {
                OpenOutcome::Ready(handle) => return Ok(handle),
                OpenOutcome::Fetch(live) => runtime.block_on(engine.ensure_all(&live)).map_err(words)?,
            }
        }
        Err("a content that was fetched is not here".to_owned())
    }

    /// Writes at an offset through a handle of its own, as `open`, `pwrite`, `close` would.
    fn write_at(&self, handle: &Handle, bytes: &[u8], at: u64) -> Outcome<()> {
        let (_, _, volume) = self.parts()?;
        let written = handle.live.modify(|file| file.write_all_at(bytes, at)).map_err(words);
        volume.written(handle, at + bytes.len() as u64);
        volume.release(handle);
        written
    }

    /// Replaces the content of a file, or makes it.
    pub fn write(&self, path: &str, bytes: &[u8]) -> Outcome<()> {
        if let Some(mounted) = &self.mounted {
            return mounted.write(path, bytes);
        }
        let (parent, name) = self.place(path)?;
        let (_, _, volume) = self.parts()?;
        let handle = match volume.lookup(parent, name) {
            Ok(stat) => self.open(stat.ino, OpenRequest { writable: true, truncate: true })?,
            Err(VolumeError::NotFound) => volume.create(parent, name, 0o644, 0, 0, true).map_err(words)?.1,
            Err(error) => return Err(words(error)),
        };
        self.write_at(&handle, bytes, 0)
    }

    /// Adds to the end of a file, which is fetched first.
    pub fn append(&self, path: &str, bytes: &[u8]) -> Outcome<()> {
        if let Some(mounted) = &self.mounted {
            return mounted.append(path, bytes);
        }
        let handle = self.open(self.find(path)?, OpenRequest { writable: true, truncate: false })?;
        let size = handle.live.stat().map_err(words)?.0;
        self.write_at(&handle, bytes, size)
    }

    /// Cuts a file, or makes it longer.
    pub fn truncate(&self, path: &str, size: u64) -> Outcome<()> {
        if let Some(mounted) = &self.mounted {
            return mounted.truncate(path, size);
        }
        let ino = self.find(path)?;
        let (runtime, engine, volume) = self.parts()?;
        for _ in 0..2 {
            match volume.truncate(ino, size).map_err(words)? {
                None => return Ok(()),
                Some(live) => runtime.block_on(engine.ensure_all(&live)).map_err(words)?,
            }
        }
        Err("a content that was fetched is not here".to_owned())
    }

    pub fn remove(&self, path: &str) -> Outcome<()> {
        if let Some(mounted) = &self.mounted {
            return mounted.remove(path);
        }
        let (parent, name) = self.place(path)?;
        self.parts()?.2.unlink(parent, name).map_err(words)
    }

    pub fn rename(&self, from: &str, to: &str, mode: RenameMode) -> Outcome<()> {
        if let Some(mounted) = &self.mounted {
            return mounted.rename(from, to, mode);
        }
        let ((parent, name), (new_parent, new_name)) = (self.place(from)?, self.place(to)?);
        self.parts()?.2.rename(parent, name, new_parent, new_name, mode).map(drop).map_err(words)
    }

    /// Reads a whole file. What the kernel kept of it goes as soon as it has heard of a change.
    pub fn read(&self, path: &str) -> Outcome<Vec<u8>> {
        let Some(mounted) = &self.mounted else { return self.read_here(path) };
        let mut seen = None;
        let same = within_patience(|| {
            let (by_call, here) = (mounted.read(path), self.read_here(path));
            let same = by_call.is_ok() == here.is_ok() && by_call.as_ref().ok() == here.as_ref().ok();
            seen = Some((by_call, here));
            same
        });
        let (by_call, here) = seen.expect("tried");
        if same { here } else { Err(format!("the mount reads {by_call:?}, the engine {here:?}")) }
    }

    fn read_here(&self, path: &str) -> Outcome<Vec<u8>> {
        let (runtime, engine, volume) = self.parts()?;
        let handle = self.open(self.find(path)?, OpenRequest::default())?;
        let read = runtime.block_on(engine.ensure_all(&handle.live)).map_err(words).and_then(|()| {
            let mut bytes = vec![0; usize::try_from(handle.live.stat().map_err(words)?.0).map_err(words)?];
            handle.live.file.read_exact_at(&mut bytes, 0).map_err(words)?;
            Ok(bytes)
        });
        volume.release(&handle);
        read
    }

    /// Every name of a file. What the kernel kept of a listing goes as soon as it has heard of a change.
    pub fn names(&self) -> Outcome<Vec<String>> {
        let here = self.names_here()?;
        if let Some(mounted) = &self.mounted
            && !within_patience(|| mounted.names().is_ok_and(|listed| listed == here))
        {
            return Err(format!("the mount lists {:?}, the engine {here:?}", mounted.names()));
        }
        Ok(here)
    }

    fn names_here(&self) -> Outcome<Vec<String>> {
        let (_, _, volume) = self.parts()?;
        let (mut found, mut todo) = (Vec::new(), vec![(String::new(), ROOT)]);
        while let Some((prefix, dir)) = todo.pop() {
            for entry in volume.list(dir).map_err(words)?.entries {
                let path = format!("{prefix}{}", entry.name);
                match entry.kind {
                    Kind::Dir => todo.push((format!("{path}/"), entry.ino)),
                    _ => found.push(path),
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Every file, read.
    pub fn files(&self) -> Outcome<Files> {
        let read = |name: String| self.read(&name).map_err(|e| format!("{name}: {e}")).map(|bytes| (name, bytes));
        self.names()?.into_iter().map(read).collect::<Outcome<BTreeMap<_, _>>>()
    }
}

/// Whether it comes true in a few seconds.
fn within_patience(mut condition: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    while !condition() {
        if began.elapsed() > Duration::from_secs(5) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some((runtime, _)) = self.running.take() {
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
    }
}
