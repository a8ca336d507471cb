//! What app threads have the agent tell the daemon, and what the threads of a child tell each other.
//!
//! `tickets.rs` and `told.rs` are the client's. Queue and signal are copies.

use super::word::{AtomicU32, Ordering, wait, wake_all};
use super::{explore, fails};
use loom::sync::{Arc, Mutex};
use loom::thread;
use std::collections::VecDeque;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(1 << 20);

/// Tickets, whole or with a protection removed.
pub(super) trait Tickets: Default + Send + Sync + 'static {
    fn ask(&self) -> u32;
    fn asked(&self) -> u32;
    fn answer(&self, asked: u32);
    fn wait_for(&self, ticket: u32);
}

macro_rules! tickets {
    ($($variant:ident)*) => {
        $(impl Tickets for super::$variant::Tickets {
            fn ask(&self) -> u32 {
                self.ask()
            }
            fn asked(&self) -> u32 {
                self.asked()
            }
            fn answer(&self, asked: u32) {
                self.answer(asked);
            }
            fn wait_for(&self, ticket: u32) {
                self.wait_for(ticket, PATIENCE, || false);
            }
        })*
    };
}

tickets! { tickets tickets_read_late }

#[derive(Default)]
struct Scene<T> {
    tickets: T,
    /// What is queued, and what the daemon has been told.
    queue: Mutex<VecDeque<u32>>,
    told: Mutex<Vec<u32>>,
    /// How often the agent was signalled.
    signals: AtomicU32,
}

fn announcements<T: Tickets>() {
    const APPS: u32 = 2;
    explore(2, || {
        let scene = Arc::new(Scene::<T>::default());
        let apps: Vec<_> = (0..APPS)
            .map(|app| {
                let scene = Arc::clone(&scene);
                thread::spawn(move || {
                    scene.queue.lock().expect("whole").push_back(app);
                    let ticket = scene.tickets.ask();
                    scene.signals.fetch_add(1, Ordering::AcqRel);
                    wake_all(&scene.signals);
                    scene.tickets.wait_for(ticket);
                    let told = scene.told.lock().expect("whole").contains(&app);
                    assert!(told, "{app} went on before the daemon knew");
                })
            })
            .collect();
        loop {
            let seen = scene.signals.load(Ordering::Acquire);
            let asked = scene.tickets.asked();
            while let Some(notice) = { scene.queue.lock().expect("whole").pop_front() } {
                scene.told.lock().expect("whole").push(notice);
            }
            scene.tickets.answer(asked);
            if seen == APPS {
                break;
            }
            wait(&scene.signals, seen, None);
        }
        for app in apps {
            app.join().expect("nobody went on too early");
        }
    });
}

/// Told, whole or with a protection removed.
pub(super) trait Told: Default + Send + Sync + 'static {
    fn is_told(&self);
    fn tell_once(&self, tell: impl Fn());
}

macro_rules! tolds {
    ($($variant:ident)*) => {
        $(impl Told for super::$variant::Told {
            fn is_told(&self) {
                self.is_told();
            }
            fn tell_once(&self, tell: impl Fn()) {
                self.tell_once(tell);
            }
        })*
    };
}

tolds! { told told_by_everybody }

/// Threads of a child that nobody was told of: the tables are reset once, and before anybody uses them.
fn resets<T: Told>() {
    explore(3, || {
        let scene = Arc::new((T::default(), Mutex::new(0)));
        let threads = [0, 1].map(|_| {
            let scene = Arc::clone(&scene);
            thread::spawn(move || {
                scene.0.tell_once(|| {
                    *scene.1.lock().expect("whole") += 1;
                    scene.0.is_told();
                });
                assert_eq!(*scene.1.lock().expect("whole"), 1);
            })
        });
        for thread in threads {
            thread.join().expect("reset once");
        }
    });
}

#[test]
fn nobody_goes_on_before_the_daemon_knows() {
    announcements::<super::tickets::Tickets>();
}

#[test]
fn a_child_is_reset_once() {
    resets::<super::told::Told>();
}

#[test]
#[ignore = "fails, and is run by the test of that"]
fn with_requests_that_are_counted_after_sending() {
    announcements::<super::tickets_read_late::Tickets>();
}

#[test]
#[ignore = "fails, and is run by the test of that"]
fn with_everybody_resetting() {
    resets::<super::told_by_everybody::Told>();
}

#[test]
fn each_protection_is_needed() {
    fails("telling::with_requests_that_are_counted_after_sending");
    fails("telling::with_everybody_resetting");
}
