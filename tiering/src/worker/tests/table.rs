//! The crash table of ARCHITECTURE.md, a test for each row that a store has a part in.

use super::super::schedule;
use super::world::{Step, World};
use crate::testing::Fault::{self, After, Before};
use crate::testing::chaos::{DeathPoint, Kind};
use crate::testing::some_records;

/// Records that make several batches, hence several files.
const RECORDS: usize = 60;
const ARCHIVE: Step = Step::Archive { trim: true };
/// Minutes after which what is retired may go.
const RETIRED: Step = Step::Wait(20);

fn produce() -> Step {
    Step::Produce(some_records(RECORDS))
}

fn at(kind: Kind, key: &'static str, passes: usize, fault: Fault) -> DeathPoint {
    DeathPoint { kind, key, passes, fault }
}

async fn lived(steps: impl IntoIterator<Item = Step>) -> World {
    let mut world = World::new(1);
    world.start().await;
    for step in steps {
        world.take(&step).await;
    }
    world
}

/// Goes on until the store dies at `point`, starts again, and finds every acked record.
async fn die(mut world: World, point: DeathPoint, steps: impl IntoIterator<Item = Step>) -> World {
    world.store.die_at(point);
    for step in steps {
        world.take(&step).await;
    }
    assert!(world.store.revive(), "nothing came to {point:?}");
    world.start().await;
    world.check().await;
    world
}

/// All the work that is left can be done, and nothing lies about afterwards.
async fn recovers(world: World) {
    world.attempt(|world| Box::pin(world.tidy())).await;
    world.check().await;
    world.check_nothing_is_left_behind().await;
}

#[tokio::test]
async fn a_file_that_was_only_staged_never_was() {
    let world = die(lived([produce()]).await, at(Kind::Put, "", 0, Before), [ARCHIVE]).await;
    assert_eq!(world.keys("topics/").await.len(), 0);
    recovers(world).await;
}

#[tokio::test]
async fn uploaded_objects_without_a_manifest_are_orphans() {
    let world = die(lived([produce()]).await, at(Kind::Put, "/index/", 0, After), [ARCHIVE]).await;
    assert_eq!((world.keys("/data/").await.len(), world.keys("/index/").await.len()), (1, 1));
    assert_eq!(world.newest().await.manifest().version, 0);
    recovers(world).await;
}

#[tokio::test]
async fn what_was_not_read_back_is_archived_anew() {
    let world = die(lived([produce()]).await, at(Kind::Get, "/data/", 0, Before), [ARCHIVE]).await;
    assert_eq!(world.newest().await.manifest().version, 0);
    recovers(world).await;
}

#[tokio::test]
async fn what_was_not_committed_is_archived_anew() {
    let world = die(lived([produce()]).await, at(Kind::Create, "/manifest/", 0, Before), [ARCHIVE]).await;
    assert_eq!(world.newest().await.manifest().version, 0);
    recovers(world).await;
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_counts() {
    let mut world = die(lived([produce()]).await, at(Kind::Create, "/manifest/", 0, After), [ARCHIVE]).await;
    let landed = world.newest().await.manifest().files.clone();
    assert_eq!(landed.len(), 1);
    world.take(&ARCHIVE).await;
    assert_eq!(world.newest().await.manifest().files[0], landed[0], "not archived twice");
    recovers(world).await;
}

#[tokio::test]
async fn a_segment_goes_on_after_the_last_file_that_was_committed() {
    let mut world = die(lived([produce()]).await, at(Kind::Create, "/manifest/", 2, Before), [ARCHIVE]).await;
    let landed = world.newest().await.manifest().files.clone();
    assert_eq!(landed.len(), 2);
    world.take(&ARCHIVE).await;
    let files = world.newest().await.manifest().files.clone();
    assert_eq!((files[0].clone(), files[1].clone()), (landed[0].clone(), landed[1].clone()));
    assert_eq!(world.keys("/data/").await.len(), files.len() + 1, "the third was uploaded twice");
    recovers(world).await;
}

#[tokio::test]
async fn a_segment_that_is_archived_in_part_is_held_once() {
    let world = die(lived([produce()]).await, at(Kind::Create, "/manifest/", 2, Before), [ARCHIVE]).await;
    let landed = world.newest().await.manifest().files.clone();
    assert_eq!(landed.len(), 2);
    world.partition().seal().unwrap();
    let held = schedule::holdings(&world.archive());
    assert!(held.pieces.iter().zip(landed.iter()).all(|(piece, file)| piece.log_bytes == file.log_bytes));
    let pieces: u64 = held.pieces.iter().map(|piece| piece.log_bytes).sum();
    assert_eq!(pieces + held.active_bytes, world.partition().hot_bytes(), "nothing was trimmed, so the log has it all");
    recovers(world).await;
}

#[tokio::test]
async fn a_copy_that_was_not_trimmed_stays_a_little_longer() {
    let mut world = lived([produce(), Step::Archive { trim: false }, Step::Restart]).await;
    world.check().await;
    assert_eq!(world.partition().local_start_offset(), world.partition().log_start_offset());
    world.take(&ARCHIVE).await;
    assert_eq!(world.partition().local_start_offset(), world.partition().high_watermark());
    recovers(world).await;
}

#[tokio::test]
async fn deleted_records_are_gone_though_the_manifest_still_names_them() {
    let world = lived([produce(), ARCHIVE, Step::DeleteRecords(50)]).await;
    let files = world.newest().await.manifest().files.len();
    let mut world = die(world, at(Kind::Create, "/manifest/", 0, Before), [Step::Expire]).await;
    assert_eq!(world.newest().await.manifest().files.len(), files);
    world.take(&Step::Expire).await;
    assert!(world.newest().await.manifest().files.len() < files);
    recovers(world).await;
}

#[tokio::test]
async fn what_was_dropped_is_deleted_when_it_is_time() {
    let world = lived([produce(), ARCHIVE, Step::DeleteRecords(50)]).await;
    let objects = world.keys("/data/").await.len();
    let mut world = die(world, at(Kind::Delete, "", 0, Before), [Step::Expire, RETIRED, Step::Expire]).await;
    assert_eq!(world.keys("/data/").await.len(), objects);
    assert!(!world.newest().await.retired().is_empty());
    world.take(&Step::Expire).await;
    assert!(world.keys("/data/").await.len() < objects);
    recovers(world).await;
}

#[tokio::test]
async fn what_was_deleted_and_is_still_listed_is_deleted_again() {
    for point in [at(Kind::Delete, "", 1, After), at(Kind::Create, "/manifest/", 1, Before)] {
        let world = lived([produce(), ARCHIVE, Step::DeleteRecords(50)]).await;
        let mut world = die(world, point, [Step::Expire, RETIRED, Step::Expire]).await;
        assert!(!world.newest().await.retired().is_empty());
        world.take(&Step::Expire).await;
        assert!(world.newest().await.retired().is_empty());
        recovers(world).await;
    }
}

/// Files of one batch each, all of which are worth merging.
async fn small_files() -> (World, usize) {
    let world = lived([produce(), produce(), produce(), produce(), ARCHIVE]).await;
    let files = world.newest().await.manifest().files.len();
    (world, files)
}

#[tokio::test]
async fn a_merge_that_was_not_committed_never_was() {
    for point in [at(Kind::Get, "/data/", 2, Before), at(Kind::Create, "/manifest/", 0, Before)] {
        let (world, files) = small_files().await;
        let world = die(world, point, [Step::Merge]).await;
        assert_eq!(world.newest().await.manifest().files.len(), files);
        recovers(world).await;
    }
}

#[tokio::test]
async fn a_merge_whose_answer_was_lost_counts() {
    let (world, files) = small_files().await;
    let objects = world.keys("/data/").await.len();
    let mut world = die(world, at(Kind::Create, "/manifest/", 0, After), [Step::Merge]).await;
    assert!(world.newest().await.manifest().files.len() < files);
    assert_eq!(world.keys("/data/").await.len(), objects + 1, "readers may still be at the inputs");
    world.take(&RETIRED).await;
    world.take(&Step::Expire).await;
    assert_eq!(world.keys("/data/").await.len(), world.newest().await.manifest().files.len());
    recovers(world).await;
}

/// Files that are indexed otherwise than the topic asks for by now.
async fn outdated_files() -> World {
    lived([produce(), produce(), ARCHIVE, Step::Alter(1)]).await
}

#[tokio::test]
async fn a_split_that_was_not_committed_never_was() {
    for point in [
        at(Kind::Get, "/data/", 0, Before),
        at(Kind::Put, "/index/", 0, Before),
        at(Kind::Put, "/index/", 0, After),
        at(Kind::Get, "/index/", 0, Before),
        at(Kind::Create, "/manifest/", 0, Before),
    ] {
        let world = outdated_files().await;
        let before = world.newest().await;
        let mut world = die(world, point, [Step::Reindex]).await;
        assert_eq!(world.newest().await, before, "{point:?}");
        world.take(&Step::Reindex).await;
        assert_ne!(world.newest().await, before);
        recovers(world).await;
    }
}

#[tokio::test]
async fn a_split_whose_commit_lost_its_answer_counts() {
    let world = outdated_files().await;
    let (splits, before) = (world.keys("/index/").await.len(), world.newest().await);
    let mut world = die(world, at(Kind::Create, "/manifest/", 0, After), [Step::Reindex]).await;
    let files = world.newest().await.manifest().files.clone();
    assert_ne!(files[files.len() - 1].split, before.manifest().files[files.len() - 1].split, "the newest comes first");
    assert_eq!(world.keys("/index/").await.len(), splits + 1, "readers may still be at the old one");
    world.take(&RETIRED).await;
    world.take(&Step::Expire).await;
    assert_eq!(world.keys("/index/").await.len(), splits);
    recovers(world).await;
}

#[tokio::test]
async fn a_topic_that_is_half_indexed_again_goes_on_after_a_restart() {
    let mut world = outdated_files().await;
    let files = world.newest().await.manifest().files.len();
    world.take(&Step::Reindex).await;
    world.take(&Step::Restart).await;
    world.check().await;
    let left = world.broker().tiering().reindexing(world.partition());
    assert_eq!((left.files, left.failed_files, left.enabled), (files - 1, 0, true));
    // The setting changes again: what was done is as outdated as what was not.
    world.take(&Step::Alter(2)).await;
    assert_eq!(world.broker().tiering().reindexing(world.partition()).files, files);
    recovers(world).await;
}

#[tokio::test]
async fn orphans_that_are_left_go_with_the_next_sweep() {
    let world = die(lived([produce()]).await, at(Kind::Put, "/index/", 0, After), [ARCHIVE]).await;
    let long = Step::Wait(3 * 24 * 60);
    let world = die(world, at(Kind::Delete, "", 0, After), [long, Step::Sweep]).await;
    assert_eq!(world.keys("/data/").await.len() + world.keys("/index/").await.len(), 1);
    recovers(world).await;
}
