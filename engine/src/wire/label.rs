//! The label of a process: the domain that it asks to be in.

/// A short name, or none. Whether it counts is the daemon's policy.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Label {
    len: u8,
    bytes: [u8; Self::LONGEST],
}

impl Label {
    /// The longest label in bytes.
    pub const LONGEST: usize = 32;

    /// The label with this name: letters, digits, and `.`, `_`, `-`; the empty name is no label. `None` if it cannot be one.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        Self::from_bytes(name.as_bytes())
    }

    /// The same from what was received.
    #[must_use]
    pub fn from_bytes(name: &[u8]) -> Option<Self> {
        let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
        let mut bytes = [0; Self::LONGEST];
        bytes.get_mut(..name.len())?.copy_from_slice(name);
        let len = u8::try_from(name.len()).ok()?;
        name.iter().all(fits).then_some(Self { len, bytes })
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len.into()]
    }

    /// Its name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).expect("it was made of letters")
    }

    /// Whether it is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl std::fmt::Debug for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Label({:?})", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::Label;

    #[test]
    fn labels_are_short_names() {
        assert_eq!(Label::new("web-1.a_B").unwrap().as_str(), "web-1.a_B");
        assert!(Label::new("").unwrap().is_empty());
        assert!(Label::new(&"x".repeat(Label::LONGEST)).is_some());
        assert!(Label::new(&"x".repeat(Label::LONGEST + 1)).is_none());
        for bad in ["a b", "a/b", "ä", "a\0"] {
            assert!(Label::new(bad).is_none(), "{bad:?}");
        }
    }
}
