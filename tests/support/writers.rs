//! What many writers do at once: people at mounts, other clients that take no lock, and the misfortune of whoever holds it.
//!
//! Every write is a record of its own. What an operation removes is read first, from the very file that it removes it from,
//! so that a record that is nowhere in the end, and that nobody removed knowingly, is lost.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use swamp_mount::datastore::LOCK_KEY;

use super::mount::{Lab, Machine, Mount, entry, eventually};

/// How mounts of many writers are mounted.
pub const OPTIONS: [&str; 6] = ["--refresh", "1", "--flush-after", "1", "--flush-max-age", "2"];
const ENV: [(&str, &str); 2] = [("SWAMP_S3_REQUEST_TIMEOUT_MS", "3000"), ("SWAMP_LOCK_TIMEOUT_MS", "4000")];
/// Longer than a lock lives.
const AGE: i64 = 40;

/// A record: an id, and bytes to fill.
pub fn record(id: &str, filler: usize) -> Vec<u8> {
    let mut bytes = format!("[{id} {filler}]").into_bytes();
    bytes.resize(bytes.len() + filler, b'.');
    bytes
}

/// The ids of a file's records, and where each ends.
pub fn records(bytes: &[u8]) -> Result<Vec<(String, usize)>, String> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let torn = || format!("no record at byte {at} of {}", bytes.len());
        let end = at + bytes[at..].iter().position(|byte| *byte == b']').ok_or_else(torn)?;
        let text = std::str::from_utf8(&bytes[at..end]).ok().and_then(|text| text.strip_prefix('['));
        let (id, filler) = text.and_then(|text| text.split_once(' ')).ok_or_else(torn)?;
        let next = end + 1 + filler.parse::<usize>().map_err(|_| torn())?;
        if next > bytes.len() || bytes[end + 1..next].iter().any(|byte| *byte != b'.') {
            return Err(torn());
        }
        found.push((id.to_owned(), next));
        at = next;
    }
    Ok(found)
}

/// What was acknowledged, and what was removed by somebody who saw it.
#[derive(Default)]
pub struct Ledger {
    pub written: BTreeSet<String>,
    pub removed: BTreeSet<String>,
    pub torn: Vec<String>,
}

/// How a run is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub seed: u64,
    pub mounts: usize,
    pub sharded: bool,
    pub operations: usize,
    /// Locks go stale all the time, as if there were none.
    pub lockless: bool,
}

/// What the workers of a run share.
pub struct Run<'a> {
    pub lab: &'a Lab,
    pub setup: Setup,
    pub ledger: Mutex<Ledger>,
    pub clock: AtomicI64,
    pub operations: AtomicU64,
    pub refused: AtomicU64,
    pub kills: AtomicU64,
    pub pauses: AtomicU64,
    pub foreign: AtomicU64,
    pub working: AtomicU64,
    /// Process ids of those who do the work of the mounts; 0 while one may end.
    pub pids: Mutex<Vec<u32>>,
}

impl Run<'_> {
    /// Lets time pass for every lock.
    pub fn age_locks(&self) {
        self.lab.server().set_clock_offset(self.clock.fetch_add(AGE, Ordering::SeqCst) + AGE);
    }

    pub fn done(&self) -> bool {
        self.working.load(Ordering::SeqCst) == 0
    }
}

/// Somebody at a mount.
pub struct Worker<'a> {
    pub run: &'a Run<'a>,
    pub number: usize,
    pub machine: &'a Machine<'a>,
    pub random: fastrand::Rng,
    pub written: usize,
}

impl<'a> Worker<'a> {
    fn mount(&self) -> Mount<'a> {
        // A start may fail in such weather.
        eventually("a mount", || self.machine.try_mount(&OPTIONS, &ENV).ok())
    }

    pub fn work(&mut self) -> Mount<'a> {
        let mut mount = self.mount();
        self.run.pids.lock().unwrap()[self.number] = worker(&mount);
        for number in 0..self.run.setup.operations {
            // One of them is killed for certain.
            let certainly = self.number == 0 && number == self.run.setup.operations / 2;
            if self.random.usize(..60) == 0 || certainly {
                self.run.pids.lock().unwrap()[self.number] = 0;
                mount.kill();
                self.run.kills.fetch_add(1, Ordering::Relaxed);
                self.run.age_locks();
                mount = self.mount();
                self.run.pids.lock().unwrap()[self.number] = worker(&mount);
            }
            match self.operation(&mount) {
                Ok(()) => self.run.operations.fetch_add(1, Ordering::Relaxed),
                Err(_) => self.run.refused.fetch_add(1, Ordering::Relaxed),
            };
            if self.random.usize(..4) == 0 {
                std::thread::sleep(Duration::from_millis(self.random.u64(..60)));
            }
        }
        self.run.pids.lock().unwrap()[self.number] = 0;
        mount
    }

    fn record(&mut self) -> (String, Vec<u8>) {
        self.written += 1;
        let id = format!("w{}-{}", self.number, self.written);
        let filler = if self.random.usize(..10) == 0 { self.random.usize(..200_000) } else { self.random.usize(..60) };
        let bytes = record(&id, filler);
        (id, bytes)
    }

    /// A name that others use as well. Directories and files have different names.
    fn name(&mut self) -> String {
        let dir = ["", "", "d/", "d/s/", "e/"][self.random.usize(..5)];
        format!("{dir}f{}.txt", self.random.usize(..5))
    }

    /// A file that is there.
    fn existing(&mut self, mount: &Mount<'_>) -> Option<String> {
        let mut names = walk(&mount.path(""));
        names.retain(|name| !name.starts_with("trash/"));
        (!names.is_empty()).then(|| names.swap_remove(self.random.usize(..names.len())))
    }

    fn wrote(&self, id: String) {
        self.run.ledger.lock().unwrap().written.insert(id);
    }

    /// Reads all records of a file; that they are not whole is a failure.
    fn look(&self, file: &mut File, name: &str) -> std::io::Result<Vec<(String, usize)>> {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut bytes)?;
        Ok(records(&bytes).unwrap_or_else(|torn| {
            self.run.ledger.lock().unwrap().torn.push(format!("{name} of mount {}: {torn}", self.number));
            Vec::new()
        }))
    }

    fn forget(&self, records: impl IntoIterator<Item = (String, usize)>) {
        self.run.ledger.lock().unwrap().removed.extend(records.into_iter().map(|(id, _)| id));
    }

    fn operation(&mut self, mount: &Mount<'_>) -> std::io::Result<()> {
        let (kind, old, new) = (self.random.usize(..20), self.existing(mount), self.name());
        let (path, old) = (mount.path(&new), old.map(|old| (mount.path(&old), old)));
        fs::create_dir_all(path.parent().expect("below the mount"))?;
        match (kind, old) {
            (0..5, _) => {
                let (id, bytes) = self.record();
                OpenOptions::new().write(true).create_new(true).open(path)?.write_all(&bytes)?;
                self.wrote(id);
            }
            (5..8, Some((old, name))) => {
                let mut file = OpenOptions::new().read(true).write(true).open(old)?;
                let seen = self.look(&mut file, &name)?;
                let (id, bytes) = self.record();
                self.forget(seen);
                file.set_len(0)?;
                file.seek(SeekFrom::Start(0))?;
                file.write_all(&bytes)?;
                self.wrote(id);
            }
            (8..11, Some((old, _))) => {
                let (id, bytes) = self.record();
                OpenOptions::new().append(true).open(old)?.write_all(&bytes)?;
                self.wrote(id);
            }
            (11, Some((old, name))) => {
                let mut file = OpenOptions::new().read(true).write(true).open(old)?;
                let mut seen = self.look(&mut file, &name)?;
                let kept = self.random.usize(..=seen.len());
                let cut = seen.split_off(kept);
                self.forget(cut);
                file.set_len(seen.last().map_or(0, |(_, end)| *end as u64))?;
            }
            (12..14, Some((old, _))) => {
                renameat_with(CWD, old, CWD, path, RenameFlags::NOREPLACE)?;
            }
            (14, Some((old, _))) => renameat_with(CWD, old, CWD, path, RenameFlags::EXCHANGE)?,
            (15, _) => {
                let (from, to) = (self.random.usize(..3), self.random.usize(..3));
                let dir = |number: usize| mount.path(["d", "e", "d/s"][number]);
                renameat_with(CWD, dir(from), CWD, dir(to), RenameFlags::NOREPLACE)?;
            }
            (16, _) => fs::remove_dir(mount.path(["d/s", "e", "d"][self.random.usize(..3)]))?,
            (17, Some((old, _))) => {
                // Under a name of its own first: what is read there is what is removed.
                fs::create_dir_all(mount.path("trash"))?;
                self.written += 1;
                let name = format!("trash/w{}-{}", self.number, self.written);
                renameat_with(CWD, old, CWD, mount.path(&name), RenameFlags::NOREPLACE)?;
                let seen = self.look(&mut File::open(mount.path(&name))?, &name)?;
                self.forget(seen);
                fs::remove_file(mount.path(&name))?;
            }
            (_, Some((old, name))) => drop(self.look(&mut File::open(old)?, &name)?),
            _ => {}
        }
        Ok(())
    }
}

/// The process that takes locks.
fn worker(mount: &Mount<'_>) -> u32 {
    let id = |status: Value| u32::try_from(status["worker_pid"].as_u64()?).ok();
    eventually("a status", || mount.try_status().and_then(id))
}

/// Files below a directory; what cannot be listed now is left out.
fn walk(root: &Path) -> Vec<String> {
    let (mut found, mut todo) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => todo.push(entry.path()),
                Ok(_) => found.extend(entry.path().strip_prefix(root).ok().and_then(Path::to_str).map(str::to_owned)),
                Err(_) => {}
            }
        }
    }
    found.sort();
    found
}

/// Stops whoever holds the lock until it is stale and somebody else has it.
pub fn pause_holders(run: &Run<'_>, mut random: fastrand::Rng) {
    let none_yet = || run.pauses.load(Ordering::Relaxed) == 0;
    while !run.done() {
        std::thread::sleep(Duration::from_millis(5));
        let holder = || {
            let body: Value = serde_json::from_slice(&run.lab.object(LOCK_KEY)?).ok()?;
            Some((u32::try_from(body["pid"].as_u64()?).ok()?, body["nonce"].as_str()?.to_owned()))
        };
        let Some((pid, nonce)) = holder().filter(|_| random.usize(..20) == 0 || none_yet()) else { continue };
        {
            // Held, so that nobody reaps the process meanwhile.
            let pids = run.pids.lock().unwrap();
            if !pids.contains(&pid) || kill_process(Pid::from_raw(pid as i32).expect("a pid"), Signal::STOP).is_err() {
                continue;
            }
            run.age_locks();
            let began = Instant::now();
            while holder().is_none_or(|(_, now)| now == nonce) && began.elapsed() < Duration::from_millis(1500) {
                std::thread::sleep(Duration::from_millis(5));
            }
            kill_process(Pid::from_raw(pid as i32).expect("a pid"), Signal::CONT).expect("it is there");
        }
        run.pauses.fetch_add(1, Ordering::Relaxed);
    }
}

/// Other clients: one that compares and swaps, and a reference client that writes the index from an old view. Neither takes
/// the lock.
pub fn write_as_others(run: &Run<'_>, mut random: fastrand::Rng) {
    for number in 0.. {
        std::thread::sleep(Duration::from_millis(random.u64(100..500)));
        if run.done() {
            return;
        }
        let id = format!("ref-{number}");
        let (name, bytes) = (format!("ref/{id}"), record(&id, random.usize(..60)));
        if random.bool() && !run.setup.sharded {
            let key = run.lab.index_key();
            run.lab.put_object(&name, &bytes);
            loop {
                let object = run.lab.server().get_object(key).expect("an index");
                let mut index: Value = serde_json::from_slice(&object.bytes).expect("JSON");
                index["entries"][&name] = entry(&name, &bytes);
                if run.lab.server().replace_object(key, &object.etag, index.to_string()) {
                    break;
                }
            }
        } else {
            let mut view = run.lab.entries();
            std::thread::sleep(Duration::from_millis(random.u64(..150)));
            run.lab.put_object(&name, &bytes);
            view.insert(name.clone(), entry(&name, &bytes));
            run.lab.write_entries(view);
        }
        run.ledger.lock().unwrap().written.insert(id);
        run.foreign.fetch_add(1, Ordering::Relaxed);
    }
}
