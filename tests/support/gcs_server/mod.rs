//! A Google Cloud Storage server in memory: JSON over HTTP and gRPC (`google.storage.v2`) on one port, atomic conditions,
//! faults on demand, a record of every request.
//!
//! It runs on a thread of its own and stops when dropped, so that synchronous and asynchronous tests use it alike. `http`
//! names requests and applies faults, `json` and `grpc` are the two protocols, `state` is the bucket.
//!
//! Not modelled: credentials (none are asked for; a record tells whether any came), object versions (a replaced generation
//! is gone), soft deletion, holds, retention, access lists, encryption keys, storage classes, compression and its
//! transcoding, appendable and composed objects, metageneration conditions (a metageneration is always 1), field masks,
//! globs and ranges of listings, rate limits, the service's limits on names and metadata, eventual consistency of anything,
//! redirects, and uploads whose chunks come in several requests without a break.

mod grpc;
mod http;
mod json;
mod state;

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::sync::oneshot;

use super::faults::{self, Faults};
#[allow(unused_imports)] // Each test takes what it needs.
pub use super::faults::{Action, Fault, Gate, Record};
pub use state::{State, StoredObject};

/// The only bucket.
pub const BUCKET: &str = "swamp_test";

/// What the server's tasks and its owner share.
#[derive(Debug)]
struct Shared {
    /// Where sessions of uploads are; clients name the host of a request without its port.
    address: SocketAddr,
    state: Mutex<State>,
    faults: Faults,
    records: Mutex<Vec<Record>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn records(&self) -> MutexGuard<'_, Vec<Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running server; stops when dropped.
#[derive(Debug)]
pub struct GcsServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl GcsServer {
    /// Starts on a free port of 127.0.0.1.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a local port can be bound");
        listener.set_nonblocking(true).expect("set");
        let address = listener.local_addr().expect("bound");
        let shared =
            Arc::new(Shared { address, state: Mutex::default(), faults: Faults::default(), records: Mutex::default() });
        let (stop, stopped) = oneshot::channel();
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).enable_all().build().expect("a runtime");
        let tasks = shared.clone();
        let body = move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = accept(listener, tasks) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("gcs-server".to_owned()).spawn(body).expect("a thread");
        Self { shared, address, stop: Some(stop), thread: Some(thread) }
    }

    /// URL of the server.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Environment for a program that is to use the server, and no credentials.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            // Without a scheme, as Google's own tools have it.
            ("STORAGE_EMULATOR_HOST", self.address.to_string()),
            ("GOOGLE_APPLICATION_CREDENTIALS", "/dev/null".to_owned()),
        ]
    }

    /// Adds a rule.
    pub fn inject(&self, fault: Fault) {
        self.shared.faults.add(fault);
    }

    /// Removes all rules.
    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Record> {
        self.shared.records().clone()
    }

    /// How many requests of an operation there were for a key.
    pub fn count(&self, operation: &str, key: &str) -> usize {
        self.shared.records().iter().filter(|record| record.operation == operation && record.key == key).count()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.shared.records().clear();
    }

    /// Puts an object without a request; returns its generation.
    pub fn put_object(&self, key: &str, bytes: impl Into<Bytes>) -> i64 {
        self.shared.state().put(key, bytes.into(), HashMap::new(), None).generation
    }

    /// An object without a request.
    pub fn get_object(&self, key: &str) -> Option<StoredObject> {
        self.shared.state().objects.get(key).cloned()
    }

    /// All keys in order.
    pub fn keys(&self) -> Vec<String> {
        self.shared.state().objects.keys().cloned().collect()
    }

    /// Removes an object without a request; whether it was there.
    pub fn remove(&self, key: &str) -> bool {
        self.shared.state().objects.remove(key).is_some()
    }

    /// Changes the bytes that are kept, but not what is said of them: a disk that rots.
    pub fn corrupt(&self, key: &str, bytes: impl Into<Bytes>) {
        self.shared.state().objects.get_mut(key).expect("an object").bytes = bytes.into();
    }

    /// Does so many bytes of a copy in one request.
    pub fn set_rewrite_step(&self, bytes: u64) {
        self.shared.state().rewrite_step = bytes;
    }

    /// Uploads that were begun and not finished.
    pub fn open_uploads(&self) -> usize {
        self.shared.state().uploads.values().filter(|upload| upload.done.is_none()).count()
    }
}

impl Drop for GcsServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("the runtime takes the listener");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let shared = shared.clone();
        tokio::spawn(async move {
            let serve = hyper::service::service_fn(move |request| http::serve(shared.clone(), request));
            // A connection that ends badly is the client's affair, and often wanted.
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), serve).await;
        });
    }
}
