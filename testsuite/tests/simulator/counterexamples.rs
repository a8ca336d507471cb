//! What random worlds have found, each as the shortest story that still tells it.

use ksm_engine::knobs::KsmFile;
use ksm_engine::order::{Order, Outcome};
use ksm_engine::page::{DomainId, PageRun};
use std::time::Duration;
use testsuite::sim::{Content, Knob, Lie, Op, Page, World};

const PAGE: u64 = 1000;
/// Longer than the engine waits for an answer.
const TOO_LONG: Duration = Duration::from_secs(6);

fn run(len: u64) -> PageRun {
    PageRun { start: PAGE, len }
}

/// A world whose daemon scans everything with each batch.
fn scanning_world() -> World {
    let mut world = World::new(8);
    world.set(Knob::PagesToScan(1000));
    world.set(Knob::SmartScan(false));
    world.set(Knob::Run(1));
    world
}

/// Starts a process whose mergeable pages hold these contents.
fn start(world: &mut World, contents: &[u64]) -> usize {
    let at = world.spawn(DomainId(0));
    world.connect(at);
    for (page, content) in (PAGE..).zip(contents) {
        world.process(at).write(page, Content(*content));
    }
    world.process(at).register(run(contents.len() as u64));
    world.hear(at);
    at
}

fn is_merged(world: &mut World, at: usize, page: u64) -> bool {
    matches!(world.process(at).page(page), Some(Page::Merged { .. }))
}

/// Lets the engine start its next batch.
fn wake(world: &mut World) {
    world.wait(Duration::from_millis(20));
}

fn number(world: &mut World, file: KsmFile) -> u64 {
    let text = world.engine().read(file);
    text.trim_end().parse().expect("a number")
}

#[test]
fn a_digest_that_was_lost_on_its_way_is_asked_for_again() {
    let mut world = scanning_world();
    let a = start(&mut world, &[1]);
    world.settle();
    wake(&mut world);
    world.obey(a, None);
    world.wait(TOO_LONG);
    let b = start(&mut world, &[1]);
    world.scan(5);
    assert!(is_merged(&mut world, a, PAGE) && is_merged(&mut world, b, PAGE));
    world.check();
}

/// The model agents panic when they are told to map what they did not report.
#[test]
fn a_digest_of_former_bytes_is_not_taken_for_that_of_new_ones() {
    let mut world = scanning_world();
    let a = start(&mut world, &[1, 1, 1]);
    world.scan(3);
    world.process(a).write(PAGE, Content(2));
    for _ in 0..2 {
        wake(&mut world);
        world.obey(a, None);
        world.wait(TOO_LONG);
        world.hear(a);
    }
    let b = start(&mut world, &[2]);
    world.scan(5);
    assert!(is_merged(&mut world, a, PAGE) && is_merged(&mut world, b, PAGE));
}

#[test]
fn an_answer_of_the_wrong_kind_does_not_stop_the_scan() {
    let mut world = scanning_world();
    let liar = start(&mut world, &[1]);
    let honest = start(&mut world, &[2, 2]);
    world.obey(liar, Some(Lie::OtherKind));
    world.scan(4);
    assert!(is_merged(&mut world, honest, PAGE));

    let (mut world, liar) = about_to_merge();
    let honest = start(&mut world, &[2, 2]);
    world.obey(liar, Some(Lie::OtherKind));
    world.scan(4);
    world.check();
    assert!(is_merged(&mut world, honest, PAGE));
}

#[test]
fn a_report_that_names_a_page_twice_is_not_believed() {
    let mut world = scanning_world();
    let liar = start(&mut world, &[1]);
    world.obey(liar, Some(Lie::Twice));
    world.hear(liar);
    assert_eq!(world.process(liar).mm(), None, "the daemon has hung up");
}

/// Pages `PAGE` and `PAGE + 1` are equal; the second one's bytes are on their way to a slot.
fn about_to_merge() -> (World, usize) {
    let mut world = scanning_world();
    let a = start(&mut world, &[1, 1]);
    world.settle();
    wake(&mut world);
    world.obey(a, None);
    world.hear(a);
    let donation = world.next_order(a);
    assert!(matches!(donation, Some(Order::Donate { .. })));
    (world, a)
}

#[test]
fn pages_may_be_taken_out_while_they_merge() {
    for taken in [
        run(1),
        run(2),
        PageRun {
            start: PAGE + 1,
            len: 1,
        },
    ] {
        for donated_before in [false, true] {
            let (mut world, a) = about_to_merge();
            if donated_before {
                world.obey(a, None);
                world.hear(a);
            }
            world.unregister(a, taken);
            world.check();
            world.scan(3);
            world.check();
            world.check_settled();
        }
    }
}

/// The partner is mapped last of all, after the end of its process has been passed.
#[test]
fn a_page_may_be_taken_out_while_it_is_mapped() {
    let mut world = scanning_world();
    world.set(Knob::Run(0));
    let a = world.spawn(DomainId(0));
    world.connect(a);
    // More regions than visits are ordered ahead.
    for (content, page) in (0..12).map(|region| (1 + region / 2, PAGE + 2 * region)) {
        world.process(a).write(page, Content(content));
        world.process(a).register(PageRun {
            start: page,
            len: 1,
        });
        world.hear(a);
    }
    world.set(Knob::Run(1));
    world.settle();
    wake(&mut world);
    let mut donated = false;
    while !donated {
        let order = world.next_order(a).expect("the scan goes on");
        donated = matches!(order, Order::Donate { .. });
        world.obey(a, None);
        world.hear(a);
    }
    world.unregister(a, run(1));
    world.settle();
    world.check();
    world.scan(2);
    world.check_settled();
}

/// An arena is held for as long as one page is mapped to it, even if the engine has long moved on.
#[test]
fn a_page_that_cannot_follow_keeps_its_arena() {
    let mut world = World::new(4);
    world.set(Knob::PagesToScan(1000));
    world.set(Knob::SmartScan(false));
    world.set(Knob::Run(1));
    let a = start(&mut world, &[1, 1, 2, 2, 3, 3, 4, 4]);
    world.scan(2);
    let before = world.process(a).page(PAGE);
    for page in 2..8 {
        world.process(a).write(PAGE + page, Content(100 + page));
    }
    let mut refused = 0;
    for _ in 0..20 {
        wake(&mut world);
        while let Some(order) = world.next_order(a) {
            if matches!(order, Order::Remap { .. }) && refused < 3 {
                refused += 1;
                world.process(a).refuse(Outcome::NoMaps);
            }
            world.obey(a, None);
            world.hear(a);
            world.check();
        }
    }
    assert_eq!(refused, 3, "it is asked for again");
    assert_ne!(world.process(a).page(PAGE), before, "at last it follows");
    world.check_settled();
    world.check_reclaimed();
}

#[test]
fn a_process_may_end_while_its_pages_merge() {
    for donated_before in [false, true] {
        let (mut world, a) = about_to_merge();
        let b = start(&mut world, &[1, 1]);
        if donated_before {
            world.obey(a, None);
            world.hear(a);
        }
        world.exit(a);
        world.check();
        world.scan(3);
        world.check_settled();
        assert!(is_merged(&mut world, b - 1, PAGE));
    }
}

#[test]
fn a_report_that_waits_for_its_turn_dies_with_its_process() {
    let mut world = scanning_world();
    world.set(Knob::Run(0));
    let first = start(&mut world, &[1]);
    let second = start(&mut world, &[1]);
    world.set(Knob::Run(1));
    world.obey(second, None);
    world.hear(second);
    world.exit(second);
    // The number of the dead is given to a process of another domain.
    let other = world.spawn(DomainId(1));
    world.connect(other);
    world.obey(first, None);
    world.hear(first);
    world.check();
    world.scan(2);
    world.check_settled();
}

#[test]
fn zero_pages_are_not_counted_where_nothing_is_mergeable() {
    let mut world = scanning_world();
    world.set(Knob::UseZeroPages(true));
    let a = start(&mut world, &[0, 0]);
    world.scan(3);
    assert_eq!(number(&mut world, KsmFile::ZeroPages), 2);
    world.unregister(a, run(2));
    world.hear(a);
    assert_eq!(number(&mut world, KsmFile::ZeroPages), 0);
}

#[test]
fn a_count_of_zero_pages_may_be_absurd() {
    let mut world = scanning_world();
    world.set(Knob::UseZeroPages(true));
    let liar = world.spawn(DomainId(0));
    world.connect(liar);
    world.process(liar).register(run(3));
    world.hear(liar);
    // An empty report that is said twice claims -1 zero pages.
    world.obey(liar, Some(Lie::Twice));
    world.hear(liar);
    assert!(number(&mut world, KsmFile::ZeroPages) <= 3);
    world.scan(2);
}

#[test]
fn a_slot_that_could_not_be_written_belongs_to_nobody() {
    let (mut world, a) = about_to_merge();
    world.play(&Op::StoreFails { times: 1 });
    world.settle();
    assert_eq!(world.engine().outcomes().get(&Outcome::NoMemory), Some(&1));
    world.scan(1);
    assert!(is_merged(&mut world, a, PAGE), "it works the next time");
    world.play(&Op::StoreFails { times: 2 });
    let liar = start(&mut world, &[3, 3]);
    world.scan(1);
    wake(&mut world);
    world.obey(a, None);
    world.hear(a);
    world.obey(liar, Some(Lie::Slots(0, 1)));
    world.settle();
    world.check();
}
