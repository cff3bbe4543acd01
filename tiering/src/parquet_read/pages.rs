//! Where the pages of a row group lie, so that what reading some of its rows costs is known before anything is read.

use std::ops::Range;

use parquet::arrow::ProjectionMask;
use parquet::file::metadata::ColumnChunkMetaData;

use super::ColdFile;
use crate::columns::RECORD_COLUMNS;

impl ColdFile {
    /// Rows of a row group, counted from the start of the file.
    pub fn rows_of(&self, group: usize) -> Range<u64> {
        match (self.row_starts.get(group), self.row_starts.get(group + 1)) {
            (Some(start), Some(end)) => *start..*end,
            _ => 0..0,
        }
    }

    /// Bytes of a row group in the store, and decoded.
    pub fn row_group_bytes(&self, group: usize) -> (u64, u64) {
        let Some(row_group) = self.metadata.metadata().row_groups().get(group) else { return (0, 0) };
        let stored = row_group.columns().iter().map(|column| column.byte_range().1).sum();
        (stored, u64::try_from(row_group.total_byte_size()).unwrap_or(0))
    }

    /// The bytes of every page, dictionaries included, that the record columns need for `rows` (ascending, counted from
    /// the start of the file, all in `group`). Of a column without a page index it is the whole chunk.
    pub fn pages_of(&self, group: usize, rows: &[u64]) -> Vec<Range<u64>> {
        let metadata = self.metadata.metadata();
        let Some(row_group) = metadata.row_groups().get(group) else { return Vec::new() };
        let first = self.rows_of(group).start;
        let mask = ProjectionMask::columns(self.metadata.parquet_schema(), RECORD_COLUMNS);
        let mut pages = Vec::new();
        for (leaf, column) in row_group.columns().iter().enumerate().filter(|(leaf, _)| mask.leaf_included(*leaf)) {
            let index = metadata.offset_index().and_then(|index| index.get(group)?.get(leaf));
            let Some(locations) = index.map(|index| index.page_locations()).filter(|pages| !pages.is_empty()) else {
                pages.push(chunk_range(column));
                continue;
            };
            let chunk = chunk_range(column);
            let first_page = locations.first().map_or(chunk.start, |page| page.offset.cast_unsigned());
            if chunk.start < first_page {
                pages.push(chunk.start..first_page);
            }
            let mut last = None;
            for row in rows {
                let row = i64::try_from(row.saturating_sub(first)).unwrap_or(i64::MAX);
                let at = locations.partition_point(|page| page.first_row_index <= row).saturating_sub(1);
                if last != Some(at)
                    && let Some(page) = locations.get(at)
                {
                    let start = page.offset.cast_unsigned();
                    pages.push(start..start.saturating_add(u64::from(page.compressed_page_size.cast_unsigned())));
                    last = Some(at);
                }
            }
        }
        pages
    }
}

fn chunk_range(column: &ColumnChunkMetaData) -> Range<u64> {
    let (start, len) = column.byte_range();
    start..start.saturating_add(len)
}
