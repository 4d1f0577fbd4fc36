//! The harness that integration tests share. Each test file takes what it needs.

#![allow(dead_code)]

pub mod machine;
pub mod memory_store;
pub mod model;
pub mod mount;
pub mod s3_server;
pub mod stores;
