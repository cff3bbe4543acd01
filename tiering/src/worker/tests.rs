//! The life of a partition under a store that misbehaves and a process that dies at any operation, against a model.
//!
//! A real hot log in a temporary folder, the real worker, janitor and reader, a store that gives errors before and
//! after their effect, delays and torn reads. A death cuts one operation off, lets none follow, and is followed by a
//! start on what disk and store hold; what the process had in memory is gone.
//!
//! Checked after every step that can change something:
//! 1. every acked record from the log start on is read exactly once, in order, from hot or cold;
//! 2. what the newest manifest names is in the store, byte for byte, whole files also by their content, and splits are
//!    made as it says;
//! 3. nothing that it names was deleted.

mod retention;
mod table;
mod world;

use proptest::prelude::*;

use super::*;
use crate::testing::{any_record, some_records};
use world::{Step, World};

/// How a step goes wrong.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    None,
    /// of a thousand operations
    Faults(u32),
    /// after so many operations; then everything starts again
    Death(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let records = prop::collection::vec(any_record(), 1..120);
    prop_oneof![
        4 => records.prop_map(Step::Produce),
        1 => (1..5_usize).prop_map(Step::ProduceUndecodable),
        4 => any::<bool>().prop_map(|trim| Step::Archive { trim }),
        2 => Just(Step::ArchiveOne),
        1 => (0..100_i64).prop_map(Step::DeleteRecords),
        3 => Just(Step::Expire),
        2 => Just(Step::Sweep),
        4 => Just(Step::Merge),
        2 => (0..world::SETTINGS.len()).prop_map(Step::Alter),
        4 => Just(Step::Reindex),
        2 => (1..90_i64).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ]
}

fn trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        2 => Just(Trouble::None),
        2 => (10..300_u32).prop_map(Trouble::Faults),
        4 => (0..40_usize).prop_map(Trouble::Death),
    ]
}

async fn live(mut world: World, steps: Vec<(Step, Trouble)>) {
    world.start().await;
    for (step, trouble) in steps {
        match trouble {
            // A start needs the store.
            _ if matches!(step, Step::Restart) => {}
            Trouble::None => {}
            Trouble::Faults(faulty) => world.store.misbehave(faulty),
            Trouble::Death(operations) => world.store.die_after(operations),
        }
        world.take(&step).await;
        if world.store.revive() {
            world.start().await;
        }
        world.check().await;
    }
    // In the end everything gets where it belongs, and nothing else is left.
    world.attempt(|world| Box::pin(world.tidy())).await;
    world.check().await;
    world.check_nothing_is_left_behind().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_happens_every_acked_record_is_read_once(
        seed in any::<u64>(), steps in prop::collection::vec((step(), trouble()), 1..24),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(live(World::new(seed), steps));
    }
}

/// One plain life, cut off at each of its operations in turn.
#[test]
fn a_death_at_any_operation_is_survived() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let records = |count| Step::Produce(some_records(count));
    for operations in 0.. {
        let died = runtime.block_on(async {
            let mut world = World::new(operations as u64);
            world.start().await;
            world.take(&records(50)).await;
            world.take(&Step::ProduceUndecodable(3)).await;
            world.take(&Step::Archive { trim: true }).await;
            world.take(&records(50)).await;
            world.take(&Step::DeleteRecords(20)).await;
            world.store.die_after(operations);
            for step in [Step::Archive { trim: true }, Step::Expire, Step::Wait(20), Step::Expire, Step::Sweep] {
                world.take(&step).await;
            }
            let died = world.store.revive();
            world.start().await;
            world.check().await;
            world.attempt(|world| Box::pin(world.tidy())).await;
            world.check().await;
            world.check_nothing_is_left_behind().await;
            died
        });
        if !died {
            assert!(operations > 30, "only {operations} operations");
            break;
        }
    }
}

/// The broker spawns these; a future that is not `Send` would be found only there.
#[test]
fn background_work_and_requests_can_be_spawned() {
    fn assert_send<T: Send>(_: &T) {}
    let _ = |tiering: Arc<Tiering>, topic: Arc<Topic>, shutdown| {
        assert_send(&tiering.archive_now(&topic, true));
        assert_send(&tiering.clone().run(shutdown));
    };
}
