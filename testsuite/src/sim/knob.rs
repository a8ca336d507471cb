//! Writes to the files of the directory, small enough to matter in a small world.

use ksm_engine::knobs::KsmFile;
use proptest::prelude::*;

/// A value for a knob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knob {
    /// `run`
    Run(u8),
    /// `sleep_millisecs`
    SleepMillisecs(u16),
    /// `pages_to_scan`
    PagesToScan(u16),
    /// `max_page_sharing`
    MaxPageSharing(u8),
    /// `merge_across_nodes`
    MergeAcrossNodes(bool),
    /// `use_zero_pages`
    UseZeroPages(bool),
    /// `smart_scan`
    SmartScan(bool),
    /// `stable_node_chains_prune_millisecs`
    PruneMillisecs(u16),
    /// `advisor_mode`
    Advisor(bool),
}

impl Knob {
    /// The file, and what is written to it.
    pub(crate) fn written(self) -> (KsmFile, String) {
        let digit = |on: bool| u8::from(on).to_string();
        match self {
            Self::Run(value) => (KsmFile::Run, value.to_string()),
            Self::SleepMillisecs(value) => (KsmFile::SleepMillisecs, value.to_string()),
            Self::PagesToScan(value) => (KsmFile::PagesToScan, value.to_string()),
            Self::MaxPageSharing(value) => (KsmFile::MaxPageSharing, value.to_string()),
            Self::MergeAcrossNodes(value) => (KsmFile::MergeAcrossNodes, digit(value)),
            Self::UseZeroPages(value) => (KsmFile::UseZeroPages, digit(value)),
            Self::SmartScan(value) => (KsmFile::SmartScan, digit(value)),
            Self::PruneMillisecs(value) => (KsmFile::PruneMillisecs, value.to_string()),
            Self::Advisor(true) => (KsmFile::AdvisorMode, "scan-time\n".to_owned()),
            Self::Advisor(false) => (KsmFile::AdvisorMode, "none\n".to_owned()),
        }
    }
}

/// Any write; most leave the scanning on.
pub(crate) fn any_knob() -> impl Strategy<Value = Knob> {
    prop_oneof![
        6 => Just(Knob::Run(1)),
        1 => Just(Knob::Run(0)),
        1 => Just(Knob::Run(2)),
        1 => (0u16..40).prop_map(Knob::SleepMillisecs),
        4 => prop_oneof![3 => 1u16..12, 6 => 50u16..300, 1 => Just(0)].prop_map(Knob::PagesToScan),
        2 => (2u8..6).prop_map(Knob::MaxPageSharing),
        2 => any::<bool>().prop_map(Knob::MergeAcrossNodes),
        2 => any::<bool>().prop_map(Knob::UseZeroPages),
        2 => any::<bool>().prop_map(Knob::SmartScan),
        1 => prop_oneof![Just(0u16), 0u16..5000].prop_map(Knob::PruneMillisecs),
        1 => any::<bool>().prop_map(Knob::Advisor),
    ]
}
