//! The harness that integration tests share. Each test file takes what it needs.

#![allow(dead_code)]

pub mod bucket;
pub mod cloud;
pub mod contents;
pub mod disk;
pub mod documents;
pub mod faults;
#[cfg(feature = "gcs")]
pub mod gcs_server;
pub mod hooked;
pub mod host;
pub mod machine;
pub mod model;
pub mod mount;
pub mod mounted;
pub mod play;
pub mod reference;
#[cfg(feature = "s3")]
pub mod s3_server;
pub mod server;
pub mod sound;
pub mod steps;
pub mod stores;
pub mod watch;
pub mod weather;
pub mod world;
pub mod writers;
