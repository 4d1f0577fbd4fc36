//! A server in this process that plays a bucket: objects in memory, atomic conditions, faults on demand, a record of every
//! request; the same whichever protocol it speaks.
//!
//! It runs on a thread of its own and stops when dropped, so that synchronous and asynchronous tests use it alike. `front`
//! is the HTTP layer that names, records and spoils requests, `state` the bucket; a [`Protocol`] is all that differs
//! between stores (`s3_server`, `gcs_server`).

mod front;
mod history;
mod state;

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use time::OffsetDateTime;
use tokio::sync::oneshot;

use super::faults::{Action, Fault, Faults, Gate, Record};
use super::weather::Weather;
#[allow(unused_imports)] // Each protocol takes what it needs.
pub use front::{Body, Call, Protocol, full};
use state::Watcher;
pub use state::{Metadata, Objects, Page, State, StoredObject, hex, md5};

/// What the server's tasks, its protocol and its owner share.
#[derive(Debug, Default)]
pub struct Shared {
    state: Mutex<State>,
    faults: Faults,
    records: Mutex<Vec<Record>>,
    /// Requests that arrived and are neither answered nor given up.
    serving: AtomicUsize,
}

impl Shared {
    /// The bucket. Every effect happens under this one lock, which makes conditions atomic.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn records(&self) -> MutexGuard<'_, Vec<Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running server; stops when dropped.
pub struct Server {
    shared: Arc<Shared>,
    protocol: Arc<dyn Protocol>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Starts on an address, with a number of worker threads; the protocol is made for the address that it got.
    pub fn start_with<P: Protocol>(
        address: &str,
        workers: usize,
        protocol: impl FnOnce(Arc<Shared>, SocketAddr) -> P,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let protocol: Arc<dyn Protocol> = Arc::new(protocol(shared.clone(), address));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let serving = accept(listener, shared.clone(), protocol.clone());
        let thread = std::thread::Builder::new().name("bucket-server".to_owned()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = serving => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(Self { shared, protocol, address, stop: Some(stop), thread: Some(thread) })
    }

    /// URL of the server.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The bucket, as a SOURCE.
    pub fn source(&self) -> String {
        self.protocol.source()
    }

    /// Environment for a program that is to use the server, and nothing of the real environment's configuration.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        self.protocol.env(self.address)
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

    /// Faults at random from now on; `None`: no more of them.
    pub fn set_weather(&self, weather: Option<Arc<Weather>>) {
        self.shared.faults.set_weather(weather);
    }

    /// Shows every write of a client, right before it happens and atomically with it.
    pub fn watch_writes(&self, watcher: impl FnMut(&Objects, &str, &Bytes) + Send + 'static) {
        self.shared.state().watcher = Some(Watcher(Box::new(watcher)));
    }

    /// Remembers what becomes of objects and entries from now on.
    pub fn keep_history(&self) {
        self.shared.state().history = Some(Default::default());
    }

    /// What became of an object and of its entries, a line for each change.
    pub fn history_of(&self, key: &str) -> String {
        self.shared.state().history.as_ref().map(|history| history.of(key)).unwrap_or_default()
    }

    /// Returns once no request is being served.
    pub fn quiet(&self) {
        let began = Instant::now();
        while self.shared.serving.load(Ordering::SeqCst) > 0 {
            assert!(began.elapsed() < Duration::from_secs(30), "a request never ends");
            std::thread::sleep(Duration::from_micros(200));
        }
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

    /// Moves the server's clock: last-modified of later writes and the `Date` header.
    pub fn set_clock_offset(&self, seconds: i64) {
        self.shared.state().clock_offset = seconds;
    }

    /// Puts an object without a request; returns its entity tag.
    pub fn put_object(&self, key: &str, bytes: impl Into<Bytes>) -> String {
        self.put_object_with(key, bytes, Metadata::new())
    }

    /// The same with user metadata.
    pub fn put_object_with(&self, key: &str, bytes: impl Into<Bytes>, metadata: Metadata) -> String {
        let bytes = bytes.into();
        let etag = hex(&md5(&bytes));
        self.shared.state().unwatched(|state| state.put(key, bytes, etag, metadata, None).etag)
    }

    /// Replaces an object without a request if it still is of this entity tag; whether it was.
    pub fn replace_object(&self, key: &str, etag: &str, bytes: impl Into<Bytes>) -> bool {
        let (bytes, mut state) = (bytes.into(), self.shared.state());
        let same = state.objects.get(key).is_some_and(|object| object.etag == etag);
        if same {
            let etag = hex(&md5(&bytes));
            state.unwatched(|state| state.put(key, bytes, etag, Metadata::new(), None));
        }
        same
    }

    /// Puts a large object of zeros, which take no memory until somebody writes to them.
    pub fn put_zeros(&self, key: &str, size: usize) {
        let etag = format!("{}-1", hex(&md5(key.as_bytes())));
        self.shared.state().put(key, vec![0; size].into(), etag, Metadata::new(), None);
    }

    /// From now on uploads in parts, of at most so many bytes together, become zeros.
    pub fn keep_sizes_only(&self, most: usize) {
        self.shared.state().zeros = Some(vec![0; most].into());
    }

    /// An object without a request.
    pub fn get_object(&self, key: &str) -> Option<StoredObject> {
        self.shared.state().objects.get(key).cloned()
    }

    /// What this store calls the version of an object.
    pub fn fingerprint(&self, object: &StoredObject) -> String {
        self.protocol.fingerprint(object)
    }

    /// All keys in order.
    pub fn keys(&self) -> Vec<String> {
        self.shared.state().objects.keys().cloned().collect()
    }

    /// Removes an object without a request; whether it was there.
    pub fn remove(&self, key: &str) -> bool {
        self.shared.state().remove(key).is_some()
    }

    /// Dates an object's last modification.
    pub fn set_last_modified(&self, key: &str, time: OffsetDateTime) -> bool {
        self.shared.state().objects.get_mut(key).map(|object| object.modified = time).is_some()
    }

    /// Changes the bytes that are handed out, but not what is said of them: a disk that rots.
    pub fn corrupt(&self, key: &str, bytes: impl Into<Bytes>) {
        self.shared.state().objects.get_mut(key).expect("an object").rotten = Some(bytes.into());
    }

    /// Does at most so many bytes of a copy in one request, where the protocol has copies that go on.
    pub fn set_copy_step(&self, bytes: u64) {
        self.shared.state().copy_step = bytes;
    }

    /// Leaves an upload in parts behind that began so long ago.
    pub fn leave_upload(&self, key: &str, age: std::time::Duration) {
        self.protocol.leave_upload(key, age);
    }

    /// Keys of uploads that were begun, and neither finished nor given up.
    pub fn open_uploads(&self) -> Vec<String> {
        self.protocol.open_uploads()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, protocol: Arc<dyn Protocol>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("the runtime takes the listener");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let (shared, protocol) = (shared.clone(), protocol.clone());
        tokio::spawn(async move {
            let serve =
                hyper::service::service_fn(move |request| front::serve(shared.clone(), protocol.clone(), request));
            // A connection that ends badly is the client's affair, and often wanted.
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), serve).await;
        });
    }
}
