//! The one table from typed errors to errno. `docs/semantics.md` lists what each means to a program.

use fuser::Errno;

use crate::cache::CacheError;
use crate::sync::FetchError;
use crate::volume::VolumeError;

/// The errno of a local failure.
pub fn of_volume(error: &VolumeError) -> Errno {
    match error {
        VolumeError::NotFound => Errno::ENOENT,
        VolumeError::Exists => Errno::EEXIST,
        VolumeError::NotDir => Errno::ENOTDIR,
        VolumeError::IsDir => Errno::EISDIR,
        VolumeError::NotEmpty => Errno::ENOTEMPTY,
        VolumeError::Invalid(_) => Errno::EINVAL,
        VolumeError::NameTooLong(_) => Errno::ENAMETOOLONG,
        VolumeError::NotUtf8 => Errno::EILSEQ,
        VolumeError::NotPermitted(_) => Errno::EPERM,
        VolumeError::CrossesSync => Errno::EXDEV,
        VolumeError::ReadOnly(_) => Errno::EROFS,
        VolumeError::NoAttribute => Errno::ENODATA,
        VolumeError::AttributeNamespace => Errno::EOPNOTSUPP,
        VolumeError::Stale => Errno::ESTALE,
        VolumeError::Cache(error) if error.is_no_space() => Errno::ENOSPC,
        VolumeError::Cache(CacheError::Io { source, .. }) | VolumeError::Content { source, .. } => of_io(source),
        VolumeError::Cache(_) => Errno::EIO,
    }
}

/// The errno of a failed system call; EIO where it has none.
pub fn of_io(error: &std::io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO))
}

/// The errno of bytes that could not be had. Never ENOENT: what the index lists exists.
pub fn of_fetch(error: &FetchError) -> Errno {
    match error {
        FetchError::Stale => Errno::ESTALE,
        FetchError::NoRoom(_) => Errno::ENOSPC,
        FetchError::Unreachable(_) | FetchError::Failed(_) => Errno::EIO,
    }
}

/// Logs a failure that is not an everyday answer, and gives its errno.
pub(super) fn report(operation: &'static str, subject: impl std::fmt::Display, error: &VolumeError) -> Errno {
    match error {
        VolumeError::Cache(_) | VolumeError::Content { .. } => {
            tracing::error!(operation, %subject, %error, "failed");
        }
        _ => tracing::trace!(operation, %subject, %error, "refused"),
    }
    of_volume(error)
}
