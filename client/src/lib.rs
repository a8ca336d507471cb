//! What an application links to have its identical pages merged in user space.
#![deny(unsafe_code)]

pub mod agent;
mod lock;
pub mod space;
pub mod sys;
