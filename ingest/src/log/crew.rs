//! A few threads that work off a list side by side, for the thread that has it.
//!
//! For syncs: each waits for the disk, and those that run at the same time share commits of the file system's journal
//! and flushes of the disk's cache. Threads are started when a list is long enough for them, and stay.

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

/// The threads; dropping it ends them.
pub struct Crew<T> {
    shared: Arc<Shared<T>>,
    helpers: Vec<JoinHandle<()>>,
    threads_max: usize,
}

struct Shared<T> {
    job: fn(&T),
    list: Mutex<List<T>>,
    more: Condvar,
    done: Condvar,
}

struct List<T> {
    waiting: Vec<T>,
    /// Taken from the list and not done.
    under_way: usize,
    ending: bool,
}

impl<T: Send + 'static> Crew<T> {
    /// Up to `threads_max` do `job`, the caller of [`Self::work_off`] among them.
    pub fn new(threads_max: usize, job: fn(&T)) -> Self {
        let list = List { waiting: Vec::new(), under_way: 0, ending: false };
        let shared = Shared { job, list: Mutex::new(list), more: Condvar::new(), done: Condvar::new() };
        Self { shared: Arc::new(shared), helpers: Vec::new(), threads_max }
    }

    /// Does the job for each of `items`, and returns when all are done.
    pub fn work_off(&mut self, items: Vec<T>) {
        self.hire(items.len().min(self.threads_max).saturating_sub(1));
        let shared = &self.shared;
        {
            let mut list = shared.list.lock();
            list.waiting = items;
            // No more are woken than can get an item.
            for _ in 1..list.waiting.len().min(self.helpers.len() + 1) {
                shared.more.notify_one();
            }
        }
        while let Some(item) = shared.take() {
            shared.finish(&item);
        }
        let mut list = shared.list.lock();
        while list.under_way > 0 {
            shared.done.wait(&mut list);
        }
    }

    /// Brings the helpers up to `count`, or to as many as the system allows.
    fn hire(&mut self, count: usize) {
        while self.helpers.len() < count {
            let (shared, number) = (self.shared.clone(), self.helpers.len() + 1);
            let started = std::thread::Builder::new().name(format!("log-sync-{number}")).spawn(move || shared.help());
            match started {
                Ok(helper) => self.helpers.push(helper),
                Err(error) => {
                    tracing::warn!(%error, helpers = self.helpers.len(), "no more threads could be started for syncs");
                    self.threads_max = self.helpers.len() + 1;
                    return;
                }
            }
        }
    }
}

impl<T> Shared<T> {
    fn take(&self) -> Option<T> {
        let mut list = self.list.lock();
        let item = list.waiting.pop()?;
        list.under_way += 1;
        Some(item)
    }

    fn finish(&self, item: &T) {
        // Also where the job panics: the others must not wait for it.
        let _done = Done(self);
        (self.job)(item);
    }

    fn help(&self) {
        loop {
            while let Some(item) = self.take() {
                self.finish(&item);
            }
            let mut list = self.list.lock();
            while list.waiting.is_empty() {
                if list.ending {
                    return;
                }
                self.more.wait(&mut list);
            }
        }
    }
}

struct Done<'a, T>(&'a Shared<T>);

impl<T> Drop for Done<'_, T> {
    fn drop(&mut self) {
        let mut list = self.0.list.lock();
        list.under_way -= 1;
        if list.under_way == 0 {
            self.0.done.notify_one();
        }
    }
}

impl<T> Drop for Crew<T> {
    fn drop(&mut self) {
        self.shared.list.lock().ending = true;
        self.shared.more.notify_all();
        for helper in self.helpers.drain(..) {
            if helper.join().is_err() {
                tracing::error!("a thread that syncs had panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_item_is_done_once_before_the_list_is() {
        let mut crew = Crew::new(4, |done: &Arc<AtomicUsize>| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        for count in [0, 1, 2, 3, 100, 1, 1000] {
            let items: Vec<_> = (0..count).map(|_| Arc::new(AtomicUsize::new(0))).collect();
            crew.work_off(items.clone());
            assert!(items.iter().all(|done| done.load(Ordering::Relaxed) == 1));
        }
        assert_eq!(crew.helpers.len(), 3);
    }

    #[test]
    fn items_are_worked_off_side_by_side() {
        // Each waits for three others.
        let mut crew = Crew::new(4, |together: &Arc<Barrier>| {
            together.wait();
        });
        let together = Arc::new(Barrier::new(4));
        crew.work_off(vec![together; 8]);
    }

    #[test]
    fn one_that_panics_leaves_the_others_their_work() {
        let mut crew = Crew::new(2, |(met, panics, done): &(Arc<Barrier>, bool, Arc<AtomicUsize>)| {
            met.wait();
            // Where a helper has it: the caller's own panics are the caller's.
            let is_helper = std::thread::current().name().is_some_and(|name| name.starts_with("log-sync"));
            assert!(!(*panics && is_helper), "as asked");
            done.fetch_add(1, Ordering::Relaxed);
        });
        let (met, done) = (Arc::new(Barrier::new(2)), Arc::new(AtomicUsize::new(0)));
        crew.work_off(vec![(met.clone(), true, done.clone()), (met, true, done.clone())]);
        assert_eq!(done.load(Ordering::Relaxed), 1);
    }
}
