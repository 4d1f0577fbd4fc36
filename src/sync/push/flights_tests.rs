//! The bookkeeping of transfers on tokio itself. `tests/interleavings` has the orders in which threads can meet.

use super::flights::Flights;
use super::order::Job;

fn job(writes: &str) -> Job {
    Job { writes: Some(writes.to_owned()), copies_from: vec![format!("{writes}-before")] }
}

#[tokio::test]
async fn a_result_is_never_announced_before_it_can_be_taken() {
    for _ in 0..200 {
        let mut flights: Flights<u32> = Flights::default();
        let landings = flights.landings();
        flights.begin("a".to_owned(), job("a"), async { 7 });
        landings.next().await;
        assert_eq!(flights.take_landed(), [("a".to_owned(), Some(7))]);
        assert!(flights.is_empty());
    }
}

#[tokio::test]
async fn keys_are_held_until_the_result_is_taken() {
    let mut flights: Flights<u32> = Flights::default();
    let landings = flights.landings();
    flights.begin("a".to_owned(), job("a"), async { 7 });
    landings.next().await;
    assert_eq!(flights.keys(), ["a".to_owned(), "a-before".to_owned()].into());
    assert!(flights.has("a"));
    flights.take_landed();
    assert_eq!((flights.keys().len(), flights.len()), (0, 0));
}

#[tokio::test]
async fn a_transfer_that_panics_ends_too() {
    let mut flights: Flights<u32> = Flights::default();
    let landings = flights.landings();
    flights.begin("a".to_owned(), job("a"), async { panic!("on purpose") });
    landings.next().await;
    assert_eq!(flights.take_landed(), [("a".to_owned(), None)]);
}
