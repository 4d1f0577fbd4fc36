//! What was measured: samples per row and subject, shown as a table, JSON and a plot.
//!
//! Depends on nothing but `plot`. Invariants: every figure is in seconds; the best of the samples counts, all are kept in JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use super::Result;

/// What a row is compared with.
#[derive(Clone, Debug)]
pub struct Goal {
    /// The subject that is the limit.
    pub limit: &'static str,
    /// swamp-mount may take so many times its time.
    pub ratio: f64,
}

/// One measurement, done by several subjects.
#[derive(Debug)]
pub struct Row {
    pub name: String,
    pub what: String,
    pub goal: Option<Goal>,
    /// Subjects in the order of their first sample, with their samples in seconds.
    pub samples: Vec<(&'static str, Vec<f64>)>,
}

impl Row {
    pub fn best(&self, subject: &str) -> Option<f64> {
        let (_, samples) = self.samples.iter().find(|(name, _)| *name == subject)?;
        samples.iter().copied().reduce(f64::min)
    }
}

/// All rows.
pub struct Report {
    wanted: Vec<String>,
    pub rows: Vec<Row>,
}

impl Report {
    /// Only rows whose name begins with one of `wanted`; all when there is none.
    pub fn new(wanted: Vec<String>) -> Self {
        Self { wanted, rows: Vec::new() }
    }

    pub fn wants(&self, row: &str) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|wanted| row.starts_with(wanted.as_str()))
    }

    pub fn wants_any(&self, rows: &[&str]) -> bool {
        rows.iter().any(|row| self.wants(row))
    }

    /// Declares a row. A row without samples is not shown.
    pub fn row(&mut self, name: &str, what: String, goal: Option<(&'static str, f64)>) {
        let goal = goal.map(|(limit, ratio)| Goal { limit, ratio });
        self.rows.push(Row { name: name.to_owned(), what, goal, samples: Vec::new() });
    }

    /// Adds a sample to a declared row.
    pub fn sample(&mut self, row: &str, subject: &'static str, seconds: f64) {
        eprintln!("    {row:<24} {subject:<14} {seconds:>10.4} s");
        let Some(row) = self.rows.iter_mut().find(|known| known.name == row) else { return };
        match row.samples.iter_mut().find(|(name, _)| *name == subject) {
            Some((_, samples)) => samples.push(seconds),
            None => row.samples.push((subject, vec![seconds])),
        }
    }

    /// Measures `run`, if the row is wanted.
    pub fn time(&mut self, row: &str, subject: &'static str, run: impl FnOnce() -> Result<()>) -> Result<()> {
        if !self.wants(row) {
            return Ok(());
        }
        let began = std::time::Instant::now();
        run().map_err(|error| format!("{row}, {subject}: {error}"))?;
        self.sample(row, subject, began.elapsed().as_secs_f64());
        Ok(())
    }

    /// Writes `bench.json` and `bench.svg`.
    pub fn write(&self, out: &Path) -> Result<()> {
        std::fs::create_dir_all(out)?;
        let rows: Vec<_> = self.rows.iter().filter(|row| !row.samples.is_empty()).collect();
        let json: Vec<_> = rows
            .iter()
            .map(|row| {
                let samples: BTreeMap<_, _> = row.samples.iter().map(|(name, all)| (*name, all)).collect();
                let goal = row.goal.as_ref().map(|g| serde_json::json!({"limit": g.limit, "ratio": g.ratio}));
                serde_json::json!({"row": row.name, "what": row.what, "goal": goal, "seconds": samples})
            })
            .collect();
        std::fs::write(out.join("bench.json"), serde_json::to_string_pretty(&json)?)?;
        std::fs::write(out.join("bench.svg"), super::plot::svg(&rows))?;
        println!("written: {}", out.join("bench.{json,svg}").display());
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in self.rows.iter().filter(|row| !row.samples.is_empty()) {
            writeln!(f, "\n{}: {}", row.name, row.what)?;
            let limit = row.goal.as_ref().and_then(|goal| row.best(goal.limit));
            for (subject, samples) in &row.samples {
                let best = samples.iter().copied().fold(f64::INFINITY, f64::min);
                let worst = samples.iter().copied().fold(0.0, f64::max);
                write!(f, "    {subject:<16} {best:>10.4} s   (worst {worst:.4})")?;
                if let (Some(limit), Some(goal)) = (limit, &row.goal) {
                    write!(f, "   {:>7.2} x {}", best / limit, goal.limit)?;
                    if subject.starts_with("swamp") {
                        let met = if best / limit <= goal.ratio { "met" } else { "missed" };
                        write!(f, "   goal {:.2}: {met}", goal.ratio)?;
                    }
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}
