//! The names in a directory, in bytewise order: places of nodes, whose names lie in the nodes.
//!
//! Depends on nothing. Invariant: runs are in order, not empty and not longer than [`RUN`], so that adding or removing a name
//! moves a few kilobytes at most, however large the directory is.

use super::node::Place;

/// Most places in one run.
const RUN: usize = 512;

/// The places of a directory's children, by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Children {
    runs: Vec<Vec<Place>>,
}

impl Children {
    pub fn len(&self) -> usize {
        self.runs.iter().map(Vec::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Place> {
        self.runs.iter().flatten().copied()
    }

    /// The children whose names come after `name`.
    pub fn after<'a>(&self, name: &str, name_of: impl Fn(Place) -> &'a str) -> impl Iterator<Item = Place> {
        let (run, at) = match self.search(name, name_of) {
            Ok((run, at)) => (run, at + 1),
            Err(place) => place,
        };
        self.runs.iter().skip(run).flatten().skip(at).copied()
    }

    /// The child of a name; `name_of` tells the name of a place.
    pub fn find<'a>(&self, name: &str, name_of: impl Fn(Place) -> &'a str) -> Option<Place> {
        let (run, at) = self.search(name, name_of).ok()?;
        Some(self.runs[run][at])
    }

    /// Adds a child under a name; nothing happens when the name is taken.
    pub fn insert<'a>(&mut self, name: &str, place: Place, name_of: impl Fn(Place) -> &'a str) {
        let Err((run, at)) = self.search(name, name_of) else { return };
        let Some(places) = self.runs.get_mut(run) else { return self.runs.push(vec![place]) };
        if places.len() < RUN {
            return places.insert(at, place);
        }
        if at == places.len() {
            // Names mostly come in order: the run before stays full.
            return self.runs.insert(run + 1, vec![place]);
        }
        let mut later = places.split_off(RUN / 2);
        if at <= RUN / 2 {
            places.insert(at, place)
        } else {
            later.insert(at - RUN / 2, place)
        }
        self.runs.insert(run + 1, later);
    }

    /// Removes the child of a name; `false` when there is none.
    pub fn remove<'a>(&mut self, name: &str, name_of: impl Fn(Place) -> &'a str) -> bool {
        let Ok((run, at)) = self.search(name, name_of) else { return false };
        self.runs[run].remove(at);
        if self.runs[run].is_empty() {
            self.runs.remove(run);
        }
        true
    }

    /// The run and the index in it where a name is, or where it belongs.
    fn search<'a>(&self, name: &str, name_of: impl Fn(Place) -> &'a str) -> Result<(usize, usize), (usize, usize)> {
        // Names mostly come in order.
        if let Some((last, places)) = self.runs.len().checked_sub(1).and_then(|at| Some((at, self.runs.get(at)?)))
            && places.last().is_some_and(|place| name_of(*place) < name)
        {
            return Err((last, places.len()));
        }
        let later = |run: &Vec<Place>| run.first().is_some_and(|first| name_of(*first) <= name);
        let run = self.runs.partition_point(later).saturating_sub(1);
        let Some(places) = self.runs.get(run) else { return Err((run, 0)) };
        match places.binary_search_by(|place| name_of(*place).cmp(name)) {
            Ok(at) => Ok((run, at)),
            Err(at) => Err((run, at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::Bound;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_directory_is_a_sorted_map(
            in_order in 0..2000u32,
            steps in proptest::collection::vec((any::<bool>(), 0..4000u32), 0..3000),
        ) {
            let names: Vec<String> = (0..4000).map(|number| format!("{:04}", number)).collect();
            let name_of = |place: Place| names[place as usize].as_str();
            let mut children = Children::default();
            let mut model = BTreeMap::new();
            let appended = (0..in_order).map(|number| (true, number));
            for (add, number) in appended.chain(steps) {
                let name = name_of(number);
                if add {
                    children.insert(name, number, name_of);
                    model.insert(name, number);
                } else {
                    prop_assert_eq!(children.remove(name, name_of), model.remove(name).is_some());
                }
                prop_assert_eq!(children.find(name, name_of), model.get(name).copied());
            }
            prop_assert!(children.iter().eq(model.values().copied()));
            for name in ["", "1000", "1000x", "3999", "9"] {
                let after = model.range::<str, _>((Bound::Excluded(name), Bound::Unbounded)).map(|(_, place)| *place);
                prop_assert!(children.after(name, name_of).eq(after));
            }
            prop_assert_eq!((children.len(), children.is_empty()), (model.len(), model.is_empty()));
            prop_assert!(children.runs.iter().all(|run| !run.is_empty() && run.len() <= RUN));
        }
    }
}
