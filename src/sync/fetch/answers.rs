//! What the store answers to a fetch, held against what the index says.
//!
//! Invariants: a contradiction is believed only after the index was read again; two uploads are never stitched together;
//! bytes with another hash than the index records are forgotten.

use std::ops::Range;

use super::failure::Failure;
use crate::cache::rows::Version;
use crate::datastore::names::is_rewritten_in_place;
use crate::store::{ByteStream, Condition, Fetched, GetRequest};
use crate::sync::Engine;
use crate::volume::{FailureCause, LiveContent, Notice};

/// How often a fetch is tried again after the bucket said something else than the index.
const RESOLVES: u32 = 3;

impl Engine {
    /// Asks for a range of the pinned version, or pins the one that answers; the round that its bytes belong to, which range
    /// comes, and its bytes.
    pub(super) async fn answer(
        &self,
        live: &LiveContent,
        version: &Version,
        range: Range<u64>,
    ) -> Result<(u64, Range<u64>, ByteStream), Failure> {
        let size = version.entry.size;
        let mut request = GetRequest::whole(&version.key);
        if range != (0..size) {
            request = request.range(range.clone());
        }
        if let Some(fingerprint) = &version.fingerprint {
            request = request.with(Condition::IfMatch(fingerprint.clone()));
        }
        let Fetched::Object { info, range: sent, body } = self.store.get(request).await? else {
            return Err(Failure::Failed(format!(
                "the store answered 304 to an unconditional read of {:?}",
                version.key
            )));
        };
        if info.size != size && !self.adopt_size(live, version, info.size).await {
            return Err(Failure::Contradiction(format!(
                "the object {:?} has {} bytes, its index entry says {size}",
                version.key, info.size
            )));
        }
        let Some(round) = live.fetch.answered(info.fingerprint) else {
            return Err(Failure::replaced(version));
        };
        Ok((round, sent, body))
    }

    /// The bucket contradicted the index, which is read again. Returns when the fetch is worth another try; whether all of
    /// it must be fetched anew.
    pub(super) async fn resolve(
        &self,
        live: &LiveContent,
        version: &Version,
        reason: String,
        replaced: bool,
        resolves: u32,
    ) -> Result<bool, Failure> {
        if self.moves_to_copy(live, version).await {
            return Ok(true);
        }
        if let Err(error) = self.refresh().await {
            return Err(Failure::Failed(format!("{reason}; and the index cannot be read again: {error}")));
        }
        if !self.volume.is_current(live) {
            live.state().version_gone = true;
            return Err(Failure::Contradiction(reason));
        }
        if resolves == RESOLVES {
            return Err(Failure::Failed("the object keeps changing; try again".into()));
        }
        {
            let mut state = live.state();
            if state.version.as_ref() != Some(version) {
                return Ok(false);
            }
            let hidden = (state.present.is_empty() || state.shown_whole()) && !state.streamed;
            if replaced && hidden {
                // Nobody has seen a byte of the pinned version: another upload of the same entry may be pinned instead.
                state.forget();
                return Ok(true);
            }
        }
        if replaced && self.supersede(live) {
            return Err(Failure::Replaced(reason));
        }
        Err(Failure::Contradiction(format!(
            "{reason}, although the index still lists it; `swamp-mount verify` checks the bucket, and the client that wrote it can push it again"
        )))
    }

    /// Whether a push of ours that ended halfway has the same bytes elsewhere, from where they can be fetched instead.
    async fn moves_to_copy(&self, live: &LiveContent, version: &Version) -> bool {
        let copy = match self.copy_made_of(version).await {
            Ok(Some(copy)) if copy.key != version.key || copy.fingerprint != version.fingerprint => copy,
            Ok(_) => return false,
            Err(error) => {
                tracing::debug!(%error, "cannot see whether a copy of ours is left");
                return false;
            }
        };
        let mut state = live.state();
        // Bytes that a hash does not prove to be the same are not mixed.
        let may_change = version.entry.sha256.is_some() || state.present.is_empty() && !state.streamed;
        let moves = may_change && state.version.as_ref() == Some(version);
        if moves {
            state.move_to(copy);
        }
        moves
    }

    /// Another upload of the same entry took the place of the one whose bytes readers have: the name gets a new inode, so
    /// that the two are never stitched together.
    fn supersede(&self, live: &LiveContent) -> bool {
        match self.volume.supersede(live) {
            Ok(notices) if notices.is_empty() => false,
            Ok(notices) => {
                live.state().version_gone = true;
                self.notifications.tell(notices);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "cannot give a replaced object a new inode");
                false
            }
        }
    }

    /// Whether the object of a file whose index entry does not tell is another one by now; then the name has a new inode.
    /// What is here is good enough when the bucket does not say.
    pub async fn superseded(&self, live: &LiveContent) -> bool {
        let Some(version) = live.state().version.clone() else { return false };
        if self.cut_off().is_some() {
            return false;
        }
        match self.store.head(&version.key).await {
            Ok(info) => info.fingerprint != version.fingerprint && self.supersede(live),
            Err(error) => {
                tracing::debug!(%error, "cannot see whether the object was rewritten");
                false
            }
        }
    }

    /// `.catalog-export.json` is rewritten without an index update: its object's size is the truth (format.md section 1).
    async fn adopt_size(&self, live: &LiveContent, version: &Version, size: u64) -> bool {
        if !is_rewritten_in_place(&version.key) {
            return false;
        }
        if let Some(version) = &mut live.state().version {
            version.entry.size = size;
            version.entry.sha256 = None;
        }
        self.notifications.tell(self.volume.resize_remote(live.ino, size));
        // A program must see the new size as soon as it has the file open.
        self.notifications.delivered().await;
        true
    }

    pub(super) fn note_failure(&self, live: &LiveContent, reason: &str, cause: FailureCause) {
        // A reader that finds no room streams; who needs the file here reports it.
        let silent = cause == FailureCause::NoRoom && !live.must_be_stored();
        if !silent && !live.state().version_gone {
            self.note_read_error(&self.name_of(live), reason);
        }
    }

    /// What came is not what the index speaks of: it is forgotten.
    pub(super) async fn wrong_hash(&self, live: &LiveContent, found: &str, expected: &str) -> Failure {
        self.reject(live);
        if let Err(error) = self.refresh().await {
            tracing::debug!(%error, "refresh after a wrong hash");
        }
        if !self.volume.is_current(live) {
            live.state().version_gone = true;
        }
        Failure::Contradiction(format!(
            "the object's bytes have another sha256 ({found}) than its index entry ({expected}): a push by another client may be under way, or was cut off; \
             try again, or push the file once more from where it was written"
        ))
    }

    /// Forgets what was fetched: it is not what the index speaks of. What comes next is shown only when it was compared.
    fn reject(&self, live: &LiveContent) {
        let mut state = live.state();
        state.verify_first = true;
        state.recorded = false;
        state.forget();
        drop(state);
        self.notifications.tell(vec![Notice::Content(live.ino)]);
    }
}

/// The hash that the index records for all bytes of a content, if it does.
pub(super) fn expected_hash(live: &LiveContent) -> Option<String> {
    let state = live.state();
    state.version.as_ref().filter(|v| !is_rewritten_in_place(&v.key)).and_then(|v| v.entry.sha256.clone())
}
