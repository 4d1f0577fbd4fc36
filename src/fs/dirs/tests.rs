//! When the kernel may keep a listing, case by case.

use super::*;

const DIR: Ino = Ino(7);

fn keeps(directories: &Directories, version: u64, attributes: bool) -> bool {
    directories.open(DIR, version, attributes).1.contains(FopenFlags::FOPEN_KEEP_CACHE)
}

/// Opens at a version, sends a snapshot of another from an offset on.
fn send(directories: &Directories, opened: u64, version: u64, offset: u64) -> Listing {
    let (listing, _) = directories.open(DIR, opened, false);
    directories.sends(DIR, &listing, true, version, offset);
    listing.lock().snapshot = Some(DirListing { version, entries: Vec::new() });
    listing
}

#[test]
fn the_kernel_keeps_what_it_was_sent_while_the_directory_is_the_same() {
    let directories = Directories::default();
    assert!(!keeps(&directories, 1, false), "it has nothing yet");
    let listing = send(&directories, 1, 1, 0);
    directories.close(DIR, &listing);
    assert!(keeps(&directories, 1, false));
    assert!(!keeps(&directories, 2, false));
    let listing = send(&directories, 2, 2, 0);
    assert!(keeps(&directories, 2, false), "while it is being sent, too");
    directories.close(DIR, &listing);
    assert!(keeps(&directories, 2, false) && !keeps(&directories, 1, false));
}

/// What may have been mixed, whether it was or not: opened and sent versions with offsets, all before the first is closed.
#[test]
fn what_may_be_of_several_versions_is_not_kept() {
    let cases: &[&[(u64, u64, u64)]] = &[
        // Two at the same time.
        &[(1, 1, 0), (2, 2, 0)],
        // It changed between open and send, and the kernel had been told to keep what it had.
        &[(2, 2, 0), (2, 3, 0)],
        // Somebody who read from the kernel's memory goes on with a later snapshot.
        &[(2, 2, 0), (2, 3, 900)],
    ];
    for case in cases {
        let directories = Directories::default();
        let open: Vec<Listing> = case.iter().map(|(at, of, offset)| send(&directories, *at, *of, *offset)).collect();
        let last = case.last().unwrap().1;
        assert!(!keeps(&directories, last, false), "{case:?}");
        open.iter().for_each(|listing| directories.close(DIR, listing));
        assert!(!keeps(&directories, last, false), "{case:?}: closed");
        let listing = send(&directories, last, last, 0);
        directories.close(DIR, &listing);
        assert!(keeps(&directories, last, false), "{case:?}: sent anew");
    }
}

#[test]
fn a_listing_that_was_opened_before_another_was_sent_in_part_does_not_count() {
    let directories = Directories::default();
    let (early, _) = directories.open(DIR, 1, false);
    let part = send(&directories, 1, 1, 0);
    directories.close(DIR, &part);
    directories.sends(DIR, &early, true, 2, 0);
    assert!(!keeps(&directories, 2, false));
}

#[test]
fn a_listing_that_was_opened_while_another_was_being_sent_does_not_count() {
    // The answer to the other one can have come after the open that dropped what the kernel had.
    let directories = Directories::default();
    let part = send(&directories, 1, 1, 0);
    let (late, _) = directories.open(DIR, 2, false);
    directories.close(DIR, &part);
    directories.sends(DIR, &late, true, 2, 0);
    assert!(!keeps(&directories, 2, false));
}

#[test]
fn whoever_looks_at_attributes_is_sent_them_unless_the_kernel_has_all() {
    let directories = Directories::default();
    let listing = send(&directories, 1, 1, 0);
    assert!(keeps(&directories, 1, false) && !keeps(&directories, 1, true));
    directories.sent_attributes(DIR, 1);
    directories.close(DIR, &listing);
    assert!(keeps(&directories, 1, true));
    directories.forgot(DIR);
    assert!(keeps(&directories, 1, false) && !keeps(&directories, 1, true));
}
