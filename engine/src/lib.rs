//! The deciding core of a user-space Kernel Samepage Merging.
//!
//! The engine is a state machine without threads, clocks or system calls of its own: knob writes, reports and time
//! go in, orders come out. The daemon, the embedded mode and the simulator drive the very same code. The nouns are
//! those of the kernel's `mm/ksm.c`.

pub mod arena;
pub mod digest;
pub mod engine;
pub mod knobs;
pub mod order;
pub mod page;
pub mod process_file;
pub mod store;
pub mod wire;
