//! The files of `/sys/kernel/mm/ksm` (Linux 6.18): names, and how the kernel reads a value that was written.
//!
//! What a value then does is decided elsewhere. The parsers are the kernel's `kstrtouint`, `kstrtoul`, `kstrtoint`
//! and `kstrtobool`, with the errno that each file makes of a refusal.

mod parse;

use parse::{parse_bool, parse_mode, parse_s32, parse_u32, parse_u64};
use std::fmt;

/// The longest value one write hands over, in bytes; the rest of a longer write is not looked at.
pub const MAX_WRITE: usize = 4096;

macro_rules! files {
    ($($variant:ident $name:literal $writable:literal,)*) => {
        /// A file of the directory.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum KsmFile {
            $(#[doc = concat!("`", $name, "`")] $variant,)*
        }

        impl KsmFile {
            /// All files, in the order in which a 6.18 kernel lists them.
            pub const ALL: [Self; 24] = [$(Self::$variant,)*];

            /// The file's name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Whether the file has mode 0644 (else 0444).
            #[must_use]
            pub const fn is_writable(self) -> bool {
                match self { $(Self::$variant => $writable,)* }
            }
        }
    };
}

files! {
    StableNodeDups "stable_node_dups" false,
    ZeroPages "ksm_zero_pages" false,
    MaxPageSharing "max_page_sharing" true,
    PagesVolatile "pages_volatile" false,
    AdvisorMode "advisor_mode" true,
    PruneMillisecs "stable_node_chains_prune_millisecs" true,
    AdvisorMaxCpu "advisor_max_cpu" true,
    AdvisorTargetScanTime "advisor_target_scan_time" true,
    MergeAcrossNodes "merge_across_nodes" true,
    PagesUnshared "pages_unshared" false,
    StableNodeChains "stable_node_chains" false,
    PagesShared "pages_shared" false,
    UseZeroPages "use_zero_pages" true,
    AdvisorMinPagesToScan "advisor_min_pages_to_scan" true,
    PagesToScan "pages_to_scan" true,
    SleepMillisecs "sleep_millisecs" true,
    GeneralProfit "general_profit" false,
    PagesScanned "pages_scanned" false,
    PagesSkipped "pages_skipped" false,
    Run "run" true,
    AdvisorMaxPagesToScan "advisor_max_pages_to_scan" true,
    SmartScan "smart_scan" true,
    FullScans "full_scans" false,
    PagesSharing "pages_sharing" false,
}

impl KsmFile {
    /// The file with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|file| file.name() == name)
    }
}

impl fmt::Display for KsmFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a write is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Not a value that the file takes (EINVAL).
    #[error("not a value that this file takes")]
    Invalid,
    /// A number too large for the file (ERANGE).
    #[error("number out of range")]
    Range,
    /// The value cannot change while pages are merged (EBUSY).
    #[error("cannot change while pages are shared")]
    Busy,
    /// The file cannot be written (EIO, as sysfs answers where the mode was changed to allow the open).
    #[error("file is read-only")]
    ReadOnly,
    /// Unmerging ran out of memory (ENOMEM); `run` is 0 then.
    #[error("no memory to unmerge all pages")]
    NoMemory,
}

impl WriteError {
    /// The errno that the writer gets.
    #[must_use]
    pub const fn errno(self) -> rustix::io::Errno {
        match self {
            Self::Invalid => rustix::io::Errno::INVAL,
            Self::Range => rustix::io::Errno::RANGE,
            Self::Busy => rustix::io::Errno::BUSY,
            Self::ReadOnly => rustix::io::Errno::IO,
            Self::NoMemory => rustix::io::Errno::NOMEM,
        }
    }
}

/// What ksmd is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Do not scan; merged pages stay.
    Stop = 0,
    /// Scan and merge.
    Merge = 1,
    /// Unmerge everything, then do not scan.
    Unmerge = 2,
}

/// Who sets `pages_to_scan`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdvisorMode {
    /// Nobody but the administrator.
    None,
    /// The scan-time advisor.
    ScanTime,
}

/// A value that passed its parser and range check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnobValue {
    /// `run`
    Run(RunState),
    /// `sleep_millisecs`
    SleepMillisecs(u32),
    /// `pages_to_scan`
    PagesToScan(u32),
    /// `max_page_sharing`
    MaxPageSharing(u32),
    /// `merge_across_nodes`
    MergeAcrossNodes(bool),
    /// `use_zero_pages`
    UseZeroPages(bool),
    /// `smart_scan`
    SmartScan(bool),
    /// `stable_node_chains_prune_millisecs`
    PruneMillisecs(u32),
    /// `advisor_mode`
    AdvisorMode(AdvisorMode),
    /// `advisor_max_cpu`
    AdvisorMaxCpu(u32),
    /// `advisor_min_pages_to_scan`
    AdvisorMinPagesToScan(u64),
    /// `advisor_max_pages_to_scan`
    AdvisorMaxPagesToScan(u64),
    /// `advisor_target_scan_time`
    AdvisorTargetScanTime(u64),
}

impl KnobValue {
    /// Reads what was written to `file`, as the kernel would.
    ///
    /// # Errors
    /// As the kernel's file would answer.
    pub fn parse(file: KsmFile, written: &[u8]) -> Result<Self, WriteError> {
        Ok(match file {
            KsmFile::Run => Self::Run(match parse_u32(written)? {
                0 => RunState::Stop,
                1 => RunState::Merge,
                2 => RunState::Unmerge,
                _ => return Err(WriteError::Invalid),
            }),
            KsmFile::SleepMillisecs => Self::SleepMillisecs(parse_u32(written)?),
            KsmFile::PagesToScan => Self::PagesToScan(parse_u32(written)?),
            KsmFile::MaxPageSharing => {
                let value = u32::try_from(parse_s32(written)?).map_err(|_| WriteError::Invalid)?;
                if value < 2 {
                    return Err(WriteError::Invalid);
                }
                Self::MaxPageSharing(value)
            }
            KsmFile::MergeAcrossNodes => Self::MergeAcrossNodes(match parse_u64(written)? {
                0 => false,
                1 => true,
                _ => return Err(WriteError::Invalid),
            }),
            KsmFile::UseZeroPages => Self::UseZeroPages(parse_bool(written)?),
            KsmFile::SmartScan => Self::SmartScan(parse_bool(written)?),
            KsmFile::PruneMillisecs => Self::PruneMillisecs(parse_u32(written)?),
            KsmFile::AdvisorMode => Self::AdvisorMode(parse_mode(written)?),
            KsmFile::AdvisorMaxCpu => {
                // The kernel stores the number in 32 bits and drops the rest without a word.
                #[expect(clippy::cast_possible_truncation)]
                let value = any_error_is_invalid(parse_u64(written))? as u32;
                Self::AdvisorMaxCpu(value)
            }
            KsmFile::AdvisorMinPagesToScan => {
                Self::AdvisorMinPagesToScan(any_error_is_invalid(parse_u64(written))?)
            }
            KsmFile::AdvisorMaxPagesToScan => {
                Self::AdvisorMaxPagesToScan(any_error_is_invalid(parse_u64(written))?)
            }
            KsmFile::AdvisorTargetScanTime => match any_error_is_invalid(parse_u64(written))? {
                0 => return Err(WriteError::Invalid),
                value => Self::AdvisorTargetScanTime(value),
            },
            KsmFile::StableNodeDups
            | KsmFile::ZeroPages
            | KsmFile::PagesVolatile
            | KsmFile::PagesUnshared
            | KsmFile::StableNodeChains
            | KsmFile::PagesShared
            | KsmFile::GeneralProfit
            | KsmFile::PagesScanned
            | KsmFile::PagesSkipped
            | KsmFile::FullScans
            | KsmFile::PagesSharing => return Err(WriteError::ReadOnly),
        })
    }
}

/// Most files answer EINVAL whatever the parser said; `max_page_sharing` and `merge_across_nodes` pass ERANGE on.
fn any_error_is_invalid<T>(parsed: Result<T, WriteError>) -> Result<T, WriteError> {
    parsed.map_err(|_| WriteError::Invalid)
}
