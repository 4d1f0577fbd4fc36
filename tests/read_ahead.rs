//! Promise: a program that reads files in the order of their directories finds the next ones here; each is fetched once, and
//! what is fetched in vain is bounded and reported.

mod support;

use support::mount::{Lab, Mount, eventually};

fn name(number: usize) -> String {
    format!("dir{}/{:03}", number / 100, number % 100)
}

fn seeded(count: usize) -> Lab {
    let lab = Lab::s3();
    let names: Vec<String> = (0..count).map(name).collect();
    lab.seed(&names.iter().map(|name| (name.as_str(), name.as_bytes())).collect::<Vec<_>>());
    lab
}

fn read(mount: &Mount, numbers: impl IntoIterator<Item = usize>) {
    for number in numbers {
        assert_eq!(mount.read(&name(number)), name(number));
    }
}

fn fetched(lab: &Lab) -> usize {
    (0..1000).map(|number| lab.server().count("GetObject", &name(number))).sum()
}

#[test]
fn files_read_in_order_are_fetched_ahead_and_once_each_across_directories() {
    let lab = seeded(350);
    let machine = lab.machine();
    let mount = machine.mount();
    read(&mount, 0..350);
    assert_eq!(fetched(&lab), 350);
    let status = mount.status();
    assert!(status["readAheadBytes"].as_u64().unwrap() > 300 * 8, "{status}");
    assert_eq!(status["readAheadUnusedBytes"], 0, "{status}");
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn a_reader_that_stops_leaves_a_bounded_and_reported_rest() {
    let lab = seeded(1000);
    let machine = lab.machine();
    let mount = machine.mount();
    read(&mount, 0..40);
    let most = 40 + 128;
    let bytes = eventually("the files ahead", || {
        let status = mount.status();
        let here = status["cachedFiles"].as_u64().unwrap() as usize;
        let all_arrived = here == fetched(&lab) && here > 40;
        all_arrived.then(|| status["readAheadUnusedBytes"].as_u64().unwrap())
    });
    assert!(fetched(&lab) <= most, "{} files were fetched for 40 that were read", fetched(&lab));
    assert!(bytes > 0);
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn files_read_out_of_order_are_fetched_alone() {
    let lab = seeded(300);
    let machine = lab.machine();
    let mount = machine.mount();
    read(&mount, (0..60).map(|n| n * 37 % 300));
    assert_eq!(fetched(&lab), 60);
    assert_eq!(mount.status()["readAheadBytes"], 0);
    assert_eq!(mount.unmount(), 0);
}
