//! Where messages are read and written.

use crate::agent::report::ReportBuffer;
use ksm_engine::wire::MessageBuffer;
use zerocopy::FromZeros;

/// Buffers for one task that talks to the daemon.
#[derive(Debug, FromZeros)]
#[repr(C)]
pub struct Desk {
    /// What the daemon says.
    pub incoming: MessageBuffer,
    /// What we say.
    pub outgoing: MessageBuffer,
    /// What is found out for a report.
    pub report: ReportBuffer,
}
