//! Group commit: one thread for the whole broker. It takes the set of partitions that were written to since it looked
//! last, has each one's file synced once, and its high watermark published; every ack that waited for those bytes
//! leaves. While it syncs, the next set gathers: the slower the disk, the larger the group.
//!
//! Files of a group are synced side by side ([`Crew`]), each by `fdatasync`; those of a large group all at once by one
//! `syncfs`, where that is as safe and nobody else's bytes make it slow ([`FileSystem`]; `benches/flush.rs`).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::crew::Crew;
use super::disk::{CHECK_INTERVAL, DiskWatch};
use super::file_system::FileSystem;
use super::partition::Partition;
use crate::metrics::IngestMetrics;

/// Files that are synced at the same time; more gain little.
const SYNC_THREADS: usize = 16;

/// Partitions waiting to be synced. Each is in it at most once, so its size is bounded by theirs.
#[derive(Default)]
pub struct FlushQueue {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    /// Partitions there are.
    pub partitions: AtomicUsize,
}

#[derive(Default)]
struct Waiting {
    now: Vec<Arc<Partition>>,
    /// Partitions whose topic asks for a sync within `flush.ms`. One that was synced meanwhile stays until its time
    /// comes.
    later: Vec<(Instant, Arc<Partition>)>,
    stopping: bool,
}

impl FlushQueue {
    /// Syncs `partition` as soon as possible.
    pub fn push(&self, partition: Arc<Partition>) {
        let mut waiting = self.waiting.lock();
        if !waiting.stopping {
            waiting.now.push(partition);
            self.wake.notify_one();
        }
    }

    /// Syncs `partition` after `delay`.
    pub fn push_later(&self, partition: Arc<Partition>, delay: Duration) {
        let mut waiting = self.waiting.lock();
        if !waiting.stopping {
            waiting.later.push((Instant::now() + delay, partition));
            self.wake.notify_one();
        }
    }

    fn stop(&self) {
        let mut waiting = self.waiting.lock();
        waiting.stopping = true;
        waiting.now.clear();
        waiting.later.clear();
        self.wake.notify_one();
    }

    /// Waits for work and takes all of it. Empty when only time has passed, None when it is time to end.
    fn take(&self, idle_for: Option<Duration>) -> Option<Vec<Arc<Partition>>> {
        let mut waiting = self.waiting.lock();
        let idle_until = idle_for.map(|idle| Instant::now() + idle);
        loop {
            if waiting.stopping {
                return None;
            }
            let now = Instant::now();
            let due: Vec<_> = waiting.later.extract_if(.., |(at, _)| *at <= now).collect();
            due.iter().for_each(|(_, partition)| partition.left_later());
            waiting.now.extend(due.into_iter().map(|(_, partition)| partition));
            if !waiting.now.is_empty() || idle_until.is_some_and(|until| until <= now) {
                return Some(std::mem::take(&mut waiting.now));
            }
            match waiting.later.iter().map(|(at, _)| *at).chain(idle_until).min() {
                Some(until) => {
                    self.wake.wait_until(&mut waiting, until);
                }
                None => self.wake.wait(&mut waiting),
            }
        }
    }
}

/// The thread.
pub struct Flusher {
    queue: Arc<FlushQueue>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Flusher {
    pub fn start(
        queue: Arc<FlushQueue>,
        file_system: Option<FileSystem>,
        disk: Arc<DiskWatch>,
        metrics: Arc<IngestMetrics>,
    ) -> io::Result<Self> {
        let work = queue.clone();
        let run = move || run(&work, file_system, &disk, &metrics);
        let thread = std::thread::Builder::new().name("log-flusher".to_owned()).spawn(run)?;
        Ok(Self { queue, thread: Mutex::new(Some(thread)) })
    }

    /// Ends the thread; what still waits is not synced. Waits for a sync under way.
    pub fn stop(&self) {
        self.queue.stop();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the flusher thread had panicked");
        }
    }
}

fn run(queue: &FlushQueue, mut file_system: Option<FileSystem>, disk: &DiskWatch, metrics: &IngestMetrics) {
    let mut crew = Crew::new(SYNC_THREADS, |partition: &Arc<Partition>| partition.flush());
    loop {
        // A refusing broker gets no writes that would wake this thread, and must notice when there is space again.
        let Some(group) = queue.take(disk.is_low().then_some(CHECK_INTERVAL)) else { return };
        if !group.is_empty() {
            let started = Instant::now();
            if !file_system
                .as_mut()
                .is_some_and(|it| flush_at_once(it, &group, queue.partitions.load(Ordering::Relaxed)))
            {
                crew.work_off(group);
            }
            metrics.flushes.inc();
            metrics.flush_seconds.observe(started.elapsed().as_secs_f64());
        }
        disk.refresh();
    }
}

/// Commits a group by one sync of all. False where that is not the way, or failed; then each has to be flushed.
pub(super) fn flush_at_once(file_system: &mut FileSystem, group: &[Arc<Partition>], partitions: usize) -> bool {
    let device = Some(file_system.device);
    if !file_system.suits(group.len(), partitions) || group.iter().any(|partition| partition.device() != device) {
        return false;
    }
    let ends: Vec<_> = group.iter().map(|partition| partition.begin_flush().1).collect();
    let is_synced = file_system.sync();
    if is_synced {
        group.iter().zip(ends).for_each(|(partition, end)| partition.flushed(end));
    }
    is_synced
}
