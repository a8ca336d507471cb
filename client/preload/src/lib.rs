//! Has the memory of unmodified programs merged in user space: `LD_PRELOAD=libksm_preload.so program`.
//!
//! Its functions stand before those of the C library. Two of them start something: `madvise(MADV_MERGEABLE)` and
//! `prctl(PR_SET_MEMORY_MERGE)`; until one of them is called the library costs a program a load and a branch in each of
//! the others. The others see to it that memory that was merged still behaves as the app's own: see [`maps`], [`advice`],
//! [`processes`]. What the app reads of its own merging comes from [`proc_files`].
#![deny(unsafe_code)]

mod advice;
mod changing;
mod maps;
mod mode;
mod moving;
mod pipes;
mod proc_files;
mod processes;
mod sandbox;
mod suitable;
pub mod sys;
mod userfaults;

/// Runs once, when the library has been loaded. In most programs that is all of it that ever runs: so it does next to nothing.
pub(crate) fn begin() {
    mode::inherit();
}
