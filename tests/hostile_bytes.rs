//! Whatever bytes a bucket, a cache directory or a socket holds: each parser answers with a value or an error, never with a
//! panic, and what it accepted it writes back so that it reads the same again.
//!
//! Sound documents are damaged by fixed seeds: bytes replaced, cut out, repeated, and mixed with those of others.

#[path = "support/parsers.rs"]
mod parsers;

const ROUNDS: u64 = 4_000;

struct Target {
    name: &'static str,
    corpus: &'static [&'static str],
    parse: fn(&[u8]),
}

const TARGETS: &[Target] = &[
    Target {
        name: "index",
        corpus: &[
            r#"{"version":1,"lastPulled":"2026-04-28T08:05:37.123Z","entries":{"data/a b/é.yaml":{"key":"data/a b/é.yaml","size":12,"lastModified":"2026-04-28T08:05:37.001Z","localMtime":"x","sha256":"00"},"f":{"size":1},"f/g":{"size":-1,"mode":"120000"}}}"#,
            r#"{"version":1,"entries":{"../x":{},"a/":{"size":1e300},"a":null,"_index/x":{"size":1},"a":{"size":9007199254740993}},"future":[{}]}"#,
        ],
        parse: parsers::index,
    },
    Target {
        name: "list of shards",
        corpus: &[
            r#"{"version":2,"partitions":["audit","data--mytype--abc"],"commitSeq":42,"lastCompacted":"t"}"#,
            r#"{"version":1}"#,
        ],
        parse: parsers::meta,
    },
    Target {
        name: "shards",
        corpus: &[
            "{\"version\":2,\"partitions\":[\"_root\",\"data--t--i\"],\"commitSeq\":1}\0{\"version\":1,\"entries\":{\"a\":{\"size\":1}}}\0{\"version\":1,\"entries\":{\"data/t/i/1/raw\":{\"size\":1},\"a\":{\"size\":2}}}",
        ],
        parse: parsers::shards,
    },
    Target {
        name: "repository",
        corpus: &[
            "repoId: id\ndatastore:\n  type: \"@swamp/s3-datastore\"\n  namespace: infra\n  config:\n    bucket: my-bucket\n    prefix: ${{ env.NAME }}\n    pullConcurrency: 1\n",
            "s3:bucket/prefix",
            "@swamp/gcs-datastore:{\"bucket\":\"b_b\",\"apiEndpoint\":\"http://h:1\"}",
        ],
        parse: parsers::repo,
    },
    Target {
        name: "sidecar",
        corpus: &[
            r#"{"version":1,"remoteIndexETag":"abc","lastVerifiedAt":"2026-04-28T08:05:37.123Z","localDirty":false}"#,
            r#"{"version":2,"remoteIndexGeneration":"1","lastVerifiedAt":"","localDirty":true,"dirtyPaths":["a"],"bulkInvalidated":true,"lazyPullActive":true,"dirtyPathsOverflowed":false,"commitSeq":3}"#,
        ],
        parse: parsers::sidecar,
    },
    Target {
        name: "lock",
        corpus: &[
            r#"{"holder":"u@h","hostname":"h","pid":123,"acquiredAt":"2026-04-28T08:05:37.123Z","ttlMs":30000,"nonce":"n"}"#,
        ],
        parse: parsers::lock,
    },
    Target {
        name: "control socket",
        corpus: &[
            r#"{"request":"status"}"#,
            r#"{"request":"unmount","timeout_ms":5}"#,
            r#"{"response":"failed","message":"m"}"#,
            r#"{"response":"progress","pending":{"files":1,"bytes":2,"removals":0,"uploaded_bytes":0},"phase":"mounted"}"#,
        ],
        parse: parsers::control,
    },
    Target {
        name: "state rows",
        corpus: &[
            r#"{"generation":1,"delta":{"op":"put","origin":{"key":"k","entry":{"size":1},"fingerprint":"e"},"suspect":true},"upload":{"id":"i","sha256":"s","size":1}}"#,
            r#"{"version":{"key":"k","entry":{"size":1}},"present":[[0,1]],"stamp":{"size":1,"mtime":-1}}"#,
            r#"{"present":[[1,5],[9,3]]}"#,
            r#"{"mode":420,"xattrs":{"user.a":[1,255]}}"#,
        ],
        parse: parsers::rows,
    },
    Target {
        name: "paths",
        corpus: &["data/t/i/v/x", "workflow-runs/w/r", "a/../b", "2026-04-28T08:05:37.123Z"],
        parse: parsers::paths,
    },
    Target {
        name: "sources",
        corpus: &["s3://bucket/prefix/x", "gs://b_b", "file:///dir/with space", "bucket"],
        parse: parsers::sources,
    },
];

const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "null",
    "-1",
    "1e999",
    "\\ud800",
    "\0",
    "/",
    "..",
    "é",
    "9223372036854775808",
];

/// Bytes that were sound once.
fn damaged(random: &mut fastrand::Rng, corpus: &[&str]) -> Vec<u8> {
    let mut bytes = corpus[random.usize(..corpus.len())].as_bytes().to_vec();
    for _ in 0..random.usize(1..6) {
        let at = random.usize(..=bytes.len());
        let end = (at + random.usize(..12)).min(bytes.len());
        match random.u8(..5) {
            0 if at < bytes.len() => bytes[at] = random.u8(..),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let word = WORDS[random.usize(..WORDS.len())].bytes();
                bytes.splice(at..end, word);
            }
            3 => {
                let other = corpus[random.usize(..corpus.len())].as_bytes();
                let from = random.usize(..=other.len());
                bytes.splice(at.., other[from..].iter().copied());
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

#[test]
fn damaged_documents_are_errors_and_never_panics() {
    for target in TARGETS {
        for sound in target.corpus {
            (target.parse)(sound.as_bytes());
        }
        for seed in 0..ROUNDS {
            let bytes = damaged(&mut fastrand::Rng::with_seed(seed), target.corpus);
            let parsed = std::panic::catch_unwind(|| (target.parse)(&bytes));
            assert!(parsed.is_ok(), "{} with seed {seed}: {:?}", target.name, String::from_utf8_lossy(&bytes));
        }
    }
}

#[test]
fn deep_nesting_is_an_error_and_no_overflow_of_the_stack() {
    for target in TARGETS {
        for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
            let nested = format!("{}1{}", open.repeat(200_000), close.repeat(200_000));
            for sound in target.corpus {
                (target.parse)(sound.replacen("1", &nested, 1).as_bytes());
            }
            (target.parse)(nested.as_bytes());
        }
    }
}
