//! The supervisor: a small parent process that outlives a crash of the mount's worker.
//!
//! Depends on `link`, `daemon` and `unmount`; makes no request, opens no cache, starts no thread and no runtime. It forks the
//! worker, which does everything, holds the descriptors of `/dev/fuse`, and forks another one when the worker dies without
//! having ended the mount. Invariants: the first worker is never restarted before it said that the mount answers, so a
//! failed start is reported as without a supervisor; no dead mount is left behind; the worker never outlives it.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use super::daemon::Reporter;
use super::link::{self, History, Kept, Link, Word};
use super::signals::Ending;
use super::{MountError, flush_command, logging, unmount};
use crate::config::MountConfig;
use crate::tree::{Incarnation, LASTING_WORDS};

/// So many crashes within so much time are one too many.
const MOST_CRASHES: usize = 5;
const WITHIN: Duration = Duration::from_secs(60);

/// How long to wait after a crash: not at all the first time, then this, then four times as long, …
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Exit codes of a worker that ended by itself; everything else is a crash.
const LAST_EXIT_CODE: i32 = 3;

static SUPERVISOR: AtomicU32 = AtomicU32::new(0);

/// The process that users see and signal: the supervisor's, or this one if there is none.
pub fn visible_pid() -> u32 {
    match SUPERVISOR.load(Ordering::Relaxed) {
        0 => std::process::id(),
        pid => pid,
    }
}

/// What a process is after [`begin`].
#[derive(Debug)]
pub enum Role {
    /// The one that does the work.
    Worker(Link),
    /// The supervisor, whose work is done: the exit code.
    Over(u8),
}

/// Divides this process in two. Returns in every worker at once, and in the supervisor at the end of the mount. Call it while
/// the process has one thread.
pub fn begin(config: &MountConfig, reporter: &mut Reporter) -> Result<Role, MountError> {
    let system = MountError::system;
    let mut supervisor = Supervisor {
        config,
        signals: SignalQueue::new().map_err(system("catch signals"))?,
        memory: shared_memory().map_err(system("share memory"))?,
        kept: None,
        served: false,
        asked: Vec::new(),
        crashes: Vec::new(),
        history: History::default(),
    };
    let me = std::process::id();
    loop {
        let (ours, theirs) = link::pair().map_err(system("make a socket pair"))?;
        // SAFETY: this process has one thread, so the child may go on as it likes.
        let forked = unsafe { libc::fork() };
        match forked {
            0 => {
                drop(ours);
                return supervisor.become_worker(theirs, me).map(Role::Worker);
            }
            pid if pid > 0 => {
                drop(theirs);
                let ended = supervisor.watch(&ours, pid, reporter);
                if let Some(code) = ended.map_err(system("watch the mount's process"))? {
                    return Ok(Role::Over(code));
                }
            }
            _ => return Err(system("fork")(io::Error::last_os_error())),
        }
    }
}

struct Supervisor<'a> {
    config: &'a MountConfig,
    signals: SignalQueue,
    memory: &'static [AtomicU64],
    kept: Option<Kept>,
    /// Some worker said that the mount answers.
    served: bool,
    /// Signals that came, which a later worker must hear of too.
    asked: Vec<Ending>,
    crashes: Vec<Instant>,
    history: History,
}

impl Supervisor<'_> {
    fn become_worker(self, socket: OwnedFd, supervisor: u32) -> Result<Link, MountError> {
        let failed = |e: rustix::io::Errno| MountError::system("follow the supervisor")(e.into());
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed)?;
        let parent = rustix::process::getppid().map(|pid| pid.as_raw_pid().unsigned_abs());
        if parent != Some(supervisor) {
            return Err(MountError::Background("the supervisor ended".to_owned()));
        }
        SUPERVISOR.store(supervisor, Ordering::Relaxed);
        self.signals.leave_to_supervisor().map_err(MountError::system("ignore signals"))?;
        let incarnation = Incarnation { number: self.history.restarts, memory: Some(self.memory) };
        Ok(Link { socket, kept: self.kept, history: self.history, incarnation })
    }

    /// Returns when the worker is dead: the exit code when that ends the mount.
    fn watch(&mut self, socket: &OwnedFd, pid: i32, reporter: &mut Reporter) -> io::Result<Option<u8>> {
        for signal in &self.asked {
            self.pass_on(socket, *signal);
        }
        let mut serves = false;
        loop {
            let (signalled, spoke) = wait(&self.signals, Some(socket), None)?;
            if signalled {
                for signal in self.signals.read()? {
                    self.asked.push(signal);
                    self.pass_on(socket, signal);
                }
            }
            if !spoke {
                continue;
            }
            match link::listen(socket) {
                Ok(Some(Word::Keep(kept))) => self.kept = Some(kept),
                Ok(Some(Word::Ready(log))) => {
                    serves = true;
                    self.ready(log, reporter)?;
                }
                Ok(None) => break,
                Err(error) => {
                    logging::line("ERROR", &format!("the mount's process cannot be understood: {error}"));
                    break;
                }
            }
        }
        let status = reap(pid)?;
        Ok(match status.exit_status() {
            Some(code @ 0..=LAST_EXIT_CODE) if serves || !self.served => u8::try_from(code).ok(),
            _ => self.crashed(&describe(status), reporter)?,
        })
    }

    /// Whoever started this process has its answer from the worker; what is left is not to keep anything busy.
    fn ready(&mut self, log: Option<OwnedFd>, reporter: &mut Reporter) -> io::Result<()> {
        if let Some(log) = log {
            rustix::stdio::dup2_stderr(&log)?;
        }
        if self.served {
            logging::line("WARN", &format!("the mount answers again (restart {})", self.history.restarts));
        }
        *reporter = Reporter::Foreground;
        self.served = true;
        std::env::set_current_dir("/")
    }

    /// After a crash: whether to go on (`None`), or the exit code.
    fn crashed(&mut self, how: &str, reporter: &mut Reporter) -> io::Result<Option<u8>> {
        if !self.served {
            self.take_off();
            let text = format!("the mount's process ended before the mount was ready ({how})");
            if let Some(error) = reporter.failed(MountError::Background(text)) {
                logging::line("ERROR", &error.to_string());
            }
            return Ok(Some(1));
        }
        let now = Instant::now();
        self.crashes.retain(|crash| now.duration_since(*crash) < WITHIN);
        self.crashes.push(now);
        let hurried = self.asked.iter().filter(|signal| **signal != Ending::Hangup).count() > 1;
        let reason = match (&self.kept, self.crashes.len()) {
            (None, _) => Some("this kernel does not keep a mount without its process (Linux 6.9 does)".to_owned()),
            _ if hurried => Some("a second signal asked for the end".to_owned()),
            (_, MOST_CRASHES..) => {
                Some(format!("that was the {MOST_CRASHES}th crash within {} seconds", WITHIN.as_secs()))
            }
            _ => None,
        };
        let Some(reason) = reason else {
            self.history.restarts += 1;
            self.history.last = Some(format!("{how}, {}", super::utc_now()));
            logging::line("ERROR", &format!("the mount's process crashed ({how}); starting it again"));
            self.pause()?;
            return Ok(None);
        };
        self.take_off();
        let command = flush_command(&self.config.store, &self.config.cache);
        let text = format!(
            "the mount's process crashed ({how}) and is not started again: {reason}. Nothing is mounted any more; what was \
             written is kept in {}. Mount again, or push it with: {command}",
            self.config.cache.root.display()
        );
        logging::line("ERROR", &text);
        Ok(Some(1))
    }

    /// Crashes in a row come slower and slower.
    fn pause(&mut self) -> io::Result<()> {
        let before = u32::try_from(self.crashes.len()).unwrap_or(u32::MAX).saturating_sub(1);
        if before == 0 {
            return Ok(());
        }
        let until = Instant::now() + FIRST_PAUSE * 4u32.saturating_pow(before - 1);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            if wait(&self.signals, None, Some(left))?.0 {
                let signals = self.signals.read()?;
                self.asked.extend(signals);
            }
        }
    }

    /// Without these descriptors the kernel ends the connection: what still waits there gets an error.
    fn take_off(&mut self) {
        let Some(Kept { path, device, channels, .. }) = self.kept.take() else { return };
        drop(channels);
        if let Err(error) = unmount::detach(&path, device.as_deref()) {
            logging::line("ERROR", &error.to_string());
        }
    }

    fn pass_on(&self, socket: &OwnedFd, signal: Ending) {
        // A worker that is gone hears nothing; the next one will.
        if let Err(error) = link::tell(socket, signal)
            && error.raw_os_error() != Some(libc::EPIPE)
        {
            logging::line("WARN", &format!("{} does not reach the mount's process: {error}", signal.name()));
        }
    }
}

/// Waits for a signal, a word, or the time: whether there is one, and the other.
fn wait(signals: &SignalQueue, socket: Option<&OwnedFd>, time: Option<Duration>) -> io::Result<(bool, bool)> {
    let mut watched = vec![PollFd::new(&signals.queue, PollFlags::IN)];
    watched.extend(socket.map(|socket| PollFd::new(socket, PollFlags::IN)));
    let time = time.map(|time| Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    });
    match poll(&mut watched, time.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let happened = |at: usize| watched.get(at).is_some_and(|one| !one.revents().is_empty());
    Ok((happened(0), happened(1)))
}

fn reap(pid: i32) -> io::Result<WaitStatus> {
    loop {
        match rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(status),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "for an unknown reason".to_owned(),
    }
}

/// Memory that all workers see, as a fork shares it; what is never written takes none.
fn shared_memory() -> io::Result<&'static [AtomicU64]> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let (size, protection) = (LASTING_WORDS * size_of::<AtomicU64>(), ProtFlags::READ | ProtFlags::WRITE);
    // SAFETY: new memory at an address of the kernel's choice, which is never unmapped.
    let start =
        unsafe { mmap_anonymous(std::ptr::null_mut(), size, protection, MapFlags::SHARED | MapFlags::NORESERVE)? };
    // SAFETY: it is aligned to a page, of this size, holds zeros, lives as long as the process, and is used as atomics only.
    Ok(unsafe { std::slice::from_raw_parts(start.cast::<AtomicU64>(), LASTING_WORDS) })
}

/// SIGINT, SIGTERM and SIGHUP, to be read like a file.
struct SignalQueue {
    queue: OwnedFd,
    set: libc::sigset_t,
}

impl SignalQueue {
    fn new() -> io::Result<Self> {
        let mut set = std::mem::MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set; the other calls read it and change nothing but this process's signals.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in Ending::ALL {
                libc::sigaddset(set.as_mut_ptr(), signal.number());
            }
            let set = set.assume_init();
            check(libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))?;
            let queue = check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
            Ok(Self { queue: OwnedFd::from_raw_fd(queue), set })
        }
    }

    /// All that came.
    fn read(&self) -> io::Result<Vec<Ending>> {
        let mut found = Vec::new();
        let mut one = [0u8; size_of::<libc::signalfd_siginfo>()];
        loop {
            match rustix::io::read(self.queue.as_fd(), &mut one) {
                Ok(_) => {
                    // The number is the first field.
                    let number = i32::from_ne_bytes([one[0], one[1], one[2], one[3]]);
                    found.extend(Ending::ALL.into_iter().find(|signal| signal.number() == number));
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(found),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// In a worker: they are the supervisor's, and must not end this process.
    fn leave_to_supervisor(self) -> io::Result<()> {
        // SAFETY: dispositions and mask of this process, which has one thread; the set was initialised.
        unsafe {
            for signal in Ending::ALL {
                if libc::signal(signal.number(), libc::SIG_IGN) == libc::SIG_ERR {
                    return Err(io::Error::last_os_error());
                }
            }
            check(libc::sigprocmask(libc::SIG_UNBLOCK, &self.set, std::ptr::null_mut())).map(drop)
        }
    }
}

fn check(returned: i32) -> io::Result<i32> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}
