//! Harness, simulator, behaviour tests and benchmarks of the whole project.
//!
//! [`daemon`] and [`worker`] are the processes that tests play with, [`content`] what workers fill pages with,
//! [`wait`] how tests wait, [`programs`] real programs, [`kernel`] the kernel's own KSM, [`cgroup`] a memory limit,
//! [`workload`] what the benchmark's processes hold, [`sim`] the engine alone among model processes.
#![deny(unsafe_code)]

pub mod cgroup;
pub mod content;
pub mod daemon;
pub mod kernel;
pub mod programs;
pub mod sim;
pub mod sys;
pub mod wait;
pub mod worker;
pub mod workload;
