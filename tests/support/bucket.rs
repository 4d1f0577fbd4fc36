//! Buckets to run a promise over: which kinds there are ([`KINDS`], the one place that names them), and what tests do to a
//! bucket behind everybody's back.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use swamp_mount::store::{DirStore, GetRequest, ObjectStore, Precondition, RequestPolicy, Result, get_bytes};
use tempfile::TempDir;
use time::OffsetDateTime;

use super::server::Server;
use super::stores;

/// A kind of bucket.
pub struct Kind {
    pub name: &'static str,
    start: fn() -> Place,
    connect: for<'a> fn(&'a Place, &'a str, RequestPolicy) -> BoxFuture<'a, Arc<dyn ObjectStore>>,
}

/// Every kind of bucket that tests run over.
pub const KINDS: &[Kind] = &[
    Kind { name: "dir", start: Place::dir, connect: |at, prefix, _| Box::pin(async move { open(at.path(), prefix) }) },
    #[cfg(feature = "s3")]
    Kind {
        name: "s3",
        start: || Place::Server(Server::s3()),
        connect: |at, prefix, policy| {
            Box::pin(async move { Arc::new(stores::s3(at.server(), prefix, policy).await) as Arc<dyn ObjectStore> })
        },
    },
    #[cfg(feature = "gcs")]
    Kind {
        name: "gcs",
        start: || Place::Server(Server::gcs()),
        connect: |at, prefix, policy| {
            Box::pin(async move { Arc::new(stores::gcs(at.server(), prefix, policy).await) as Arc<dyn ObjectStore> })
        },
    },
];

/// The kind of that name.
pub fn kind(name: &str) -> &'static Kind {
    KINDS.iter().find(|kind| kind.name == name).unwrap_or_else(|| panic!("this build has no buckets of kind {name}"))
}

/// Runs a promise over every kind of bucket; what failed follows the line that names its kind.
pub async fn each(promise: impl AsyncFn(&'static Kind)) {
    for kind in KINDS {
        eprintln!("---- over {}", kind.name);
        promise(kind).await;
    }
}

fn open(root: &Path, prefix: &str) -> Arc<dyn ObjectStore> {
    Arc::new(DirStore::open(root, prefix).expect("a directory store"))
}

/// Where the objects are.
enum Place {
    /// In a server of this process.
    Server(Server),
    /// In a directory.
    Dir(TempDir),
}

impl Place {
    fn dir() -> Self {
        Self::Dir(tempfile::tempdir().expect("a directory"))
    }

    fn server(&self) -> &Server {
        match self {
            Self::Server(server) => server,
            Self::Dir(_) => panic!("a directory has no server"),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Dir(dir) => dir.path(),
            Self::Server(_) => panic!("a server has no directory"),
        }
    }
}

/// A bucket, which goes when it is dropped.
pub struct Bucket {
    pub kind: &'static Kind,
    place: Place,
}

impl Bucket {
    pub fn new(kind: &'static Kind) -> Self {
        Self { kind, place: (kind.start)() }
    }

    /// Whether a server plays it, whose protocol can be made to fail.
    pub fn has_server(&self) -> bool {
        matches!(self.place, Place::Server(_))
    }

    /// The server that plays it.
    pub fn server(&self) -> &Server {
        self.place.server()
    }

    /// The SOURCE to give to the program.
    pub fn source(&self) -> String {
        match &self.place {
            Place::Server(server) => server.source(),
            Place::Dir(dir) => format!("file://{}", dir.path().canonicalize().expect("there").display()),
        }
    }

    /// Environment of a program that is to use it.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        match &self.place {
            Place::Server(server) => server.env(),
            Place::Dir(_) => Vec::new(),
        }
    }

    /// A client.
    pub async fn connect(&self, prefix: &str, policy: RequestPolicy) -> Arc<dyn ObjectStore> {
        (self.kind.connect)(&self.place, prefix, policy).await
    }

    /// An object's bytes.
    pub fn bytes(&self, key: &str) -> Option<Vec<u8>> {
        match &self.place {
            Place::Server(server) => server.get_object(key).map(|object| object.bytes.to_vec()),
            Place::Dir(dir) => {
                let read = ask(dir, async |store| get_bytes(&*store, GetRequest::whole(key), u64::MAX).await);
                known(read).flatten().map(|(_, bytes)| bytes.to_vec())
            }
        }
    }

    /// The same as text.
    pub fn text(&self, key: &str) -> Option<String> {
        self.bytes(key).map(|bytes| String::from_utf8(bytes).expect("UTF-8"))
    }

    /// What the store calls the version of an object.
    pub fn fingerprint(&self, key: &str) -> Option<String> {
        match &self.place {
            Place::Server(server) => server.get_object(key).map(|object| server.fingerprint(&object)),
            Place::Dir(dir) => {
                let info = known(ask(dir, async |store| store.head(key).await));
                info.and_then(|info| info.fingerprint).map(|fingerprint| fingerprint.to_string())
            }
        }
    }

    /// Writes like a client that knows no conditions.
    pub fn set(&self, key: &str, bytes: impl Into<Vec<u8>>) {
        let bytes = bytes.into();
        match &self.place {
            Place::Server(server) => drop(server.put_object(key, bytes)),
            Place::Dir(dir) => {
                let request = stores::request(key, bytes, Precondition::None);
                ask(dir, async |store| store.put(request).await).expect("written");
            }
        }
    }

    /// Removes an object, if it is there.
    pub fn remove(&self, key: &str) {
        match &self.place {
            Place::Server(server) => drop(server.remove(key)),
            Place::Dir(dir) => ask(dir, async |store| store.delete(key, None).await).expect("removed"),
        }
    }

    /// All keys in order.
    pub fn keys(&self) -> Vec<String> {
        match &self.place {
            Place::Server(server) => server.keys(),
            Place::Dir(dir) => ask(dir, async |store| stores::list_all(&*store, "", None, None).await.0),
        }
    }

    /// Lets an object have been written so long ago, by the store's clock.
    pub fn age(&self, key: &str, age: Duration) {
        match &self.place {
            Place::Server(server) => {
                assert!(server.set_last_modified(key, OffsetDateTime::now_utc() - age), "an object");
            }
            Place::Dir(dir) => {
                let file = std::fs::File::options().write(true).open(dir.path().join(key)).expect("an object");
                file.set_modified(std::time::SystemTime::now() - age).expect("dated");
            }
        }
    }
}

/// Uses a directory's store on a thread of its own, so that asynchronous tests can do so from synchronous code too.
fn ask<T: Send>(dir: &TempDir, question: impl AsyncFnOnce(Arc<dyn ObjectStore>) -> T + Send) -> T {
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(question(open(dir.path(), "")))
    };
    std::thread::scope(|scope| scope.spawn(work).join()).expect("no panic")
}

/// What there is, unless there is nothing.
fn known<T>(answer: Result<T>) -> Option<T> {
    match answer {
        Ok(there) => Some(there),
        Err(error) if error.is_not_found() => None,
        Err(error) => panic!("{error}"),
    }
}
