//! In which order contents are transferred: whatever copies from an object runs before whatever replaces it.
//!
//! Pure. Invariant: a job is handed out only when no unfinished copy still needs the object that it writes.

use std::collections::HashMap;

/// A transfer, as far as order goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    /// Object that it writes, if any.
    pub writes: Option<String>,
    /// Objects that it may copy from: more than one after a push that ended halfway.
    pub copies_from: Vec<String>,
}

/// Which of the waiting jobs can run now; when `None` can, one that must be fetched to break a cycle.
pub(super) enum Next {
    /// These, side by side.
    Run(Vec<usize>),
    /// Every job waits for another: this copy has to come from a local content instead.
    Break(usize),
    /// Nothing is left.
    Done,
}

/// Chooses among the jobs that are `waiting` (indices into `jobs`). `stuck` are copies that failed: what they copy from
/// must stay.
pub(super) fn next(jobs: &[Job], waiting: &[usize], stuck: &[usize]) -> Next {
    if waiting.is_empty() {
        return Next::Done;
    }
    let copies = |jobs_in: &[usize]| {
        let mut from: HashMap<&str, Vec<usize>> = HashMap::new();
        for i in jobs_in {
            for key in &jobs[*i].copies_from {
                from.entry(key).or_default().push(*i);
            }
        }
        from
    };
    let (waits_for, never) = (copies(waiting), copies(stuck));
    let others = |from: &HashMap<&str, Vec<usize>>, key: &str, except: usize| {
        from.get(key).is_some_and(|by| by.iter().any(|i| *i != except))
    };
    let needed_by = |key: &str, except: usize| (others(&waits_for, key, except), others(&never, key, except));
    let mut blocked_forever = 0;
    let ready: Vec<usize> = waiting
        .iter()
        .copied()
        .filter(|&i| match &jobs[i].writes {
            None => true,
            Some(key) => {
                let (waits, never) = needed_by(key, i);
                blocked_forever += usize::from(never);
                !waits && !never
            }
        })
        .collect();
    if !ready.is_empty() {
        return Next::Run(ready);
    }
    let breakable = |i: &&usize| {
        let job = &jobs[**i];
        !job.copies_from.is_empty() && job.writes.as_deref().is_none_or(|key| !needed_by(key, **i).1)
    };
    match waiting.iter().find(breakable) {
        Some(i) if blocked_forever < waiting.len() => Next::Break(*i),
        _ => Next::Done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(writes: &str, copies_from: &str) -> Job {
        let copies_from = copies_from.split_whitespace().map(str::to_owned).collect();
        Job { writes: Some(writes.to_owned()), copies_from }
    }

    /// Runs everything; returns the order, with `!` before a copy that had to be fetched.
    fn run(mut jobs: Vec<Job>) -> Vec<String> {
        let mut waiting: Vec<usize> = (0..jobs.len()).collect();
        let mut order = Vec::new();
        loop {
            match next(&jobs, &waiting, &[]) {
                Next::Done => return order,
                Next::Run(ready) => {
                    for i in &ready {
                        order.push(jobs[*i].writes.clone().unwrap_or_default());
                    }
                    waiting.retain(|i| !ready.contains(i));
                }
                Next::Break(i) => {
                    order.push(format!("!{}", jobs[i].writes.clone().unwrap_or_default()));
                    jobs[i].copies_from.clear();
                }
            }
        }
    }

    #[test]
    fn a_copy_runs_before_its_source_is_replaced() {
        // a → b, then a new file a; and b → c before that.
        assert_eq!(run(vec![job("a", ""), job("b", "a"), job("c", "b")]), ["c", "b", "a"]);
    }

    #[test]
    fn whatever_it_may_be_copied_from_stays() {
        assert_eq!(run(vec![job("a", ""), job("b", ""), job("c", "a b")]), ["c", "a", "b"]);
    }

    #[test]
    fn an_exchange_goes_through_one_local_fetch() {
        let order = run(vec![job("a", "b"), job("b", "a")]);
        assert_eq!(order.iter().filter(|o| o.starts_with('!')).count(), 1, "{order:?}");
        assert_eq!(order.len(), 3, "{order:?}");
    }

    #[test]
    fn nothing_overwrites_the_source_of_a_copy_that_failed() {
        let jobs = [job("a", ""), job("b", "a"), job("x", "")];
        let Next::Run(ready) = next(&jobs, &[0, 2], &[1]) else { panic!("x can run") };
        assert_eq!(ready, [2]);
        assert!(matches!(next(&jobs, &[0], &[1]), Next::Done));
    }
}
