//! How far groups are behind: for each partition with a committed offset, what lies between it and the high watermark.
//! Told over HTTP, and as metrics that are made when they are asked for.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};

use super::GroupCoordinator;
use super::offsets::CommittedOffset;
use crate::metrics::{GROUP_LAG_RECORDS, GROUP_LAG_SERIES_LEFT_OUT};
use crate::model::{Offset, PartitionId, TopicName, TopicPartition};

/// Most series of the lag metric; further partitions are counted and left out, those of the last groups by name.
pub const SERIES_MAX: usize = 10_000;

/// A committed offset held against its partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionLag {
    pub at: TopicPartition,
    pub committed: CommittedOffset,
    /// None where the partition is gone and its offsets are about to go.
    pub high_watermark: Option<Offset>,
}

impl PartitionLag {
    /// Records between the committed offset and the high watermark.
    pub fn records(&self) -> Option<u64> {
        self.high_watermark.map(|end| self.committed.offset.distance_to(end))
    }
}

impl GroupCoordinator {
    /// How far a group is behind, in topic and partition order; None where it is not known.
    pub fn lag(&self, group_id: &str) -> Option<Vec<PartitionLag>> {
        let committed = self.with_committed(group_id, |offsets| {
            let of = |(topic, partition, committed): (&TopicName, PartitionId, &CommittedOffset)| {
                (TopicPartition::new(topic.clone(), partition), committed.clone())
            };
            offsets.iter().map(of).collect::<Vec<_>>()
        });
        let lag = |(at, committed): (TopicPartition, CommittedOffset)| {
            let topic = self.topics.get(at.topic.as_str());
            let partition = topic.as_ref().and_then(|topic| topic.partition(at.partition));
            PartitionLag { high_watermark: partition.map(|partition| partition.high_watermark()), at, committed }
        };
        Some(committed?.into_iter().map(lag).collect())
    }

    /// Makes the lag of every group a metric.
    pub fn register_lag(self: &Arc<Self>, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(LagCollector::new(self.clone())?))
    }
}

struct LagCollector {
    groups: Arc<GroupCoordinator>,
    /// Filled anew each time, by one at a time.
    gauges: Mutex<Gauges>,
    descs: Vec<Desc>,
}

struct Gauges {
    lag: IntGaugeVec,
    left_out: IntGauge,
}

impl LagCollector {
    fn new(groups: Arc<GroupCoordinator>) -> Result<Self, prometheus::Error> {
        let about = "records between a group's committed offset and the high watermark";
        let lag = IntGaugeVec::new(Opts::new(GROUP_LAG_RECORDS, about), &["group", "topic", "partition"])?;
        let about = "partitions of groups that are missing in the lag metric because there are too many";
        let left_out = IntGauge::new(GROUP_LAG_SERIES_LEFT_OUT, about)?;
        let descs = lag.desc().into_iter().chain(left_out.desc()).cloned().collect();
        Ok(Self { groups, gauges: Mutex::new(Gauges { lag, left_out }), descs })
    }
}

impl Collector for LagCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let gauges = self.gauges.lock();
        gauges.lag.reset();
        let (mut series, mut left_out) = (0, 0);
        for group in self.groups.list() {
            for partition in self.groups.lag(&group.id).unwrap_or_default() {
                let Some(records) = partition.records() else { continue };
                if series == SERIES_MAX {
                    left_out += 1;
                    continue;
                }
                series += 1;
                let TopicPartition { topic, partition } = &partition.at;
                let labels = [group.id.as_str(), topic.as_str(), &partition.to_string()];
                gauges.lag.with_label_values(&labels).set(i64::try_from(records).unwrap_or(i64::MAX));
            }
        }
        gauges.left_out.set(left_out);
        gauges.lag.collect().into_iter().chain(gauges.left_out.collect()).collect()
    }
}
