//! Uploads in parts that nobody completed: left behind by processes that were killed.
//!
//! Depends on `read` for times and the request policy.

use aws_sdk_s3::types::EncodingType;

use super::read::timestamp;
use super::{S3Store, encode, errors};
use crate::store::retry::Call;
use crate::store::{Result, StoreError, StoreErrorKind, UnfinishedUpload};

impl S3Store {
    pub(super) async fn list_uploads(&self) -> Result<Vec<UnfinishedUpload>> {
        let call = Call::harmless("list the unfinished uploads of", "");
        let mut all = Vec::new();
        let mut after: Option<(Option<String>, Option<String>)> = None;
        loop {
            let (key_marker, id_marker) = after.clone().unwrap_or_default();
            let markers = &(key_marker, id_marker);
            let page = self
                .policy
                .run(call, |_| async move {
                    let request = self.client.list_multipart_uploads().bucket(&self.bucket).prefix(&self.prefix);
                    let request = request.encoding_type(EncodingType::Url).set_key_marker(markers.0.clone());
                    let sent = request.set_upload_id_marker(markers.1.clone()).send().await;
                    sent.map_err(|error| errors::failure(&call, error))
                })
                .await?;
            let encoded = page.encoding_type() == Some(&EncodingType::Url);
            for upload in page.uploads() {
                let (Some(key), Some(id)) = (upload.key(), upload.upload_id()) else { continue };
                let full = if encoded { encode::decode(key) } else { Some(key.to_owned()) };
                if let Some(key) = full.as_deref().and_then(|full| full.strip_prefix(&self.prefix)) {
                    let began = timestamp(upload.initiated());
                    all.push(UnfinishedUpload { key: key.to_owned(), id: id.to_owned(), began });
                }
            }
            let marker = page.next_key_marker();
            let marker =
                marker.map(|key| if encoded { encode::decode(key).unwrap_or_default() } else { key.to_owned() });
            let next = (marker, page.next_upload_id_marker().map(str::to_owned));
            if page.is_truncated() != Some(true) {
                return Ok(all);
            }
            if next.0.is_none() || after.as_ref() == Some(&next) {
                let message = "the listing is incomplete but does not say where it goes on";
                return Err(StoreError::new(StoreErrorKind::Server, call.operation, "", message));
            }
            after = Some(next);
        }
    }

    pub(super) async fn abort_listed(&self, upload: &UnfinishedUpload) -> Result<()> {
        let call = Call::harmless("abort the upload of", &upload.key);
        let aborted = self
            .policy
            .run(call, |_| async move {
                let request = self.client.abort_multipart_upload().bucket(&self.bucket);
                let sent = request.key(self.full_key(&upload.key)).upload_id(&upload.id).send().await;
                sent.map_err(|error| errors::failure(&call, error))
            })
            .await;
        match aborted {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(|_| ()),
        }
    }
}
