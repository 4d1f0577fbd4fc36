//! Passthrough: the kernel reads and writes the file behind a complete content by itself.
//!
//! Depends on `volume` for what it notices afterwards. Invariants: all open handles of an inode are served the same way, as
//! the kernel demands, so the first one decides until the last is closed; an inode has one backing id at a time; pages that
//! the kernel cached of an inode before others wrote past them are dropped at the next open; a handle through which memory
//! can be mapped ends only when nobody holds the file any more.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fuser::{BackingId, FopenFlags};
use tokio::runtime::Handle as Runtime;

use crate::sync::Engine;
use crate::sync::fetch::may_change_unnoticed;
use crate::tree::Ino;
use crate::volume::{Handle, Unseen, is_held_elsewhere, keeps_times};

/// A reader of a smaller file is served from the kernel's page cache: one request, and no file to open behind it.
const WORTH_IT: u64 = 128 << 10;
/// How often unseen writers are looked at while there are any: at first, and at last.
const FIRST_LOOK: Duration = Duration::from_millis(2);
const LAST_LOOK: Duration = Duration::from_millis(500);

/// How a handle is opened.
pub(super) enum Way {
    /// Through the page cache, whose pages may stay or not.
    Cached(FopenFlags),
    /// By the kernel itself.
    Through(Arc<BackingId>),
}

/// How the open handles of an inode are served.
enum Mode {
    Cached { opens: u32 },
    Through { backing: Arc<BackingId>, opens: u32, lingering: Vec<Arc<Handle>> },
}

#[derive(Default)]
struct Inodes {
    modes: HashMap<Ino, Mode>,
    /// Written past the kernel's page cache since they were last opened through it.
    stale: HashSet<Ino>,
    /// Handles that write unseen, lingering ones included.
    unseen: usize,
    watched: bool,
}

/// See the module.
pub(super) struct Passthrough {
    allowed: AtomicBool,
    inodes: Mutex<Inodes>,
}

impl Passthrough {
    pub fn new() -> Self {
        Self { allowed: AtomicBool::new(false), inodes: Mutex::default() }
    }

    /// The kernel agreed to it.
    pub fn allow(&self) {
        self.allowed.store(true, Ordering::Relaxed);
    }

    fn inodes(&self) -> MutexGuard<'_, Inodes> {
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides how a new handle is served; [`Passthrough::leave`] must follow. `register` makes the backing id.
    pub fn enter(
        &self,
        engine: &Engine,
        handle: &mut Handle,
        mappable: bool,
        register: impl FnOnce(&File) -> std::io::Result<BackingId>,
    ) -> crate::volume::Result<Way> {
        let mut inodes = self.inodes();
        let backing = match inodes.modes.get(&handle.ino) {
            Some(Mode::Through { backing, .. }) => Some(Arc::clone(backing)),
            Some(Mode::Cached { .. }) => None,
            None if self.is_worth_it(handle) => match register(&handle.live.file) {
                Ok(backing) => Some(Arc::new(backing)),
                Err(error) => {
                    tracing::warn!(%error, "no passthrough: files are read and written through this process");
                    self.allowed.store(false, Ordering::Relaxed);
                    None
                }
            },
            None => None,
        };
        let Some(backing) = backing else {
            match inodes.modes.entry(handle.ino).or_insert(Mode::Cached { opens: 0 }) {
                Mode::Cached { opens } | Mode::Through { opens, .. } => *opens += 1,
            }
            let keep = !inodes.stale.remove(&handle.ino);
            return Ok(Way::Cached(if keep { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() }));
        };
        if handle.writable {
            let how = if mappable { Unseen::Mappable } else { Unseen::Written };
            engine.volume().write_unseen(handle, how)?;
            inodes.unseen += 1;
            inodes.stale.insert(handle.ino);
        }
        let through = Mode::Through { backing: Arc::clone(&backing), opens: 0, lingering: Vec::new() };
        match inodes.modes.entry(handle.ino).or_insert(through) {
            Mode::Cached { opens } | Mode::Through { opens, .. } => *opens += 1,
        }
        Ok(Way::Through(backing))
    }

    fn is_worth_it(&self, handle: &Handle) -> bool {
        let large = || handle.live.stat().is_ok_and(|(size, _)| size > WORTH_IT);
        self.allowed.load(Ordering::Relaxed)
            && handle.live.is_complete()
            && (handle.writable || large())
            && !may_change_unnoticed(&handle.live)
            && keeps_times(&handle.live.file)
    }

    /// The kernel closed a handle. Gives it back when it can be released now.
    pub fn leave(&self, handle: Arc<Handle>) -> Option<Arc<Handle>> {
        let mut inodes = self.inodes();
        let (lingers, empty) = match inodes.modes.get_mut(&handle.ino) {
            Some(Mode::Cached { opens }) => {
                *opens -= 1;
                (false, *opens == 0)
            }
            Some(Mode::Through { opens, lingering, .. }) => {
                *opens -= 1;
                let lingers = handle.unseen == Some(Unseen::Mappable);
                if lingers {
                    lingering.push(Arc::clone(&handle));
                }
                (lingers, *opens == 0 && lingering.is_empty())
            }
            None => (false, false),
        };
        if empty {
            inodes.modes.remove(&handle.ino);
        }
        if lingers {
            return None;
        }
        inodes.unseen -= usize::from(handle.unseen.is_some());
        Some(handle)
    }

    /// The kernel forgot an inode, and with it all of its pages.
    pub fn forget(&self, ino: Ino) {
        self.inodes().stale.remove(&ino);
    }

    /// Handles whose file nobody has open or mapped any more.
    fn take_ended(&self) -> Vec<Arc<Handle>> {
        let mut inodes = self.inodes();
        let mut ended = Vec::new();
        inodes.modes.retain(|_, mode| {
            let Mode::Through { opens: 0, lingering, .. } = mode else { return true };
            // Under the lock: whoever opens the file next is answered after the look.
            if lingering.iter().any(|handle| is_held_elsewhere(&handle.live.file)) {
                return true;
            }
            ended.append(lingering);
            false
        });
        inodes.unseen -= ended.len();
        ended
    }

    /// Looks at unseen writers for as long as there are any.
    pub fn watch(self: &Arc<Self>, runtime: &Runtime, engine: &Arc<Engine>) {
        {
            let mut inodes = self.inodes();
            if inodes.unseen == 0 || std::mem::replace(&mut inodes.watched, true) {
                return;
            }
        }
        let (passthrough, engine) = (Arc::clone(self), Arc::clone(engine));
        runtime.spawn(async move {
            let mut pause = FIRST_LOOK;
            loop {
                tokio::time::sleep(pause).await;
                let (again, looked) = (Arc::clone(&passthrough), Arc::clone(&engine));
                let ended = tokio::task::spawn_blocking(move || {
                    let ended = again.take_ended();
                    ended.iter().for_each(|handle| looked.volume().release(handle));
                    // Stores to a mapping move the times without the kernel's own inode knowing.
                    looked.tell_kernel(looked.volume().notice_unseen());
                    ended.len()
                });
                pause = match ended.await {
                    Ok(0) => (pause * 2).min(LAST_LOOK),
                    Ok(_) => FIRST_LOOK,
                    Err(error) => {
                        tracing::error!(%error, "looking for unseen writes failed");
                        LAST_LOOK
                    }
                };
                let mut inodes = passthrough.inodes();
                if inodes.unseen == 0 {
                    inodes.watched = false;
                    return;
                }
            }
        });
    }
}
