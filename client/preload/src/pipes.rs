//! `vmsplice`: puts the app's own pages into a pipe, where they must not be merged while they are there.

use crate::changing::{Changing, pages};
use crate::sandbox;
use crate::sys::call::{Answer, call, wide};
use crate::sys::vectors::{Vectors, descriptor};
use ksm_client::pipe_ends::PipeId;
use ksm_client::space::Space;
use ksm_client::space::change::Change;
use ksm_engine::page::{PAGE_SIZE, PageRun};

/// `vmsplice`.
pub fn vmsplice(fd: libc::c_int, vectors: usize, count: usize, flags: usize) -> Answer {
    let make = || call(libc::SYS_vmsplice, [wide(fd), vectors, count, flags]);
    // Noted also while nothing is mergeable: it may become so while the pages are still there.
    let Ok(space) = Space::get_or_create() else {
        return make();
    };
    if sandbox::is_entered() {
        change(Change::lose_splices);
        return make();
    }
    let Some(pipe) = descriptor(fd).and_then(PipeId::of_writer) else {
        return make();
    };
    // From here on no note goes.
    change(Change::begin_splice);
    let mut noted = note(Vectors::new(vectors, count), pipe);
    if !noted {
        change(Change::end_splice);
        space.make_room_for_splices();
        change(Change::begin_splice);
        noted = note(Vectors::new(vectors, count), pipe);
    }
    if !noted {
        change(Change::lose_splices);
    }
    let done = make();
    change(Change::end_splice);
    done
}

fn change(how: impl FnOnce(&mut Change<'static>)) {
    if let Some(mut changing) = Changing::begin() {
        how(&mut changing);
    }
}

/// False if there is no room to note all of them.
fn note(mut vectors: Vectors, pipe: PipeId) -> bool {
    let mut noted = true;
    while let Some(some) = vectors.next_some() {
        change(|changing| {
            noted = noted
                && some
                    .iter()
                    .all(|of| changing.note_splice(run_of(*of), pipe));
        });
    }
    noted
}

/// The pages that some bytes lie in.
fn run_of([start, len]: [usize; 2]) -> PageRun {
    let inside = start % PAGE_SIZE;
    match len {
        0 => pages(start, 0),
        len => pages(start - inside, len.saturating_add(inside)),
    }
}
