//! Rows about memory while a file streams through that is larger than any cache.
//!
//! Depends on `lab`, `subject`, `process` and `load`. Invariant: the server holds no bytes of it, in either direction.

use super::lab::Lab;
use super::report::{Goal, Report, Row, Unit};
use super::subject::{Mounted, Subject};
use super::{Result, Scale, load};

const BIG: &str = "big";
/// Most bytes above idle.
const MOST: f64 = (256 << 20) as f64;

/// stream-read-memory, stream-write-memory.
pub fn memory(scale: &Scale, report: &mut Report) -> Result<()> {
    let rows = ["stream-read-memory", "stream-write-memory"];
    let (size, gib) = (scale.stream, scale.stream as f64 / f64::from(1 << 30));
    if report.wants(rows[0]) {
        let what = format!("peak memory above idle while {gib:.1} GiB are read through a cache of a sixteenth");
        report.row(Row::new(rows[0], what).unit(Unit::Bytes).goal("swamp", Goal::AtMost(MOST)));
        let mut lab = Lab::new()?;
        lab.zeros(BIG, size);
        lab.index();
        let limit = (size / 16).to_string();
        let swamp = Subject::Swamp.mount_with(&lab, &["--cache-size", &limit])?;
        let peak = peak_above_idle(&swamp, || load::read_all(&swamp.at.join(BIG), size))?;
        report.sample(rows[0], "swamp", peak);
    }
    if report.wants(rows[1]) {
        let what = format!("peak memory above idle while {gib:.1} GiB are written and flushed");
        let row = Row::new(rows[1], what).unit(Unit::Bytes).goal("swamp", Goal::AtMost(MOST));
        report.row(row.goal("swamp-passthrough", Goal::AtMost(MOST)));
        for subject in [Subject::Swamp, Subject::SwampPassthrough] {
            let lab = Lab::new()?;
            lab.server.keep_sizes_only(size as usize);
            let swamp = subject.mount(&lab)?;
            let peak = peak_above_idle(&swamp, || {
                load::write_big(&swamp.at.join(BIG), size, false)?;
                swamp.flush()
            })?;
            if lab.server.get_object(BIG).is_none_or(|object| object.bytes.len() as u64 != size) {
                return Err("the file did not reach the bucket".into());
            }
            report.sample(rows[1], subject.name(), peak);
        }
    }
    Ok(())
}

fn peak_above_idle(swamp: &Mounted, run: impl FnOnce() -> Result<()>) -> Result<f64> {
    let process = swamp.process()?;
    std::fs::read_dir(&swamp.at)?.count();
    let idle = process.resident()?;
    process.forget_peak()?;
    run()?;
    Ok(process.peak()? as f64 - idle as f64)
}
