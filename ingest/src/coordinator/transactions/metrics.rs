//! What there is of transactions, as metrics that are made when they are asked for. A transaction that stays open keeps
//! readers of committed data where it began, and its partitions from being archived: it is the first thing to look for.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, IntGauge, Registry};

use super::{Known, TransactionCoordinator};
use crate::metrics::{OLDEST_TRANSACTION_SECONDS, OPEN_TRANSACTIONS, TRANSACTIONAL_IDS};

struct TransactionCollector {
    transactions: Arc<TransactionCoordinator>,
    ids: IntGauge,
    open: IntGauge,
    oldest: Gauge,
}

impl TransactionCoordinator {
    /// Makes the transactions a metric.
    pub fn register(self: &Arc<Self>, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(TransactionCollector {
            transactions: self.clone(),
            ids: IntGauge::new(TRANSACTIONAL_IDS, "transactional ids that are known")?,
            open: IntGauge::new(OPEN_TRANSACTIONS, "transactions that are under way or being ended")?,
            oldest: Gauge::new(OLDEST_TRANSACTION_SECONDS, "age of the oldest open transaction, 0 without one")?,
        }))
    }
}

impl Collector for TransactionCollector {
    fn desc(&self) -> Vec<&Desc> {
        [self.ids.desc(), self.open.desc(), self.oldest.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (mut ids, mut open, mut oldest) = (0, 0, None);
        for cell in self.transactions.list_cells() {
            let Known::Transaction(known) = &*cell.known.lock() else { continue };
            ids += 1;
            if let Some(started) = known.started {
                open += 1;
                oldest = Some(oldest.map_or(started, |oldest| started.min(oldest)));
            }
        }
        let now = self.transactions.now();
        let age_ms = oldest.map_or(0, |started| now.0.saturating_sub(started.0).max(0));
        self.ids.set(ids);
        self.open.set(open);
        self.oldest.set(age_ms as f64 / 1000.0);
        [self.ids.collect(), self.open.collect(), self.oldest.collect()].concat()
    }
}
