//! What the kernel says of a process and its children: memory, processor time, wake-ups.
//!
//! Depends on nothing. Invariant: a daemon that is several processes counts as all of them.

use std::fs;

use super::Result;

/// A process and all that it started.
#[derive(Clone, Copy, Debug)]
pub struct Process(pub u32);

impl Process {
    fn family(self) -> Vec<u32> {
        let mut all = vec![self.0];
        let mut at = 0;
        while let Some(pid) = all.get(at).copied() {
            for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                all.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
            }
            at += 1;
        }
        all
    }

    fn sum(self, of: impl Fn(u32) -> Result<u64>) -> Result<u64> {
        self.family().into_iter().map(of).sum()
    }

    /// Resident memory in bytes.
    pub fn resident(self) -> Result<u64> {
        self.sum(|pid| Ok(field(&format!("/proc/{pid}/status"), "VmRSS:")? * 1024))
    }

    /// The most resident memory in bytes since [`Process::forget_peak`].
    pub fn peak(self) -> Result<u64> {
        self.sum(|pid| Ok(field(&format!("/proc/{pid}/status"), "VmHWM:")? * 1024))
    }

    pub fn forget_peak(self) -> Result<()> {
        self.family().into_iter().try_for_each(|pid| Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?))
    }

    /// Seconds of processor time, to the hundredth.
    pub fn cpu(self) -> Result<f64> {
        let ticks = self.sum(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            // The name before it may hold spaces; user and system time are the 14th and 15th field.
            let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            let ticks = |at: usize| fields.get(at).and_then(|ticks| ticks.parse::<u64>().ok());
            ticks(11).zip(ticks(12)).map(|(user, system)| user + system).ok_or_else(|| "no times in stat".into())
        })?;
        // Linux tells programs of times in hundredths, whatever its own clock does.
        Ok(ticks as f64 / 100.0)
    }

    /// How often its threads went to sleep, which is how often they were woken.
    pub fn wake_ups(self) -> Result<u64> {
        self.sum(|pid| {
            let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
            let status = |task: fs::DirEntry| format!("{}/status", task.path().display());
            // A thread that ended meanwhile is not idle, and does not count either.
            Ok(tasks.flatten().filter_map(|task| field(&status(task), "voluntary_ctxt_switches:").ok()).sum())
        })
    }
}

/// Seconds of processor time that this thread had.
pub fn this_thread() -> Result<f64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(text.split(' ').next().unwrap_or_default().parse::<f64>()? / 1e9)
}

/// A number of a file of `name: number` lines.
fn field(path: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path)?;
    let line = text.lines().find(|line| line.starts_with(name)).ok_or_else(|| format!("no {name} in {path}"))?;
    Ok(line.split_whitespace().nth(1).unwrap_or_default().parse()?)
}
