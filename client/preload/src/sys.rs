//! What the compiler cannot check: raw system calls, the C library's own functions, and the functions that take their place.
#![allow(
    unsafe_code,
    reason = "this is where the unsafe code of the crate lives"
)]

pub mod call;
pub mod environment;
mod exports;
pub mod next;
pub mod patch;
pub mod vectors;
