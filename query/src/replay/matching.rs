//! A replay of the messages that match a query, as a stream of bytes: a chunk for each read that found some.

use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use thermocline_ingest::topics::Topic;
use thermocline_tiering::reader::TieredReader;
use thermocline_tiering::worker::Tiering;

use super::rows::Rows;
use super::selection::{Filter, Selected, Selection, Wanted};
use super::{Format, ReplayError, ReplayRequest, chosen, offset_range};
use crate::message::of_owned;

struct Matching {
    selection: Selection,
    /// None after the end.
    rows: Option<Rows>,
}

/// Starts a replay of what matches; as [`super::replay`] otherwise, with the same ends. What is not indexed yet when it
/// is reached is waited for.
pub fn replay_matching(
    reader: Arc<TieredReader>,
    tiering: Arc<Tiering>,
    topic: &Topic,
    request: &ReplayRequest,
    filter: Filter,
    format: Format,
) -> Result<impl Stream<Item = Result<Bytes, ReplayError>> + Send + use<>, ReplayError> {
    let partitions = chosen(topic, request.partition)?.iter();
    let ranges =
        partitions.map(|partition| Ok::<_, ReplayError>((partition.clone(), offset_range(partition, request)?)));
    let wanted = Wanted {
        ranges: ranges.collect::<Result<_, _>>()?,
        from: request.from,
        to: request.to,
        limit: request.limit.unwrap_or(u64::MAX),
        filter,
        count_only: false,
    };
    let matching = Matching { selection: Selection::new(reader, tiering, wanted), rows: Some(Rows::new(format)?) };
    Ok(futures::stream::try_unfold(matching, |mut matching| async move {
        Ok(matching.next_chunk().await?.map(|chunk| (chunk, matching)))
    }))
}

impl Matching {
    async fn next_chunk(&mut self) -> Result<Option<Bytes>, ReplayError> {
        while let Some(rows) = &mut self.rows {
            let Some(selected) = self.selection.next().await? else {
                let rest = self.rows.take().map(Rows::finish).transpose()?;
                return Ok(rest.filter(|chunk| !chunk.is_empty()));
            };
            let Selected { partition, records, .. } = selected;
            let name = partition.topic_partition();
            for record in &records {
                rows.push(of_owned(name.topic.as_str(), name.partition, record), record.timestamp_type)?;
            }
            if rows.len_bytes() > 0 {
                return Ok(Some(rows.take()?));
            }
        }
        Ok(None)
    }
}
