//! A store that misbehaves at random, from a seed, and that can die.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::Fault;

/// Longest delay, in turns of the scheduler: other work runs in between.
const DELAY_TURNS_MAX: u32 = 20;

/// Errors before and after the effect (the latter are lost answers), delays, torn reads; and death, after which
/// every operation fails until it is revived.
#[derive(Clone, Debug)]
pub struct ChaosStore {
    pub inner: Arc<InMemory>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    random: StdRng,
    /// of a thousand operations
    faulty: u32,
    dies_after: Option<usize>,
    dies_at: Option<DeathPoint>,
    dead: bool,
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Put,
    Create,
    Get,
    List,
    Delete,
}

/// The first operation of a kind on a key that contains a text, once so many of them came through.
#[derive(Clone, Copy, Debug)]
pub struct DeathPoint {
    pub kind: Kind,
    pub key: &'static str,
    pub passes: usize,
    pub fault: Fault,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Well,
    FailsBefore,
    FailsAfter,
    Torn,
    Late(u32),
}

impl ChaosStore {
    pub fn new(seed: u64) -> Self {
        let state =
            State { random: StdRng::seed_from_u64(seed), faulty: 0, dies_after: None, dies_at: None, dead: false };
        Self { inner: Arc::new(InMemory::new()), state: Arc::new(Mutex::new(state)) }
    }

    /// From now on so many of a thousand operations go wrong.
    pub fn misbehave(&self, faulty: u32) {
        self.state.lock().faulty = faulty;
    }

    /// So many more operations come through; the one after them is cut off, and none follows.
    pub fn die_after(&self, operations: usize) {
        self.state.lock().dies_after = Some(operations);
    }

    /// The operation at this point is cut off, and none follows.
    pub fn die_at(&self, point: DeathPoint) {
        self.state.lock().dies_at = Some(point);
    }

    /// Alive and well again. Says whether it had died.
    pub fn revive(&self) -> bool {
        let mut state = self.state.lock();
        state.dies_after = None;
        state.dies_at = None;
        state.faulty = 0;
        std::mem::take(&mut state.dead)
    }

    fn fate(&self, kind: Kind, key: &str) -> Fate {
        let mut state = self.state.lock();
        if state.dead {
            return Fate::FailsBefore;
        }
        match &mut state.dies_at {
            Some(point) if point.kind == kind && key.contains(point.key) => match point.passes.checked_sub(1) {
                Some(left) => point.passes = left,
                None => {
                    let fault = point.fault;
                    state.dead = true;
                    return if fault == Fault::Before { Fate::FailsBefore } else { Fate::FailsAfter };
                }
            },
            _ => {}
        }
        match &mut state.dies_after {
            Some(0) => {
                state.dead = true;
                return if state.random.random() { Fate::FailsBefore } else { Fate::FailsAfter };
            }
            Some(left) => *left -= 1,
            None => {}
        }
        if state.random.random_range(0..1000) >= state.faulty {
            return Fate::Well;
        }
        match state.random.random_range(0..4) {
            0 => Fate::FailsBefore,
            1 => Fate::FailsAfter,
            2 => Fate::Torn,
            _ => Fate::Late(state.random.random_range(1..=DELAY_TURNS_MAX)),
        }
    }

    async fn run<T>(&self, kind: Kind, key: &str, operation: impl Future<Output = Result<T>>) -> Result<T> {
        meet(self.fate(kind, key), operation).await
    }
}

async fn meet<T>(fate: Fate, operation: impl Future<Output = Result<T>>) -> Result<T> {
    match fate {
        Fate::Well | Fate::Torn => operation.await,
        Fate::FailsBefore => Err(failed("before its effect")),
        Fate::FailsAfter => {
            let _ = operation.await;
            Err(failed("after its effect"))
        }
        Fate::Late(turns) => {
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            operation.await
        }
    }
}

fn failed(when: &str) -> object_store::Error {
    object_store::Error::Generic { store: "ChaosStore", source: format!("failed {when}").into() }
}

/// The first half of the bytes, then the connection breaks.
async fn tear(whole: GetResult) -> Result<GetResult> {
    let (meta, range, attributes) = (whole.meta.clone(), whole.range.clone(), whole.attributes.clone());
    let bytes = whole.bytes().await?;
    let half: Bytes = bytes.slice(..bytes.len() / 2);
    let torn = futures::stream::iter([Ok(half), Err(failed("in the middle of a body"))]).boxed();
    Ok(GetResult { payload: GetResultPayload::Stream(torn), meta, range, attributes })
}

impl fmt::Display for ChaosStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChaosStore")
    }
}

#[async_trait]
impl ObjectStore for ChaosStore {
    async fn put_opts(&self, location: &ObjectPath, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let kind = if opts.mode == PutMode::Create { Kind::Create } else { Kind::Put };
        self.run(kind, location.as_ref(), self.inner.put_opts(location, payload, opts)).await
    }
    async fn put_multipart_opts(
        &self,
        location: &ObjectPath,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.run(Kind::Put, location.as_ref(), self.inner.put_multipart_opts(location, opts)).await
    }
    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        match self.fate(Kind::Get, location.as_ref()) {
            Fate::Torn => tear(self.inner.get_opts(location, options).await?).await,
            fate => meet(fate, self.inner.get_opts(location, options)).await,
        }
    }
    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<ObjectPath>>,
    ) -> BoxStream<'static, Result<ObjectPath>> {
        let store = self.clone();
        let delete = move |location: Result<ObjectPath>| {
            let store = store.clone();
            async move {
                let location = location?;
                let one = futures::stream::iter([Ok(location.clone())]).boxed();
                let deleted = store.inner.delete_stream(one).try_collect::<Vec<_>>();
                store.run(Kind::Delete, location.as_ref(), deleted).await?;
                Ok(location)
            }
        };
        locations.then(delete).boxed()
    }
    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            let key = prefix.as_ref().map_or("", AsRef::as_ref);
            let all = store.inner.list(prefix.as_ref()).try_collect::<Vec<_>>();
            store.run(Kind::List, key, all).await.map(|all| futures::stream::iter(all.into_iter().map(Ok)))
        };
        futures::stream::once(listed).try_flatten().boxed()
    }
    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> Result<ListResult> {
        let key = prefix.map_or("", AsRef::as_ref);
        self.run(Kind::List, key, self.inner.list_with_delimiter(prefix)).await
    }
    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
