//! What goes from a program to those it starts.

use crate::mode::VARIABLE;
use crate::sys::call::{Answer, Quiet, call};
use crate::sys::environment;
use ksm_client::BareFork;

/// Has the programs that this one starts merge all of their memory too, or not.
pub fn say_in_environment(all: bool) {
    environment::set(VARIABLE, all.then_some(c"1"));
}

/// Whether a call with these flags makes a process with a copy of the memory.
pub const fn copies_memory(flags: usize) -> bool {
    flags & libc::CLONE_VM.unsigned_abs() as usize == 0
}

/// A system call that forks and returns on the same stack in both processes.
pub fn fork<const N: usize>(number: libc::c_long, arguments: [usize; N]) -> Answer {
    // In the child as well: a handler that maps memory would wait for its own thread.
    let _quiet = Quiet::begin();
    let fork = BareFork::begin();
    let made = call(number, arguments);
    if let Some(fork) = fork {
        match made {
            Ok(0) => fork.end_in_child(),
            _ => fork.end_in_parent(),
        }
    }
    made
}
