//! Refresh: one conditional read of the index; what other writers changed comes into view.
//!
//! Invariants: an index that vanished is an error once one was read here; a failed read never changes the view;
//! discovery is for a source whose index was never seen.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::{FutureExt, StreamExt, stream};

use super::{Engine, SyncError};
use crate::datastore::{Fresh, Index, IndexRead, RemoteIndex, discover, format_nanos, now_nanos, read_index};
use crate::store::{ObjectInfo, StoreError};
use crate::volume::{NewBase, Undone};

/// Looks at the same time.
const CONCURRENCY: usize = 16;

impl Engine {
    /// Reads the index if it changed and takes it into view.
    ///
    /// # Errors
    /// Store errors, an index that does not parse or vanished, disk errors. The view is as it was then.
    pub async fn refresh(&self) -> Result<(), SyncError> {
        let before = self.refreshes_begun.load(Ordering::SeqCst);
        let _gate = self.index_gate.lock().await;
        // A refresh that began and succeeded while this one waited saw everything this one would.
        if self.refreshed.load(Ordering::SeqCst) > before {
            return Ok(());
        }
        let mine = self.refreshes_begun.fetch_add(1, Ordering::SeqCst) + 1;
        match self.refresh_now().await {
            Ok(()) => {
                self.refreshed.store(mine, Ordering::SeqCst);
                self.note_contact("refresh");
                self.index_in_doubt.store(false, Ordering::SeqCst);
                Ok(())
            }
            Err(error) => {
                self.index_in_doubt.store(true, Ordering::SeqCst);
                self.note_error("refresh", &error);
                Err(error)
            }
        }
    }

    /// The bucket answered, and `operation` did what it should.
    pub(super) fn note_contact(&self, operation: &str) {
        let nothing_left = self.pending().is_empty();
        let mut journal = self.journal();
        journal.last_refresh = Some(now_nanos());
        journal.unreachable = None;
        if let Some(since) = journal.offline_since.take() {
            tracing::info!(since = format_nanos(since), "the bucket answers again");
        }
        // A refresh does not make up for a push that failed.
        journal.last_error.take_if(|error| nothing_left || operation == "push" || error.message.starts_with(operation));
    }

    async fn refresh_now(&self) -> Result<(), SyncError> {
        // Whoever waits for the index is not to wait for each of its deadlines.
        if let Some(new) = self.while_in_contact(self.read_newer_base()).await?? {
            self.apply(Some(new), Vec::new()).await?;
        }
        Ok(())
    }

    /// The remote index when it is not the base in view; `None` when it is. Under `index_gate`.
    pub(super) async fn read_newer_base(&self) -> Result<Option<NewBase>, SyncError> {
        let base = self.volume.base();
        match read_index(&*self.store, Some(&base.index), base.seen()).await? {
            IndexRead::NotModified => {
                self.volume.confirm_base();
                if !self.commits_in_doubt.load(Ordering::SeqCst) {
                    return Ok(None);
                }
                let remote = RemoteIndex { index: Index::clone(&base.index), fresh: Fresh::new() };
                let undone = self.undone_by_others(&remote).await?;
                Ok((!undone.is_empty()).then(|| NewBase { undone, ..remote.into() }))
            }
            IndexRead::Present(remote) => {
                let undone = self.undone_by_others(&remote).await?;
                Ok(Some(NewBase { undone, ..remote.into() }))
            }
            IndexRead::Missing if base.record.as_ref().is_some_and(|r| !r.discovered) => {
                Err(SyncError::IndexVanished { source_name: self.store.describe() })
            }
            IndexRead::Missing => {
                let index = discover(&*self.store, self.datastore.namespace().is_some()).await?;
                if base.record.is_some() && same_entries(&index, &base.index) {
                    return Ok(None);
                }
                let remote = RemoteIndex { index, fresh: Fresh::new() };
                Ok(Some(NewBase { discovered: true, ..remote.into() }))
            }
        }
    }

    /// Commits of ours that a writer with an old view undid: the objects still are as we left them.
    async fn undone_by_others(&self, remote: &RemoteIndex) -> Result<Vec<Undone>, SyncError> {
        let looked = self.look_at_suspects(remote).await?.into_iter();
        Ok(self.take_up(looked.map(|(undone, standing)| Ok((undone, standing?))).collect::<Result<_, StoreError>>()?)?)
    }

    /// The same after an index was written: what cannot be looked at is taken up, and the push of it looks again.
    pub(super) async fn undone_at_commit(&self, remote: &RemoteIndex) -> Result<Vec<Undone>, SyncError> {
        let looked = self.look_at_suspects(remote).await?.into_iter();
        let looked = looked.map(|(undone, standing)| {
            let standing = standing.unwrap_or_else(|error| {
                tracing::warn!(path = %undone.path, %error, "cannot see whether our change was undone");
                // A file that is there may be another's, and a push of a removal does not look again.
                if undone.committed.entry.is_some() { Standing::Undone } else { Standing::Undecided }
            });
            (undone, standing)
        });
        Ok(self.take_up(looked.collect())?)
    }

    async fn look_at_suspects(
        &self,
        remote: &RemoteIndex,
    ) -> Result<Vec<(Undone, Result<Standing, StoreError>)>, SyncError> {
        let (undone, more) = self.volume.undone(&remote.index)?;
        self.commits_in_doubt.store(more, Ordering::SeqCst);
        let looks = stream::iter(undone).map(|undone| async move {
            let found = self.store.head(undone.path.as_str()).await;
            let standing = Self::standing_of(&undone, found);
            (undone, standing)
        });
        Ok(looks.buffer_unordered(CONCURRENCY).collect().boxed().await)
    }

    fn standing_of(undone: &Undone, found: crate::store::Result<ObjectInfo>) -> Result<Standing, StoreError> {
        let row = &undone.committed;
        Ok(match found {
            Ok(info) if row.entry.is_some() && row.fingerprint.is_some() && info.fingerprint == row.fingerprint => {
                Standing::Undone
            }
            // It is being deleted, or is not ours to delete.
            Ok(_) if row.entry.is_none() && undone.is_as_before() => Standing::Undecided,
            Ok(_) => Standing::Theirs,
            Err(error) if error.is_not_found() && row.entry.is_none() => Standing::Undone,
            Err(error) if error.is_not_found() => Standing::Theirs,
            Err(error) => return Err(error),
        })
    }

    /// Forgets what others went on from; returns what is to be made again.
    fn take_up(&self, looked: Vec<(Undone, Standing)>) -> crate::volume::Result<Vec<Undone>> {
        let (mut undone, mut theirs) = (Vec::new(), Vec::new());
        for (commit, standing) in looked {
            match standing {
                Standing::Undone => undone.push(commit),
                Standing::Theirs => theirs.push(commit.path),
                Standing::Undecided => {}
            }
        }
        self.volume.forget_committed(&theirs)?;
        for undone in &undone {
            tracing::warn!(path = %undone.path, "another client wrote an index from before our change; it is made again");
        }
        Ok(undone)
    }

    /// Takes a base and push results into view and tells the kernel. Under `index_gate`.
    pub(super) async fn apply(
        &self,
        new: Option<NewBase>,
        settled: Vec<crate::volume::Settled>,
    ) -> Result<(), SyncError> {
        let volume = Arc::clone(&self.volume);
        let rebase = move || {
            let whole = new.is_some();
            let notices = volume.rebase(new, &settled);
            if whole {
                crate::memory::give_back();
            }
            notices
        };
        let notices = tokio::task::spawn_blocking(rebase)
            .await
            .map_err(|e| crate::store::StoreError::other("apply the index", "", e.to_string()))??;
        self.notifications.tell(notices);
        Ok(())
    }
}

/// What the object says of a commit that the index does not show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It still is ours: a writer with an old view undid our commit.
    Undone,
    /// Others went on from our commit.
    Theirs,
    /// Look again with the next index.
    Undecided,
}

/// Whether two discovered indexes list the same.
fn same_entries(a: &crate::datastore::Index, b: &crate::datastore::Index) -> bool {
    a.len() == b.len() && a.changed_since(b).is_empty()
}
