//! The limit of the rows about the wire: the bare S3 client, with the requests that the job needs and nothing else.
//!
//! Depends on `lab`. Invariant: it moves the same bytes with the same client library as swamp-mount.

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use futures_util::StreamExt;
use tokio::runtime::Runtime;

use super::Result;
use super::lab::{Lab, SMALL, bytes, small_name};

/// Bytes of one ranged GET, and of one part of an upload.
const PART: u64 = 8 << 20;
/// Requests at a time, for large and for small objects.
const STREAMS: usize = 16;
const SMALL_STREAMS: usize = 32;

/// A client of a lab's server.
pub struct Sdk {
    runtime: Runtime,
    client: Client,
}

impl Sdk {
    pub fn new(lab: &Lab) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let credentials = aws_sdk_s3::config::Credentials::new(
            super::s3_server::ACCESS_KEY,
            super::s3_server::SECRET_KEY,
            None,
            None,
            "bench",
        );
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(aws_sdk_s3::config::BehaviorVersion::latest())
            .region(aws_sdk_s3::config::Region::new("us-east-1"))
            .credentials_provider(credentials)
            .endpoint_url(lab.server.endpoint())
            .force_path_style(true)
            .build();
        Ok(Self { runtime, client: Client::from_conf(config) })
    }

    async fn get(&self, key: &str, range: Option<(u64, u64)>) -> Result<u64> {
        let range = range.map(|(start, end)| format!("bytes={start}-{}", end - 1));
        let answer = self.client.get_object().bucket(Lab::bucket()).key(key).set_range(range).send().await?;
        let (mut body, mut total) = (answer.body, 0);
        while let Some(chunk) = body.next().await {
            total += chunk?.len() as u64;
        }
        Ok(total)
    }

    /// One object, thrown away.
    pub fn fetch(&self, key: &str) -> Result<u64> {
        self.runtime.block_on(self.get(key, None))
    }

    /// The first bytes of an object.
    pub fn first_bytes(&self, key: &str) -> Result<u64> {
        self.runtime.block_on(self.get(key, Some((0, SMALL as u64))))
    }

    /// Parallel ranges, thrown away.
    pub fn download(&self, key: &str, size: u64) -> Result<()> {
        let starts = (0..size).step_by(PART as usize);
        let parts = starts.map(|start| self.get(key, Some((start, size.min(start + PART)))));
        self.runtime.block_on(async {
            let mut running = futures_util::stream::iter(parts).buffer_unordered(STREAMS);
            while let Some(part) = running.next().await {
                part?;
            }
            Ok(())
        })
    }

    pub fn one_after_another(&self, count: usize) -> Result<()> {
        self.runtime.block_on(async {
            for number in 0..count {
                self.get(&small_name(number), None).await?;
            }
            Ok(())
        })
    }

    pub fn put_small(&self, names: &[String]) -> Result<()> {
        let payload = bytes(names.len(), SMALL);
        let puts = names.iter().map(|name| {
            let put = self.client.put_object().bucket(Lab::bucket()).key(name);
            put.body(ByteStream::from(payload.clone())).if_none_match("*").send()
        });
        self.runtime.block_on(async {
            let mut running = futures_util::stream::iter(puts).buffer_unordered(SMALL_STREAMS);
            while let Some(put) = running.next().await {
                put?;
            }
            Ok(())
        })
    }

    pub fn put_big(&self, size: u64) -> Result<()> {
        let payload = bytes::Bytes::from(bytes(1, PART as usize));
        let parts = (0..size).step_by(PART as usize).map(|start| (size - start).min(PART));
        let puts = parts.enumerate().map(|(number, length)| {
            let put = self.client.put_object().bucket(Lab::bucket()).key(format!("part{number}"));
            put.body(ByteStream::from(payload.slice(..length as usize))).send()
        });
        self.runtime.block_on(async {
            let mut running = futures_util::stream::iter(puts).buffer_unordered(STREAMS);
            while let Some(put) = running.next().await {
                put?;
            }
            Ok(())
        })
    }
}
