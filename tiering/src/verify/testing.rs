//! Archives to be checked, for the tests of whoever checks them.

use std::sync::Arc;

use thermocline_ingest::model::Offset;

use crate::manifest::{Change, CommitOutcome, DataFile, ManifestHead, ManifestStore};
use crate::pipeline::{StageOptions, Stager};
use crate::split::SplitOptions;
use crate::store::ColdStore;
use crate::testing::{batches, manifest_store, path, some_records, stage_options, undecodable};

/// Records of each file that [`archive`] makes, and of a raw batch.
pub const RECORDS: usize = 20;

/// The objects of a file of [`RECORDS`] records and, if `raw`, a batch of as many that is kept raw, uploaded.
pub async fn upload(store: &ColdStore, base: Offset, records: usize, raw: bool) -> Arc<DataFile> {
    let mut segment = batches(base.0, &some_records(records), 10);
    if raw {
        segment.push(undecodable(base.0 + records as i64, records));
    }
    let source = Box::new(move || Ok(Box::new(segment.clone().into_iter().map(Ok)) as crate::pipeline::Batches));
    let split = Some(SplitOptions { json: false, positions: false, ..SplitOptions::default() });
    let options = StageOptions { split, ..stage_options(64 << 20) };
    let staged = Stager::new(source, Vec::new(), base, options, None).next_file().unwrap().unwrap();
    for (key, bytes) in staged.objects() {
        store.put(key, bytes.clone()).await.unwrap();
    }
    Arc::new(staged.file().clone())
}

pub async fn commit(manifests: &ManifestStore, head: &ManifestHead, change: Change) -> ManifestHead {
    match manifests.commit(head, change).await.unwrap() {
        CommitOutcome::Committed(next) => next,
        CommitOutcome::Superseded(newest) => panic!("superseded by {newest:?}"),
    }
}

/// So many files, one after the other; the first has a raw batch.
pub async fn archive(store: &ColdStore, files: usize) -> ManifestHead {
    let manifests = manifest_store(store.clone(), 1);
    let mut head = manifests.load(&path()).await.unwrap();
    for n in 0..files {
        let file = upload(store, head.manifest().next_offset(), RECORDS, n == 0).await;
        head = commit(&manifests, &head, Change::Append(file)).await;
    }
    head
}
