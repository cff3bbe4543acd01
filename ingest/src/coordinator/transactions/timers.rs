//! What time does to transactions: those that last too long are aborted, those whose end did not succeed are ended, and
//! ids that nobody uses are forgotten.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Cell, Known, TransactionCoordinator, Turn};
use crate::model::Timestamp;

/// How often transactions are looked through (Kafka's `transaction.abort.timed.out.transaction.cleanup.interval.ms`,
/// which is 10 s there).
const TICK_INTERVAL: Duration = Duration::from_secs(1);

impl TransactionCoordinator {
    /// Looks after transactions until `shutdown` is cancelled; first after those that were being ended when the broker
    /// stopped.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(TICK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => self.tick().await,
            }
        }
    }

    /// Looks through all ids once. Those that are being changed just now are left for the next time.
    pub async fn tick(self: &Arc<Self>) {
        let now = self.clock.now();
        for cell in self.list_cells() {
            if self.is_due(&cell, now)
                && let Some(turn) = cell.try_turn()
            {
                self.look_after(turn, now).await;
            }
        }
    }

    fn is_due(&self, cell: &Cell, now: Timestamp) -> bool {
        match &*cell.known.lock() {
            Known::Nothing => true,
            Known::Forgotten => false,
            Known::Transaction(known) => {
                known.prepared().is_some() || known.has_timed_out(now) || known.has_expired(now, self.expiration_ms())
            }
        }
    }

    async fn look_after(self: &Arc<Self>, turn: Turn, now: Timestamp) {
        let Some(known) = turn.cell.transaction() else {
            // Made for a producer that was refused.
            return self.remove(&turn);
        };
        if known.prepared().is_some() {
            self.finish(turn).await;
        } else if known.has_timed_out(now) {
            tracing::info!(transactional_id = %turn.cell.id, timeout_ms = known.timeout_ms, "transaction aborted: it was open too long");
            // Reported where it failed; the next tick tries again.
            let _ = self.store(turn, known.fence(now)).await;
        } else if known.has_expired(now, self.expiration_ms()) {
            match self.log.append(&turn.cell.id, None, now).await {
                Ok(()) => self.remove(&turn),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(transactional_id = %turn.cell.id, error, "idle transactional id not forgotten yet");
                }
            }
        }
    }

    fn remove(&self, turn: &Turn) {
        let mut cells = self.cells.write();
        *turn.cell.known.lock() = Known::Forgotten;
        cells.remove(&turn.cell.id);
    }

    fn expiration_ms(&self) -> i64 {
        self.config.id_expiration.as_millis()
    }
}
