//! A table whose places are numbered and used again.
//!
//! It grows by chunks: a vector that doubles would copy millions of entries, and hold twice their memory meanwhile.

const CHUNK: usize = 1024;

/// Entries by number.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    chunks: Vec<Vec<Option<T>>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            free: Vec::new(),
            len: 0,
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
        if let Some(id) = self.free.pop() {
            let (chunk, within) = place(id);
            self.chunks[chunk][within] = Some(value);
            return id;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let before = (self.chunks.len() - 1) * CHUNK;
        let chunk = self.chunks.last_mut().expect("pushed above if need be");
        chunk.push(Some(value));
        u32::try_from(before + chunk.len() - 1).expect("fewer than 2^32 entries")
    }

    /// Takes an entry out.
    pub(crate) fn remove(&mut self, id: u32) -> Option<T> {
        let (chunk, within) = place(id);
        let value = self.chunks.get_mut(chunk)?.get_mut(within)?.take()?;
        self.len -= 1;
        if self.len == 0 {
            *self = Self::default();
        } else {
            self.free.push(id);
        }
        Some(value)
    }

    /// The entry with this number.
    pub(crate) fn get(&self, id: u32) -> Option<&T> {
        let (chunk, within) = place(id);
        self.chunks.get(chunk)?.get(within)?.as_ref()
    }

    /// The entry with this number.
    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        let (chunk, within) = place(id);
        self.chunks.get_mut(chunk)?.get_mut(within)?.as_mut()
    }

    /// All entries.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..)
            .zip(self.chunks.iter().flatten())
            .filter_map(|(id, entry)| Some((id, entry.as_ref()?)))
    }
}

fn place(id: u32) -> (usize, usize) {
    let id = id as usize;
    (id / CHUNK, id % CHUNK)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn an_empty_one_holds_no_memory() {
        let mut slab = Slab::default();
        for value in 0..2000 {
            slab.insert(value);
        }
        for id in 0..2000 {
            slab.remove(id);
        }
        assert_eq!((slab.len(), slab.chunks.len(), slab.free.len()), (0, 0, 0));
    }
}
