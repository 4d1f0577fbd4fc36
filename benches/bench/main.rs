//! Benchmarks: swamp-mount, the limit (ext4, or the bare SDK) and its peers, side by side with the same load on the same
//! S3 server, interleaved and repeated.
//!
//! `cargo bench --bench bench -- [--smoke] [--repeat N] [--out DIR] [ROW…]`; `scripts/bench` prepares what it needs. Prints a
//! table and writes `bench.json` and `bench.svg`. Invariant: nothing here asserts a time.

#![allow(missing_docs)]

mod cached;
mod lab;
mod load;
mod peers;
mod plot;
mod report;
mod subject;
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

use std::path::PathBuf;

use report::Report;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// How much load each row has.
#[derive(Clone, Debug)]
pub struct Scale {
    /// Runs of each measurement.
    pub repeat: usize,
    /// Files of the rows about names.
    pub entries: usize,
    /// Small files (4 KiB) of the rows about contents.
    pub files: usize,
    /// Bytes of the large file.
    pub big: u64,
    /// Random reads.
    pub reads: usize,
    /// Small files and bytes of the large file of the rows with peers, without and with latency.
    pub peers: [(usize, u64, u64); 2],
    /// Milliseconds per request of the rows with latency.
    pub latency: u64,
}

impl Scale {
    fn full(repeat: usize) -> Self {
        Self {
            repeat,
            entries: 100_000,
            files: 10_000,
            big: 1 << 30,
            reads: 100_000,
            peers: [(2000, 512 << 20, 0), (500, 256 << 20, 20)],
            latency: 20,
        }
    }

    fn smoke() -> Self {
        Self {
            repeat: 1,
            entries: 300,
            files: 50,
            big: 9 << 20,
            reads: 200,
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
    let (mut smoke, mut repeat, mut out, mut rows) = (false, 3, PathBuf::from("target/bench"), Vec::new());
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        let mut value = || given.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--smoke" => smoke = true,
            "--repeat" => repeat = value()?.parse()?,
            "--out" => out = value()?.into(),
            // cargo bench passes it to every benchmark.
            "--bench" => {}
            row if !row.starts_with('-') => rows.push(argument),
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    let scale = if smoke { Scale::smoke() } else { Scale::full(repeat) };
    Ok(Arguments { scale, out, rows })
}

fn main() -> Result<()> {
    let Arguments { scale, out, rows } = arguments()?;
    let mut report = Report::new(rows);
    cached::names(&scale, &mut report)?;
    cached::contents(&scale, &mut report)?;
    cached::writes(&scale, &mut report)?;
    wire::large(&scale, &mut report)?;
    wire::small(&scale, &mut report)?;
    wire::flush(&scale, &mut report)?;
    peers::sessions(&scale, &mut report)?;
    println!("{report}");
    report.write(&out)
}
