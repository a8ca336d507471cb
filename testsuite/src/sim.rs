//! A whole host in one thread: the real engine, and models of everything around it.
//!
//! Processes, their agents, the connections and the arenas are models; time is a number. Whatever the machine would
//! do by chance is an [`Op`] here, so a run is a list of operations: drawn from a seed, shrunk by proptest, or
//! written down as a scenario. After each operation the [`World`] checks what must always hold, and panics if it does
//! not.

mod agent;
mod arenas;
mod check;
mod content;
mod knob;
mod lie;
mod ops;
mod play;
mod process;
mod sights;
mod world;

pub use agent::Mood;
pub use content::Content;
pub use knob::Knob;
pub use lie::Lie;
pub use ops::{Op, any_op};
pub use process::{Page, Process};
pub use sights::Sights;
pub use world::World;
