//! Whether the host has memory left for pages that become private again.
//!
//! Unmerging a process can need all that merging ever saved. It goes in steps, and before each step this is asked:
//! better an unmerge that stops half way with an error than an app that the kernel kills.

use ksm_engine::page::PAGE_SIZE;
use rustix::fs::{Mode, OFlags, open};

/// Bytes that stay untouched: 64 MiB, or a sixteenth of a smaller host.
const RESERVE: u64 = 64 << 20;

/// Whether `pages` more pages can be had. If the kernel does not say, yes.
pub fn has_room_for(pages: u64) -> bool {
    let Some((total, available)) = read() else {
        return true;
    };
    available >= pages * PAGE_SIZE as u64 + RESERVE.min(total / 16)
}

/// Bytes of the host's memory, and those that are available.
fn read() -> Option<(u64, u64)> {
    let file = open(
        c"/proc/meminfo",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    let mut buffer = [0; 1024];
    let got = rustix::io::read(&file, &mut buffer[..]).ok()?;
    let text = buffer.get(..got)?;
    Some((bytes(text, b"MemTotal:")?, bytes(text, b"MemAvailable:")?))
}

fn bytes(text: &[u8], name: &[u8]) -> Option<u64> {
    let line = text
        .split(|byte| *byte == b'\n')
        .find(|line| line.starts_with(name))?;
    let digits = line.iter().filter(|byte| byte.is_ascii_digit());
    let kib = digits.fold(0_u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_fits_and_more_than_the_host_has_does_not() {
        let (total, available) = read().expect("the kernel says");
        assert!(available <= total);
        assert!(has_room_for(1));
        assert!(!has_room_for(total / PAGE_SIZE as u64));
    }
}
