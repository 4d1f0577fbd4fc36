//! Which byte ranges of a partly fetched content are here: a sorted set of disjoint, non-touching ranges.
//!
//! Pure data. Invariant: `ranges[i].end < ranges[i+1].start` for all i, and no range is empty.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// A set of byte offsets, kept as ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u64)>")]
pub struct RangeSet(Vec<(u64, u64)>);

/// Whatever a row of state.db holds, the invariant does too; a range that ends before it begins holds nothing.
impl From<Vec<(u64, u64)>> for RangeSet {
    fn from(ranges: Vec<(u64, u64)>) -> Self {
        let mut set = Self::default();
        ranges.into_iter().for_each(|(start, end)| set.insert(start..end));
        set
    }
}

impl RangeSet {
    /// Adds a range, merging what overlaps or touches.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        let first = self.0.partition_point(|r| r.1 < start);
        let last = self.0.partition_point(|r| r.0 <= end);
        if first < last {
            start = start.min(self.0[first].0);
            end = end.max(self.0[last - 1].1);
        }
        self.0.splice(first..last, [(start, end)]);
    }

    /// Whether every byte of the range is in the set.
    pub fn contains(&self, range: &Range<u64>) -> bool {
        range.is_empty() || self.gaps(range).is_empty()
    }

    /// The parts of `range` that are not in the set, in order.
    pub fn gaps(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        let first = self.0.partition_point(|r| r.1 <= range.start);
        for &(start, end) in &self.0[first..] {
            if start >= range.end {
                break;
            }
            if start > at {
                gaps.push(at..start);
            }
            at = at.max(end);
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// How many bytes are in the set.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|r| r.1 - r.0).sum()
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_damaged_row_is_a_set_all_the_same() {
        // A range from 9 to 3 made the total overflow, and one out of order was never found.
        let set: RangeSet = serde_json::from_str("[[20,30],[9,3],[0,5],[4,7]]").unwrap();
        assert_eq!(set.0, [(0, 7), (20, 30)]);
        assert_eq!(set.total(), 17);
    }

    proptest! {
        #[test]
        fn agrees_with_a_bitmap(ops in proptest::collection::vec((0u64..64, 0u64..16), 0..40), ask in (0u64..64, 0u64..32)) {
            let mut set = RangeSet::default();
            let mut bits = [false; 128];
            for (start, len) in ops {
                set.insert(start..start + len);
                bits[start as usize..(start + len) as usize].fill(true);
            }
            prop_assert!(set.0.windows(2).all(|w| w[0].1 < w[1].0), "not disjoint: {set:?}");
            prop_assert_eq!(set.total(), bits.iter().filter(|b| **b).count() as u64);
            let range = ask.0..ask.0 + ask.1;
            let missing: Vec<u64> = set.gaps(&range).into_iter().flatten().collect();
            let expected: Vec<u64> = range.clone().filter(|i| !bits[*i as usize]).collect();
            prop_assert_eq!(missing, expected);
            prop_assert_eq!(set.contains(&range), range.clone().all(|i| bits[i as usize]));
        }
    }
}
