//! Page contents that can be made and checked from a number.
//!
//! A page that is checked must be checked in all its bytes: a lost write may hide anywhere.

pub use ksm_engine::page::PAGE_SIZE;

/// Fills a page with the content of number `id`; 0 is the zero page.
pub fn fill(page: &mut [u8], id: u64) {
    for (word, bytes) in words(id).zip(page.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

/// The content of number `id` as a page of its own.
#[must_use]
pub fn page(id: u64) -> Vec<u8> {
    let mut page = vec![0; PAGE_SIZE];
    fill(&mut page, id);
    page
}

/// The offset of the first byte that is not as [`fill`] made it.
#[must_use]
pub fn first_wrong_byte(page: &[u8], id: u64) -> Option<usize> {
    words(id)
        .zip(page.chunks_exact(8))
        .position(|(word, bytes)| word.to_le_bytes() != *bytes)
        .map(|word| word * 8)
}

fn words(id: u64) -> impl Iterator<Item = u64> {
    let seed = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (1..=512u64).map(move |i| {
        if id == 0 {
            0
        } else {
            mix(seed.wrapping_add(i))
        }
    })
}

/// The finalizer of `SplitMix64`: every output bit depends on every input bit.
#[must_use]
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_byte_is_found() {
        let mut page = page(7);
        assert_eq!(first_wrong_byte(&page, 7), None);
        for offset in [0, 8, 4095] {
            page[offset] ^= 1;
            assert_eq!(first_wrong_byte(&page, 7), Some(offset / 8 * 8));
            page[offset] ^= 1;
        }
        assert!(first_wrong_byte(&page, 8).is_some());
    }
}
