//! The long-running tasks of a broker, each watched.
//!
//! Invariants:
//! - A task ends only after it was told to. One that returns, fails or panics before takes all others down with it:
//!   there is no broker that runs without its archive, its index or a listener.
//! - The first failure is kept; it is what the shutdown reports.
//! - Dropping the supervisor tells every task to stop.

use std::future::Future;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::task::{AbortHandle, JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

/// A task that ended without being told to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {task} stopped unexpectedly: {reason}; the broker shuts down")]
pub struct TaskFailed {
    pub task: &'static str,
    pub reason: String,
}

pub(crate) struct Supervisor {
    tasks: Vec<Task>,
    /// Parent of every task's token; cancelled by the first failure.
    all: CancellationToken,
    failure: Arc<OnceLock<TaskFailed>>,
}

struct Task {
    name: &'static str,
    stop: CancellationToken,
    body: AbortHandle,
    watcher: JoinHandle<()>,
}

impl Supervisor {
    pub(crate) fn new() -> Self {
        Self { tasks: Vec::new(), all: CancellationToken::new(), failure: Arc::new(OnceLock::new()) }
    }

    /// Starts a task. `body` gets the token that will tell it to stop.
    pub(crate) fn spawn<F>(&mut self, name: &'static str, body: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let stop = self.all.child_token();
        let body = tokio::spawn(body(stop.clone()));
        let abort = body.abort_handle();
        let watcher = tokio::spawn(watch(name, body, stop.clone(), self.all.clone(), self.failure.clone()));
        self.tasks.push(Task { name, stop, body: abort, watcher });
    }

    /// Resolves when a task has failed; by then every task has been told to stop.
    pub(crate) async fn failed(&self) {
        self.all.cancelled().await;
    }

    /// The first failure, if there was one.
    pub(crate) fn failure(&self) -> Option<TaskFailed> {
        self.failure.get().cloned()
    }

    /// Tells the named tasks to stop and waits for them together; those that have not ended after `limit` are cut off.
    pub(crate) async fn stop(&mut self, names: &[&str], limit: Duration) {
        let stopping: Vec<Task> = self.tasks.extract_if(.., |task| names.contains(&task.name)).collect();
        for task in &stopping {
            task.stop.cancel();
        }
        let deadline = tokio::time::Instant::now() + limit;
        for mut task in stopping {
            if tokio::time::timeout_at(deadline, &mut task.watcher).await.is_err() {
                tracing::warn!(task = task.name, ?limit, "did not stop in time and is cut off");
                task.body.abort();
                let _ = task.watcher.await;
            }
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.stop.cancel();
        }
    }
}

/// Waits for a task and treats an end that nobody asked for as the end of the broker.
async fn watch(
    name: &'static str,
    body: JoinHandle<io::Result<()>>,
    stop: CancellationToken,
    all: CancellationToken,
    failure: Arc<OnceLock<TaskFailed>>,
) {
    let outcome = body.await;
    let reason = match outcome {
        Ok(Ok(())) if stop.is_cancelled() => return,
        Ok(Ok(())) => "it returned".to_owned(),
        Ok(Err(e)) => e.to_string(),
        Err(e) if e.is_cancelled() && stop.is_cancelled() => return,
        Err(e) => describe(e),
    };
    let failed = TaskFailed { task: name, reason };
    tracing::error!(task = name, reason = failed.reason, "task failed");
    let _ = failure.set(failed);
    all.cancel();
}

fn describe(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            format!("it panicked: {}", text.unwrap_or_else(|| "no message".to_owned()))
        }
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    async fn until_stopped(stop: CancellationToken) -> io::Result<()> {
        stop.cancelled().await;
        Ok(())
    }

    #[tokio::test]
    async fn tasks_that_are_told_to_stop_are_no_failure() {
        let mut supervisor = Supervisor::new();
        supervisor.spawn("one", until_stopped);
        supervisor.spawn("two", until_stopped);
        supervisor.stop(&["one"], LIMIT).await;
        supervisor.stop(&["two"], LIMIT).await;
        assert_eq!(supervisor.failure(), None);
        assert!(!supervisor.all.is_cancelled());
    }

    #[tokio::test]
    async fn one_end_that_nobody_asked_for_stops_all() {
        type Body = fn() -> io::Result<()>;
        let cases: [(Body, &str); 3] = [
            (|| Ok(()), "it returned"),
            (|| Err(io::Error::other("disk on fire")), "disk on fire"),
            (|| panic!("lost the plot"), "it panicked: lost the plot"),
        ];
        for (body, reason) in cases {
            let mut supervisor = Supervisor::new();
            supervisor.spawn("bystander", until_stopped);
            supervisor.spawn("culprit", move |_| async move { body() });
            supervisor.failed().await;
            supervisor.stop(&["bystander", "culprit"], LIMIT).await;
            assert_eq!(supervisor.failure(), Some(TaskFailed { task: "culprit", reason: reason.to_owned() }));
        }
    }

    #[tokio::test]
    async fn a_task_that_does_not_listen_is_cut_off() {
        let mut supervisor = Supervisor::new();
        supervisor.spawn("deaf", |_| std::future::pending());
        supervisor.stop(&["deaf"], Duration::ZERO).await;
        assert_eq!(supervisor.failure(), None);
        assert!(supervisor.tasks.is_empty());
    }
}
