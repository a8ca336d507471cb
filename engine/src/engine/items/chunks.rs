//! The chunks of an address space, by number. Visits go through them in order, so the last one found is the next one wanted.

use std::cell::Cell;
use std::collections::BTreeMap;

/// Chunks, each of which knows its number.
#[derive(Debug)]
pub(super) struct Chunks<T> {
    places: BTreeMap<u64, u32>,
    chunks: Vec<(u64, Box<T>)>,
    /// Where a chunk was found last.
    recent: Cell<usize>,
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Self {
            places: BTreeMap::new(),
            chunks: Vec::new(),
            recent: Cell::new(0),
        }
    }
}

impl<T> Chunks<T> {
    fn place(&self, number: u64) -> Option<usize> {
        let recent = self.recent.get();
        if self
            .chunks
            .get(recent)
            .is_some_and(|(found, _)| *found == number)
        {
            return Some(recent);
        }
        let place = *self.places.get(&number)? as usize;
        self.recent.set(place);
        Some(place)
    }

    pub(super) fn get(&self, number: u64) -> Option<&T> {
        let (_, chunk) = self.chunks.get(self.place(number)?)?;
        Some(chunk)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let place = self.place(number)?;
        let (_, chunk) = self.chunks.get_mut(place)?;
        Some(chunk)
    }

    /// The chunk of this number, made now if there was none.
    pub(super) fn get_or_insert_with(&mut self, number: u64, make: impl FnOnce() -> T) -> &mut T {
        let place = self.place(number).unwrap_or_else(|| {
            let place = self.chunks.len();
            let narrow = u32::try_from(place).expect("fewer than 2^32 chunks");
            self.places.insert(number, narrow);
            self.chunks.push((number, Box::new(make())));
            self.recent.set(place);
            place
        });
        &mut self.chunks[place].1
    }

    pub(super) fn remove(&mut self, number: u64) {
        let Some(place) = self.places.remove(&number) else {
            return;
        };
        self.chunks.swap_remove(place as usize);
        if let Some((moved, _)) = self.chunks.get(place as usize) {
            self.places.insert(*moved, place);
        }
    }

    /// The first chunk in `numbers`.
    pub(super) fn first_mut(&mut self, numbers: std::ops::Range<u64>) -> Option<(u64, &mut T)> {
        let (_, place) = self.places.range(numbers).next()?;
        let (number, chunk) = self.chunks.get_mut(*place as usize)?;
        Some((*number, chunk))
    }

    /// The chunks in `numbers`, ascending.
    pub(super) fn range(&self, numbers: std::ops::Range<u64>) -> impl Iterator<Item = (u64, &T)> {
        self.places.range(numbers).map(|(number, place)| {
            let (_, chunk) = &self.chunks[*place as usize];
            (*number, &**chunk)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_are_found_as_in_a_map(
            deeds in prop::collection::vec((0_u64..12, 0_u8..4), 0..200),
        ) {
            let mut chunks = Chunks::default();
            let mut model = BTreeMap::new();
            for (at, (number, deed)) in deeds.into_iter().enumerate() {
                match deed {
                    0 => {
                        chunks.remove(number);
                        model.remove(&number);
                    }
                    1 => {
                        let made = *chunks.get_or_insert_with(number, || at);
                        prop_assert_eq!(made, *model.entry(number).or_insert(at));
                    }
                    2 => {
                        let changed = chunks.get_mut(number).map(|value| *value += 1);
                        prop_assert_eq!(changed, model.get_mut(&number).map(|value| *value += 1));
                    }
                    _ => prop_assert_eq!(chunks.get(number), model.get(&number)),
                }
                let first = chunks.first_mut(number..12).map(|(number, value)| (number, *value));
                prop_assert_eq!(first, model.range(number..).next().map(|(n, v)| (*n, *v)));
                let all: Vec<_> = chunks.range(0..12).map(|(number, value)| (number, *value)).collect();
                prop_assert_eq!(all, model.iter().map(|(n, v)| (*n, *v)).collect::<Vec<_>>());
            }
        }
    }
}
