//! An app of the benchmark: the same memory and the same work whoever merges it.

mod hot;
mod probe;

use ksm_client::{Client, Config, MergeableRegion};
use std::io::{BufRead, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use testsuite::content::PAGE_SIZE;
use testsuite::sys::Anonymous;
use testsuite::workload::Part;

type Answer = Result<String, String>;

/// Only who merges it differs.
enum Memory {
    Plain(Anonymous),
    Ours(Client, MergeableRegion),
}

impl Memory {
    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Plain(memory) => memory.bytes(),
            Self::Ours(_, region) => region,
        }
    }
}

pub(crate) fn run(merger: &str, words: [&str; 4]) -> ExitCode {
    testsuite::sys::end_with_parent();
    match start(merger, words) {
        Ok((memory, part)) => {
            println!("ok");
            serve(memory, part);
            ExitCode::SUCCESS
        }
        Err(reason) => {
            println!("err {reason}");
            ExitCode::FAILURE
        }
    }
}

fn start(merger: &str, words: [&str; 4]) -> Result<(Memory, Part), String> {
    let [workload, process, pages, uid] = words;
    let uid: u32 = number(uid)?;
    if uid != 0 {
        testsuite::sys::become_user(uid).map_err(|error| format!("setuid: {error}"))?;
    }
    let part = Part {
        workload: workload.parse()?,
        process: number(process)?,
        pages: number(pages)?,
    };
    let bytes = part.pages * PAGE_SIZE;
    let mut memory = match merger {
        "kernel" | "none" => Memory::Plain(Anonymous::map(bytes).map_err(|e| e.to_string())?),
        socket => {
            let config = Config::default().socket(Path::new(socket)).track_writes();
            let client = Client::start(&config).map_err(|e| e.to_string())?;
            let region = client.allocate(bytes).map_err(|e| e.to_string())?;
            Memory::Ours(client, region)
        }
    };
    part.fill(memory.bytes()).map_err(|e| e.to_string())?;
    if let ("kernel", Memory::Plain(memory)) = (merger, &memory) {
        memory.advise_mergeable().map_err(|e| e.to_string())?;
    }
    Ok((memory, part))
}

fn serve(mut memory: Memory, part: Part) {
    let client = match &memory {
        Memory::Plain(_) => None,
        Memory::Ours(client, _) => Some(*client),
    };
    let region = {
        let bytes = memory.bytes().as_ptr_range();
        bytes.start.addr()..bytes.end.addr()
    };
    // The first quarter can be handed to a thread that writes to it all the time.
    let (first, rest) = memory.bytes().split_at_mut(part.pages / 4 * PAGE_SIZE);
    let quarter = Mutex::new(first);
    let writer = hot::Writer::default();
    std::thread::scope(|scope| {
        scope.spawn(|| writer.run(&quarter));
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let answer = match words.as_slice() {
                ["hot", on] => Ok(writer.switch(*on == "on").to_string()),
                ["write", count] => number(count).map(|n| probe::writes(rest, part, n)),
                ["access", milliseconds] => {
                    number(milliseconds).map(|time| probe::accesses(rest, part, time))
                }
                ["flush"] => Ok(probe::flush(rest)),
                ["touch"] => Ok(probe::touch(rest)),
                ["times", kind] => Ok(probe::times(rest, part, *kind == "write")),
                ["status"] => status(client, &region),
                ["verify"] => verify(&quarter, rest, part, writer.has_written()),
                _ => Err(format!("no such order: {words:?}")),
            };
            match answer {
                Ok(value) => println!("{}", format!("ok {value}").trim_end()),
                Err(reason) => println!("err {reason}"),
            }
            if std::io::stdout().flush().is_err() {
                break;
            }
        }
        writer.end();
    });
}

/// Memory of this process outside the region in bytes, and how the agent held pages.
fn status(client: Option<Client>, region: &std::ops::Range<usize>) -> Answer {
    let maps = procfs::process::Process::myself()
        .and_then(|process| process.smaps())
        .map_err(|e| e.to_string())?;
    let outside: u64 = maps
        .iter()
        .filter(|map| !region.contains(&usize::try_from(map.address.0).unwrap_or(usize::MAX)))
        .filter(|map| !ksmfs::footprint::is_arena(map))
        .filter_map(|map| map.extension.map.get("Anonymous"))
        .sum();
    let figures = client.map(|client| client.status().figures);
    let longest = figures.map_or(0, |figures| figures.longest_hold.as_nanos());
    let most = figures.map_or(0, |figures| figures.held_within(0.9999).as_nanos());
    Ok(format!("{outside} {most} {longest}"))
}

fn verify(quarter: &Mutex<&mut [u8]>, rest: &[u8], part: Part, is_hot: bool) -> Answer {
    let first = quarter.lock().map_err(|e| e.to_string())?;
    let pages = first
        .chunks_exact(PAGE_SIZE)
        .chain(rest.chunks_exact(PAGE_SIZE));
    let from = if is_hot { part.pages / 4 } else { 0 };
    match part
        .first_wrong_page(pages, from)
        .map_err(|e| e.to_string())?
    {
        Some(page) => Err(format!("page {page} is wrong")),
        None => Ok(String::new()),
    }
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("not a number: {word}"))
}
