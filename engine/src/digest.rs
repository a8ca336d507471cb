//! Content identity of calm pages.
//!
//! SHA-256 over a per-domain salt and the page, cut to 16 bytes. Whoever does not know the salt cannot prepare two
//! pages with one digest; whoever does needs 2^64 tries, and wins only that two pages of his own domain do not merge:
//! equality is always decided by comparing bytes.

use crate::page::{Digest, DomainId, PageBytes};
use sha2::{Digest as _, Sha256};

/// Secret of a domain, mixed into every digest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Salt(pub [u8; 32]);

impl std::fmt::Debug for Salt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Salt(..)")
    }
}

impl Salt {
    /// The salt of `domain` under the engine's `secret`. Salts of different domains say nothing about each other.
    #[must_use]
    pub fn of_domain(secret: &[u8; 32], domain: DomainId) -> Self {
        let mut hash = Sha256::new();
        hash.update(secret);
        hash.update(domain.0.to_le_bytes());
        Self(hash.finalize().into())
    }

    /// The digest of a page.
    #[must_use]
    pub fn digest(&self, page: &PageBytes) -> Digest {
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(page);
        let full: [u8; 32] = hash.finalize().into();
        let mut short = [0; 16];
        short.copy_from_slice(&full[..16]);
        Digest(short)
    }
}
