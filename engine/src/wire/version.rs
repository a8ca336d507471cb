//! Which versions of the protocol there are, and how two programs agree on one.
//!
//! A greeting says the oldest and the newest version that an agent speaks. The daemon picks the newest that both do; its
//! answer has that version, and so has every message of the connection after it. So daemon and clients can be brought up to
//! date one after the other. For that to work some things never change: the header of every message, the greeting, and
//! a refusal.
//!
//! | version | since then |
//! |---|---|
//! | 3 | digests are HighwayHash; those of version 2, SHA-256, would never be found |
//! | 4 | `Split`, `Mode`. No older version is spoken |
//! | 5 | arenas are named, kept and handed in (`Holds`, `Named`, `Keep`, `LetGo`); a range in greetings; `Processes`, `Scan` |
//! | 6 | visits may be brief (`Unchanged`), and count more pages |
//! | 7 | a greeting may have a label; refusals for the sake of a policy, of a label, of regions |

use super::format::MessageBuffer;

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16);

/// Byte offset of the version in every message.
const OFFSET: usize = 4;

impl Version {
    /// Whether daemon and agent tell each other of arenas.
    #[must_use]
    pub fn names_arenas(self) -> bool {
        self >= Version(5)
    }

    /// Whether agents may be asked for brief reports on visits, and for more pages than they have room for digests.
    #[must_use]
    pub fn sums_up(self) -> bool {
        self >= Version(6)
    }

    /// Whether agents may ask for a domain, and are told that they may not have it.
    #[must_use]
    pub fn knows_labels(self) -> bool {
        self >= Self::OF_LABELS
    }

    /// The first that has labels.
    const OF_LABELS: Self = Self(7);

    /// That of a message.
    #[must_use]
    pub fn of(message: &[u8]) -> Option<Self> {
        let bytes = message.get(OFFSET..)?.first_chunk()?;
        Some(Self(u16::from_le_bytes(*bytes)))
    }

    /// Says that an encoded message is of this version.
    pub fn stamp(self, message: &mut MessageBuffer) {
        if let Some(place) = message.0.get_mut(OFFSET..OFFSET + 2) {
            place.copy_from_slice(&self.0.to_le_bytes());
        }
    }
}

/// Consecutive versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The first of them.
    pub oldest: Version,
    /// The last one.
    pub newest: Version,
}

impl Versions {
    /// What this program speaks.
    pub const SPOKEN: Self = Self {
        oldest: Version(4),
        newest: Version(7),
    };

    /// One version only.
    #[must_use]
    pub const fn only(number: u16) -> Self {
        Self {
            oldest: Version(number),
            newest: Version(number),
        }
    }

    /// Those of them in which a label can be asked for.
    #[must_use]
    pub fn with_labels(self) -> Self {
        Self {
            oldest: self.oldest.max(Version::OF_LABELS),
            newest: self.newest.max(Version::OF_LABELS),
        }
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn contain(self, version: Version) -> bool {
        self.oldest <= version && version <= self.newest
    }

    /// The newest that is in both.
    #[must_use]
    pub fn newest_in(self, other: Self) -> Option<Version> {
        let newest = self.newest.min(other.newest);
        (self.contain(newest) && other.contain(newest)).then_some(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_that_both_speak_is_spoken() {
        let versions = |oldest, newest| Versions {
            oldest: Version(oldest),
            newest: Version(newest),
        };
        let agreed = |a: Versions, b: Versions| {
            assert_eq!(a.newest_in(b), b.newest_in(a));
            a.newest_in(b).map(|version| version.0)
        };
        assert_eq!(agreed(versions(4, 5), versions(4, 5)), Some(5));
        assert_eq!(agreed(versions(4, 5), versions(4, 4)), Some(4));
        assert_eq!(agreed(versions(4, 5), versions(5, 9)), Some(5));
        assert_eq!(agreed(versions(4, 5), versions(1, 7)), Some(5));
        assert_eq!(agreed(versions(4, 5), versions(1, 3)), None);
        assert_eq!(agreed(versions(4, 5), versions(6, 7)), None);
        // Nonsense of a peer's.
        assert_eq!(agreed(versions(4, 5), versions(5, 4)), None);
    }
}
