//! Everything that the compiler cannot check: raw memory and the system calls that act on it.
//!
//! Each file wraps one kernel interface. What happens to the app's memory takes [`remap::AppPages`], which only the
//! region table hands out; what happens to our own takes the mapping itself.
#![allow(
    unsafe_code,
    reason = "this is where the unsafe code of the crate lives"
)]

pub mod c_interface;
pub mod guarded;
pub mod kcmp;
pub mod ledger;
pub mod loads;
pub mod maps;
pub mod memory;
pub mod numa;
pub mod pagemap;
pub mod peer;
pub mod read;
pub mod remap;
pub mod room;
pub mod task;
pub mod uffd;
