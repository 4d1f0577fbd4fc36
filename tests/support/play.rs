//! Sequences of steps on machines ([`Host`]), with a kernel mount or without, other writers and the weather, played against
//! the model of `world`: after every step each machine shows what its model shows, and after every push so does the bucket.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use swamp_mount::volume::RenameMode;

use super::faults::{Action, Fault, Gate};
use super::host::Host;
use super::mount::{Lab, entry};
use super::steps::{DIRS, Plan, Step, Tally, name_of};
use super::watch::IndexWatch;
use super::weather::{Climate, Weather};
use super::world::{Bucket, COMMON, Objects, Step as Pushed, Version, View, shown};

type Outcome<T> = Result<T, String>;

struct Play {
    lab: Lab,
    machines: Vec<(Host, View)>,
    /// Every content that was ever written, by hash.
    contents: HashMap<String, Vec<u8>>,
    /// What entries without a hash are about.
    unhashed: HashMap<(String, String), Vec<u8>>,
    written: u32,
    tally: Tally,
}

/// Plays a sequence.
///
/// # Errors
/// What disagreed, after which step.
pub fn play(steps: &[Step], plan: &Plan) -> Outcome<Tally> {
    let lab = Lab::s3_laid_out(plan.sharded);
    let watch = IndexWatch::over(lab.server(), |_| false);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let store = runtime.block_on(lab.connect(super::stores::quick_policy()));
    let host = if plan.mounted { Host::with_mount } else { Host::new };
    let machine = |number| (host(&format!("m{number}"), Arc::clone(&store)), View::default());
    let machines = (0..plan.machines).map(machine).collect();
    let (contents, unhashed) = (HashMap::new(), HashMap::new());
    let mut play = Play { lab, machines, contents, unhashed, written: 0, tally: Tally::default() };
    for name in [0, 1, 5, 9] {
        play.foreign_write(name, 1, true);
    }
    for at in 0..play.machines.len() {
        play.start(at)?;
    }
    for (number, step) in steps.iter().enumerate() {
        let after = |error| format!("after step {number}, {step:?}: {error}");
        play.step(step).map_err(after)?;
        if let Some(torn) = watch.seen().torn.first() {
            return Err(after(torn.clone()));
        }
    }
    play.end().map_err(|error| format!("in the end: {error}"))?;
    let seen = watch.seen();
    play.tally.entries = seen.entries;
    seen.torn.first().map_or(Ok(play.tally), |torn| Err(format!("in the end: {torn}")))
}

impl Play {
    fn text(&mut self, kind: u8) -> Vec<u8> {
        self.written += 1;
        let mut bytes = match kind {
            // Two machines that write the same.
            ..20 => COMMON.to_vec(),
            _ => format!("text {:05}", self.written).into_bytes(),
        };
        if kind.is_multiple_of(5) {
            bytes.resize(300, b'.');
        }
        self.know(bytes)
    }

    fn know(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        let sha256 = entry("", &bytes)["sha256"].as_str().expect("a hash").to_owned();
        self.contents.insert(sha256, bytes.clone());
        bytes
    }

    /// What the index lists. No entry may speak of bytes that nobody wrote.
    fn bucket(&mut self) -> Outcome<Bucket> {
        let mut bucket = Bucket::new();
        let entries =
            if self.lab.data_keys().is_empty() && self.written == 0 { Map::new() } else { self.lab.entries() };
        for (path, entry) in entries {
            let mut said = entry.clone();
            for attribute in ["localMtime", "mode"] {
                said.as_object_mut().expect("an entry").remove(attribute);
            }
            let text = said.to_string();
            let bytes = match said["sha256"].as_str() {
                Some(sha256) => {
                    self.contents.get(sha256).cloned().ok_or_else(|| format!("{entry}: bytes of nobody"))?
                }
                None => {
                    let (lab, at) = (&self.lab, (path.clone(), text.clone()));
                    let seen = self.unhashed.entry(at).or_insert_with(|| lab.object(&path).unwrap_or_default());
                    seen.clone()
                }
            };
            if entry["size"] != bytes.len() {
                return Err(format!("{entry}: but it has {} bytes", bytes.len()));
            }
            bucket.insert(path, Version { bytes, entry: text });
        }
        Ok(bucket)
    }

    fn objects(&self) -> Objects {
        let read = |key: String| self.lab.object(&key).map(|bytes| (key, bytes));
        self.lab.data_keys().into_iter().filter_map(read).collect()
    }

    fn start(&mut self, at: usize) -> Outcome<()> {
        self.machines[at].0.start()?;
        self.refreshed(at)
    }

    /// A machine has read the index: it shows what its view shows with that.
    fn refreshed(&mut self, at: usize) -> Outcome<()> {
        let (bucket, objects) = (self.bucket()?, self.objects());
        let (host, view) = &mut self.machines[at];
        view.refresh(&bucket);
        view.agree(&host.names()?, &bucket, &objects).map_err(|error| format!("machine {at}: {error}"))
    }

    fn kill(&mut self, at: usize) -> Outcome<()> {
        self.tally.crashes += 1;
        self.machines[at].0.crash();
        self.lab.server().clear_faults();
        self.lab.server().quiet();
        // Stale at once.
        self.lab.remove_object(".datastore.lock");
        Ok(())
    }

    fn under<T>(&mut self, weather: Option<u64>, act: impl FnOnce(&mut Self) -> T) -> T {
        let climate = Climate::stormy(Duration::from_millis(2));
        let weather = weather.map(|seed| Arc::new(Weather::new(seed, climate)));
        self.lab.server().set_weather(weather.clone());
        let done = act(self);
        self.lab.server().set_weather(None);
        self.lab.server().quiet();
        self.tally.faults += weather.map_or(0, |weather| weather.faults());
        done
    }

    /// The file that a number means on a machine.
    fn pick(&self, at: u8, number: u8) -> Option<(usize, String)> {
        let at = usize::from(at);
        let names = self.machines[at].1.names();
        (!names.is_empty()).then(|| (at, names[usize::from(number) % names.len()].clone()))
    }

    fn step(&mut self, step: &Step) -> Outcome<()> {
        self.tally.operations += 1;
        let at = match *step {
            Step::Write { at, name, text } => {
                let (bytes, name) = (self.text(text), name_of(name));
                let (host, view) = &mut self.machines[usize::from(at)];
                host.write(&name, &bytes)?;
                view.write(&name, bytes);
                usize::from(at)
            }
            Step::Append { at, pick } => return self.edit(at, pick, None),
            Step::Truncate { at, pick, size } => return self.edit(at, pick, Some(size)),
            Step::Remove { at, pick } => {
                let Some((at, name)) = self.pick(at, pick) else { return Ok(()) };
                self.machines[at].0.remove(&name)?;
                self.machines[at].1.remove(&name);
                at
            }
            Step::Rename { at, pick, name } => {
                let Some((at, from)) = self.pick(at, pick) else { return Ok(()) };
                let to = name_of(name);
                if from == to {
                    return Ok(());
                }
                self.machines[at].0.rename(&from, &to, RenameMode::Replace)?;
                self.machines[at].1.rename(&from, &to);
                at
            }
            Step::Exchange { at, pick, other } => {
                let (Some((at, a)), Some((_, b))) = (self.pick(at, pick), self.pick(at, other)) else { return Ok(()) };
                if a == b {
                    return Ok(());
                }
                self.machines[at].0.rename(&a, &b, RenameMode::Exchange)?;
                self.machines[at].1.exchange(&a, &b);
                at
            }
            Step::MoveDir { at, from, to } => return self.move_directory(usize::from(at), from, to),
            Step::Read { at, pick, weather } => {
                let Some((at, name)) = self.pick(at, pick) else { return Ok(()) };
                return self.read(at, &name, weather);
            }
            Step::Refresh { at, weather } => {
                let at = usize::from(at);
                let refreshed = self.under(weather, |play| play.machines[at].0.refresh());
                if weather.is_none() {
                    refreshed?;
                }
                self.machines[at].0.refresh()?;
                return self.refreshed(at);
            }
            Step::Flush { at, weather } => {
                let at = usize::from(at);
                let (before, objects) = (self.bucket()?, self.objects());
                let flushed = self.under(weather, |play| play.machines[at].0.flush());
                // A renamed file cannot be fetched while another machine's push of it is halfway.
                let halfway = bucket_is_torn(&before, &objects);
                if let Err(error) = &flushed
                    && weather.is_none()
                    && !halfway
                {
                    return Err(error.clone());
                }
                self.machines[at].0.refresh()?;
                return self.pushed(at, &before, &objects, flushed.is_ok());
            }
            Step::KilledFlush { at, after, effect } => return self.killed_flush(usize::from(at), after, effect),
            Step::Kill { at } => {
                self.kill(usize::from(at))?;
                return self.start(usize::from(at));
            }
            Step::ForeignWrite { name, text, hashed } => {
                self.foreign_write(name, text, hashed);
                return Ok(());
            }
            Step::ForeignRemove { pick } => {
                let mut entries = self.lab.entries();
                let names: Vec<String> = entries.keys().cloned().collect();
                if names.is_empty() {
                    return Ok(());
                }
                let name = &names[usize::from(pick) % names.len()];
                entries.remove(name);
                self.lab.write_entries(entries);
                self.lab.remove_object(name);
                return Ok(());
            }
        };
        let (bucket, objects) = (self.bucket()?, self.objects());
        let (host, view) = &mut self.machines[at];
        view.agree(&host.names()?, &bucket, &objects)
    }

    fn foreign_write(&mut self, name: u8, text: u8, hashed: bool) {
        let (mut bytes, name) = (self.text(text), name_of(name));
        if !hashed {
            // Without a hash only the size tells versions of the same second apart; docs/semantics.md says so.
            bytes.resize(400 + self.written as usize, b'-');
            bytes = self.know(bytes);
        }
        let mut said = entry(&name, &bytes);
        let said_of = said.as_object_mut().expect("an entry");
        if !hashed {
            said_of.remove("sha256");
        }
        said_of.insert("lastModified".to_owned(), Value::from(now()));
        let mut entries = if self.written == 1 { Map::new() } else { self.lab.entries() };
        self.unhashed.retain(|(path, _), _| *path != name);
        entries.insert(name.clone(), said);
        self.lab.put_object(&name, &bytes);
        self.lab.write_entries(entries);
    }

    fn move_directory(&mut self, at: usize, from: u8, to: u8) -> Outcome<()> {
        let (from, to) = (DIRS[usize::from(from) % 3], DIRS[usize::from(to) % 3]);
        let (host, view) = &mut self.machines[at];
        let below =
            |dir: &str| view.names().into_iter().filter(|n| n.starts_with(&format!("{dir}/"))).collect::<Vec<_>>();
        let moved = below(from);
        if from == to || moved.is_empty() || !below(to).is_empty() {
            return Ok(());
        }
        // It may have directories without files.
        if host.rename(from, to, RenameMode::Replace).is_ok() {
            for name in moved {
                view.rename(&name, &format!("{to}{}", &name[from.len()..]));
            }
        }
        let (bucket, objects) = (self.bucket()?, self.objects());
        let (host, view) = &mut self.machines[at];
        view.agree(&host.names()?, &bucket, &objects)
    }

    /// Whether the bytes that a machine shows under a name can be had: they are here, or the bucket has them.
    fn is_there(&mut self, at: usize, name: &str) -> Outcome<bool> {
        let (bucket, objects) = (self.bucket()?, self.objects());
        let view = &self.machines[at].1;
        let Some((source, version)) = view.source(name) else { return Ok(true) };
        Ok(bucket.get(&source) == Some(&version) && objects.get(&source) == Some(&version.bytes))
    }

    fn read(&mut self, at: usize, name: &str, weather: Option<u64>) -> Outcome<()> {
        let there = self.is_there(at, name)?;
        let read = self.under(weather, |play| play.machines[at].0.read(name));
        let bucket = self.bucket()?;
        let view = &mut self.machines[at].1;
        let expected = view.get(name).map(<[u8]>::to_vec);
        match (read, expected) {
            (Ok(bytes), Some(expected)) if bytes == expected => {}
            (Ok(bytes), _) if !there && view.gave_up(name, &bytes) => {}
            // What was not here was looked for, and something newer was there.
            (Ok(bytes), _) if !there && view.is_clean(name) && bucket.get(name).is_some_and(|v| v.bytes == bytes) => {}
            (Ok(bytes), expected) => {
                let (bytes, expected) = (shown(&bytes), expected.map(|expected| shown(&expected)));
                return Err(format!("{name} reads {bytes:?} instead of {expected:?}"));
            }
            (Err(error), _) if there && weather.is_none() => return Err(format!("{name} cannot be read: {error}")),
            (Err(_), _) => {}
        }
        self.machines[at].0.refresh()?;
        self.refreshed(at)
    }

    fn edit(&mut self, at: u8, pick: u8, size: Option<u8>) -> Outcome<()> {
        let Some((at, name)) = self.pick(at, pick) else { return Ok(()) };
        if !self.is_there(at, &name)? {
            return self.read(at, &name, None);
        }
        let mut bytes = self.machines[at].1.get(&name).expect("picked").to_vec();
        match size {
            Some(size) => {
                bytes.resize(usize::from(size), 0);
                self.machines[at].0.truncate(&name, u64::from(size))?;
            }
            None => {
                self.written += 1;
                let more = format!(" and {}", self.written).into_bytes();
                self.machines[at].0.append(&name, &more)?;
                bytes.extend(more);
            }
        }
        let bytes = self.know(bytes);
        self.machines[at].1.write(&name, bytes);
        let (bucket, objects) = (self.bucket()?, self.objects());
        let (host, view) = &mut self.machines[at];
        view.agree(&host.names()?, &bucket, &objects)
    }

    fn pushed(&mut self, at: usize, before: &Bucket, objects: &Objects, done: bool) -> Outcome<()> {
        self.tally.pushes += 1;
        let (after, objects_after) = (self.bucket()?, self.objects());
        let (host, view) = &mut self.machines[at];
        let shown = host.names()?;
        let conflicts = view.pushed(&Pushed { before, objects, after: &after, done })?;
        self.tally.conflicts += conflicts.len() as u64;
        view.agree(&shown, &after, &objects_after).map_err(|error| format!("machine {at}: {error}"))?;
        // Only now: ours may have gone aside, and waits under its new name.
        view.settle(&host.pending(), &after, &objects_after);
        Ok(())
    }

    fn killed_flush(&mut self, at: usize, after: u8, effect: bool) -> Outcome<()> {
        let (before, objects) = (self.bucket()?, self.objects());
        let (gate, server) = (Gate::default(), self.lab.server());
        let hold = if effect { Action::HoldAnswer(gate.clone()) } else { Action::Hold(gate.clone()) };
        server.inject(Fault::any(hold).skip(usize::from(after)));
        let flushed = self.machines[at].0.flush_until(gate.arrived(1))?;
        self.kill(at)?;
        let done = flushed.map_or(Ok(false), |flushed| flushed.map(|()| true))?;
        self.machines[at].0.start()?;
        self.pushed(at, &before, &objects, done)
    }

    /// Everybody pushes; then all machines, the bucket and a machine that was never there agree.
    fn end(&mut self) -> Outcome<()> {
        for _ in 0..3 {
            for at in 0..self.machines.len() {
                self.step(&Step::Flush { at: at as u8, weather: None })?;
            }
        }
        if let Some(at) = self.machines.iter().position(|(_, view)| view.is_dirty()) {
            return Err(format!("machine {at} is never done: {:?}", self.machines[at].1));
        }
        let (bucket, objects) = (self.bucket()?, self.objects());
        let listed: Objects = bucket.into_iter().map(|(path, version)| (path, version.bytes)).collect();
        if listed.iter().any(|(path, bytes)| objects.get(path) != Some(bytes)) {
            return Err(differences("the index", &listed, "the objects", &objects));
        }
        let strays = objects.keys().filter(|path| !listed.contains_key(*path)).count();
        // What a push that was killed had begun, of a file that had another name before the next push: fsck finds it.
        if strays > 0 && self.tally.crashes == 0 {
            return Err(differences("the index", &listed, "the objects", &objects));
        }
        self.tally.strays += strays as u64;
        self.tally.returned += self.machines.iter().map(|(_, view)| view.returned).sum::<u64>();
        let fresh = (Host::new("new", self.machines[0].0.store()), View::default());
        self.machines.push(fresh);
        self.start(self.machines.len() - 1)?;
        for at in 0..self.machines.len() {
            self.machines[at].0.refresh()?;
            self.refreshed(at)?;
            let files = self.machines[at].0.files()?;
            if files != listed {
                return Err(differences(&format!("machine {at}"), &files, "the bucket", &listed));
            }
        }
        Ok(())
    }
}

fn bucket_is_torn(bucket: &Bucket, objects: &Objects) -> bool {
    bucket.iter().any(|(path, version)| objects.get(path) != Some(&version.bytes))
}

fn now() -> String {
    swamp_mount::datastore::format_nanos(swamp_mount::datastore::now_nanos())
}

fn differences(a: &str, files: &BTreeMap<String, Vec<u8>>, b: &str, others: &BTreeMap<String, Vec<u8>>) -> String {
    let show = |bytes: Option<&Vec<u8>>| bytes.map(|bytes| shown(bytes));
    let names = files.keys().chain(others.keys()).filter(|name| files.get(*name) != others.get(*name));
    let lines: Vec<String> =
        names.map(|name| format!("{name}: {:?} / {:?}", show(files.get(name)), show(others.get(name)))).collect();
    format!("{a} and {b} differ: {}", lines.join(", "))
}
