//! The kernel's number parsers (`lib/kstrtox.c`), as the files use them.

use super::{AdvisorMode, WriteError};

/// What the kernel sees of a write: a string that ends at the first NUL.
fn text(written: &[u8]) -> &[u8] {
    written.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Digits, then at most one newline. Too many digits are told apart from nonsense, whatever follows them.
fn digits(text: &[u8]) -> Result<u64, WriteError> {
    let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = text.split_at(count);
    let value = number
        .iter()
        .try_fold(0u64, |sum, digit| {
            sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
        })
        .ok_or(WriteError::Range)?;
    match rest {
        b"" | b"\n" if !number.is_empty() => Ok(value),
        _ => Err(WriteError::Invalid),
    }
}

/// `kstrtoul`: an optional plus sign, decimal digits. Range errors are told apart.
pub(super) fn parse_u64(written: &[u8]) -> Result<u64, WriteError> {
    let text = text(written);
    digits(text.strip_prefix(b"+").unwrap_or(text))
}

/// `kstrtouint` of a file that answers EINVAL to everything it does not take.
pub(super) fn parse_u32(written: &[u8]) -> Result<u32, WriteError> {
    parse_u64(written)
        .ok()
        .and_then(|value| value.try_into().ok())
        .ok_or(WriteError::Invalid)
}

/// `kstrtoint`: also a minus sign. Range errors are told apart.
pub(super) fn parse_s32(written: &[u8]) -> Result<i32, WriteError> {
    let text = text(written);
    let value = match text.strip_prefix(b"-") {
        Some(rest) => -i128::from(digits(rest)?),
        None => i128::from(parse_u64(written)?),
    };
    i32::try_from(value).map_err(|_| WriteError::Range)
}

/// `kstrtobool`: the first character decides, for `o` the first two.
pub(super) fn parse_bool(written: &[u8]) -> Result<bool, WriteError> {
    match text(written) {
        [b'1' | b'y' | b'Y' | b't' | b'T' | b'e' | b'E', ..] => Ok(true),
        [b'0' | b'n' | b'N' | b'f' | b'F' | b'd' | b'D', ..] => Ok(false),
        [b'o' | b'O', b'n' | b'N', ..] => Ok(true),
        [b'o' | b'O', b'f' | b'F', ..] => Ok(false),
        _ => Err(WriteError::Invalid),
    }
}

/// `sysfs_streq` with the names of the two modes.
pub(super) fn parse_mode(written: &[u8]) -> Result<AdvisorMode, WriteError> {
    match text(written) {
        b"none" | b"none\n" => Ok(AdvisorMode::None),
        b"scan-time" | b"scan-time\n" => Ok(AdvisorMode::ScanTime),
        _ => Err(WriteError::Invalid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_the_kernel_reads_them() {
        let takes: [(&[u8], u64); 8] = [
            (b"5", 5),
            (b"5\n", 5),
            (b"+5\n", 5),
            (b"005", 5),
            (b"5\0garbage", 5),
            (b"5\n\0", 5),
            (b"4294967296", 1 << 32),
            (b"18446744073709551615", u64::MAX),
        ];
        for (written, value) in takes {
            assert_eq!(parse_u64(written), Ok(value), "{written:?}");
        }
        let refuses: [&[u8]; 16] = [
            b"", b"\n", b"\0", b"5\n\n", b"5 ", b" 5", b"\t5", b"5\r\n", b"5\n7", b"\x005", b"-1",
            b"-0", b"++5", b"+", b"0x10", b"1_0",
        ];
        for written in refuses {
            assert_eq!(parse_u64(written), Err(WriteError::Invalid), "{written:?}");
            assert_eq!(parse_u32(written), Err(WriteError::Invalid), "{written:?}");
        }
        assert_eq!(parse_u64(b"18446744073709551616"), Err(WriteError::Range));
        assert_eq!(parse_u32(b"4294967295"), Ok(u32::MAX));
        assert_eq!(parse_u32(b"4294967296"), Err(WriteError::Invalid));
    }

    #[test]
    fn signed_numbers_tell_nonsense_from_overflow() {
        assert_eq!(parse_s32(b"-1"), Ok(-1));
        assert_eq!(parse_s32(b"-0"), Ok(0));
        assert_eq!(parse_s32(b"2147483647\n"), Ok(i32::MAX));
        assert_eq!(parse_s32(b"2147483648"), Err(WriteError::Range));
        assert_eq!(parse_s32(b"-2147483649"), Err(WriteError::Range));
        assert_eq!(parse_s32(b"99999999999999999999"), Err(WriteError::Range));
        assert_eq!(parse_s32(b"-+5"), Err(WriteError::Invalid));
        assert_eq!(parse_s32(b"--5"), Err(WriteError::Invalid));
    }

    #[test]
    fn booleans_look_at_the_first_letters_only() {
        for written in [
            b"1abc".as_slice(),
            b"yes",
            b"true",
            b"enable",
            b"on",
            b"ON",
            b"10",
        ] {
            assert_eq!(parse_bool(written), Ok(true), "{written:?}");
        }
        for written in [
            b"01".as_slice(),
            b"no",
            b"false",
            b"disable",
            b"of",
            b"offx",
        ] {
            assert_eq!(parse_bool(written), Ok(false), "{written:?}");
        }
        for written in [b"o".as_slice(), b"ox", b"2", b" 1", b"+1", b""] {
            assert_eq!(parse_bool(written), Err(WriteError::Invalid), "{written:?}");
        }
    }

    #[test]
    fn modes_are_exact_but_for_one_newline() {
        assert_eq!(parse_mode(b"scan-time\n"), Ok(AdvisorMode::ScanTime));
        assert_eq!(parse_mode(b"none\0x"), Ok(AdvisorMode::None));
        for written in [
            b"none ".as_slice(),
            b"None",
            b"scan_time",
            b"[none]",
            b"none\n\n",
        ] {
            assert_eq!(parse_mode(written), Err(WriteError::Invalid), "{written:?}");
        }
    }
}
