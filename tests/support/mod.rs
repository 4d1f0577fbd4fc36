//! The test harness.

#![allow(dead_code)]

pub mod memory_store;
