//! Writes to the files: what is taken, and for which value, is what a transcript of the kernel's parsers says; and an
//! engine that is written to and read from stays in order.
//!
//! The input is a list of writes: a byte for the file, one for the length, the bytes.

use super::bytes::Bytes;
use super::store::Store;
use ksm_engine::engine::{Engine, Written};
use ksm_engine::knobs::{AdvisorMode, KnobValue, KsmFile, RunState, WriteError};

type Parsed<T> = Result<T, WriteError>;

pub fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut engine = None;
    while !bytes.is_empty() {
        let file = KsmFile::ALL[bytes.below(KsmFile::ALL.len())];
        let len = usize::from(bytes.byte());
        // More than one page, of which the rest is not looked at.
        let repeated = if len == 0xff { 4200 } else { 0 };
        let text = bytes.take(len);
        let long: Vec<u8> = text.iter().copied().cycle().take(repeated).collect();
        let text = if long.is_empty() { text } else { &long };
        let looked_at = &text[..text.len().min(4096)];
        let expected = expected(file, looked_at);
        assert_eq!(KnobValue::parse(file, looked_at), expected, "{file}");
        // Most of what can be written is refused by the parsers: that is tried without an engine.
        if expected.is_ok() || engine.is_some() {
            let engine = engine.get_or_insert_with(|| Engine::new(Store::new(8), [1; 32]));
            write(engine, file, text, expected);
        }
    }
    if let Some(engine) = engine {
        engine.audit().expect("the books are right");
        for file in KsmFile::ALL {
            let shown = engine.read(file);
            assert!(
                shown.ends_with('\n') && shown.len() < 100,
                "{file}: {shown:?}"
            );
        }
    }
}

fn write(engine: &mut Engine<Store>, file: KsmFile, text: &[u8], expected: Parsed<KnobValue>) {
    let written = engine.write(file, text);
    match (expected, written) {
        (Err(error), Err(refused)) => assert_eq!(error, refused, "{file}"),
        (Ok(_), Err(refused)) => {
            assert!(
                file == KsmFile::PagesToScan && refused == WriteError::Invalid,
                "{file}: {refused}"
            );
            assert_eq!(engine.knobs().advisor_mode, AdvisorMode::ScanTime);
        }
        (Err(error), Ok(_)) => panic!("{file}: was to be refused: {error}"),
        (Ok(_), Ok(Written::Done)) => {}
        (Ok(_), Ok(Written::Pending(ticket))) => {
            // Nothing is under way that it would have to wait for.
            let finished = engine.take_finished();
            assert_eq!(finished.map(|(done, _)| done), Some(ticket), "{file}");
        }
    }
}

/// The string that the kernel sees. Reads as 0 behind its end, as C strings do.
struct Text<'a>(&'a [u8]);

impl Text<'_> {
    fn at(&self, index: usize) -> u8 {
        self.0.get(index).copied().unwrap_or(0)
    }
}

/// `_kstrtoull` in base 10.
fn kstrtoull_unsigned(text: &Text<'_>, mut at: usize) -> Parsed<u64> {
    let first = at;
    let mut value: u64 = 0;
    let mut overflow = false;
    while text.at(at).is_ascii_digit() {
        let digit = u64::from(text.at(at) - b'0');
        if value > (u64::MAX - digit) / 10 {
            overflow = true;
        }
        value = value.wrapping_mul(10).wrapping_add(digit);
        at += 1;
    }
    if overflow {
        return Err(WriteError::Range);
    }
    if at == first {
        return Err(WriteError::Invalid);
    }
    if text.at(at) == b'\n' {
        at += 1;
    }
    if text.at(at) != 0 {
        return Err(WriteError::Invalid);
    }
    Ok(value)
}

fn kstrtoull(text: &Text<'_>) -> Parsed<u64> {
    kstrtoull_unsigned(text, usize::from(text.at(0) == b'+'))
}

fn kstrtouint(text: &Text<'_>) -> Parsed<u32> {
    u32::try_from(kstrtoull(text)?).map_err(|_| WriteError::Range)
}

fn kstrtoint(text: &Text<'_>) -> Parsed<i32> {
    let value = if text.at(0) == b'-' {
        let value = kstrtoull_unsigned(text, 1)?;
        0i64.checked_sub_unsigned(value).ok_or(WriteError::Range)?
    } else {
        i64::try_from(kstrtoull(text)?).map_err(|_| WriteError::Range)?
    };
    i32::try_from(value).map_err(|_| WriteError::Range)
}

fn kstrtobool(text: &Text<'_>) -> Parsed<bool> {
    match text.at(0) {
        b'e' | b'E' | b'y' | b'Y' | b't' | b'T' | b'1' => Ok(true),
        b'd' | b'D' | b'n' | b'N' | b'f' | b'F' | b'0' => Ok(false),
        b'o' | b'O' => match text.at(1) {
            b'n' | b'N' => Ok(true),
            b'f' | b'F' => Ok(false),
            _ => Err(WriteError::Invalid),
        },
        _ => Err(WriteError::Invalid),
    }
}

/// `sysfs_streq`
fn streq(text: &Text<'_>, name: &str) -> bool {
    let mut at = 0;
    while text.at(at) != 0 && text.at(at) == name.as_bytes().get(at).copied().unwrap_or(0) {
        at += 1;
    }
    let at_end = at == name.len();
    at_end && (text.at(at) == 0 || (text.at(at) == b'\n' && text.at(at + 1) == 0))
}

/// What the store functions of `mm/ksm.c` make of it.
fn expected(file: KsmFile, written: &[u8]) -> Parsed<KnobValue> {
    let text = Text(written.split(|byte| *byte == 0).next().unwrap_or_default());
    let number = || kstrtouint(&text).or(Err(WriteError::Invalid));
    let long = || kstrtoull(&text).or(Err(WriteError::Invalid));
    let invalid = Err(WriteError::Invalid);
    Ok(match file {
        KsmFile::Run => KnobValue::Run(match number()? {
            0 => RunState::Stop,
            1 => RunState::Merge,
            2 => RunState::Unmerge,
            _ => return invalid,
        }),
        KsmFile::SleepMillisecs => KnobValue::SleepMillisecs(number()?),
        KsmFile::PagesToScan => KnobValue::PagesToScan(number()?),
        KsmFile::PruneMillisecs => KnobValue::PruneMillisecs(number()?),
        KsmFile::MaxPageSharing => match u32::try_from(kstrtoint(&text)?) {
            Ok(sharing) if sharing >= 2 => KnobValue::MaxPageSharing(sharing),
            _ => return invalid,
        },
        KsmFile::MergeAcrossNodes => match kstrtoull(&text)? {
            0 => KnobValue::MergeAcrossNodes(false),
            1 => KnobValue::MergeAcrossNodes(true),
            _ => return invalid,
        },
        KsmFile::UseZeroPages => KnobValue::UseZeroPages(kstrtobool(&text)?),
        KsmFile::SmartScan => KnobValue::SmartScan(kstrtobool(&text)?),
        KsmFile::AdvisorMode if streq(&text, "scan-time") => {
            KnobValue::AdvisorMode(AdvisorMode::ScanTime)
        }
        KsmFile::AdvisorMode if streq(&text, "none") => KnobValue::AdvisorMode(AdvisorMode::None),
        KsmFile::AdvisorMode => return invalid,
        KsmFile::AdvisorMaxCpu => {
            let low = long()? & u64::from(u32::MAX);
            KnobValue::AdvisorMaxCpu(u32::try_from(low).expect("32 bits"))
        }
        KsmFile::AdvisorMinPagesToScan => KnobValue::AdvisorMinPagesToScan(long()?),
        KsmFile::AdvisorMaxPagesToScan => KnobValue::AdvisorMaxPagesToScan(long()?),
        KsmFile::AdvisorTargetScanTime => match long()? {
            0 => return invalid,
            seconds => KnobValue::AdvisorTargetScanTime(seconds),
        },
        _ => return Err(WriteError::ReadOnly),
    })
}
