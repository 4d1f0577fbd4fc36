//! Rows about the way to the bucket and back. The limit is the bare SDK: parallel ranged GETs, concurrent PUTs.
//!
//! Depends on `lab`, `subject` and `load`. Invariant: the SDK moves the same bytes with the same client library.

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use futures_util::StreamExt;
use tokio::runtime::Runtime;

use super::lab::{Lab, SMALL, bytes, small_name};
use super::report::Report;
use super::subject::Subject;
use super::{Result, Scale, load};

const BIG: &str = "big";
/// Bytes of one ranged GET, and of one part of an upload.
const PART: u64 = 8 << 20;
/// Requests at a time, for large and for small objects.
const STREAMS: usize = 16;
const SMALL_STREAMS: usize = 32;
/// How many small files are read one after another to know what a request takes.
const SEQUENTIAL: usize = 50;

struct Sdk {
    runtime: Runtime,
    client: Client,
}

impl Sdk {
    fn new(lab: &Lab) -> Result<Self> {
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

    /// Parallel ranges, thrown away.
    fn download(&self, size: u64) -> Result<()> {
        let starts = (0..size).step_by(PART as usize);
        let parts = starts.map(|start| self.get(BIG, Some((start, size.min(start + PART)))));
        self.runtime.block_on(async {
            let mut running = futures_util::stream::iter(parts).buffer_unordered(STREAMS);
            while let Some(part) = running.next().await {
                part?;
            }
            Ok(())
        })
    }

    fn one_after_another(&self, count: usize) -> Result<()> {
        self.runtime.block_on(async {
            for number in 0..count {
                self.get(&small_name(number), None).await?;
            }
            Ok(())
        })
    }

    fn put_small(&self, names: &[String]) -> Result<()> {
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

    fn put_big(&self, size: u64) -> Result<()> {
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

/// cold-seq-read-0ms, cold-seq-read-20ms, first-byte.
pub fn large(scale: &Scale, report: &mut Report) -> Result<()> {
    if !report.wants_any(&["cold-seq-read-0ms", "cold-seq-read", "first-byte"]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    lab.file(BIG, bytes(0, scale.big as usize))?;
    lab.index();
    let sdk = Sdk::new(&lab)?;
    let (mib, size) = (scale.big >> 20, scale.big);
    for latency in [0, scale.latency] {
        let row = format!("cold-seq-read-{latency}ms");
        report.row(&row, format!("first read of {mib} MiB at {latency} ms per request"), Some(("sdk", 1.11)));
        lab.latency(latency);
        for _ in 0..scale.repeat {
            report.time(&row, "sdk", || sdk.download(size))?;
            let swamp = Subject::Swamp.mount(&lab)?;
            report.time(&row, "swamp", || load::read_all(&swamp.at.join(BIG), size))?;
        }
    }
    report.row(
        "first-byte",
        format!("first 4 KiB of {mib} MiB at {} ms per request", scale.latency),
        Some(("sdk", 1.5)),
    );
    for _ in 0..scale.repeat {
        report.time("first-byte", "sdk", || sdk.runtime.block_on(sdk.get(BIG, Some((0, SMALL as u64)))).map(drop))?;
        let swamp = Subject::Swamp.mount(&lab)?;
        report.time("first-byte", "swamp", || load::first_bytes(&swamp.at.join(BIG)))?;
    }
    Ok(())
}

/// cold-small: files that are not here, in the order of their directories.
pub fn small(scale: &Scale, report: &mut Report) -> Result<()> {
    let row = "cold-small";
    if !report.wants(row) {
        return Ok(());
    }
    let count = scale.files;
    let what = format!("first read of {count} files of 4 KiB in directory order at {} ms per request", scale.latency);
    report.row(row, what, Some(("sdk-one-by-one", 0.05)));
    let mut lab = Lab::new()?;
    lab.small_files(count)?;
    lab.index();
    lab.latency(scale.latency);
    let sdk = Sdk::new(&lab)?;
    for _ in 0..scale.repeat {
        let sequential = SEQUENTIAL.min(count);
        let began = std::time::Instant::now();
        sdk.one_after_another(sequential)?;
        report.sample(row, "sdk-one-by-one", began.elapsed().as_secs_f64() * count as f64 / sequential as f64);
        let swamp = Subject::Swamp.mount(&lab)?;
        report.time(row, "swamp", || load::read_small(&swamp.at, count))?;
    }
    Ok(())
}

/// flush-small, flush-big.
pub fn flush(scale: &Scale, report: &mut Report) -> Result<()> {
    let rows = ["flush-small", "flush-big"];
    if !report.wants_any(&rows) {
        return Ok(());
    }
    let (count, size) = (scale.files, scale.big);
    report.row(rows[0], format!("flush of {count} new files of 4 KiB"), Some(("sdk", 1.25)));
    report.row(rows[1], format!("flush of one new file of {} MiB", size >> 20), Some(("sdk", 1.25)));
    for _ in 0..scale.repeat {
        if report.wants(rows[0]) {
            let lab = Lab::new()?;
            let sdk = Sdk::new(&lab)?;
            let names: Vec<String> = (0..count).map(small_name).collect();
            report.time(rows[0], "sdk", || sdk.put_small(&names))?;
            let swamp = Subject::Swamp.mount(&lab)?;
            load::make_directories(&swamp.at, "new", count)?;
            load::create_small(&swamp.at, "new", count)?;
            report.time(rows[0], "swamp", || swamp.flush())?;
        }
        if report.wants(rows[1]) {
            let lab = Lab::new()?;
            let sdk = Sdk::new(&lab)?;
            report.time(rows[1], "sdk", || sdk.put_big(size))?;
            let swamp = Subject::Swamp.mount(&lab)?;
            load::write_big(&swamp.at.join(BIG), size, false)?;
            report.time(rows[1], "swamp", || swamp.flush())?;
        }
    }
    Ok(())
}
