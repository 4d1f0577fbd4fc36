//! What was measured: samples per row and subject, shown as a table, JSON, Markdown and a plot.
//!
//! Depends on `plot` alone. Invariants: less is better in every row; the best of the samples counts, all are kept in JSON;
//! a missed goal is told, never an error.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde_json::json;

use super::Result;

/// What the figures of a row are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    #[default]
    Seconds,
    Bytes,
    /// A plain number, of requests for instance.
    Count,
}

impl Unit {
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Seconds if value < 0.01 => format!("{:.3} ms", value * 1e3),
            Self::Seconds => format!("{value:.4} s"),
            Self::Bytes if value.abs() < 10_000.0 => format!("{value:.0} B"),
            Self::Bytes => format!("{:.1} MiB", value / f64::from(1 << 20)),
            Self::Count => format!("{value:.2}"),
        }
    }
}

/// What a subject is to reach.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// At most so many times the limit's figure.
    Times(f64),
    /// At most so much more than the limit's figure.
    Plus(f64),
    /// At most so much.
    AtMost(f64),
    /// Less than the best of the subjects that are not swamp-mount.
    Beats,
}

/// What became of a goal.
pub struct Verdict {
    /// The goal in words.
    pub goal: String,
    /// The largest figure that meets it.
    pub allowed: f64,
    pub met: bool,
}

/// One measurement, done by several subjects.
#[derive(Debug)]
pub struct Row {
    pub name: String,
    pub what: String,
    unit: Unit,
    /// The subject that all others are compared with.
    limit: Option<&'static str>,
    goals: Vec<(&'static str, Goal)>,
    /// Subjects in the order of their first sample, with their samples.
    pub samples: Vec<(&'static str, Vec<f64>)>,
    /// The highest load average at the end of a sample.
    load: f64,
}

impl Row {
    pub fn new(name: impl Into<String>, what: impl Into<String>) -> Self {
        let (name, what) = (name.into(), what.into());
        Self { name, what, unit: Unit::Seconds, limit: None, goals: Vec::new(), samples: Vec::new(), load: 0.0 }
    }

    pub fn unit(self, unit: Unit) -> Self {
        Self { unit, ..self }
    }

    pub fn limit(self, subject: &'static str) -> Self {
        Self { limit: Some(subject), ..self }
    }

    pub fn goal(mut self, subject: &'static str, goal: Goal) -> Self {
        self.goals.push((subject, goal));
        self
    }

    pub fn best(&self, subject: &str) -> Option<f64> {
        let (_, samples) = self.samples.iter().find(|(name, _)| *name == subject)?;
        samples.iter().copied().reduce(f64::min)
    }

    pub fn show(&self, value: f64) -> String {
        self.unit.show(value)
    }

    /// The limit's figure.
    fn limit_figure(&self) -> Option<f64> {
        self.best(self.limit?)
    }

    /// How many times the limit's figure a subject has.
    fn ratio(&self, subject: &str) -> Option<f64> {
        if Some(subject) == self.limit {
            return None;
        }
        Some(self.best(subject)? / self.limit_figure()?)
    }

    /// `None` if the subject has no goal in this row, or if what it is compared with was not measured.
    pub fn verdict(&self, subject: &str) -> Option<Verdict> {
        let (_, goal) = self.goals.iter().find(|(name, _)| *name == subject)?;
        let figure = self.best(subject)?;
        let limit = self.limit.unwrap_or_default();
        let (goal, allowed) = match *goal {
            Goal::Times(times) => (format!("{times} x {limit}"), times * self.limit_figure()?),
            Goal::Plus(more) => (format!("{limit} + {}", self.show(more)), more + self.limit_figure()?),
            Goal::AtMost(most) => (format!("at most {}", self.show(most)), most),
            Goal::Beats => {
                let peers = self.samples.iter().filter(|(name, _)| is_peer(name));
                let best = peers.filter_map(|(name, _)| self.best(name)).reduce(f64::min)?;
                (format!("the fastest peer's {}", self.show(best)), best)
            }
        };
        Some(Verdict { goal, allowed, met: figure <= allowed })
    }

    fn json(&self) -> serde_json::Value {
        let samples: BTreeMap<_, _> = self.samples.iter().map(|(name, all)| (*name, all)).collect();
        let verdicts: BTreeMap<_, _> = self
            .goals
            .iter()
            .filter_map(|(name, _)| Some((*name, self.verdict(name)?)))
            .map(|(name, verdict)| {
                let Verdict { goal, allowed, met } = verdict;
                (name, json!({"goal": goal, "allowed": allowed, "met": met, "ratio": self.ratio(name)}))
            })
            .collect();
        let unit = format!("{:?}", self.unit).to_lowercase();
        json!({
            "row": self.name, "what": self.what, "unit": unit, "limit": self.limit,
            "samples": samples, "goals": verdicts, "load": self.load,
        })
    }
}

/// Whether a subject is somebody else's file system.
pub fn is_peer(subject: &str) -> bool {
    ["rclone", "s3fs", "mount-s3"].contains(&subject)
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
    pub fn row(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Adds a sample to a declared row, if that is wanted.
    pub fn sample(&mut self, name: &str, subject: &'static str, value: f64) {
        if !self.wants(name) {
            return;
        }
        let Some(row) = self.rows.iter_mut().find(|known| known.name == name) else {
            panic!("{name} was not declared");
        };
        eprintln!("    {name:<24} {subject:<18} {:>12}", row.show(value));
        row.load = row.load.max(load_average());
        match row.samples.iter_mut().find(|(name, _)| *name == subject) {
            Some((_, samples)) => samples.push(value),
            None => row.samples.push((subject, vec![value])),
        }
    }

    /// Measures `run`, if the row is wanted.
    pub fn time(&mut self, row: &str, subject: &'static str, run: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.wants(row) { self.always(row, subject, run) } else { Ok(()) }
    }

    /// The same, but runs also what is not wanted: what comes after depends on it.
    pub fn always(&mut self, row: &str, subject: &'static str, run: impl FnOnce() -> Result<()>) -> Result<()> {
        let began = std::time::Instant::now();
        run().map_err(|error| format!("{row}, {subject}: {error}"))?;
        self.sample(row, subject, began.elapsed().as_secs_f64());
        Ok(())
    }

    fn measured(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| !row.samples.is_empty())
    }

    /// Writes `bench.json`, `bench.md` and `bench.svg`.
    pub fn write(&self, out: &Path) -> Result<()> {
        std::fs::create_dir_all(out)?;
        let rows: Vec<_> = self.measured().collect();
        let all = json!({
            "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
            "cores": std::thread::available_parallelism()?.get(),
            "rows": rows.iter().map(|row| row.json()).collect::<Vec<_>>(),
        });
        std::fs::write(out.join("bench.json"), serde_json::to_string_pretty(&all)?)?;
        std::fs::write(out.join("bench.md"), markdown(&rows))?;
        std::fs::write(out.join("bench.svg"), super::plot::svg(&rows))?;
        println!("written: {}", out.join("bench.{json,md,svg}").display());
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in self.measured() {
            writeln!(f, "\n{}: {}   (load average up to {:.1})", row.name, row.what, row.load)?;
            for (subject, samples) in &row.samples {
                let best = samples.iter().copied().fold(f64::INFINITY, f64::min);
                let worst = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                write!(f, "    {subject:<18} {:>12}   (worst {})", row.show(best), row.show(worst))?;
                if let (Some(ratio), Some(limit)) = (row.ratio(subject), row.limit) {
                    write!(f, "   {ratio:.2} x {limit}")?;
                }
                if let Some(Verdict { goal, met, .. }) = row.verdict(subject) {
                    write!(f, "   goal {goal}: {}", if met { "met" } else { "NOT MET" })?;
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

/// The same as one table, for documents.
fn markdown(rows: &[&Row]) -> String {
    let mut text =
        "| row | limit | swamp-mount | × limit | goal | | others |\n|---|---|---|---|---|---|---|\n".to_owned();
    for row in rows {
        let figure = |subject: &str| row.best(subject).map(|best| row.show(best)).unwrap_or_default();
        let limit = row.limit.map(|limit| format!("{limit} {}", figure(limit))).unwrap_or_default();
        let others = row.samples.iter().map(|(name, _)| *name);
        let others = others.filter(|name| !name.starts_with("swamp") && Some(*name) != row.limit);
        let others = others.map(|name| format!("{name} {}", figure(name))).collect::<Vec<_>>().join(", ");
        for (subject, _) in row.samples.iter().filter(|(name, _)| name.starts_with("swamp")) {
            let ratio = row.ratio(subject).map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
            let (goal, met) = match row.verdict(subject) {
                Some(Verdict { goal, met, .. }) => (goal, if met { "met" } else { "**not met**" }),
                None => Default::default(),
            };
            let (name, figure) = (&row.name, figure(subject));
            text += &format!("| {name} | {limit} | {subject} {figure} | {ratio} | {goal} | {met} | {others} |\n");
        }
    }
    text
}

/// Of the last minute.
fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or_default()
}
