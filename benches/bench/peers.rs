//! Rows with the peers: one session of everyday work per subject, without and with latency.
//!
//! Depends on `lab`, `subject` and `load`. Peers that are not installed are left out by name; one that fails keeps the
//! figures that it has by then.

use std::time::Instant;

use super::lab::{Lab, SMALL, bytes, small_name};
use super::report::{Goal, Report, Row, is_peer};
use super::subject::Subject;
use super::{Result, Scale, load};

const BIG: &str = "big";
/// Random reads of the large file.
const READS: usize = 4000;

const STEPS: [(&str, &str); 11] = [
    ("mount-walk", "mount, list and stat all"),
    ("walk-again", "list and stat again"),
    ("first-4k", "first 4 KiB of the large file"),
    ("big-cold", "large file, first read"),
    ("big-warm", "large file, again"),
    ("random-4k", "4000 random reads of 4 KiB"),
    ("small-cold", "small files, first read"),
    ("small-again", "small files, again"),
    ("create-small", "create small files"),
    ("write-big", "write a large file"),
    ("in-bucket", "from the first created file until all that was written is in the bucket"),
];

pub fn sessions(scale: &Scale, report: &mut Report) -> Result<()> {
    for (files, big, latency) in scale.peers {
        let prefix = format!("peers-{latency}ms");
        if !STEPS.iter().any(|(step, _)| report.wants(&format!("{prefix}/{step}"))) {
            continue;
        }
        for (step, what) in STEPS {
            let what = format!("{what} ({files} files of 4 KiB, {} MiB, {latency} ms per request)", big >> 20);
            let row = Row::new(format!("{prefix}/{step}"), what).limit("native");
            report.row(row.goal("swamp", Goal::Beats).goal("swamp-passthrough", Goal::Beats));
        }
        for _ in 0..scale.repeat {
            for subject in Subject::SESSIONS {
                if !subject.installed() {
                    eprintln!("    {} is not installed: left out", subject.name());
                    continue;
                }
                match session(subject, files, big, latency, &prefix, report) {
                    // A peer that cannot do the load must not take the other figures with it.
                    Err(error) if is_peer(subject.name()) => {
                        eprintln!("    {} failed: {error}", subject.name());
                    }
                    other => other?,
                }
            }
        }
    }
    Ok(())
}

fn session(subject: Subject, files: usize, big: u64, latency: u64, prefix: &str, report: &mut Report) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.small_files(files, SMALL)?;
    lab.file(BIG, bytes(0, big as usize))?;
    lab.index();
    lab.latency(latency);
    let native = subject == Subject::Native;
    let name = subject.name();
    let began = Instant::now();
    let mounted = subject.mount(&lab)?;
    let at = &mounted.at;
    let mut step =
        |step: &str, run: &mut dyn FnMut() -> Result<()>| report.always(&format!("{prefix}/{step}"), name, run);
    if native {
        load::make_directories(at, "small", files)?;
        for number in 0..files {
            std::fs::write(at.join(small_name(number)), bytes(number, SMALL))?;
        }
        std::fs::write(at.join(BIG), bytes(0, big as usize))?;
    } else {
        load::walk(at, files)?;
    }
    let walked = began.elapsed().as_secs_f64();
    step("walk-again", &mut || load::walk(at, files))?;
    if !native {
        step("first-4k", &mut || load::first_bytes(&at.join(BIG)))?;
        step("big-cold", &mut || load::read_all(&at.join(BIG), big))?;
    } else {
        load::read_all(&at.join(BIG), big)?;
    }
    step("big-warm", &mut || load::read_all(&at.join(BIG), big))?;
    step("random-4k", &mut || load::random_reads(&at.join(BIG), big, READS))?;
    if !native {
        step("small-cold", &mut || load::read_small(at, files))?;
    } else {
        load::read_small(at, files)?;
    }
    step("small-again", &mut || load::read_small(at, files))?;
    load::make_directories(at, "new", files)?;
    let (mut names, writing) = (Vec::new(), Instant::now());
    step("create-small", &mut || {
        names = load::create_small(at, "new", files)?;
        Ok(())
    })?;
    step("write-big", &mut || load::write_big(&at.join("written"), big, false))?;
    if !native {
        let small = names.into_iter().map(|name| (name, SMALL as u64));
        let written: Vec<_> = small.chain([("written".to_owned(), big)]).collect();
        match subject {
            Subject::Swamp | Subject::SwampPassthrough => mounted.flush()?,
            _ => lab.wait_for(&written)?,
        }
        // s3fs uploads before a file is closed, others later: only the whole can be compared.
        report.sample(&format!("{prefix}/in-bucket"), name, writing.elapsed().as_secs_f64());
        report.sample(&format!("{prefix}/mount-walk"), name, walked);
    }
    Ok(())
}
