//! Rows about the way to the bucket and back. The limit is the bare SDK: parallel ranged GETs, concurrent PUTs.
//!
//! Depends on `lab`, `subject`, `sdk` and `load`.

use super::lab::{Lab, SMALL, bytes, small_name};
use super::report::{Goal, Report, Row, Unit};
use super::sdk::Sdk;
use super::subject::Subject;
use super::{Result, Scale, load};

const BIG: &str = "big";
/// How many small files are read one after another to know what a request takes.
const SEQUENTIAL: usize = 50;

/// cold-seq-read-0ms, cold-seq-read-20ms, first-byte.
pub fn large(scale: &Scale, report: &mut Report) -> Result<()> {
    if !report.wants_any(&["cold-seq-read-0ms", "cold-seq-read", "first-byte"]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    lab.file(BIG, bytes(0, scale.big as usize))?;
    lab.index();
    let sdk = Sdk::new(&lab)?;
    let (mib, size) = (scale.big >> 20, scale.big);
    for latency in [0, scale.latency] {
        let row = format!("cold-seq-read-{latency}ms");
        let what = format!("first read of {mib} MiB at {latency} ms per request; limit: parallel ranged GETs");
        report.row(Row::new(&row, what).limit("sdk").goal("swamp", Goal::Times(1.11)));
        lab.latency(latency);
        for _ in 0..scale.repeat {
            report.time(&row, "sdk", || sdk.download(BIG, size))?;
            let swamp = Subject::Swamp.mount(&lab)?;
            report.time(&row, "swamp", || load::read_all(&swamp.at.join(BIG), size))?;
        }
    }
    let what = format!("first 4 KiB of {mib} MiB at {} ms per request; limit: one GET of them", scale.latency);
    report.row(Row::new("first-byte", what).limit("sdk").goal("swamp", Goal::Times(1.5)));
    for _ in 0..scale.repeat {
        report.time("first-byte", "sdk", || sdk.first_bytes(BIG).map(drop))?;
        let swamp = Subject::Swamp.mount(&lab)?;
        report.time("first-byte", "swamp", || load::first_bytes(&swamp.at.join(BIG)))?;
    }
    Ok(())
}

/// cold-small, cold-small-wasted: files that are not here, in the order of their directories.
pub fn small(scale: &Scale, report: &mut Report) -> Result<()> {
    let (row, wasted) = ("cold-small", "cold-small-wasted");
    if !report.wants_any(&[row, wasted]) {
        return Ok(());
    }
    let count = scale.files;
    let what = format!("first read of {count} files of 4 KiB in directory order at {} ms per request", scale.latency);
    report.row(Row::new(row, what).limit("sdk-one-by-one").goal("swamp", Goal::Times(0.05)));
    let what = "bytes fetched ahead that nobody opened, after the first tenth of those files";
    // What docs/semantics.md promises.
    report.row(Row::new(wasted, what).unit(Unit::Bytes).goal("swamp", Goal::AtMost(f64::from(32 << 20))));
    let mut lab = Lab::new()?;
    lab.small_files(count, SMALL)?;
    lab.index();
    lab.latency(scale.latency);
    let sdk = Sdk::new(&lab)?;
    for _ in 0..scale.repeat {
        let sequential = SEQUENTIAL.min(count);
        let began = std::time::Instant::now();
        sdk.one_after_another(sequential)?;
        report.sample(row, "sdk-one-by-one", began.elapsed().as_secs_f64() * count as f64 / sequential as f64);
        let swamp = Subject::Swamp.mount(&lab)?;
        report.time(row, "swamp", || load::read_small(&swamp.at, count))?;
        drop(swamp);
        let swamp = Subject::Swamp.mount(&lab)?;
        load::read_small(&swamp.at, count / 10)?;
        let unused = swamp.status()?["readAheadUnusedBytes"].as_f64().ok_or("no readAheadUnusedBytes in status")?;
        report.sample(wasted, "swamp", unused);
    }
    Ok(())
}

/// flush-small, flush-big.
pub fn flush(scale: &Scale, report: &mut Report) -> Result<()> {
    let rows = ["flush-small", "flush-big"];
    if !report.wants_any(&rows) {
        return Ok(());
    }
    let (count, size) = (scale.files, scale.big);
    let what = [format!("{count} new files of 4 KiB"), format!("one new file of {} MiB", size >> 20)];
    for (row, what) in rows.iter().zip(what) {
        let what = format!("flush of {what}; limit: concurrent PUTs");
        report.row(Row::new(*row, what).limit("sdk").goal("swamp", Goal::Times(1.25)));
    }
    for _ in 0..scale.repeat {
        if report.wants(rows[0]) {
            let lab = Lab::new()?;
            let sdk = Sdk::new(&lab)?;
            let names: Vec<String> = (0..count).map(small_name).collect();
            report.time(rows[0], "sdk", || sdk.put_small(&names))?;
            let swamp = Subject::Swamp.mount(&lab)?;
            load::make_directories(&swamp.at, "new", count)?;
            load::create_small(&swamp.at, "new", count)?;
            report.time(rows[0], "swamp", || swamp.flush())?;
        }
        if report.wants(rows[1]) {
            let lab = Lab::new()?;
            let sdk = Sdk::new(&lab)?;
            report.time(rows[1], "sdk", || sdk.put_big(size))?;
            let swamp = Subject::Swamp.mount(&lab)?;
            load::write_big(&swamp.at.join(BIG), size, false)?;
            report.time(rows[1], "swamp", || swamp.flush())?;
        }
    }
    Ok(())
}
