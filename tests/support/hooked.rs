//! A client of a bucket with a record of its requests and hooks that fail a request, lose its answer, or let another writer
//! act right before it; for promises that are tested below the kernel, over every kind of bucket.
//!
//! Where time is paused, it stands still while a request is on its way: real buckets are played by servers that know
//! nothing of the test's clock.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use swamp_mount::store::*;

use super::bucket::{Bucket, Kind};
use super::faults::{Action, Fault};

/// What a hook makes of a request.
pub enum Verdict {
    /// Do it.
    Proceed,
    /// Do not do it, and answer so.
    Fail(StoreErrorKind),
    /// Do it, and answer so.
    DoAndFail(StoreErrorKind),
}

type Hook = Box<dyn FnMut(&HookedStore, &'static str, &str) -> Verdict + Send>;

/// The client. What it derefs to is the bucket itself, behind every client's back.
pub struct HookedStore {
    bucket: Bucket,
    client: Arc<dyn ObjectStore>,
    requests: Mutex<Vec<String>>,
    hook: Mutex<Option<Hook>>,
    /// Lets the store seem to ignore the conditions of writes.
    pub ignores_conditions: AtomicBool,
}

impl Deref for HookedStore {
    type Target = Bucket;

    fn deref(&self) -> &Bucket {
        &self.bucket
    }
}

/// While it lives, a paused clock does not move by itself: tokio leaves it alone while a blocking task runs.
struct Standstill(#[allow(dead_code)] mpsc::Sender<()>);

fn standstill() -> Standstill {
    let (sender, receiver) = mpsc::channel();
    tokio::task::spawn_blocking(move || receiver.recv());
    Standstill(sender)
}

impl HookedStore {
    pub async fn new(kind: &'static Kind) -> Arc<Self> {
        let bucket = Bucket::new(kind);
        // A single attempt: pauses between attempts would never end while time stands still.
        let policy = RequestPolicy { attempts: 1, ..super::stores::quick_policy() };
        let client = bucket.connect("", policy).await;
        let (requests, hook, ignores_conditions) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        Arc::new(Self { bucket, client, requests, hook, ignores_conditions })
    }

    /// The field of a sidecar that holds the fingerprint.
    pub fn fingerprint_field(&self) -> &'static str {
        match self.client.fingerprint_name() {
            FingerprintName::ETag => "remoteIndexETag",
            FingerprintName::Generation => "remoteIndexGeneration",
        }
    }

    /// Whether the store's answers tell its time.
    pub async fn tells_time(&self, key: &str) -> bool {
        let _still = standstill();
        match self.client.get(GetRequest::whole(key)).await.expect("an object") {
            Fetched::Object { info, .. } => info.server_date.is_some(),
            Fetched::NotModified => panic!("no condition"),
        }
    }

    /// Requests since the last call, such as `get .datastore-index.json`.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }

    pub fn hook(&self, hook: impl FnMut(&HookedStore, &'static str, &str) -> Verdict + Send + 'static) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
    }

    pub fn unhook(&self) {
        *self.hook.lock().unwrap() = None;
    }

    /// Lets another writer act once, right before the next such request.
    pub fn before(&self, operation: &'static str, key: &str, act: impl FnOnce(&HookedStore) + Send + 'static) {
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

    /// The next such request is done, and its answer is lost: on the wire, where there is one.
    pub fn lose_answer(&self, operation: &'static str, key: &str) {
        if self.has_server() {
            let name = match operation {
                "put" => "PutObject",
                "delete" => "DeleteObject",
                other => panic!("the answer to {other} carries no decision"),
            };
            return self.server().inject(Fault::on(name, Action::LoseAnswer).key(key).times(1));
        }
        let (key, mut armed) = (key.to_owned(), true);
        self.hook(move |_, op, k| {
            if armed && op == operation && k == key {
                armed = false;
                return Verdict::DoAndFail(StoreErrorKind::Undecided);
            }
            Verdict::Proceed
        });
    }

    /// Runs a request as the hook wants it.
    async fn run<T>(&self, operation: &'static str, key: &str, request: impl Future<Output = Result<T>>) -> Result<T> {
        self.requests.lock().unwrap().push(format!("{operation} {key}"));
        // The hook may use the store, so it is taken out while it runs.
        let hook = self.hook.lock().unwrap().take();
        let verdict = match hook {
            None => Verdict::Proceed,
            Some(mut hook) => {
                let verdict = hook(self, operation, key);
                self.hook.lock().unwrap().get_or_insert(hook);
                verdict
            }
        };
        let error = |kind| StoreError::new(kind, operation, key, "made to fail");
        let _still = standstill();
        match verdict {
            Verdict::Proceed => request.await,
            Verdict::Fail(kind) => Err(error(kind)),
            Verdict::DoAndFail(kind) => request.await.and(Err(error(kind))),
        }
    }

    fn condition(&self, precondition: Precondition) -> Precondition {
        if self.ignores_conditions.load(Ordering::Relaxed) { Precondition::None } else { precondition }
    }
}

#[async_trait]
impl ObjectStore for HookedStore {
    fn describe(&self) -> String {
        self.client.describe()
    }

    fn fingerprint_name(&self) -> FingerprintName {
        self.client.fingerprint_name()
    }

    async fn head(&self, key: &str) -> Result<ObjectInfo> {
        self.run("head", key, self.client.head(key)).await
    }

    async fn get(&self, request: GetRequest) -> Result<Fetched> {
        let key = request.key.clone();
        let fetched = self.run("get", &key, self.client.get(request)).await?;
        let Fetched::Object { info, range, body } = fetched else { return Ok(fetched) };
        let still = standstill();
        // In small pieces, and time stands still until the last of them.
        let body = body.flat_map(move |chunk| {
            let _ = &still;
            futures_util::stream::iter(match chunk {
                Ok(bytes) => {
                    bytes.chunks(7.max(bytes.len() / 3)).map(|c| Ok(Bytes::copy_from_slice(c))).collect::<Vec<_>>()
                }
                Err(error) => vec![Err(error)],
            })
        });
        Ok(Fetched::Object { info, range, body: Box::pin(body) })
    }

    async fn put(&self, mut request: PutRequest) -> Result<Stored> {
        request.precondition = self.condition(request.precondition);
        let key = request.key.clone();
        self.run("put", &key, self.client.put(request)).await
    }

    async fn copy(
        &self,
        source: CopySource,
        to: &str,
        precondition: Precondition,
        metadata: UserMetadata,
    ) -> Result<Stored> {
        self.run("copy", to, self.client.copy(source, to, self.condition(precondition), metadata)).await
    }

    async fn delete(&self, key: &str, if_match: Option<&Fingerprint>) -> Result<()> {
        let if_match = if_match.filter(|_| !self.ignores_conditions.load(Ordering::Relaxed));
        self.run("delete", key, self.client.delete(key, if_match)).await
    }

    async fn list(&self, mut request: ListRequest) -> Result<ListPage> {
        // Small pages, so that every caller has to ask for more.
        request.max_keys = Some(request.max_keys.unwrap_or(3).min(3));
        let prefix = request.prefix.clone();
        self.run("list", &prefix, self.client.list(request)).await
    }

    async fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>> {
        self.run("uploads", "", self.client.unfinished_uploads()).await
    }

    async fn abort_upload(&self, upload: &UnfinishedUpload) -> Result<()> {
        self.run("abort", &upload.key, self.client.abort_upload(upload)).await
    }
}
