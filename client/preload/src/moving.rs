//! `mremap` of memory that was merged.
//!
//! When its pages are private again, the memory is still several mappings to the kernel, because pages were brought back
//! from elsewhere, and pages that the app wrote to meanwhile may have stayed in mappings of our files. The kernel moves
//! and grows one mapping at a time (`EFAULT`; Linux 6.17 moves several, and grows none), so this goes from one to the
//! next. If it fails on the way, what was moved is moved back.

use crate::changing::{Changing, pages};
use crate::mode;
use crate::sys::call::{Answer, call};
use ksm_client::sys::maps::{Mapping, Maps};
use ksm_engine::page::{PAGE_SIZE, PageRun};
use rustix::io::Errno;

const fn bits(flags: libc::c_int) -> usize {
    flags.unsigned_abs() as usize
}

const MAY_MOVE: usize = bits(libc::MREMAP_MAYMOVE);
const FIXED: usize = bits(libc::MREMAP_FIXED);
const KEEP: usize = bits(libc::MREMAP_DONTUNMAP);

/// `mremap`.
pub fn mremap(addr: usize, old_len: usize, new_len: usize, flags: usize, to: usize) -> Answer {
    let request = Request {
        addr,
        old_len,
        new_len,
        flags,
        to,
    };
    let old = pages(addr, old_len);
    let Some(mut changing) = Changing::begin_unmerged(old)? else {
        return request.make();
    };
    let was_registered = changing.first_registered(old) == Some(old);
    // The kernel would move the mappings before the first tracked one, and then fail.
    changing.end_tracking(old);
    let start = request.make_in_pieces(&mut changing)?;
    let new = pages(start, new_len);
    if start == addr {
        changing.forget(PageRun::between(new.end(), old.end()));
    } else {
        changing.forget(new);
        let carried = PageRun {
            len: old.len.min(new.len),
            ..old
        };
        changing.moved(carried, new.start);
        if flags & KEEP != 0 {
            // What stays is empty memory, and no mapping of our files.
            changing.leave_files(old)?;
        }
        changing.forget(old);
    }
    if was_registered || mode::merges_any() {
        let _ = changing.register(new);
    }
    if was_registered && !mode::merges_any() {
        // To the kernel it is registered all the time.
        changing.end_announced();
    } else {
        // The C library moves a lot: that would be waiting for every `realloc`.
        changing.end();
    }
    Ok(start)
}

/// What the app asked for: addresses and lengths in bytes.
#[derive(Clone, Copy, Debug)]
struct Request {
    addr: usize,
    old_len: usize,
    new_len: usize,
    flags: usize,
    to: usize,
}

impl Request {
    /// Asks the kernel.
    fn make(self) -> Answer {
        resize(self.addr, self.old_len, self.new_len, self.flags, self.to)
    }

    /// The same of one mapping or several.
    fn make_in_pieces(self, changing: &mut Changing) -> Answer {
        let in_files = changing.first_in_file(pages(self.addr, self.old_len));
        // The kernel would grow a mapping of a file by more of the file.
        if in_files.is_none() {
            let answer = self.make();
            if answer != Err(Errno::FAULT) {
                return answer;
            }
        }
        if !self.is_sound() {
            return Err(Errno::INVAL);
        }
        let pieces = Pieces::within(self.addr, self.old_len).ok_or(Errno::FAULT)?;
        pieces.remap(self, changing)
    }

    /// Whether the kernel would take the arguments.
    fn is_sound(self) -> bool {
        let Self {
            addr,
            old_len,
            new_len,
            flags,
            to,
        } = self;
        let (old, new) = (pages(addr, old_len), pages(to, new_len));
        let moves = flags & MAY_MOVE != 0;
        let fixed = flags & FIXED != 0;
        let keeps = flags & KEEP != 0;
        addr.is_multiple_of(PAGE_SIZE)
            && old.len > 0
            && pages(addr, new_len).len > 0
            && flags & !(MAY_MOVE | FIXED | KEEP) == 0
            && (moves || !fixed && !keeps)
            && (!keeps || old_len.div_ceil(PAGE_SIZE) == new_len.div_ceil(PAGE_SIZE))
            && (!fixed
                || to.is_multiple_of(PAGE_SIZE)
                    && new.is_valid()
                    && old.intersection(new).is_none())
    }
}

fn resize(addr: usize, old_len: usize, new_len: usize, flags: usize, to: usize) -> Answer {
    call(libc::SYS_mremap, [addr, old_len, new_len, flags, to])
}

fn unmap(addr: usize, len: usize) -> Answer {
    call(libc::SYS_munmap, [addr, len])
}

/// Several mappings of private memory, side by side.
struct Pieces {
    maps: Maps,
    protection: usize,
    start: usize,
    len: usize,
}

impl Pieces {
    /// The mappings that make up a range, if they could be one but for our files.
    fn within(start: usize, len: usize) -> Option<Self> {
        let len = len.checked_next_multiple_of(PAGE_SIZE)?;
        let maps = Maps::open().ok()?;
        let like = maps.at(page(start)).ok()?.protection;
        let pieces = Self {
            maps,
            protection: like.bits() as usize,
            start,
            len,
        };
        let mut at = 0;
        while at < len {
            let mapping = pieces.mapping_at(at)?;
            if mapping.shared || mapping.protection != like {
                return None;
            }
            at += pieces.len_at(at)?;
        }
        Some(pieces)
    }

    fn mapping_at(&self, at: usize) -> Option<Mapping> {
        self.maps.at(page(self.start + at)).ok()
    }

    /// How long the piece is that begins `at` bytes from the start.
    fn len_at(&self, at: usize) -> Option<usize> {
        let pages = self.mapping_at(at)?.run.end() - page(self.start + at);
        let len = usize::try_from(pages).ok()? * PAGE_SIZE;
        Some(len.min(self.len - at))
    }

    fn remap(mut self, request: Request, changing: &mut Changing) -> Answer {
        let new_len = request.new_len.next_multiple_of(PAGE_SIZE);
        if new_len < self.len {
            unmap(self.start + new_len, self.len - new_len)?;
            self.len = new_len;
        }
        let fixed = request.flags & FIXED != 0;
        if !fixed && request.flags & KEEP == 0 {
            match self.grow_in_place(new_len - self.len) {
                Err(Errno::NOMEM) if request.flags & MAY_MOVE != 0 => {}
                done => return done,
            }
        }
        let (to, how) = if fixed {
            (request.to, MAP_FIXED)
        } else {
            (0, 0)
        };
        let target = map(to, new_len, 0, how)?;
        let moved = match changing.make_room(pages(target, new_len)) {
            Ok(()) => self.move_to(target, new_len, request.flags & KEEP),
            Err(_) => Err(Errno::NOMEM),
        };
        if moved.is_err() {
            // What is left of the reservation.
            let _ = unmap(target, new_len);
        }
        moved
    }

    fn grow_in_place(&self, growth: usize) -> Answer {
        if growth > 0 {
            let end = self.start + self.len;
            map(end, growth, self.protection, MAP_FREE).map_err(|_| Errno::NOMEM)?;
        }
        Ok(self.start)
    }

    /// Moves all pieces to reserved addresses, and puts new memory behind them.
    fn move_to(&self, target: usize, new_len: usize, keep: usize) -> Answer {
        let flags = MAY_MOVE | FIXED | keep;
        let mut at = 0;
        let mut failed = None;
        while at < self.len && failed.is_none() {
            let moved = self
                .len_at(at)
                .ok_or(Errno::FAULT)
                .and_then(|len| resize(self.start + at, len, len, flags, target + at).map(|_| len));
            match moved {
                Ok(len) => at += len,
                Err(errno) => failed = Some(errno),
            }
        }
        if failed.is_none() && new_len > self.len {
            let rest = new_len - self.len;
            failed = map(target + self.len, rest, self.protection, MAP_FIXED).err();
        }
        match failed {
            None => Ok(target),
            Some(errno) => {
                self.move_back(target, at);
                Err(errno)
            }
        }
    }

    /// Returns the first `len` bytes. Their addresses are still free, or hold what `MREMAP_DONTUNMAP` left there.
    fn move_back(&self, target: usize, len: usize) {
        let there = Self {
            start: target,
            len,
            protection: self.protection,
            maps: match self.maps.try_clone() {
                Ok(maps) => maps,
                Err(_) => return,
            },
        };
        let mut at = 0;
        while let Some(piece) = there.len_at(at).filter(|piece| *piece > 0) {
            let _ = resize(target + at, piece, piece, MAY_MOVE | FIXED, self.start + at);
            at += piece;
        }
    }
}

const MAP_FIXED: usize = bits(libc::MAP_FIXED);
const MAP_FREE: usize = bits(libc::MAP_FIXED_NOREPLACE);

/// Empty private memory, there or anywhere else.
fn map(addr: usize, len: usize, protection: usize, flags: usize) -> Answer {
    let flags = flags | bits(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    call(
        libc::SYS_mmap,
        [addr, len, protection, flags, usize::MAX, 0],
    )
}

fn page(addr: usize) -> u64 {
    (addr / PAGE_SIZE) as u64
}
