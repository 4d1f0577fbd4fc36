//! The protocol: s3s calls these methods with parsed, authenticated requests. Every effect happens under the one lock,
//! after the body was read and hashed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, MutexGuard};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

use super::super::server::{Page, Shared, State, StoredObject, hex, md5};
use super::conditions::{Conditions, Unmet};
use super::{BUCKET, IgnoreConditions, Uploads, lock};

/// An upload in parts that is neither completed nor aborted.
#[derive(Clone, Debug, Default)]
pub(super) struct OpenUpload {
    pub key: String,
    /// When, by the store's clock.
    pub began: Option<time::OffsetDateTime>,
    metadata: HashMap<String, String>,
    content_type: Option<String>,
    parts: BTreeMap<i32, (Bytes, [u8; 16])>,
}

impl OpenUpload {
    /// Without any part.
    pub fn begun(key: &str, began: time::OffsetDateTime) -> Self {
        Self { key: key.to_owned(), began: Some(began), ..Self::default() }
    }
}

/// The bucket behind the protocol. The lock of the objects is taken before that of the uploads.
pub(super) struct Bucket {
    pub shared: Arc<Shared>,
    pub uploads: Uploads,
}

impl Bucket {
    fn state(&self, bucket: &str) -> S3Result<MutexGuard<'_, State>> {
        if bucket != BUCKET {
            return Err(s3_error!(NoSuchBucket, "there is no such bucket"));
        }
        Ok(self.shared.state())
    }
}

fn conditions<T>(request: &S3Request<T>, prefix: &str) -> Conditions {
    if request.extensions.get::<IgnoreConditions>().is_some() {
        return Conditions::default();
    }
    Conditions::from_headers(&request.headers, prefix)
}

fn unmet(unmet: Unmet) -> s3s::S3Error {
    match unmet {
        Unmet::NotModified => s3_error!(NotModified),
        Unmet::Failed => s3_error!(PreconditionFailed, "a condition does not hold"),
        Unmet::Absent => s3_error!(NoSuchKey, "there is no such key"),
    }
}

fn find<'a>(state: &'a State, key: &str) -> S3Result<&'a StoredObject> {
    state.objects.get(key).ok_or_else(|| s3_error!(NoSuchKey, "there is no such key"))
}

/// Reads a body and checks its Content-MD5.
async fn read(body: Option<StreamingBlob>, content_md5: Option<&str>) -> S3Result<(Bytes, [u8; 16])> {
    let mut bytes = BytesMut::new();
    if let Some(mut body) = body {
        while let Some(chunk) = body.next().await {
            bytes.extend_from_slice(&chunk.map_err(|_| s3_error!(IncompleteBody))?);
        }
    }
    let digest = md5(&bytes);
    match content_md5 {
        Some(wanted) if STANDARD.decode(wanted).ok().as_deref() != Some(&digest) => Err(s3_error!(BadDigest)),
        _ => Ok((bytes.freeze(), digest)),
    }
}

fn strong(etag: &str) -> Option<ETag> {
    Some(ETag::Strong(etag.to_owned()))
}

/// S3 tells times in whole seconds.
fn modified(object: &StoredObject) -> Timestamp {
    object.modified.replace_nanosecond(0).expect("zero is a valid nanosecond").into()
}

fn length(bytes: usize) -> Option<i64> {
    i64::try_from(bytes).ok()
}

/// A key as listings with `encoding-type=url` have it; S3 writes a space as `+`.
fn url_encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b' ' => "+".to_owned(),
            byte if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

/// How many names a listing may have on a page.
fn page_limit(asked: Option<i32>) -> usize {
    asked.map_or(1000, |keys| usize::try_from(keys).unwrap_or(0)).min(1000)
}

/// A page of a listing as the protocol has it.
fn listed(state: &State, page: &Page, encode: &dyn Fn(&str) -> String) -> (ObjectList, CommonPrefixList) {
    let object = |key: &String| {
        let object = &state.objects[key];
        Object {
            key: Some(encode(key)),
            size: length(object.bytes.len()),
            e_tag: strong(&object.etag),
            last_modified: Some(modified(object)),
            ..Default::default()
        }
    };
    let prefix = |prefix: &String| CommonPrefix { prefix: Some(encode(prefix)) };
    (page.names.iter().map(object).collect(), page.prefixes.iter().map(prefix).collect())
}

fn source_key(source: &CopySource) -> S3Result<&str> {
    match source {
        CopySource::Bucket { bucket, key, .. } if &**bucket == BUCKET => Ok(key),
        CopySource::Bucket { .. } => Err(s3_error!(NoSuchBucket)),
        _ => Err(s3_error!(NotImplemented)),
    }
}

#[async_trait::async_trait]
impl S3 for Bucket {
    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let state = self.state(&request.input.bucket)?;
        let object = find(&state, &request.input.key)?;
        conditions(&request, "").check_read(object).map_err(unmet)?;
        let (stored, size) = (object.served(), object.bytes.len());
        let (bytes, content_range) = match &request.input.range {
            None => (stored.clone(), None),
            Some(range) => {
                let range = range.check(size as u64)?;
                let text = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                (stored.slice(range.start as usize..range.end as usize), Some(text))
            }
        };
        let partial = content_range.is_some();
        let output = GetObjectOutput {
            content_length: length(bytes.len()),
            body: Some(StreamingBlob::from(s3s::Body::from(bytes))),
            content_range,
            e_tag: strong(&object.etag),
            last_modified: Some(modified(object)),
            metadata: Some(object.metadata.clone()),
            content_type: object.content_type.clone(),
            accept_ranges: Some("bytes".to_owned()),
            ..Default::default()
        };
        let status = if partial { hyper::StatusCode::PARTIAL_CONTENT } else { hyper::StatusCode::OK };
        Ok(S3Response::with_status(output, status))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let state = self.state(&request.input.bucket)?;
        let object = find(&state, &request.input.key)?;
        conditions(&request, "").check_read(object).map_err(unmet)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: length(object.bytes.len()),
            e_tag: strong(&object.etag),
            last_modified: Some(modified(object)),
            metadata: Some(object.metadata.clone()),
            content_type: object.content_type.clone(),
            ..Default::default()
        }))
    }

    async fn put_object(&self, mut request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let (bytes, digest) = read(request.input.body.take(), request.input.content_md5.as_deref()).await?;
        let conditions = conditions(&request, "");
        let mut state = self.state(&request.input.bucket)?;
        conditions.check_write(state.objects.get(&request.input.key)).map_err(unmet)?;
        let metadata = request.input.metadata.unwrap_or_default();
        let object = state.put(&request.input.key, bytes, hex(&digest), metadata, request.input.content_type);
        Ok(S3Response::new(PutObjectOutput { e_tag: strong(&object.etag), ..Default::default() }))
    }

    async fn copy_object(&self, request: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        let mut state = self.state(&request.input.bucket)?;
        let source = find(&state, source_key(&request.input.copy_source)?)?.clone();
        conditions(&request, "x-amz-copy-source-").check_read(&source).map_err(|_| unmet(Unmet::Failed))?;
        conditions(&request, "").check_write(state.objects.get(&request.input.key)).map_err(unmet)?;
        let replaces = request.input.metadata_directive.is_some_and(|directive| directive.as_str() == "REPLACE");
        // As on S3, a copy of a multipart object in one request has the MD5 of all of it.
        let etag = hex(&md5(&source.bytes));
        let metadata = if replaces { request.input.metadata.unwrap_or_default() } else { source.metadata };
        let object = state.put(&request.input.key, source.bytes, etag, metadata, source.content_type);
        let last_modified = Some(modified(&object));
        let result = CopyObjectResult { e_tag: strong(&object.etag), last_modified, ..Default::default() };
        Ok(S3Response::new(CopyObjectOutput { copy_object_result: Some(result), ..Default::default() }))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let mut state = self.state(&request.input.bucket)?;
        conditions(&request, "").check_write(state.objects.get(&request.input.key)).map_err(unmet)?;
        state.remove(&request.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    /// s3fs, and rclone for stores that it does not know, look for their bucket like this.
    async fn head_bucket(&self, request: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        let _state = self.state(&request.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    /// rclone makes its bucket before it writes, and takes this for an answer.
    async fn create_bucket(&self, request: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        let _state = self.state(&request.input.bucket)?;
        Err(s3_error!(BucketAlreadyOwnedByYou))
    }

    /// The listing of the first version, which s3fs and rclone ask for.
    async fn list_objects(&self, request: S3Request<ListObjectsInput>) -> S3Result<S3Response<ListObjectsOutput>> {
        let input = request.input;
        let state = self.state(&input.bucket)?;
        let prefix = input.prefix.unwrap_or_default();
        let limit = page_limit(input.max_keys);
        let encode = |text: &str| if input.encoding_type.is_some() { url_encode(text) } else { text.to_owned() };
        let page = state.list(&prefix, input.delimiter.as_deref(), input.marker.as_deref(), limit);
        let (contents, common_prefixes) = listed(&state, &page, &encode);
        Ok(S3Response::new(ListObjectsOutput {
            name: Some(input.bucket),
            contents: Some(contents),
            common_prefixes: Some(common_prefixes),
            is_truncated: Some(page.next.is_some()),
            next_marker: page.next.as_deref().map(encode),
            marker: input.marker.as_deref().map(encode),
            prefix: Some(encode(&prefix)),
            delimiter: input.delimiter.as_deref().map(encode),
            max_keys: i32::try_from(limit).ok(),
            encoding_type: input.encoding_type,
            ..Default::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        let state = self.state(&input.bucket)?;
        let prefix = input.prefix.unwrap_or_default();
        let limit = page_limit(input.max_keys);
        let encode = |text: &str| if input.encoding_type.is_some() { url_encode(text) } else { text.to_owned() };
        // A token is the last key or common prefix in hexadecimal.
        let after = match &input.continuation_token {
            Some(token) => Some(unhex(token).ok_or_else(|| s3_error!(InvalidArgument, "not one of our tokens"))?),
            None => input.start_after.clone(),
        };
        let page = state.list(&prefix, input.delimiter.as_deref(), after.as_deref(), limit);
        let (contents, common_prefixes) = listed(&state, &page, &encode);
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            key_count: i32::try_from(contents.len() + common_prefixes.len()).ok(),
            contents: Some(contents),
            common_prefixes: Some(common_prefixes),
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next.map(|last| hex(last.as_bytes())),
            prefix: Some(encode(&prefix)),
            delimiter: input.delimiter.as_deref().map(encode),
            max_keys: i32::try_from(limit).ok(),
            encoding_type: input.encoding_type,
            ..Default::default()
        }))
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = request.input;
        let _state = self.state(&input.bucket)?;
        let prefix = input.prefix.unwrap_or_default();
        let encode = |text: &str| if input.encoding_type.is_some() { url_encode(text) } else { text.to_owned() };
        let uploads = lock(&self.uploads);
        let mut sorted: Vec<_> = uploads.iter().filter(|(_, upload)| upload.key.starts_with(&prefix)).collect();
        sorted.sort_by_key(|(id, upload)| (upload.key.clone(), (*id).clone()));
        // One on a page, so that the client has to go on; a marker is an upload that was shown.
        let shown = sorted.iter().position(|(id, _)| Some(*id) == input.upload_id_marker.as_ref());
        let from = shown.map_or(0, |at| at + 1);
        let page = sorted.get(from);
        let described = |(id, upload): &(&String, &OpenUpload)| MultipartUpload {
            key: Some(encode(&upload.key)),
            upload_id: Some((*id).clone()),
            initiated: upload.began.map(Timestamp::from),
            ..Default::default()
        };
        Ok(S3Response::new(ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            is_truncated: Some(from + 1 < sorted.len()),
            next_key_marker: page.map(|(_, upload)| encode(&upload.key)),
            next_upload_id_marker: page.map(|(id, _)| (*id).clone()),
            uploads: Some(page.iter().map(|upload| described(upload)).collect()),
            encoding_type: input.encoding_type,
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let _state = self.state(&request.input.bucket)?;
        let id = uuid::Uuid::new_v4().to_string();
        let upload = OpenUpload {
            key: request.input.key,
            began: Some(time::OffsetDateTime::now_utc()),
            metadata: request.input.metadata.unwrap_or_default(),
            content_type: request.input.content_type,
            parts: Default::default(),
        };
        lock(&self.uploads).insert(id.clone(), upload);
        Ok(S3Response::new(CreateMultipartUploadOutput { upload_id: Some(id), ..Default::default() }))
    }

    async fn upload_part(&self, mut request: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let (bytes, digest) = read(request.input.body.take(), request.input.content_md5.as_deref()).await?;
        let state = self.state(&request.input.bucket)?;
        let bytes = state.zeros.as_ref().map_or(bytes.clone(), |zeros| zeros.slice(..bytes.len()));
        let mut uploads = lock(&self.uploads);
        let upload = uploads.get_mut(&request.input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        upload.parts.insert(request.input.part_number, (bytes, digest));
        Ok(S3Response::new(UploadPartOutput { e_tag: strong(&hex(&digest)), ..Default::default() }))
    }

    async fn upload_part_copy(
        &self,
        request: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        let state = self.state(&request.input.bucket)?;
        let source = find(&state, source_key(&request.input.copy_source)?)?;
        conditions(&request, "x-amz-copy-source-").check_read(source).map_err(|_| unmet(Unmet::Failed))?;
        let bytes = match &request.input.copy_source_range {
            None => source.bytes.clone(),
            Some(text) => {
                let range = Range::parse(text).map_err(|_| s3_error!(InvalidArgument))?;
                let range = range.check(source.bytes.len() as u64)?;
                source.bytes.slice(range.start as usize..range.end as usize)
            }
        };
        let digest = md5(&bytes);
        let mut uploads = lock(&self.uploads);
        let upload = uploads.get_mut(&request.input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        upload.parts.insert(request.input.part_number, (bytes, digest));
        let result = CopyPartResult { e_tag: strong(&hex(&digest)), ..Default::default() };
        Ok(S3Response::new(UploadPartCopyOutput { copy_part_result: Some(result), ..Default::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let mut state = self.state(&request.input.bucket)?;
        let mut uploads = lock(&self.uploads);
        let upload = uploads.get(&request.input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?.clone();
        conditions(&request, "").check_write(state.objects.get(&request.input.key)).map_err(unmet)?;
        let named: Vec<_> = request.input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let mut digests = Vec::new();
        let (mut size, mut bytes) = (0, BytesMut::new());
        for part in named {
            let stored = part.part_number.and_then(|number| upload.parts.get(&number));
            let (content, digest) = stored.ok_or_else(|| s3_error!(InvalidPart))?;
            if part.e_tag.map(ETag::into_value) != Some(hex(digest)) {
                return Err(s3_error!(InvalidPart));
            }
            size += content.len();
            if state.zeros.is_none() {
                bytes.extend_from_slice(content);
            }
            digests.push(*digest);
        }
        let bytes = state.zeros.as_ref().map_or_else(|| bytes.freeze(), |zeros| zeros.slice(..size));
        // MD5 of the parts' MD5s, and their number.
        let etag = format!("{}-{}", hex(&md5(&digests.concat())), digests.len());
        let object = state.put(&request.input.key, bytes, etag, upload.metadata, upload.content_type);
        uploads.remove(&request.input.upload_id);
        Ok(S3Response::new(CompleteMultipartUploadOutput { e_tag: strong(&object.etag), ..Default::default() }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let _state = self.state(&request.input.bucket)?;
        lock(&self.uploads).remove(&request.input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        Ok(S3Response::with_status(AbortMultipartUploadOutput::default(), hyper::StatusCode::NO_CONTENT))
    }
}

fn unhex(text: &str) -> Option<String> {
    let digits: Option<Vec<u8>> =
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect();
    String::from_utf8(digits?).ok()
}
