//! Somebody writes through `/proc/PID/mem` to a page that is being merged: he looked it up before it was moved, pins nothing, and
//! holds the lock of the address space until he has copied.
//!
//! All of it is a copy: of the kernel's lock, and of the order of calls in `held.rs`.

use super::{explore, fails};
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Mutex, RwLock};
use loom::thread;

const OLD: u32 = 1;
const NEW: u32 = 2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Page,
    Nothing,
    Slot,
}

/// What the address shows, the bytes of the page, wherever it is, and the lock around lookups and changes of mappings.
struct Memory {
    lock: RwLock<()>,
    shown: Mutex<Shown>,
    page: AtomicU32,
}

impl Memory {
    /// True if the write has happened; a page that is not there is an error to the writer.
    fn write_remotely(&self) -> bool {
        let _held = self.lock.read().expect("whole");
        if *self.shown.lock().expect("whole") != Shown::Page {
            return false;
        }
        self.page.store(NEW, Ordering::SeqCst);
        true
    }

    fn merge(&self, waits: bool) {
        // The move takes the lock for reading only.
        let moving = self.lock.read().expect("whole");
        *self.shown.lock().expect("whole") = Shown::Nothing;
        drop(moving);
        if waits {
            drop(self.lock.write().expect("whole"));
        }
        let equal = self.page.load(Ordering::SeqCst) == OLD;
        let _mapping = self.lock.write().expect("whole");
        *self.shown.lock().expect("whole") = if equal { Shown::Slot } else { Shown::Page };
    }
}

fn race(waits: bool) {
    explore(3, move || {
        let memory = Arc::new(Memory {
            lock: RwLock::new(()),
            shown: Mutex::new(Shown::Page),
            page: AtomicU32::new(OLD),
        });
        let writer = {
            let memory = Arc::clone(&memory);
            thread::spawn(move || memory.write_remotely())
        };
        memory.merge(waits);
        if writer.join().expect("nobody panics") {
            let shown = *memory.shown.lock().expect("whole");
            assert!(shown == Shown::Page, "a write is lost");
        }
    });
}

#[test]
fn no_remote_write_is_lost() {
    race(true);
}

#[test]
#[ignore = "fails, and is run by the test of that"]
fn without_waiting_for_remote_access() {
    race(false);
}

#[test]
fn waiting_is_needed() {
    fails("remote::without_waiting_for_remote_access");
}
