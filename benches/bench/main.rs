//! Benchmarks: swamp-mount, the limit (ext4, or the bare SDK) and its peers, side by side with the same load on the same
//! S3 server, interleaved and repeated.
//!
//! `cargo bench --bench bench -- [--smoke | --quick] [--repeat N] [--out DIR] [ROW…]`; `scripts/bench` prepares what it needs.
//! Prints a table and writes it as JSON, Markdown and a plot. Invariant: nothing here asserts a time.

#![allow(missing_docs)]

mod cached;
mod headless;
mod lab;
mod load;
mod names;
mod peers;
mod plot;
mod process;
mod report;
mod sdk;
mod stream;
mod subject;
mod upkeep;
mod wire;

#[allow(dead_code)]
#[path = "../../tests/support/faults.rs"]
mod faults;
#[allow(dead_code)]
#[path = "../../tests/support/s3_server/mod.rs"]
mod s3_server;
#[allow(dead_code)]
#[path = "../../tests/support/server/mod.rs"]
mod server;
#[allow(dead_code)]
#[path = "../../tests/support/weather.rs"]
mod weather;

use std::path::PathBuf;
use std::time::Duration;

use report::Report;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// How much load each row has.
#[derive(Clone, Debug)]
pub struct Scale {
    /// Runs of each measurement.
    pub repeat: usize,
    /// Entries of the rows about the first listing, and the seconds that it may take beyond the transfer of the index.
    pub listings: [(usize, f64); 3],
    /// Entries of the other rows about names, and of the index under upkeep.
    pub entries: usize,
    /// Small files (4 KiB) of the rows about contents.
    pub files: usize,
    /// Files of `pull` and `push`.
    pub headless: usize,
    /// Bytes of the large file.
    pub big: u64,
    /// Bytes of the file that is streamed through.
    pub stream: u64,
    /// Random reads.
    pub reads: usize,
    /// How long something is watched.
    pub watch: Duration,
    /// Small files and bytes of the large file of the rows with peers, without and with latency.
    pub peers: [(usize, u64, u64); 2],
    /// Milliseconds per request of the rows with latency.
    pub latency: u64,
}

impl Scale {
    fn full() -> Self {
        Self {
            repeat: 3,
            listings: [(1000, 0.1), (100_000, 0.6), (1_000_000, 5.0)],
            entries: 100_000,
            files: 10_000,
            headless: 1000,
            big: 1 << 30,
            stream: 10 << 30,
            reads: 100_000,
            watch: Duration::from_secs(10),
            peers: [(2000, 512 << 20, 0), (500, 256 << 20, 20)],
            latency: 20,
        }
    }

    /// A tenth of the bytes and files, for a first look.
    fn quick() -> Self {
        Self {
            repeat: 2,
            files: 1000,
            big: 128 << 20,
            stream: 1 << 30,
            reads: 10_000,
            peers: [(500, 128 << 20, 0), (200, 64 << 20, 20)],
            ..Self::full()
        }
    }

    fn smoke() -> Self {
        Self {
            repeat: 1,
            listings: [(100, 0.1), (300, 0.1), (1000, 0.1)],
            entries: 300,
            files: 50,
            headless: 50,
            big: 9 << 20,
            stream: 64 << 20,
            reads: 200,
            watch: Duration::from_secs(2),
            peers: [(20, 5 << 20, 0), (10, 5 << 20, 2)],
            latency: 2,
        }
    }
}

struct Arguments {
    scale: Scale,
    out: PathBuf,
    rows: Vec<String>,
}

fn arguments() -> Result<Arguments> {
    let (mut scale, mut repeat) = (Scale::full(), None);
    let (mut out, mut rows) = (PathBuf::from("target/bench"), Vec::new());
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        let mut value = || given.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--smoke" => scale = Scale::smoke(),
            "--quick" => scale = Scale::quick(),
            "--repeat" => repeat = Some(value()?.parse()?),
            "--out" => out = value()?.into(),
            // cargo bench passes it to every benchmark.
            "--bench" => {}
            row if !row.starts_with('-') => rows.push(argument),
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    scale.repeat = repeat.unwrap_or(scale.repeat);
    Ok(Arguments { scale, out, rows })
}

fn main() -> Result<()> {
    let Arguments { scale, out, rows } = arguments()?;
    let mut report = Report::new(rows);
    let sections = [
        names::mount,
        names::memory,
        names::walks,
        cached::contents,
        cached::writes,
        wire::large,
        wire::small,
        wire::flush,
        upkeep::flush_one,
        upkeep::idle,
        upkeep::refresh,
        headless::transfers,
        stream::memory,
        peers::sessions,
    ];
    // What else was measured is worth having all the same.
    let failed = sections.into_iter().filter_map(|section| section(&scale, &mut report).err());
    let failed: Vec<_> = failed.inspect(|error| eprintln!("    FAILED: {error}")).map(|e| e.to_string()).collect();
    subject::clear();
    println!("{report}");
    report.write(&out)?;
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ").into()) }
}
