//! A body on its way out: the source that the crate reads from, and when it may go on with an upload that broke.
//!
//! Depends on `errors`, on the store's content and on the request policy. Invariants: content is read in small chunks and
//! never held as a whole; a content that cannot be read is remembered, since the crate only says that the request broke.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use google_cloud_gax::backoff_policy::BackoffPolicy;
use google_cloud_gax::retry_policy::RetryPolicy;
use google_cloud_gax::retry_result::RetryResult;
use google_cloud_gax::retry_state::RetryState;
use google_cloud_storage::Error;
use google_cloud_storage::streaming_source::{Seek, SizeHint, StreamingSource};

use super::errors;
use crate::store::content::{CHUNK, read_chunk};
use crate::store::retry::Progress;
use crate::store::{Body, RequestPolicy};

/// What an attempt and its caller both know.
#[derive(Clone, Debug)]
pub(super) struct Course {
    progress: Progress,
    state: Arc<Mutex<CourseState>>,
}

#[derive(Debug, Default)]
struct CourseState {
    /// Where the store wanted the last transmission to begin.
    persisted: u64,
    /// Why the content could not be read.
    trouble: Option<String>,
    /// Where the store was at the last failure, and how many there were since it moved.
    failed_at: u64,
    failures: u32,
}

impl Course {
    pub(super) fn new(progress: Progress) -> Self {
        Self { progress, state: Arc::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, CourseState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the content could not be read, if that is what ended the attempt.
    pub(super) fn trouble(&self) -> Option<String> {
        self.state().trouble.clone()
    }
}

/// What the crate reads the content from.
pub(super) struct Source {
    body: Body,
    next: u64,
    course: Course,
}

impl Source {
    pub(super) fn new(body: Body, course: Course) -> Self {
        Self { body, next: 0, course }
    }
}

impl StreamingSource for Source {
    type Error = io::Error;

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        let chunk = self.next..self.body.size().min(self.next + CHUNK);
        if chunk.is_empty() {
            return None;
        }
        self.course.progress.touch();
        match read_chunk(self.body.clone(), chunk.clone()).await {
            Ok(bytes) => {
                self.next = chunk.end;
                Some(Ok(bytes))
            }
            Err(error) => {
                self.course.state().trouble = Some(error.to_string());
                Some(Err(io::Error::other(error)))
            }
        }
    }

    async fn size_hint(&self) -> io::Result<SizeHint> {
        Ok(SizeHint::with_exact(self.body.size()))
    }
}

impl Seek for Source {
    type Error = io::Error;

    async fn seek(&mut self, offset: u64) -> io::Result<()> {
        self.next = offset;
        self.course.state().persisted = offset;
        self.course.progress.touch();
        Ok(())
    }
}

/// Goes on with a resumable upload after a transient failure, as often as the request policy wants without any progress.
/// Before each further transmission the crate asks the store how far it came, or whether it is done: nothing is done twice.
#[derive(Debug)]
pub(super) struct Resume {
    pub policy: RequestPolicy,
    pub course: Course,
}

impl RetryPolicy for Resume {
    fn on_error(&self, _: &RetryState, error: Error) -> RetryResult {
        let mut state = self.course.state();
        if state.trouble.is_some() || !errors::is_transient(&error) {
            return RetryResult::Permanent(error);
        }
        if state.persisted > state.failed_at {
            state.failures = 0;
        }
        state.failed_at = state.persisted;
        state.failures += 1;
        if state.failures >= self.policy.attempts {
            return RetryResult::Exhausted(error);
        }
        tracing::debug!(%error, at = state.persisted, "an upload broke off and goes on");
        self.course.progress.touch();
        RetryResult::Continue(error)
    }
}

/// The pauses of the request policy.
#[derive(Debug)]
pub(super) struct Pauses {
    pub policy: RequestPolicy,
    pub course: Course,
}

impl BackoffPolicy for Pauses {
    fn on_failure(&self, _: &RetryState) -> Duration {
        let failures = self.course.state().failures;
        // The wait itself must not count as a stall.
        self.policy.pause(failures.max(1)).min(self.policy.timeout / 2)
    }
}
