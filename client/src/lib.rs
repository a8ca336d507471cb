//! What an application links to have its identical pages merged in user space.
//!
//! An app starts a [`Client`] and gives it memory, its own ([`Client::mergeable`]) or new one ([`Client::allocate`]).
//! From then on a task beside it, the agent, scans that memory and maps pages that are equal to those of other processes
//! of the same user to one copy, as the daemon `ksmfs` finds them. Without daemon nothing changes for the app.
//!
//! In the order of reading: [`Client`] and [`MergeableRegion`]; `steward`, `serve` and `link`, the life of the agent; [`agent`],
//! the merge protocol; [`space`], the state that all of them share.
#![deny(unsafe_code)]

pub mod agent;
mod api;
mod complaint;
mod desk;
pub mod embedded;
mod fork;
mod inquiry;
mod link;
mod link_state;
mod lock;
pub mod pipe_ends;
mod presence;
mod proc_file;
mod region;
mod serve;
pub mod socket_path;
pub mod space;
mod steward;
pub mod sys;
mod tickets;
pub mod trust;
mod word;

pub use api::{Client, Config, FiguresError, RegionError, StartError, Status, locate};
pub use embedded::Embedded;
pub use fork::{BareFork, is_forking_here};
pub use inquiry::first_surroundings;
pub use ksm_engine::wire::Figures;
pub use link_state::LinkState;
pub use region::MergeableRegion;
