//! No daemon: an app that has its own duplicates merged. Needs access to `/dev/userfaultfd`.

use ksm_client::Embedded;
use std::error::Error;

const LEN: usize = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    env_logger::init();
    let engine = Embedded::new()?;
    let mut one = engine.allocate(LEN)?;
    let mut two = engine.allocate(LEN)?;
    for buffer in [&mut one, &mut two] {
        for (number, page) in buffer.chunks_mut(4096).enumerate() {
            page.fill(u8::try_from(number % 251)?);
            page[..8].copy_from_slice(&number.to_ne_bytes());
        }
    }

    engine.write_knob("run", "1")?;
    engine.run_until_full_scans(3)?;

    println!("pages_shared  {}", engine.read("pages_shared")?);
    println!("pages_sharing {}", engine.read("pages_sharing")?);
    assert!(one[..] == two[..], "and both still read what was written");
    Ok(())
}
