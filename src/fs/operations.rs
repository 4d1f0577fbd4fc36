//! The kernel's requests, one by one.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::errno::{of_volume, report};
use super::handles::UNKNOWN_HANDLE;
use super::passthrough::Way;
use super::{SwampFs, TTL, attr, file_type, ino, nanos};
use crate::cache::rows::Kind;
use crate::datastore::now_nanos;
use crate::volume::{
    Handle, Notice, OpenOutcome, OpenRequest, RenameMode, Result, SetAttributes, Stat, Volume, VolumeError, answering,
};

/// Inode numbers are never reused within a mount.
const GENERATION: Generation = Generation(0);

fn entry(result: Result<Stat>, operation: &'static str, name: &OsStr, reply: ReplyEntry) {
    match result {
        Ok(stat) => reply.entry(&TTL, &attr(&stat), GENERATION),
        Err(error) => reply.error(report(operation, name.display(), &error)),
    }
}

fn empty(result: Result<()>, operation: &'static str, name: &OsStr, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(report(operation, name.display(), &error)),
    }
}

/// The kernel's mark on a request that it sends again, because a process crashed that had not answered it.
const SENT_AGAIN: u64 = 1 << 63;

impl SwampFs {
    /// Carries an operation on names out, unless a process before this one did: then what it made is found by `recall`.
    fn once<T>(
        &self,
        request: &Request,
        operation: impl FnOnce() -> Result<T>,
        recall: impl FnOnce(&str) -> Result<T>,
    ) -> Result<T> {
        if !self.engine.options().incarnation.may_be_followed() {
            return operation();
        }
        let number = request.unique().0 & !SENT_AGAIN;
        match self.volume.answered(number).filter(|_| request.unique().0 & SENT_AGAIN != 0) {
            Some(path) => recall(&path),
            None => answering(number, operation),
        }
    }

    /// The file that a request to create it has made before, open.
    fn recall_created(&self, path: &str, writable: bool) -> Result<(Stat, Handle)> {
        let stat = self.volume.lookup_answered(path)?;
        match self.volume.open(stat.ino, OpenRequest { writable, truncate: false })? {
            OpenOutcome::Ready(handle) => Ok((stat, handle)),
            OpenOutcome::Fetch(_) => Err(VolumeError::Stale),
        }
    }

    fn empty_and_tell(&self, result: Result<Vec<Notice>>, operation: &'static str, name: &OsStr, reply: ReplyEmpty) {
        empty(result.map(|notices| self.engine.tell_kernel(notices)), operation, name, reply);
    }
}

fn set_time(time: Option<TimeOrNow>) -> Option<i64> {
    time.map(|time| match time {
        TimeOrNow::SpecificTime(at) => nanos(at),
        TimeOrNow::Now => now_nanos(),
    })
}

impl Filesystem for SwampFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        for flag in wanted {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "this kernel lacks a FUSE feature");
            }
        }
        // Pages go when we say so, not when an attribute looks newer.
        if config.add_capabilities(InitFlags::FUSE_EXPLICIT_INVAL_DATA).is_err() {
            tracing::debug!("no explicit invalidation of pages");
        }
        if self.wants_passthrough
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(1).is_ok()
        {
            self.files.allow_passthrough();
        } else if self.engine.options().read_only && config.add_capabilities(InitFlags::FUSE_NO_OPEN_SUPPORT).is_ok() {
            self.without_open.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = Volume::check_name(name).and_then(|name| self.volume.lookup(ino(parent), name));
        match found {
            Ok(stat) => {
                if stat.kind != Kind::Dir {
                    self.walkers.asks(req.pid(), ino(parent));
                }
                reply.entry(&TTL, &attr(&stat), GENERATION);
            }
            Err(error) => reply.error(of_volume(&error)),
        }
    }

    fn forget(&self, _req: &Request, number: INodeNo, nlookup: u64) {
        self.files.forget(ino(number));
        self.unopened.let_go(ino(number));
        if let Some(dir) = self.volume.forget(ino(number), nlookup) {
            self.directories.forgot(dir);
        }
    }

    fn getattr(&self, _req: &Request, number: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.volume.stat(ino(number)) {
            Ok(stat) => reply.attr(&TTL, &attr(&stat)),
            Err(error) => reply.error(of_volume(&error)),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let number = ino(number);
        let set = SetAttributes { mode, uid, gid, atime: set_time(atime), mtime: set_time(mtime) };
        let volume = Arc::clone(&self.volume);
        let finish = move |truncated: std::result::Result<(), Errno>| {
            if let Err(errno) = truncated {
                return reply.error(errno);
            }
            let changed = if set.is_empty() { Ok(()) } else { volume.set_attributes(number, set) };
            match changed.and_then(|()| volume.stat(number)) {
                Ok(stat) => reply.attr(&TTL, &attr(&stat)),
                Err(error) => reply.error(report("setattr", number.0, &error)),
            }
        };
        match size {
            Some(size) => self.truncate_then(number, size, finish),
            None => finish(Ok(())),
        }
    }

    fn readlink(&self, _req: &Request, number: INodeNo, reply: ReplyData) {
        self.read_target(ino(number), reply);
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        if mode & libc::S_IFMT != libc::S_IFREG {
            // Devices, pipes and sockets cannot be in a bucket.
            return reply.error(Errno::EPERM);
        }
        let made = Volume::check_name(name).and_then(|name| {
            let make = || self.volume.mknod(ino(parent), name, mode, req.uid(), req.gid());
            self.once(req, make, |path| self.volume.lookup_answered(path))
        });
        entry(made, "mknod", name, reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let made = Volume::check_name(name).and_then(|name| {
            let make = || self.volume.mkdir(ino(parent), name, mode, req.uid(), req.gid());
            self.once(req, make, |path| self.volume.lookup_answered(path))
        });
        entry(made, "mkdir", name, reply);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = Volume::check_name(name)
            .and_then(|name| self.once(req, || self.volume.unlink(ino(parent), name), |_| Ok(())));
        empty(done, "unlink", name, reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = Volume::check_name(name)
            .and_then(|name| self.once(req, || self.volume.rmdir(ino(parent), name), |_| Ok(Vec::new())));
        self.empty_and_tell(done, "rmdir", name, reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        let made = Volume::check_name(link_name).and_then(|name| {
            let make = || self.volume.symlink(ino(parent), name, target, req.uid(), req.gid());
            self.once(req, make, |path| self.volume.lookup_answered(path))
        });
        entry(made, "symlink", link_name, reply);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            f if f.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let done = Volume::check_name(name).and_then(|from| {
            let to = Volume::check_name(newname)?;
            self.once(req, || self.volume.rename(ino(parent), from, ino(newparent), to, mode), |_| Ok(Vec::new()))
        });
        self.empty_and_tell(done, "rename", name, reply);
    }

    fn link(&self, _req: &Request, _ino: INodeNo, _parent: INodeNo, _name: &OsStr, reply: ReplyEntry) {
        // One object cannot have two names.
        reply.error(Errno::EPERM);
    }

    fn open(&self, _req: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.without_open() {
            // The kernel opens files by itself from now on, and keeps their pages.
            return reply.error(Errno::ENOSYS);
        }
        self.open_file(ino(number), flags, reply);
    }

    fn read(
        &self,
        _req: &Request,
        number: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.read_file(ino(number), fh, offset, size, reply);
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.write_file(fh, offset, data, reply);
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        // Writes are done when they return, and nothing waits for a close: the kernel need not ask at each of them.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.release_file(fh, reply);
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.fsync_file(fh, reply);
    }

    fn opendir(&self, req: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let dir = ino(number);
        match self.volume.dir_version(dir) {
            Ok(version) => {
                self.walkers.opens(req.pid());
                let (listing, flags) = self.directories.open(dir, version, self.walkers.looks(req.pid()));
                reply.opened(self.dirs.insert(Arc::new(listing)), flags);
            }
            Err(error) => reply.error(of_volume(&error)),
        }
    }

    fn readdir(&self, _req: &Request, number: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(listing) = self.dirs.get(fh) else { return reply.error(UNKNOWN_HANDLE) };
        let listed = listing.names(&self.place(ino(number), offset), |entry| {
            !reply.add(INodeNo(entry.ino.0), entry.cookie, file_type(entry.kind), &*entry.name)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(report("readdir", number.0, &error)),
        }
    }

    fn readdirplus(&self, req: &Request, number: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let Some(listing) = self.dirs.get(fh) else { return reply.error(UNKNOWN_HANDLE) };
        let dir = ino(number);
        // The kernel always asks for attributes at the beginning, and goes on without them when nobody looks at any.
        let all = offset > 0 || self.walkers.looks(req.pid());
        if offset == 0 {
            self.walkers.listed(req.pid(), dir, !all);
        }
        let listed = listing.with_attributes(&self.place(dir, offset), all, |entry, stat| {
            !reply.add(INodeNo(entry.ino.0), entry.cookie, &*entry.name, &TTL, &attr(stat), GENERATION)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(report("readdirplus", number.0, &error)),
        }
    }

    fn releasedir(&self, _req: &Request, number: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        if let Some(listing) = self.dirs.remove(fh) {
            self.directories.close(ino(number), &listing);
        }
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.fsync_dir(reply);
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        // What is written lands in the cache first, so its disk is the limit that counts.
        match rustix::fs::statvfs(&self.volume.options().root) {
            Ok(s) => reply.statfs(
                s.f_blocks,
                s.f_bfree,
                s.f_bavail,
                s.f_files,
                s.f_ffree,
                u32::try_from(s.f_bsize).unwrap_or(4096),
                255,
                u32::try_from(s.f_frsize).unwrap_or(4096),
            ),
            Err(error) => reply.error(Errno::from_i32(error.raw_os_error())),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        number: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let set = Volume::check_name(name)
            .and_then(|n| self.once(req, || self.volume.set_xattr(ino(number), n, Some(value), flags), |_| Ok(())));
        empty(set, "setxattr", name, reply);
    }

    fn getxattr(&self, _req: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match Volume::check_name(name).and_then(|n| self.volume.get_xattr(ino(number), n)) {
            Ok(value) => xattr_reply(&value, size, reply),
            Err(error) => reply.error(of_volume(&error)),
        }
    }

    fn listxattr(&self, _req: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        match self.volume.list_xattrs(ino(number)) {
            Ok(names) => {
                let mut list = Vec::new();
                for name in names {
                    list.extend_from_slice(name.as_bytes());
                    list.push(0);
                }
                xattr_reply(&list, size, reply);
            }
            Err(error) => reply.error(of_volume(&error)),
        }
    }

    fn removexattr(&self, req: &Request, number: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = Volume::check_name(name)
            .and_then(|n| self.once(req, || self.volume.set_xattr(ino(number), n, None, 0), |_| Ok(())));
        empty(removed, "removexattr", name, reply);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let writable = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let made = Volume::check_name(name).and_then(|name| {
            let make = || self.volume.create(ino(parent), name, mode, req.uid(), req.gid(), writable);
            self.once(req, make, |path| self.recall_created(path, writable))
        });
        match made {
            Ok((stat, handle)) => {
                debug_assert_eq!(stat.kind, Kind::File);
                let opened = self.files.open(handle, OpenFlags(flags), |file| reply.open_backing(file));
                match opened {
                    Ok((fh, Way::Cached(keep))) => reply.created(&TTL, &attr(&stat), GENERATION, fh, keep),
                    Ok((fh, Way::Through(backing))) => {
                        let flags = FopenFlags::FOPEN_NOFLUSH;
                        reply.created_passthrough(&TTL, &attr(&stat), GENERATION, fh, flags, &backing);
                    }
                    Err(error) => reply.error(report("create", name.display(), &error)),
                }
            }
            Err(error) => reply.error(report("create", name.display(), &error)),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.allocate(fh, offset, length, mode, reply);
    }
}

fn xattr_reply(value: &[u8], size: u32, reply: ReplyXattr) {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    match size {
        0 => reply.size(length),
        size if size < length => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}
