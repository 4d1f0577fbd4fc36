//! Google Cloud Storage's protocols for the test server: JSON over HTTP and gRPC (`google.storage.v2`) on one port.
//!
//! This names requests and hands them to `json` or `grpc`; `state` is what both need beside the objects.
//!
//! Not modelled: credentials (none are asked for; a record tells whether any came), object versions (a replaced generation
//! is gone), soft deletion, holds, retention, access lists, encryption keys, storage classes, compression and its
//! transcoding, appendable and composed objects, metageneration conditions (a metageneration is always 1), field masks,
//! globs and ranges of listings, rate limits, the service's limits on names and metadata, eventual consistency of anything,
//! redirects, and uploads whose chunks come in several requests without a break.

mod grpc;
mod json;
mod state;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Method, Response};

#[allow(unused_imports)] // Each test takes what it needs.
pub use super::faults::{Action, Fault, Gate, Record};
use super::faults::{BoxError, percent_decode};
#[allow(unused_imports)]
pub use super::server::Server as GcsServer;
use super::server::{Body, Call, Protocol, Server, Shared, StoredObject, full};
use state::Sessions;

/// The only bucket.
pub const BUCKET: &str = "swamp_test";

impl Server {
    /// A server that speaks Google's protocols, on a free port of 127.0.0.1.
    pub fn gcs() -> Self {
        let made =
            Self::start_with("127.0.0.1:0", 2, |shared, address| Gcs { shared, address, sessions: Mutex::default() });
        made.expect("a local port can be bound")
    }
}

struct Gcs {
    shared: Arc<Shared>,
    /// Where sessions of uploads are; clients name the host of a request without its port.
    address: SocketAddr,
    /// Its lock is taken after that of the objects.
    sessions: Mutex<Sessions>,
}

impl Gcs {
    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_grpc(path: &str) -> bool {
    path.starts_with(grpc::SERVICE)
}

/// A parameter of a request's query.
fn parameter(parts: &Parts, name: &str) -> Option<String> {
    let pairs = parts.uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    let mut values = pairs.filter(|(key, _)| percent_decode(key) == name).map(|(_, value)| value);
    values.next().map(|value| percent_decode(&value.replace('+', " ")))
}

#[async_trait]
impl Protocol for Gcs {
    fn source(&self) -> String {
        format!("gs://{BUCKET}")
    }

    fn env(&self, address: SocketAddr) -> Vec<(&'static str, String)> {
        vec![
            // Without a scheme, as Google's own tools have it.
            ("STORAGE_EMULATOR_HOST", address.to_string()),
            ("GOOGLE_APPLICATION_CREDENTIALS", "/dev/null".to_owned()),
        ]
    }

    fn fingerprint(&self, object: &StoredObject) -> String {
        object.generation.to_string()
    }

    fn open_uploads(&self) -> Vec<String> {
        let sessions = self.sessions();
        let open = sessions.uploads.values().filter(|upload| upload.done.is_none());
        open.map(|upload| upload.described.name.clone()).collect()
    }

    fn request_id(&self) -> &'static str {
        "x-guploader-uploadid"
    }

    async fn receive(&self, parts: Parts, body: Incoming) -> Result<Call, BoxError> {
        let mut body = body.map_err(BoxError::from).boxed_unsync();
        let mut bytes = Bytes::new();
        // The transmission of a resumable upload is read piece by piece; else a request is named by its message.
        if parts.method != Method::PUT {
            bytes = body.collect().await?.to_bytes();
            body = full("");
        }
        let (operation, key) = match is_grpc(parts.uri.path()) {
            true => grpc::name(parts.uri.path(), &bytes),
            false => json::name(self, &parts),
        };
        let header = |name: &str| parts.headers.get(name)?.to_str().ok().map(str::to_owned);
        let range = header("range").or_else(|| header("content-range"));
        let if_match = parameter(&parts, "ifGenerationMatch");
        let if_none_match = parameter(&parts, "ifGenerationNotMatch");
        Ok(Call { operation, key, parts, body, bytes, range, if_match, if_none_match, ignore_conditions: false })
    }

    async fn serve(&self, call: Call) -> Result<Response<Body>, BoxError> {
        match (is_grpc(call.parts.uri.path()), call.parts.method == Method::PUT) {
            (true, _) => Ok(grpc::answer(self, &call)),
            (false, true) => json::transmit(self, call).await,
            (false, false) => Ok(json::answer(self, &call)),
        }
    }

    fn refusal(&self, path: &str, status: u16) -> Response<Body> {
        if is_grpc(path) { grpc::injected(status) } else { json::error(status, "injected fault") }
    }
}
