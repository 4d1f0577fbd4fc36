//! The loads: what a program does to files, the same for every subject.
//!
//! Plain system calls through `std`, or the usual programs where the goal names them. Invariant: a load reads and checks all that it was told to, so that a subject that
//! returns nothing quickly fails.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::Result;
use super::lab::{SMALL, small_name};

/// Bytes of one read or write of a sequential load.
const CHUNK: usize = 1 << 20;

/// `find` with a stat of everything; returns how many files there are.
pub fn walk(root: &Path, expected: usize) -> Result<()> {
    let (mut found, mut todo) = (0, vec![root.to_owned()]);
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() {
                todo.push(entry.path());
            } else {
                found += 1;
            }
        }
    }
    if found < expected { Err(format!("{found} files instead of {expected}").into()) } else { Ok(()) }
}

fn lines(program: &str, arguments: &[&str], root: &Path) -> Result<usize> {
    let output = Command::new(program).arg(root).args(arguments).output()?;
    if !output.status.success() {
        return Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(output.stdout.iter().filter(|byte| **byte == b'\n').count())
}

fn at_least(found: usize, expected: usize) -> Result<()> {
    if found < expected { Err(format!("{found} lines for {expected} files").into()) } else { Ok(()) }
}

/// `ls -R`, unsorted: names alone.
pub fn list_names(root: &Path, expected: usize) -> Result<()> {
    at_least(lines("ls", &["-R", "-U"], root)?, expected)
}

/// `find -type f`.
pub fn find(root: &Path, expected: usize) -> Result<()> {
    at_least(lines("find", &["-type", "f"], root)?, expected)
}

/// `du -s`; stats everything and says one line.
pub fn disk_usage(root: &Path, _: usize) -> Result<()> {
    at_least(lines("du", &["-s"], root)?, 1)
}

/// `ls -lR`.
pub fn list_long(root: &Path, expected: usize) -> Result<()> {
    at_least(lines("ls", &["-lR"], root)?, expected)
}

/// Looks at files that exist and at names that do not, in turn, for as long as `going` says; returns how long each took.
/// The kernel may know the former; the latter it has to ask for.
pub fn stat_loop(root: &Path, count: usize, going: impl Fn() -> bool) -> Vec<Duration> {
    let mut random = fastrand::Rng::with_seed(11);
    let mut times = Vec::new();
    while going() {
        let known = root.join(small_name(random.usize(0..count)));
        let unknown = known.with_extension("absent");
        for path in [known, unknown] {
            let began = Instant::now();
            // Whether it is there does not matter, only that there is an answer.
            let _ = std::hint::black_box(path.symlink_metadata());
            times.push(began.elapsed());
        }
    }
    times
}

pub fn read_all(path: &Path, size: u64) -> Result<()> {
    let mut file = File::open(path)?;
    let (mut buffer, mut total) = (vec![0; CHUNK], 0);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => total += n as u64,
        }
    }
    if total == size { Ok(()) } else { Err(format!("{} has {total} bytes instead of {size}", path.display()).into()) }
}

pub fn first_bytes(path: &Path) -> Result<()> {
    let mut buffer = vec![0; SMALL];
    Ok(File::open(path)?.read_exact_at(&mut buffer, 0)?)
}

pub fn random_reads(path: &Path, size: u64, count: usize) -> Result<()> {
    let file = File::open(path)?;
    let mut random = fastrand::Rng::with_seed(7);
    let mut buffer = vec![0; SMALL];
    for _ in 0..count {
        file.read_exact_at(&mut buffer, random.u64(0..size / SMALL as u64) * SMALL as u64)?;
    }
    Ok(())
}

/// open, read, close of every small file, directory by directory.
pub fn read_small(root: &Path, count: usize) -> Result<()> {
    let mut buffer = vec![0; 2 * SMALL];
    for number in 0..count {
        let path = root.join(small_name(number));
        let read = File::open(&path)?.read(&mut buffer)?;
        if read != SMALL {
            return Err(format!("{} has {read} bytes", path.display()).into());
        }
    }
    Ok(())
}

/// create, write, close of files in existing directories; returns their names.
pub fn create_small(root: &Path, prefix: &str, count: usize) -> Result<Vec<String>> {
    let payload = super::lab::bytes(count, SMALL);
    let mut names = Vec::with_capacity(count);
    for number in 0..count {
        let name = format!("{prefix}/{:03}/{:02}", number / 100, number % 100);
        File::create(root.join(&name))?.write_all(&payload)?;
        names.push(name);
    }
    Ok(names)
}

/// The directories that [`create_small`] needs.
pub fn make_directories(root: &Path, prefix: &str, count: usize) -> Result<()> {
    for number in (0..count).step_by(100) {
        std::fs::create_dir_all(root.join(format!("{prefix}/{:03}", number / 100)))?;
    }
    Ok(())
}

pub fn write_big(path: &Path, size: u64, sync: bool) -> Result<()> {
    let chunk = super::lab::bytes(1, CHUNK);
    let mut file = File::create(path)?;
    let mut left = size;
    while left > 0 {
        let now = left.min(CHUNK as u64) as usize;
        file.write_all(&chunk[..now])?;
        left -= now as u64;
    }
    if sync {
        file.sync_all()?;
    }
    Ok(())
}

/// Takes files out of the page cache: clean pages only, hence the sync.
pub fn drop_pages(paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        let file = File::open(path)?;
        // A mount may refuse; its pages are then those of the files behind it, which are in the list too.
        if file.sync_data().is_err() {
            continue;
        }
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}
