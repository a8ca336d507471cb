//! An app whose memory is merged by a running `ksmfs`: start it twice, and look at `ksmfs status`.

use ksm_client::{Client, Config};
use std::error::Error;
use std::time::Duration;

const LEN: usize = 64 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    env_logger::init();
    let client = Client::start(&Config::default())?;
    println!("the daemon: {}", client.status().link);

    // Every page of it is another one, but the same in every process that runs this.
    let mut memory = client.allocate(LEN)?;
    for (number, page) in memory.chunks_mut(4096).enumerate() {
        page.fill(u8::try_from(number % 251)?);
        page[..8].copy_from_slice(&number.to_ne_bytes());
    }

    loop {
        std::thread::sleep(Duration::from_secs(2));
        match client.figures() {
            Ok(figures) => println!(
                "{} of {} pages merged, {} KiB saved",
                figures.merging_pages,
                LEN / 4096,
                figures.profit / 1024
            ),
            Err(error) => println!("{error}"),
        }
    }
}
