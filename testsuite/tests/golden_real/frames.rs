//! What merged pages are mapped to, as the kernel shows it.

use crate::host::Host;
use crate::scenario::pages;

/// In the kernel it is the frame of the page visited second; T19c, where that can be told.
#[test]
fn t19c_a_merged_page_is_a_frame_that_nobody_had_before() {
    let mut host = Host::new(&[]);
    let both = [(); 2].map(|()| host.process_of(1, 7));
    let page = pages(0, 0..1).start;
    let before = both.map(|pid| host.any_frame(pid, page));
    assert_ne!(before[0], before[1]);
    host.start();
    host.steps(1);
    let [first, second] = both.map(|pid| host.frame(pid, page));
    assert_eq!(first, second);
    let merged = first.expect("it is merged");
    assert!(!before.contains(&merged), "{merged:#x} of {before:x?}");
}
