//! Promise: in whatever order writers and a push meet, only bytes of one moment are pushed, and a content that counts as clean
//! has the bytes that were pushed last.

use std::sync::Arc;

use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread;

use crate::writes::Writes;

/// A content of two halves, which a write changes one after the other.
#[derive(Default)]
struct Content {
    writes: Writes,
    first: AtomicU64,
    second: AtomicU64,
}

impl Content {
    fn write(&self, value: u64) {
        self.writes.during(|| {
            self.first.store(value, Ordering::SeqCst);
            self.second.store(value, Ordering::SeqCst);
        });
    }

    fn read(&self) -> (u64, u64) {
        (self.first.load(Ordering::SeqCst), self.second.load(Ordering::SeqCst))
    }

    /// One push: what it carried away, and whether the content counts as clean since.
    fn push(&self) -> Option<((u64, u64), bool)> {
        let stable = self.writes.stable()?;
        let bytes = self.read();
        if !self.writes.unchanged_since(stable) {
            return None;
        }
        Some((bytes, self.writes.clean_if_unchanged(stable, || {})))
    }
}

#[test]
fn only_bytes_of_one_moment_are_pushed() {
    shuttle::check_dfs(
        || {
            let content = Arc::new(Content::default());
            let writer = Arc::clone(&content);
            let writing = thread::spawn(move || writer.write(1));
            if let Some(((first, second), _)) = content.push() {
                assert_eq!(first, second, "half of a write was pushed");
            }
            writing.join().unwrap();
        },
        None,
    );
}

#[test]
fn what_counts_as_clean_was_pushed() {
    shuttle::check_dfs(
        || {
            let content = Arc::new(Content::default());
            content.write(1);
            let writer = Arc::clone(&content);
            let writing = thread::spawn(move || writer.write(2));
            let pushed = content.push();
            writing.join().unwrap();
            if !content.writes.are_dirty() {
                let (bytes, _) = pushed.expect("nothing else cleans it");
                assert_eq!(bytes, content.read(), "a write was taken for pushed");
            }
        },
        None,
    );
}

#[test]
fn of_two_writers_and_two_pushes_no_write_is_forgotten() {
    // Too many orders to run through all of them.
    shuttle::check_pct(
        || {
            let content = Arc::new(Content::default());
            let writers: Vec<_> = [1, 2]
                .map(|value| {
                    let content = Arc::clone(&content);
                    thread::spawn(move || content.write(value))
                })
                .into_iter()
                .collect();
            let mut last = None;
            for _ in 0..2 {
                if let Some((bytes, _)) = content.push() {
                    last = Some(bytes);
                }
            }
            for writer in writers {
                writer.join().unwrap();
            }
            if !content.writes.are_dirty() {
                assert_eq!(last, Some(content.read()), "a write was taken for pushed");
            }
        },
        20_000,
        3,
    );
}
