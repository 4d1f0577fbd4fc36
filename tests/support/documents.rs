//! The documents of an index as text, for files of one byte that were pushed long ago.

fn entries(files: &[&str]) -> String {
    let entry = |name: &&str| format!(r#""{name}":{{"key":"{name}","size":1,"lastModified":"old"}}"#);
    files.iter().map(entry).collect::<Vec<_>>().join(",")
}

/// A shard with these files.
pub fn shard(files: &[&str]) -> String {
    format!(r#"{{"version":1,"entries":{{{}}}}}"#, entries(files))
}

/// An index of version 1 with these files.
pub fn monolith(files: &[&str]) -> String {
    format!(r#"{{"version":1,"lastPulled":"t","entries":{{{}}}}}"#, entries(files))
}

/// The list of shards.
pub fn meta(partitions: &[&str], seq: u64) -> String {
    let names: Vec<String> = partitions.iter().map(|name| format!("{name:?}")).collect();
    format!(r#"{{"version":2,"partitions":[{}],"commitSeq":{seq}}}"#, names.join(","))
}
