//! An S3 server in memory for tests and benchmarks: real protocol and signatures (s3s), atomic conditions, faults on
//! demand, a record of every request.
//!
//! It runs on a thread of its own and stops when dropped, so that synchronous and asynchronous tests use it alike.
//! `http` names requests and applies faults, `service` is the protocol, `state` the bucket.

mod http;
mod service;
mod state;

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::{S3Service, S3ServiceBuilder};
use time::OffsetDateTime;
use tokio::sync::oneshot;

use super::faults;
pub use super::faults::{Action, Fault, Gate, Record};
pub use state::{OpenUpload, StoredObject};

/// The only bucket.
pub const BUCKET: &str = "swamp-test";
/// The only access key.
pub const ACCESS_KEY: &str = "SWAMPTESTACCESSKEY";
/// Its secret.
pub const SECRET_KEY: &str = "swamp-test-secret";
/// The region that the server calls itself.
pub const REGION: &str = "us-east-1";

/// What the server's tasks and its owner share.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<state::State>,
    faults: faults::Faults,
    records: Mutex<Vec<Record>>,
}

impl Shared {
    fn records(&self) -> MutexGuard<'_, Vec<Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns its index.
    fn record(&self, record: Record) -> usize {
        let mut records = self.records();
        records.push(record);
        records.len() - 1
    }
}

/// A running server; stops when dropped.
#[derive(Debug)]
pub struct S3Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl S3Server {
    /// Starts on a free port of 127.0.0.1.
    pub async fn start() -> Self {
        Self::start_blocking()
    }

    /// The same from synchronous code.
    pub fn start_blocking() -> Self {
        Self::start_on("127.0.0.1:0", 2).expect("a local port can be bound")
    }

    /// Starts on an address, with a number of worker threads.
    pub fn start_on(address: &str, workers: usize) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let mut builder = S3ServiceBuilder::new(service::Bucket(shared.clone()));
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        // Clients follow the clock of the Date header, which tests move; signatures are checked against the real one.
        let mut config = S3Config::default();
        config.presigned_url_max_skew_time_secs = 10 * 365 * 86_400;
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
        let service = builder.build();
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
        let tasks = shared.clone();
        let thread = std::thread::Builder::new().name("s3-server".to_owned()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = accept(listener, tasks, service) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(Self { shared, address, stop: Some(stop), thread: Some(thread) })
    }

    /// URL of the server.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Environment for a program that is to use the server, and nothing of the real environment's AWS configuration.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ("AWS_CONFIG_FILE", "/dev/null".to_owned()),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null".to_owned()),
        ]
    }

    /// Adds a rule.
    pub fn inject(&self, fault: Fault) {
        self.shared.faults.add(fault);
    }

    /// Adds a rule that holds requests before their effect; the gate lets them go.
    pub fn hold(&self, operation: &str, key: &str) -> Gate {
        let gate = Gate::default();
        self.inject(Fault::on(operation, Action::Hold(gate.clone())).key(key));
        gate
    }

    /// Removes all rules.
    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Record> {
        self.shared.records().clone()
    }

    /// How many requests of an operation (by its S3 name) there were for a key.
    pub fn count(&self, operation: &str, key: &str) -> usize {
        self.shared.records().iter().filter(|record| record.operation == operation && record.key == key).count()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.shared.records().clear();
    }

    /// Moves the server's clock: last-modified of later writes and the `Date` header.
    pub fn set_clock_offset(&self, seconds: i64) {
        state::lock(&self.shared.state).clock_offset = seconds;
    }

    /// Puts an object without a request; returns its entity tag.
    pub fn put_object(&self, key: &str, bytes: impl Into<Bytes>) -> String {
        self.put_object_with(key, bytes, HashMap::new())
    }

    /// The same with user metadata.
    pub fn put_object_with(&self, key: &str, bytes: impl Into<Bytes>, metadata: HashMap<String, String>) -> String {
        let bytes = bytes.into();
        let etag = state::hex(&state::md5(&bytes));
        let mut state = state::lock(&self.shared.state);
        let object = StoredObject { metadata, ..state.object(bytes, etag.clone()) };
        state.objects.insert(key.to_owned(), object);
        etag
    }

    /// An object without a request.
    pub fn get_object(&self, key: &str) -> Option<StoredObject> {
        state::lock(&self.shared.state).objects.get(key).cloned()
    }

    /// All keys in order.
    pub fn keys(&self) -> Vec<String> {
        state::lock(&self.shared.state).objects.keys().cloned().collect()
    }

    /// Removes an object without a request; whether it was there.
    pub fn remove(&self, key: &str) -> bool {
        state::lock(&self.shared.state).objects.remove(key).is_some()
    }

    /// Dates an object's last modification.
    pub fn set_last_modified(&self, key: &str, time: OffsetDateTime) -> bool {
        let mut state = state::lock(&self.shared.state);
        state.objects.get_mut(key).map(|object| object.last_modified = time).is_some()
    }

    /// Uploads that are neither completed nor aborted.
    pub fn open_uploads(&self) -> Vec<OpenUpload> {
        state::lock(&self.shared.state).uploads.values().cloned().collect()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, service: S3Service) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("the runtime takes the listener");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let (shared, service) = (shared.clone(), service.clone());
        tokio::spawn(async move {
            let serve =
                hyper::service::service_fn(move |request| http::serve(shared.clone(), service.clone(), request));
            // A connection that ends badly is the client's affair, and often wanted.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), serve).await;
        });
    }
}
