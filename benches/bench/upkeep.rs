//! Rows about what a mount costs while little or nothing happens: one changed file, no change, ten changes of another writer.
//!
//! Depends on `lab`, `subject`, `process` and `load`. Invariant: requests are counted by the server, not by what is measured.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::lab::{INDEX, Lab, SMALL, bytes, small_name};
use super::process::{self, Process};
use super::report::{Goal, Report, Row, Unit};
use super::subject::{Mounted, Subject};
use super::{Result, Scale, load};

const CHANGED: &str = "changed";
const LOCK: &str = ".datastore.lock";
/// How long another writer's change may take to be seen.
const PATIENCE: Duration = Duration::from_secs(60);

/// flush-one-requests, flush-one-cpu: one changed file under an index of many entries.
pub fn flush_one(scale: &Scale, report: &mut Report) -> Result<()> {
    let rows = ["flush-one-requests", "flush-one-cpu"];
    if !report.wants_any(&rows) {
        return Ok(());
    }
    let count = scale.entries;
    let requests = format!("flush of one changed file, {count} entries: uploads, locks, transfers of the index");
    report.row(Row::new(rows[0], requests).unit(Unit::Count).goal("swamp", Goal::AtMost(4.0)));
    let cpu = format!("processor time of that flush; limit: serde_json parses and writes an index of {count} entries");
    report.row(Row::new(rows[1], cpu).limit("serde_json").goal("swamp", Goal::Times(2.0)));
    let mut lab = Lab::new()?;
    lab.file(CHANGED, bytes(0, SMALL))?;
    lab.small_entries(count, None);
    lab.index();
    let swamp = Subject::Swamp.mount(&lab)?;
    // The first push of a session proves that the bucket keeps conditions.
    std::fs::write(swamp.at.join("another"), bytes(1, SMALL))?;
    swamp.flush()?;
    load::read_all(&swamp.at.join(CHANGED), SMALL as u64)?;
    for repetition in 0..scale.repeat {
        let (seconds, entries) = serde_round(&lab)?;
        if entries < count {
            return Err(format!("the index has {entries} entries").into());
        }
        report.sample(rows[1], "serde_json", seconds);
        std::fs::write(swamp.at.join(CHANGED), bytes(2 + repetition, SMALL))?;
        lab.server.clear_requests();
        let before = swamp.process()?.cpu()?;
        swamp.flush()?;
        report.sample(rows[1], "swamp", swamp.process()?.cpu()? - before);
        let (named, all) = requests_of_flush(&lab)?;
        report.sample(rows[0], "swamp", named as f64);
        report.sample(rows[0], "with checks", all as f64);
    }
    Ok(())
}

/// Processor time of this thread for parsing and writing the lab's index, and how many entries it has.
fn serde_round(lab: &Lab) -> Result<(f64, usize)> {
    let index = lab.server.get_object(INDEX).ok_or("no index")?.bytes;
    let before = process::this_thread()?;
    let parsed: serde_json::Value = serde_json::from_slice(&index)?;
    let written = serde_json::to_vec(&parsed)?;
    let seconds = process::this_thread()? - before;
    std::hint::black_box(written);
    Ok((seconds, parsed["entries"].as_object().map_or(0, |entries| entries.len())))
}

/// Of the last flush: the requests that its goal names, and all.
fn requests_of_flush(lab: &Lab) -> Result<(usize, usize)> {
    let requests = lab.server.requests();
    let mut kinds = BTreeMap::<String, usize>::new();
    for request in &requests {
        let status = request.status.unwrap_or(0);
        *kinds.entry(format!("{} {} {status}", request.operation, request.key)).or_default() += 1;
    }
    for (kind, times) in &kinds {
        eprintln!("    {times:>4} x {kind}");
    }
    let of = |operation: &str, key: &str, status: u16| {
        kinds.get(&format!("{operation} {key} {status}")).copied().unwrap_or(0)
    };
    let uploads = of("PutObject", CHANGED, 200);
    let writes = of("PutObject", INDEX, 200);
    if (uploads, writes) != (1, 1) {
        return Err(format!("a flush of one file: {uploads} uploads, {writes} writes of the index").into());
    }
    Ok((uploads + writes + of("PutObject", LOCK, 200) + of("GetObject", INDEX, 200), requests.len()))
}

/// idle-requests, idle-wake-ups: nothing open, nothing to do.
pub fn idle(scale: &Scale, report: &mut Report) -> Result<()> {
    let rows = ["idle-requests", "idle-wake-ups"];
    if !report.wants_any(&rows) {
        return Ok(());
    }
    let seconds = scale.watch.as_secs();
    let requests = format!("requests per refresh of an idle mount, {seconds} s with --refresh 1");
    report.row(Row::new(rows[0], requests).unit(Unit::Count).goal("swamp", Goal::AtMost(1.0)));
    let wake_ups = format!("wake-ups per second of an idle mount that does not refresh, over {seconds} s");
    report.row(Row::new(rows[1], wake_ups).unit(Unit::Count).goal("swamp", Goal::AtMost(0.0)));
    let mut lab = Lab::new()?;
    lab.small_entries(scale.entries, None);
    lab.index();
    lab.clear();
    let rested = |options: &[&str]| -> Result<Mounted> {
        let swamp = Subject::Swamp.mount_with(&lab, options)?;
        load::find(&swamp.at, scale.entries)?;
        rest(swamp.process()?)?;
        Ok(swamp)
    };
    if report.wants(rows[0]) {
        let swamp = rested(&["--refresh", "1"])?;
        lab.server.clear_requests();
        std::thread::sleep(scale.watch);
        report.sample(rows[0], "swamp", lab.server.requests().len() as f64 / seconds as f64);
        drop(swamp);
    }
    if report.wants(rows[1]) {
        let swamp = rested(&[])?;
        let before = swamp.process()?.wake_ups()?;
        std::thread::sleep(scale.watch);
        report.sample(rows[1], "swamp", swamp.process()?.wake_ups()?.saturating_sub(before) as f64 / seconds as f64);
    }
    Ok(())
}

/// Waits until a daemon has done what a start makes it do, threads of its runtime that end after ten seconds included.
fn rest(process: Process) -> Result<()> {
    let (began, mut before) = (Instant::now(), process.cpu()?);
    let mut quiet = 0;
    while quiet < 3 && began.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_secs(1));
        let now = process.cpu()?;
        quiet = if now - before <= 0.01 { quiet + 1 } else { 0 };
        before = now;
    }
    Ok(())
}

/// refresh-stat-p99, refresh-stat-max: what a program notices of a refresh that changed ten entries.
pub fn refresh(scale: &Scale, report: &mut Report) -> Result<()> {
    let rows = ["refresh-stat-p99", "refresh-stat-max", "refresh-seen"];
    if !report.wants_any(&rows) {
        return Ok(());
    }
    let count = scale.entries;
    let what = format!("a concurrent stat, while a refresh changes ten of {count} entries");
    report.row(Row::new(rows[0], format!("99th percentile of {what}")).goal("swamp", Goal::AtMost(0.001)));
    report.row(Row::new(rows[1], format!("longest of {what}")));
    report.row(Row::new(rows[2], "until such a change is seen, with --refresh 1".to_owned()));
    let mut lab = Lab::new()?;
    lab.small_entries(count, None);
    lab.index();
    let swamp = Subject::Swamp.mount_with(&lab, &["--refresh", "1"])?;
    load::find(&swamp.at, count)?;
    for repetition in 0..scale.repeat {
        lab.clear();
        lab.small_entries(count, (repetition % 2 == 0).then_some(count / 10));
        let edited = swamp.at.join(small_name(0));
        let size = std::fs::metadata(&edited)?.len();
        let going = AtomicBool::new(true);
        let (seen, mut times) = std::thread::scope(|scope| -> Result<_> {
            let stats = scope.spawn(|| load::stat_loop(&swamp.at, count, || going.load(Ordering::Relaxed)));
            let began = Instant::now();
            lab.index();
            let seen = loop {
                match std::fs::metadata(&edited) {
                    Ok(meta) if meta.len() != size => break Ok(began.elapsed()),
                    Ok(_) if began.elapsed() > PATIENCE => break Err("a change was not seen".into()),
                    Ok(_) => std::thread::sleep(Duration::from_millis(1)),
                    Err(error) => break Err(error.into()),
                }
            };
            // What a refresh does after its names changed counts too.
            std::thread::sleep(Duration::from_millis(300));
            going.store(false, Ordering::Relaxed);
            let times = stats.join().map_err(|_| "the stat loop died")?;
            seen.map(|seen| (seen, times))
        })?;
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64();
        report.sample(rows[0], "swamp", at(0.99));
        report.sample(rows[1], "swamp", at(1.0));
        report.sample(rows[2], "swamp", seen.as_secs_f64());
    }
    Ok(())
}
