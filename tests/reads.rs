//! Promise: what the index lists is listed at once, without a request per file, and opening it yields its bytes.

mod support;

use support::mount::Lab;

#[test]
fn mounting_and_listing_read_the_index_and_nothing_else() {
    let lab = Lab::s3();
    lab.seed(&[("a/b/one.yaml", b"one"), ("a/two.yaml", b"two"), ("three.txt", b"three")]);
    let machine = lab.machine();
    let mount = machine.mount();
    assert_eq!(mount.files(), ["a/b/one.yaml", "a/two.yaml", "three.txt"]);
    assert_eq!(std::fs::metadata(mount.path("three.txt")).unwrap().len(), 5);
    let data: Vec<_> = lab
        .server()
        .requests()
        .into_iter()
        .filter(|r| !r.key.contains("_meta.json") && !r.key.contains(".datastore-index"))
        .collect();
    assert!(data.is_empty(), "{data:?}");
    assert_eq!(mount.read("a/b/one.yaml"), "one");
    assert_eq!(lab.server().count("GetObject", "a/b/one.yaml"), 1);
    assert_eq!(mount.read("a/b/one.yaml"), "one");
    assert_eq!(lab.server().count("GetObject", "a/b/one.yaml"), 1);
    assert_eq!(mount.unmount(), 0);
    lab.server().clear_requests();
    let mount = machine.mount();
    assert_eq!(mount.read("a/b/one.yaml"), "one");
    assert_eq!(lab.server().count("GetObject", "a/b/one.yaml"), 0, "complete files survive in the cache");
}
