//! Contents of pages, as small numbers.
//!
//! A model page holds one 64-bit number over and over, so a number stands for 4096 bytes and digests can be kept.

use ksm_engine::digest::Salt;
use ksm_engine::page::{Digest, PAGE_SIZE, PageBytes};
use std::collections::HashMap;

const WORD: usize = 8;

/// What a page holds: this number in each of its 512 words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Content(pub u64);

impl Content {
    /// The content of a page of zeros.
    pub const ZERO: Self = Self(0);

    /// The bytes.
    #[must_use]
    pub fn bytes(self) -> PageBytes {
        let mut bytes = [0; PAGE_SIZE];
        for word in bytes.chunks_exact_mut(WORD) {
            word.copy_from_slice(&self.0.to_le_bytes());
        }
        bytes
    }

    /// The content that has these bytes.
    ///
    /// # Panics
    /// When no content has.
    #[must_use]
    pub fn of_bytes(bytes: &PageBytes) -> Self {
        let mut word = [0; WORD];
        word.copy_from_slice(&bytes[..WORD]);
        let content = Self(u64::from_le_bytes(word));
        assert_eq!(
            &content.bytes(),
            bytes,
            "bytes that no process of the model ever wrote"
        );
        content
    }
}

/// Digests that were computed before.
#[derive(Debug, Default)]
pub(crate) struct Digests {
    known: HashMap<([u8; 32], Content), Digest>,
}

impl Digests {
    pub(crate) fn of(&mut self, salt: Salt, content: Content) -> Digest {
        *self
            .known
            .entry((salt.0, content))
            .or_insert_with(|| salt.digest(&content.bytes()))
    }
}
