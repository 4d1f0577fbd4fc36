//! A bucket in memory with atomic conditions, a clock that follows tokio's, a record of requests, and hooks that fail a
//! request or let another writer act right before it.
//!
//! It has entity tags as S3 has them. In test programs whose name ends in `_gcs` it is as Google's client shows that store:
//! generations, no date of an answer, no last modification with contents.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use md5::{Digest, Md5};
use swamp_mount::store::*;
use time::OffsetDateTime;
use tokio::time::Instant;

/// Whether it is as Google's.
pub fn has_generations() -> bool {
    env!("CARGO_CRATE_NAME").ends_with("_gcs")
}

/// The field of a sidecar that holds the fingerprint.
pub fn fingerprint_field() -> &'static str {
    if has_generations() { "remoteIndexGeneration" } else { "remoteIndexETag" }
}

static LAST_GENERATION: AtomicI64 = AtomicI64::new(1_763_600_000_000_000);

#[derive(Clone, Debug)]
pub struct Object {
    generation: i64,
    pub bytes: Bytes,
    pub metadata: UserMetadata,
    pub modified: OffsetDateTime,
}

impl Object {
    fn new(bytes: impl Into<Bytes>, metadata: UserMetadata, modified: OffsetDateTime) -> Self {
        let generation = LAST_GENERATION.fetch_add(1, Ordering::Relaxed) + 1;
        Self { generation, bytes: bytes.into(), metadata, modified }
    }

    pub fn fingerprint(&self) -> Fingerprint {
        if has_generations() {
            return Fingerprint::from_record(&self.generation.to_string()).unwrap();
        }
        let hex: String = Md5::digest(&self.bytes).iter().map(|b| format!("{b:02x}")).collect();
        Fingerprint::from_record(&hex).unwrap()
    }
}

/// What a hook makes of a request.
pub enum Verdict {
    /// Do it.
    Proceed,
    /// Do not do it, and answer so.
    Fail(StoreErrorKind),
    /// Do it, and answer so.
    DoAndFail(StoreErrorKind),
}

type Hook = Box<dyn FnMut(&MemoryStore, &'static str, &str) -> Verdict + Send>;

pub struct MemoryStore {
    objects: Mutex<BTreeMap<String, Object>>,
    requests: Mutex<Vec<String>>,
    hook: Mutex<Option<Hook>>,
    start: (Instant, OffsetDateTime),
    pub ignores_conditions: AtomicBool,
}

impl MemoryStore {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            objects: Mutex::default(),
            requests: Mutex::default(),
            hook: Mutex::default(),
            start: (Instant::now(), OffsetDateTime::now_utc()),
            ignores_conditions: AtomicBool::new(false),
        })
    }

    pub fn now(&self) -> OffsetDateTime {
        self.start.1 + self.start.0.elapsed()
    }

    /// Writes like a client that knows no conditions.
    pub fn set(&self, key: &str, bytes: impl Into<Vec<u8>>) {
        let object = Object::new(bytes.into(), UserMetadata::new(), self.now());
        self.objects.lock().unwrap().insert(key.to_owned(), object);
    }

    pub fn remove(&self, key: &str) {
        self.objects.lock().unwrap().remove(key);
    }

    pub fn object(&self, key: &str) -> Option<Object> {
        self.objects.lock().unwrap().get(key).cloned()
    }

    pub fn text(&self, key: &str) -> Option<String> {
        self.object(key).map(|o| String::from_utf8(o.bytes.to_vec()).unwrap())
    }

    pub fn keys(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }

    /// Requests since the last call, such as `get .datastore-index.json`.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }

    pub fn hook(&self, hook: impl FnMut(&MemoryStore, &'static str, &str) -> Verdict + Send + 'static) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
    }

    pub fn unhook(&self) {
        *self.hook.lock().unwrap() = None;
    }

    /// Lets another writer act once, right before the next such request.
    pub fn before(&self, operation: &'static str, key: &str, act: impl FnOnce(&MemoryStore) + Send + 'static) {
        let (key, mut act) = (key.to_owned(), Some(act));
        self.hook(move |store, op, k| {
            if op == operation
                && k == key
                && let Some(act) = act.take()
            {
                act(store);
            }
            Verdict::Proceed
        });
    }

    /// The next such request is done, and its answer is lost.
    pub fn lose_answer(&self, operation: &'static str, key: &str) {
        let (key, mut armed) = (key.to_owned(), true);
        self.hook(move |_, op, k| {
            if armed && op == operation && k == key {
                armed = false;
                return Verdict::DoAndFail(StoreErrorKind::Undecided);
            }
            Verdict::Proceed
        });
    }

    fn enter(&self, operation: &'static str, key: &str) -> Result<Option<StoreError>> {
        self.requests.lock().unwrap().push(format!("{operation} {key}"));
        // The hook may use the store, so it is taken out while it runs.
        let Some(mut hook) = self.hook.lock().unwrap().take() else { return Ok(None) };
        let verdict = hook(self, operation, key);
        self.hook.lock().unwrap().get_or_insert(hook);
        let error = |kind| StoreError::new(kind, operation, key, "made to fail");
        match verdict {
            Verdict::Proceed => Ok(None),
            Verdict::Fail(kind) => Err(error(kind)),
            Verdict::DoAndFail(kind) => Ok(Some(error(kind))),
        }
    }

    fn info(&self, object: &Object) -> ObjectInfo {
        ObjectInfo {
            size: object.bytes.len() as u64,
            fingerprint: Some(object.fingerprint()),
            last_modified: Some(object.modified),
            server_date: (!has_generations()).then(|| self.now()),
            metadata: object.metadata.clone(),
        }
    }

    fn write(&self, operation: &'static str, key: &str, object: Object, condition: &Precondition) -> Result<Stored> {
        let mut objects = self.objects.lock().unwrap();
        let there = objects.get(key).map(Object::fingerprint);
        let holds = match condition {
            _ if self.ignores_conditions.load(Ordering::Relaxed) => true,
            Precondition::None => true,
            Precondition::Absent => there.is_none(),
            Precondition::Match(expected) => match &there {
                None if has_generations() => false,
                None => return Err(StoreError::new(StoreErrorKind::NotFound, operation, key, "no such object")),
                Some(there) => there == expected,
            },
        };
        if !holds {
            return Err(StoreError::new(StoreErrorKind::Precondition, operation, key, "the condition does not hold"));
        }
        let fingerprint = Some(object.fingerprint());
        objects.insert(key.to_owned(), object);
        Ok(Stored { fingerprint, server_date: Some(self.now()) })
    }
}

fn not_found(operation: &'static str, key: &str) -> StoreError {
    StoreError::new(StoreErrorKind::NotFound, operation, key, "no such object")
}

fn finish<T>(result: Result<T>, lost: Option<StoreError>) -> Result<T> {
    match lost {
        Some(error) => Err(error),
        None => result,
    }
}

#[async_trait]
impl ObjectStore for MemoryStore {
    fn describe(&self) -> String {
        "memory://".into()
    }

    fn fingerprint_name(&self) -> FingerprintName {
        if has_generations() { FingerprintName::Generation } else { FingerprintName::ETag }
    }

    async fn head(&self, key: &str) -> Result<ObjectInfo> {
        let lost = self.enter("head", key)?;
        finish(self.object(key).map(|object| self.info(&object)).ok_or_else(|| not_found("head", key)), lost)
    }

    async fn get(&self, request: GetRequest) -> Result<Fetched> {
        let lost = self.enter("get", &request.key)?;
        let object = self.object(&request.key).ok_or_else(|| not_found("get", &request.key))?;
        let mut info = self.info(&object);
        if has_generations() {
            info.last_modified = None;
        }
        match &request.condition {
            Condition::IfNoneMatch(known) if Some(known) == info.fingerprint.as_ref() => {
                return finish(Ok(Fetched::NotModified), lost);
            }
            Condition::IfMatch(wanted) if Some(wanted) != info.fingerprint.as_ref() => {
                return Err(StoreError::new(StoreErrorKind::Precondition, "get", &request.key, "another version"));
            }
            _ => {}
        }
        let range = request.range.unwrap_or(0..info.size);
        let range = range.start..range.end.min(info.size);
        let bytes = object.bytes.slice(range.start as usize..range.end as usize);
        let body: ByteStream = Box::pin(futures_util::stream::iter(
            bytes.chunks(7.max(bytes.len() / 3)).map(|c| Ok(Bytes::copy_from_slice(c))).collect::<Vec<_>>(),
        ));
        finish(Ok(Fetched::Object { info, range, body }), lost)
    }

    async fn put(&self, request: PutRequest) -> Result<Stored> {
        let lost = self.enter("put", &request.key)?;
        let mut bytes = vec![0; request.body.size() as usize];
        request.body.read_exact_at(&mut bytes, 0).map_err(|e| StoreError::other("put", &request.key, e.to_string()))?;
        if let Some(md5) = request.md5 {
            assert_eq!(md5, <[u8; 16]>::from(Md5::digest(&bytes)), "the body is what the caller hashed");
        }
        let object = Object::new(bytes, request.metadata, self.now());
        finish(self.write("put", &request.key, object, &request.precondition), lost)
    }

    async fn copy(
        &self,
        source: CopySource,
        to: &str,
        precondition: Precondition,
        metadata: UserMetadata,
    ) -> Result<Stored> {
        let lost = self.enter("copy", to)?;
        let object = self.object(&source.key).ok_or_else(|| not_found("copy", &source.key))?;
        if source.if_match.is_some_and(|wanted| wanted != object.fingerprint()) {
            return Err(StoreError::new(StoreErrorKind::Precondition, "copy", &source.key, "another version"));
        }
        let copy = Object::new(object.bytes, metadata, self.now());
        finish(self.write("copy", to, copy, &precondition), lost)
    }

    async fn delete(&self, key: &str, if_match: Option<&Fingerprint>) -> Result<()> {
        let lost = self.enter("delete", key)?;
        let mut objects = self.objects.lock().unwrap();
        let result = match (objects.get(key).map(Object::fingerprint), if_match) {
            (None, Some(_)) => Err(not_found("delete", key)),
            (Some(there), Some(wanted)) if there != *wanted && !self.ignores_conditions.load(Ordering::Relaxed) => {
                Err(StoreError::new(StoreErrorKind::Precondition, "delete", key, "another version"))
            }
            _ => {
                objects.remove(key);
                Ok(())
            }
        };
        finish(result, lost)
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage> {
        let lost = self.enter("list", &request.prefix)?;
        assert!(request.delimiter.is_none(), "not needed so far");
        let objects = self.objects.lock().unwrap();
        let after = request.continuation.clone().unwrap_or_default();
        let mut matching = objects.iter().filter(|(k, _)| k.starts_with(&request.prefix) && **k > after);
        // Small pages, so that every caller has to ask for more.
        let page: Vec<Listed> = matching
            .by_ref()
            .take(request.max_keys.unwrap_or(3).min(3) as usize)
            .map(|(key, o)| Listed {
                key: key.clone(),
                size: o.bytes.len() as u64,
                fingerprint: Some(o.fingerprint()),
                last_modified: Some(o.modified),
            })
            .collect();
        let continuation = matching.next().and(page.last()).map(|last| last.key.clone());
        finish(Ok(ListPage { objects: page, prefixes: Vec::new(), continuation }), lost)
    }
}
