//! Open files: open, read, write, truncate, flush, fsync, and what of them must wait.
//!
//! What is here is answered by the FUSE thread; what must be fetched is answered by a task of the runtime.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use fuser::{Errno, FileHandle, OpenAccMode, OpenFlags, ReplyData, ReplyEmpty, ReplyOpen, ReplyWrite};

use super::SwampFs;
use super::errno::{of_fetch, of_io, of_volume, report};
use super::handles::UNKNOWN_HANDLE;
use crate::cache::is_no_space;
use crate::sync::{Engine, fetch};
use crate::tree::Ino;
use crate::volume::{Handle, LiveContent, Notice, OpenOutcome, OpenRequest, SMALL};

impl SwampFs {
    pub(super) fn open_file(&self, ino: Ino, flags: OpenFlags, reply: ReplyOpen) {
        let writable = flags.acc_mode() != OpenAccMode::O_RDONLY;
        // O_TRUNC empties the file for a reader too; the kernel has checked the permission to write.
        let request = OpenRequest { writable, truncate: flags.0 & libc::O_TRUNC != 0 };
        match self.volume.open(ino, request) {
            Ok(OpenOutcome::Ready(handle)) => self.opened(handle, flags, reply),
            Ok(OpenOutcome::Fetch(live)) => {
                let (engine, volume, files) =
                    (Arc::clone(&self.engine), Arc::clone(&self.volume), Arc::clone(&self.files));
                self.runtime.spawn(async move {
                    if let Err(error) = engine.ensure_all(&live).await {
                        return reply.error(of_fetch(&error));
                    }
                    // `live` is held meanwhile: what was just fetched is not evicted.
                    match volume.open(ino, request) {
                        Ok(OpenOutcome::Ready(handle)) => files.answer(handle, flags, reply),
                        Ok(OpenOutcome::Fetch(_)) => reply.error(Errno::EIO),
                        Err(error) => reply.error(report("open", ino.0, &error)),
                    }
                });
            }
            Err(error) => reply.error(report("open", ino.0, &error)),
        }
    }

    /// A small file that is not here is fetched before open returns, so that an error is an error of open.
    fn opened(&self, handle: Handle, flags: OpenFlags, reply: ReplyOpen) {
        let need = self.need(&handle);
        if need == Need::Nothing {
            return self.files.answer(handle, flags, reply);
        }
        let (engine, files) = (Arc::clone(&self.engine), Arc::clone(&self.files));
        self.runtime.spawn(async move {
            match meet(need, &engine, &handle).await {
                Ok(()) => files.answer(handle, flags, reply),
                Err(errno) => {
                    engine.volume().release(&handle);
                    // ESTALE makes the kernel look the name up again and open what is there now.
                    reply.error(errno);
                }
            }
        });
    }

    /// What a file needs before its first byte is shown.
    fn need(&self, handle: &Handle) -> Need {
        let fetch_first = {
            let state = handle.live.state();
            !state.complete && state.version.as_ref().is_some_and(|v| v.entry.size <= SMALL)
        };
        if !handle.writable && fetch::may_change_unnoticed(&handle.live) {
            return Need::Look;
        }
        if !handle.writable {
            let _in_runtime = self.runtime.enter();
            self.engine.opened_in_order(handle.ino, fetch_first);
        }
        if fetch_first { Need::Fetch } else { Need::Nothing }
    }

    pub(super) fn read_file(&self, ino: Ino, fh: FileHandle, offset: u64, size: u32, reply: ReplyData) {
        let range = offset..offset.saturating_add(u64::from(size));
        match self.files.get(fh) {
            Some(handle) => self.read_open(handle, range, reply),
            None if self.without_open() => self.read_unopened(ino, range, reply),
            None => reply.error(UNKNOWN_HANDLE),
        }
    }

    /// The first read of a file does what an open does elsewhere.
    fn read_unopened(&self, ino: Ino, range: std::ops::Range<u64>, reply: ReplyData) {
        if let Some(handle) = self.unopened.get(ino) {
            return self.read_open(handle, range, reply);
        }
        let handle = match self.volume.open(ino, OpenRequest::default()) {
            Ok(OpenOutcome::Ready(handle)) => handle,
            Ok(OpenOutcome::Fetch(_)) => return reply.error(Errno::EIO),
            Err(error) => return reply.error(report("read", ino.0, &error)),
        };
        let need = self.need(&handle);
        let handle = self.unopened.hold(handle);
        if need == Need::Nothing {
            return self.read_open(handle, range, reply);
        }
        let (engine, unopened) = (Arc::clone(&self.engine), Arc::clone(&self.unopened));
        self.runtime.spawn(async move {
            let met = meet(need, &engine, &handle).await;
            // Such a file is looked at with every read: neither the handle nor the kernel's pages stay.
            let looks_again = fetch::may_change_unnoticed(&handle.live);
            if met.is_err() || looks_again {
                unopened.let_go(ino);
            }
            match met {
                Ok(()) => serve(&engine, &handle.live, range, reply).await,
                Err(errno) => reply.error(errno),
            }
            if looks_again {
                engine.tell_kernel(vec![Notice::Content(ino)]);
            }
        });
    }

    fn read_open(&self, handle: Arc<Handle>, range: std::ops::Range<u64>, reply: ReplyData) {
        if handle.live.is_replaced() {
            return self.read_replaced(&handle, &range, reply);
        }
        let wanted = self.read_ahead(&handle, &range);
        if Engine::is_here(&handle.live, &range) {
            return read_here(&handle.live.file, &range, reply);
        }
        let engine = Arc::clone(&self.engine);
        self.runtime.spawn(async move {
            engine.fetch_ahead(&handle.live, wanted);
            serve(&engine, &handle.live, range, reply).await;
        });
    }

    /// Through a handle from before the file was emptied: the pages belong to the inode, so its bytes are those of now.
    fn read_replaced(&self, handle: &Handle, range: &std::ops::Range<u64>, reply: ReplyData) {
        match self.volume.content_of(handle) {
            Ok(live) => {
                read_here(&live.file, range, reply);
                self.volume.fetched(&live);
            }
            Err(error) => reply.error(report("read", handle.ino.0, &error)),
        }
    }

    /// What to fetch with a read. Sees to it that what its reader is going to want is on its way.
    fn read_ahead(&self, handle: &Handle, range: &std::ops::Range<u64>) -> std::ops::Range<u64> {
        if handle.live.is_complete() {
            return range.clone();
        }
        let wanted = handle.pattern.read(range);
        if !wanted.ahead.is_empty() {
            let _in_runtime = self.runtime.enter();
            for piece in wanted.ahead {
                self.engine.fetch_ahead(&handle.live, piece);
            }
        }
        wanted.now
    }

    pub(super) fn write_file(&self, fh: FileHandle, offset: u64, data: &[u8], reply: ReplyWrite) {
        let Some(handle) = self.files.get(fh) else { return reply.error(UNKNOWN_HANDLE) };
        if !handle.writable {
            return reply.error(Errno::EBADF);
        }
        if self.volume.read_only_reason().is_some() {
            return reply.error(Errno::EROFS);
        }
        crate::fail_point!("write.before");
        let written = self.with_room(|| handle.live.modify(|file| write_at(file, data, offset)));
        match written {
            Ok(written) => {
                crate::fail_point!("write.after");
                self.volume.written(&handle, offset + written as u64);
                reply.written(u32::try_from(written).unwrap_or(u32::MAX));
            }
            Err(error) => {
                tracing::error!(inode = handle.ino.0, offset, %error, "write failed");
                reply.error(of_io(&error));
            }
        }
    }

    /// On a full disk clean contents give way to a writer.
    fn with_room<T>(&self, mut change: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
        match change() {
            Err(error) if is_no_space(&error) && self.volume.make_room_for_writer() => change(),
            other => other,
        }
    }

    pub(super) fn truncate_then<F>(&self, ino: Ino, size: u64, then: F)
    where
        F: FnOnce(Result<(), Errno>) + Send + 'static,
    {
        match self.volume.truncate(ino, size) {
            Ok(None) => then(Ok(())),
            Err(error) => then(Err(report("truncate", ino.0, &error))),
            Ok(Some(live)) => {
                let (engine, volume) = (Arc::clone(&self.engine), Arc::clone(&self.volume));
                self.runtime.spawn(async move {
                    if let Err(error) = engine.ensure_all(&live).await {
                        return then(Err(of_fetch(&error)));
                    }
                    then(match volume.truncate(ino, size) {
                        Ok(None) => Ok(()),
                        Ok(Some(_)) => Err(Errno::EIO),
                        Err(error) => Err(report("truncate", ino.0, &error)),
                    });
                });
            }
        }
    }

    pub(super) fn release_file(&self, fh: FileHandle, reply: ReplyEmpty) {
        self.files.close(fh);
        reply.ok();
    }

    pub(super) fn fsync_file(&self, fh: FileHandle, reply: ReplyEmpty) {
        let Some(handle) = self.files.get(fh) else { return reply.error(UNKNOWN_HANDLE) };
        let (engine, volume) = (Arc::clone(&self.engine), Arc::clone(&self.volume));
        // The disk may take long: other operations on this thread's descriptor must not wait for it.
        self.runtime.spawn(async move {
            let synced = tokio::task::spawn_blocking(move || volume.fsync(&handle.live)).await;
            match synced {
                Ok(Ok(())) => wait_for_bucket(&engine, reply).await,
                Ok(Err(error)) => reply.error(report("fsync", "", &error)),
                Err(_) => reply.error(Errno::EIO),
            }
        });
    }

    pub(super) fn fsync_dir(&self, reply: ReplyEmpty) {
        let (engine, volume) = (Arc::clone(&self.engine), Arc::clone(&self.volume));
        self.runtime.spawn(async move {
            match tokio::task::spawn_blocking(move || volume.sync_names()).await {
                Ok(Ok(())) => wait_for_bucket(&engine, reply).await,
                Ok(Err(error)) => reply.error(report("fsync", "", &error)),
                Err(_) => reply.error(Errno::EIO),
            }
        });
    }

    pub(super) fn allocate(&self, fh: FileHandle, offset: u64, length: u64, mode: i32, reply: ReplyEmpty) {
        let Some(handle) = self.files.get(fh) else { return reply.error(UNKNOWN_HANDLE) };
        if !handle.writable {
            return reply.error(Errno::EBADF);
        }
        let flags = rustix::fs::FallocateFlags::from_bits_retain(mode.cast_unsigned());
        let allocated = self.with_room(|| {
            let allocate = |file: &File| rustix::fs::fallocate(file, flags, offset, length);
            handle.live.modify(allocate).map_err(std::io::Error::from)
        });
        match allocated {
            Ok(()) => {
                self.volume.written(&handle, offset.saturating_add(length));
                reply.ok();
            }
            Err(error) => reply.error(of_io(&error)),
        }
    }

    pub(super) fn read_target(&self, ino: Ino, reply: ReplyData) {
        let live = match self.volume.open_link(ino) {
            Ok(live) => live,
            Err(error) => return reply.error(of_volume(&error)),
        };
        if live.is_complete() {
            return match live.stat() {
                Ok((size, _)) => read_here(&live.file, &(0..size), reply),
                Err(error) => reply.error(of_io(&error)),
            };
        }
        let engine = Arc::clone(&self.engine);
        self.runtime.spawn(async move {
            let size = live.state().version.as_ref().map_or(0, |v| v.entry.size);
            serve(&engine, &live, 0..size, reply).await;
        });
    }
}

/// What must happen before the first byte of a file is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Nothing,
    /// It is small and not here.
    Fetch,
    /// Its object may be newer than its entry.
    Look,
}

async fn meet(need: Need, engine: &Arc<Engine>, handle: &Handle) -> Result<(), Errno> {
    match need {
        Need::Nothing => Ok(()),
        Need::Fetch => engine.ready(&handle.live).await.map_err(|error| of_fetch(&error)),
        Need::Look if engine.superseded(&handle.live).await => Err(Errno::ESTALE),
        Need::Look => Ok(()),
    }
}

/// Answers a read, from the bucket where need be.
async fn serve(engine: &Arc<Engine>, live: &Arc<LiveContent>, range: std::ops::Range<u64>, reply: ReplyData) {
    match engine.read(live, range.clone()).await {
        Ok(fetch::Served::InFile) => read_here(&live.file, &range, reply),
        Ok(fetch::Served::InMemory(bytes)) => reply.data(&bytes),
        Err(error) => reply.error(of_fetch(&error)),
    }
}

async fn wait_for_bucket(engine: &Arc<Engine>, reply: ReplyEmpty) {
    if !engine.options().fsync_waits_for_bucket {
        return reply.ok();
    }
    match engine.flush().await {
        Ok(()) => reply.ok(),
        Err(error) => {
            tracing::error!(%error, "fsync: not in the bucket");
            reply.error(Errno::EIO);
        }
    }
}

/// Writes as much as there is room for; an error only when that is nothing.
fn write_at(file: &File, data: &[u8], offset: u64) -> std::io::Result<usize> {
    let mut written = 0;
    while written < data.len() {
        match file.write_at(&data[written..], offset + written as u64) {
            Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Ok(n) => written += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) if written > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

fn read_here(file: &File, range: &std::ops::Range<u64>, reply: ReplyData) {
    let mut buffer = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], range.start + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::error!(%error, "cannot read a local content");
                return reply.error(of_io(&error));
            }
        }
    }
    reply.data(&buffer[..filled]);
}
