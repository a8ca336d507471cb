//! Content identity of calm pages.
//!
//! HighwayHash with the per-domain salt as its key, 128 bits. A keyed pseudo-random function is enough, and costs a sixth
//! of SHA-256: the salt is secret to the domain, so who supplies bytes from outside (a web server's visitor, a guest's user) cannot
//! prepare two pages with one digest. A process of the domain knows the salt, and might; he wins that two pages of his own
//! domain do not merge: equality is always decided by comparing bytes.

use crate::page::{Digest, DomainId, PageBytes};
use highway::{HighwayHash, HighwayHasher, Key};
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
        let (words, _) = self.0.as_chunks::<8>();
        let mut key = [0; 4];
        for (part, word) in key.iter_mut().zip(words) {
            *part = u64::from_le_bytes(*word);
        }
        let [low, high] = HighwayHasher::new(Key(key)).hash128(page);
        let mut digest = [0; 16];
        digest[..8].copy_from_slice(&low.to_le_bytes());
        digest[8..].copy_from_slice(&high.to_le_bytes());
        Digest(digest)
    }
}

/// What the engine keeps of a digest: half of it. Among all pages of a TiB two unlike ones have the same with a chance of one in 500,
/// and then one of them does not merge: equality is decided by comparing bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint(pub(crate) u64);

impl Fingerprint {
    /// That of a digest.
    pub(crate) fn of(digest: &Digest) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = digest.0;
        Self(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }

    /// A hash of it. It is uniformly distributed itself.
    pub(crate) fn hash(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::PAGE_SIZE;

    #[test]
    fn every_byte_of_salt_and_page_counts() {
        let (salt, page) = (Salt([7; 32]), [9; PAGE_SIZE]);
        let digest = salt.digest(&page);
        assert_eq!(salt.digest(&page), digest);
        for i in 0..salt.0.len() {
            let mut other = salt;
            other.0[i] ^= 1;
            assert_ne!(other.digest(&page), digest, "byte {i} of the salt");
        }
        for i in 0..PAGE_SIZE {
            let mut other = page;
            other[i] ^= 1;
            assert_ne!(salt.digest(&other), digest, "byte {i} of the page");
        }
    }

    #[test]
    fn domains_have_salts_of_their_own() {
        let secret = [1; 32];
        assert_ne!(
            Salt::of_domain(&secret, DomainId(0)),
            Salt::of_domain(&secret, DomainId(1))
        );
    }
}
