//! An object of batches that could not be decoded: what can be checked without decoding them.

use thermocline_ingest::record::{BatchHeader, verify_crc};

use super::{Fault, content};
use crate::manifest::{DataFile, RawBatches};

/// Whether every batch is where the manifest says, whole, with its offsets and times, and nothing else is there.
pub(super) fn check(file: &DataFile, raw: &RawBatches, bytes: &[u8]) -> Result<(), Fault> {
    let mut end = 0;
    for batch in &raw.batches {
        let at = |what| Fault::Undecodable { reason: format!("the batch of offset {}: {what}", batch.base_offset) };
        let range = usize::try_from(batch.position).ok().zip(usize::try_from(batch.size_bytes).ok());
        let found = range.and_then(|(start, len)| bytes.get(start..start.checked_add(len)?));
        let found = found.ok_or_else(|| at("it lies outside the object".to_owned()))?;
        verify_crc(found).map_err(|error| at(error.to_string()))?;
        let header = BatchHeader::read(found).map_err(|error| at(error.to_string()))?;
        if (header.base_offset, header.last_offset()) != (batch.base_offset, batch.last_offset) {
            let expected = format!("{} to {}", batch.base_offset, batch.last_offset);
            return Err(content("offsets", &expected, &format!("{} to {}", header.base_offset, header.last_offset())));
        }
        let times = file.min_timestamp..=file.max_timestamp;
        if let Some(found) =
            [header.base_timestamp, header.max_timestamp].into_iter().find(|time| !times.contains(time))
        {
            let expected = format!("{} to {}", file.min_timestamp, file.max_timestamp);
            return Err(content("timestamp, in milliseconds,", &expected, &found));
        }
        end = batch.position.saturating_add(batch.size_bytes);
    }
    if end != bytes.len() as u64 {
        return Err(content("end of the last batch, as a position,", &end, &bytes.len()));
    }
    Ok(())
}
