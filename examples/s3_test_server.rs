//! The tests' S3 server as a program, for scripts and benchmarks: prints how to reach it and serves until killed.
//!
//! `cargo run --release --example s3_test_server -- [ADDRESS] [MILLISECONDS PER REQUEST]`

#![allow(missing_docs)]

#[allow(dead_code)]
#[path = "../tests/support/faults.rs"]
mod faults;
#[allow(dead_code)]
#[path = "../tests/support/s3_server/mod.rs"]
mod s3_server;
#[allow(dead_code)]
#[path = "../tests/support/server/mod.rs"]
mod server;
#[allow(dead_code)]
#[path = "../tests/support/weather.rs"]
mod weather;

use std::time::Duration;

use s3_server::{Action, BUCKET, Fault, S3Server};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let server = S3Server::s3_on(&address, workers)?;
    if let Some(latency) = arguments.next() {
        server.inject(Fault::any(Action::Delay(Duration::from_millis(latency.parse()?))));
    }
    for (name, value) in server.env() {
        println!("export {name}={value}");
    }
    println!("# bucket {BUCKET}");
    loop {
        std::thread::park();
    }
}
