//! A table whose places are numbered and used again.
//!
//! It grows by chunks: a vector that doubles would copy millions of entries, and hold twice their memory meanwhile. A chunk of which
//! no place is used gives its memory back: most digests are of pages that merge soon after.

const CHUNK: usize = 1024;
const NONE: u32 = u32::MAX;

/// Entries by number.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    chunks: Vec<Chunk<T>>,
    /// Those with room.
    open: Vec<u32>,
    len: usize,
}

#[derive(Debug)]
struct Chunk<T> {
    places: Vec<Place<T>>,
    used: usize,
    /// The first vacant place.
    vacant: u32,
    is_open: bool,
}

#[derive(Debug)]
enum Place<T> {
    Used(T),
    /// And which is the next one in the chunk.
    Vacant(u32),
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            open: Vec::new(),
            len: 0,
        }
    }
}

impl<T> Default for Chunk<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            used: 0,
            vacant: NONE,
            is_open: true,
        }
    }
}

impl<T> Chunk<T> {
    /// Adds an entry; there must be room.
    fn insert(&mut self, value: T) -> usize {
        self.used += 1;
        let within = self.vacant as usize;
        if let Some(place) = self.places.get_mut(within) {
            if let Place::Vacant(next) = std::mem::replace(place, Place::Used(value)) {
                self.vacant = next;
            }
            return within;
        }
        if self.places.capacity() == 0 {
            self.places.reserve_exact(CHUNK);
        }
        self.places.push(Place::Used(value));
        self.places.len() - 1
    }

    fn remove(&mut self, within: usize) -> Option<T> {
        let place = self.places.get_mut(within)?;
        if matches!(place, Place::Vacant(_)) {
            return None;
        }
        let old = std::mem::replace(place, Place::Vacant(self.vacant));
        self.vacant = u32::try_from(within).expect("a chunk is small");
        self.used -= 1;
        if self.used == 0 {
            self.places = Vec::new();
            self.vacant = NONE;
        }
        match old {
            Place::Used(value) => Some(value),
            Place::Vacant(_) => None,
        }
    }
}

impl<T> Slab<T> {
    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds an entry and returns its number.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        self.len += 1;
        let chunk = self.open.last().copied().unwrap_or_else(|| {
            let chunk = u32::try_from(self.chunks.len()).expect("fewer than 2^32 entries");
            self.chunks.push(Chunk::default());
            self.open.push(chunk);
            chunk
        });
        let number = chunk as usize;
        let room = &mut self.chunks[number];
        let within = room.insert(value);
        if room.used == CHUNK {
            room.is_open = false;
            self.open.pop();
        }
        u32::try_from(number * CHUNK + within).expect("fewer than 2^32 entries")
    }

    /// Takes an entry out.
    pub(crate) fn remove(&mut self, id: u32) -> Option<T> {
        let (number, within) = place(id);
        let chunk = self.chunks.get_mut(number)?;
        let value = chunk.remove(within)?;
        if !chunk.is_open {
            chunk.is_open = true;
            self.open.push(u32::try_from(number).expect("as above"));
        }
        self.len -= 1;
        if self.len == 0 {
            *self = Self::default();
        }
        Some(value)
    }

    /// The entry with this number.
    pub(crate) fn get(&self, id: u32) -> Option<&T> {
        let (chunk, within) = place(id);
        match self.chunks.get(chunk)?.places.get(within)? {
            Place::Used(value) => Some(value),
            Place::Vacant(_) => None,
        }
    }

    /// The entry with this number.
    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        let (chunk, within) = place(id);
        match self.chunks.get_mut(chunk)?.places.get_mut(within)? {
            Place::Used(value) => Some(value),
            Place::Vacant(_) => None,
        }
    }

    /// All entries.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let numbered = (0..).step_by(CHUNK).zip(&self.chunks);
        numbered
            .flat_map(|(first, chunk)| (first..).zip(&chunk.places))
            .filter_map(|(id, place)| match place {
                Place::Used(value) => Some((id, value)),
                Place::Vacant(_) => None,
            })
    }
}

fn place(id: u32) -> (usize, usize) {
    let id = id as usize;
    (id / CHUNK, id % CHUNK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn numbers_are_used_again_and_entries_stay_where_they_are() {
        let mut slab = Slab::default();
        let ids: Vec<u32> = (0..3000).map(|value| slab.insert(value)).collect();
        assert_eq!(ids, (0..3000).collect::<Vec<_>>());
        assert_eq!(slab.remove(1500), Some(1500));
        assert_eq!(slab.remove(1500), None);
        assert_eq!(slab.get(1500), None);
        assert_eq!(slab.insert(7), 1500);
        assert_eq!(slab.iter().count(), 3000);
        assert_eq!(slab.get(2999), Some(&2999));
    }

    #[test]
    fn what_is_empty_holds_no_memory() {
        let mut slab = Slab::default();
        for value in 0..5000 {
            slab.insert(value);
        }
        let held = |slab: &Slab<u32>| -> usize {
            slab.chunks
                .iter()
                .map(|chunk| chunk.places.capacity())
                .sum()
        };
        for id in (0..4096).chain(4097..5000) {
            slab.remove(id);
        }
        assert_eq!((slab.len(), held(&slab)), (1, CHUNK));
        slab.remove(4096);
        assert_eq!((slab.len(), slab.chunks.len(), slab.open.len()), (0, 0, 0));
    }

    proptest! {
        #[test]
        fn entries_are_found_as_in_a_map(deeds in prop::collection::vec((any::<bool>(), 0_u32..9000), 0..300)) {
            let mut slab = Slab::default();
            let mut model = BTreeMap::new();
            for (adds, at) in deeds {
                if adds {
                    // Enough to fill chunks and open others.
                    for value in at..at + at / 8 {
                        let id = slab.insert(value);
                        prop_assert_eq!(model.insert(id, value), None);
                    }
                } else {
                    let ids: Vec<u32> = model.range(at..at + at / 4).map(|(id, _)| *id).collect();
                    for id in ids {
                        prop_assert_eq!(slab.remove(id), model.remove(&id));
                    }
                }
                prop_assert_eq!(slab.len(), model.len());
            }
            let all: Vec<_> = slab.iter().map(|(id, value)| (id, *value)).collect();
            prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
        }
    }
}
