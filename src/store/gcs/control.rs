//! Everything that moves no contents through this machine: metadata, listing, deletion, copies.
//!
//! Depends on `errors` and the request policy. Invariant: conditional requests go out as calls that the policy never
//! repeats blindly.

use std::time::Duration;

use google_cloud_storage::model::Object;

use super::{GcsStore, errors, fingerprint, required_generation, target_generation, timestamp};
use crate::store::retry::{Call, Failure};
use crate::store::{
    CopySource, Fingerprint, ListPage, ListRequest, Listed, ObjectInfo, Precondition, Result, StoreError,
    StoreErrorKind, Stored, UserMetadata,
};

/// Slowest server-side copy to wait for, in bytes per second; one request of it may last some seconds by itself.
const COPY_RATE: u64 = 16 << 20;
/// Requests that one copy may take; a store that never comes to an end is broken.
const MOST_REWRITES: u32 = 100_000;

fn updated(object: &Object) -> Option<time::OffsetDateTime> {
    object.update_time.as_ref().and_then(|time| timestamp(time.seconds(), time.nanos()))
}

/// An answer that makes no sense.
fn senseless(call: &Call<'_>, message: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Server, call.operation, call.key, message)
}

impl GcsStore {
    pub(super) async fn head_object(&self, key: &str) -> Result<ObjectInfo> {
        let call = Call::harmless("look up", key);
        self.policy
            .run(call, |_| async move {
                let get = self.control.get_object().set_bucket(self.bucket_name()).set_object(self.full_key(key));
                let object = get.send().await.map_err(|error| errors::failure(&call, &error))?;
                Ok(ObjectInfo {
                    size: u64::try_from(object.size).map_err(|_| senseless(&call, "the answer tells no size"))?,
                    fingerprint: fingerprint(object.generation),
                    last_modified: updated(&object),
                    server_date: None,
                    metadata: object.metadata.into_iter().collect(),
                })
            })
            .await
    }

    pub(super) async fn delete_object(&self, key: &str, if_match: Option<&Fingerprint>) -> Result<()> {
        let call = Call::write("delete", key, if_match.is_some());
        let wanted = if_match.map(|wanted| required_generation(wanted, call.operation, key)).transpose()?;
        let deleted = self
            .policy
            .run(call, |_| async move {
                let delete = self
                    .control
                    .delete_object()
                    .set_bucket(self.bucket_name())
                    .set_object(self.full_key(key))
                    .set_or_clear_if_generation_match(wanted);
                delete.send().await.map_err(|error| errors::failure(&call, &error))
            })
            .await;
        match deleted {
            Err(error) if error.is_not_found() && if_match.is_none() => Ok(()),
            other => other,
        }
    }

    pub(super) async fn list_objects(&self, request: ListRequest) -> Result<ListPage> {
        let call = Call::harmless("list", &request.prefix);
        let request = &request;
        self.policy.run(call, |_| self.list_once(&call, request)).await
    }

    async fn list_once(&self, call: &Call<'_>, request: &ListRequest) -> std::result::Result<ListPage, Failure> {
        let page_size = request.max_keys.map_or(0, |keys| i32::try_from(keys).unwrap_or(i32::MAX));
        let list = self
            .control
            .list_objects()
            .set_parent(self.bucket_name())
            .set_prefix(self.full_key(&request.prefix))
            .set_delimiter(request.delimiter.map(String::from).unwrap_or_default())
            .set_page_token(request.continuation.clone().unwrap_or_default())
            .set_page_size(page_size);
        let answer = list.send().await.map_err(|error| errors::failure(call, &error))?;
        let relative = |full: &str| -> Result<String> {
            let unexpected = || senseless(call, &format!("the listing has the unexpected key {full:?}"));
            full.strip_prefix(&self.prefix).map(str::to_owned).ok_or_else(unexpected)
        };
        let mut page = ListPage::default();
        for object in &answer.objects {
            let size = u64::try_from(object.size);
            page.objects.push(Listed {
                key: relative(&object.name)?,
                size: size.map_err(|_| senseless(call, "the listing has an object without a size"))?,
                fingerprint: fingerprint(object.generation),
                last_modified: updated(object),
            });
        }
        for prefix in &answer.prefixes {
            page.prefixes.push(relative(prefix)?);
        }
        page.continuation = (!answer.next_page_token.is_empty()).then(|| answer.next_page_token.clone());
        Ok(page)
    }

    /// Copies by rewriting: each request does a part of the work, and the token of its answer goes on with the rest.
    pub(super) async fn copy_object(
        &self,
        source: &CopySource,
        to: &str,
        precondition: &Precondition,
        metadata: &UserMetadata,
    ) -> Result<Stored> {
        let allowance = Duration::from_secs(source.size / COPY_RATE);
        let call = Call::write("copy to", to, *precondition != Precondition::None).allow(allowance);
        let target = target_generation(precondition, call.operation, to)?;
        let pinned = source.if_match.as_ref();
        let pinned = pinned.map(|wanted| required_generation(wanted, "copy from", &source.key)).transpose()?;
        // Given at all, it replaces what the source has; an empty one would not count as given.
        let destination = Object::new().set_content_type("application/octet-stream").set_metadata(metadata);
        let (destination, mut token) = (&destination, String::new());
        for _ in 0..MOST_REWRITES {
            let sent = &token;
            let answer = self
                .policy
                .run(call, |_| async move {
                    let rewrite = self
                        .control
                        .rewrite_object()
                        .set_source_bucket(self.bucket_name())
                        .set_source_object(self.full_key(&source.key))
                        .set_or_clear_if_source_generation_match(pinned)
                        .set_destination_bucket(self.bucket_name())
                        .set_destination_name(self.full_key(to))
                        .set_destination(destination.clone())
                        .set_or_clear_if_generation_match(target)
                        .set_rewrite_token(sent);
                    rewrite.send().await.map_err(|error| errors::failure(&call, &error))
                })
                .await?;
            if !answer.done {
                if answer.rewrite_token.is_empty() {
                    return Err(senseless(&call, "the copy is incomplete, but the store does not say how it goes on"));
                }
                token = answer.rewrite_token;
                continue;
            }
            let object = answer.resource.ok_or_else(|| senseless(&call, "the answer does not tell what was copied"))?;
            return Ok(Stored { fingerprint: fingerprint(object.generation), server_date: updated(&object) });
        }
        Err(senseless(&call, "the copy does not come to an end"))
    }
}
