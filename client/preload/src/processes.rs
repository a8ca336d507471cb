//! What goes from a program to those it starts.

use crate::mode::VARIABLE;
use crate::sys::environment;

/// Has the programs that this one starts merge all of their memory too, or not.
pub fn say_in_environment(all: bool) {
    environment::set(VARIABLE, all.then_some("1"));
}
