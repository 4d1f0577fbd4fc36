//! Rows with the peers: one session of everyday work per subject, without and with latency.
//!
//! Depends on `lab`, `subject` and `load`. Peers that are not installed, or fail, are left out by name.

use super::lab::{Lab, bytes};
use super::report::Report;
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
    ("in-bucket", "until all that was written is in the bucket"),
];

pub fn sessions(scale: &Scale, report: &mut Report) -> Result<()> {
    for (files, big, latency) in scale.peers {
        let prefix = format!("peers-{latency}ms");
        if !report.wants(&prefix) {
            continue;
        }
        for (step, what) in STEPS {
            let load = format!("{what} ({files} files of 4 KiB, {} MiB, {latency} ms per request)", big >> 20);
            report.row(&format!("{prefix}/{step}"), load, None);
        }
        for _ in 0..scale.repeat {
            for subject in [Subject::Native, Subject::Swamp, Subject::SwampPassthrough, Subject::Rclone, Subject::S3fs]
            {
                if !subject.installed() {
                    eprintln!("    {} is not installed: left out", subject.name());
                    continue;
                }
                match session(subject, files, big, latency, &prefix, report) {
                    // A peer that cannot do the load must not take the other figures with it.
                    Err(error) if matches!(subject, Subject::Rclone | Subject::S3fs) => {
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
    lab.small_files(files)?;
    lab.file(BIG, bytes(0, big as usize))?;
    lab.index();
    lab.latency(latency);
    let native = subject == Subject::Native;
    let name = subject.name();
    let began = std::time::Instant::now();
    let mounted = subject.mount(&lab)?;
    let at = &mounted.at;
    let mut step =
        |step: &str, run: &mut dyn FnMut() -> Result<()>| report.time(&format!("{prefix}/{step}"), name, run);
    if native {
        load::make_directories(at, "small", files)?;
        for number in 0..files {
            std::fs::write(at.join(super::lab::small_name(number)), bytes(number, super::lab::SMALL))?;
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
    let mut names = Vec::new();
    step("create-small", &mut || {
        names = load::create_small(at, "new", files)?;
        Ok(())
    })?;
    step("write-big", &mut || load::write_big(&at.join("written"), big, false))?;
    names.push("written".to_owned());
    if !native {
        step("in-bucket", &mut || match subject {
            Subject::Swamp | Subject::SwampPassthrough => mounted.flush(),
            _ => lab.wait_for(&names),
        })?;
        report.sample(&format!("{prefix}/mount-walk"), name, walked);
    }
    Ok(())
}
