//! A worker of the benchmark: random data that others have too, mergeable by the kernel or by us.

use ksm_client::{Client, Config, MergeableRegion};
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use testsuite::content;
use testsuite::sys::Anonymous;

/// The same memory either way; only who merges it differs.
enum Memory {
    Kernel(Anonymous),
    Ours(MergeableRegion),
}

pub(crate) fn run(socket: &str, mib: usize, seed: u64) -> ExitCode {
    testsuite::sys::end_with_parent();
    let bytes = mib << 20;
    let memory = match socket {
        "kernel" => Anonymous::map(bytes)
            .map(Memory::Kernel)
            .map_err(|e| e.to_string()),
        socket => ours(Path::new(socket), bytes),
    };
    let mut memory = match memory {
        Ok(memory) => memory,
        Err(reason) => {
            println!("err {reason}");
            return ExitCode::FAILURE;
        }
    };
    let pages: &mut [u8] = match &mut memory {
        Memory::Kernel(memory) => memory.bytes(),
        Memory::Ours(region) => region,
    };
    for (page, id) in pages.chunks_exact_mut(content::PAGE_SIZE).zip(1..) {
        content::fill(page, (seed << 32) + id);
    }
    if let Memory::Kernel(memory) = &memory
        && let Err(error) = memory.advise_mergeable()
    {
        println!("err madvise: {error}");
        return ExitCode::FAILURE;
    }
    println!("ok");
    // Lives until the benchmark closes the pipe.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    drop(memory);
    ExitCode::SUCCESS
}

fn ours(socket: &Path, bytes: usize) -> Result<Memory, String> {
    let client = Client::start(&Config::default().socket(socket)).map_err(|e| e.to_string())?;
    let region = client.allocate(bytes).map_err(|e| e.to_string())?;
    Ok(Memory::Ours(region))
}
