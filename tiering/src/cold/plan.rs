//! How the wanted rows of one row group are read: the pages that hold them, or the whole group. Pure.
//!
//! Pages cost one request for each run of neighbouring blocks; a row group is one request. What is read is decoded.
//! Requests, reads and decoding are all counted in bytes, so that they can be compared.

use std::ops::Range;

use crate::cache::BLOCK_BYTES;

/// What a request costs beside its bytes: what could be read in the time that it takes to begin.
pub(super) const REQUEST_BYTES: u64 = 256 << 10;
/// Decoding so many bytes costs as much as reading one.
pub(super) const DECODED_BYTES_PER_READ: u64 = 4;

/// How rows of a row group are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Only the pages that hold them, through the block cache.
    Pages,
    /// The whole group, in one request, through the batch cache.
    Scan,
}

/// The cheaper way. `pages`: what [`crate::parquet_read::ColdFile::pages_of`] says; `stored_bytes` and `decoded_bytes`
/// are those of the whole group.
pub(super) fn choose(pages: Vec<Range<u64>>, stored_bytes: u64, decoded_bytes: u64) -> Way {
    let (requests, bytes) = reads(pages);
    let price = |requests: u64, bytes: u64| {
        let decoded = bytes.saturating_mul(decoded_bytes) / stored_bytes.max(1);
        let begun = requests.saturating_mul(REQUEST_BYTES);
        bytes.saturating_add(begun).saturating_add(decoded / DECODED_BYTES_PER_READ)
    };
    // Where it is all the same, the block cache is spared.
    if price(1, stored_bytes) <= price(requests, bytes) { Way::Scan } else { Way::Pages }
}

/// Requests and bytes that reading `pages` takes where no block of them is cached.
fn reads(mut pages: Vec<Range<u64>>) -> (u64, u64) {
    pages.sort_unstable_by_key(|page| page.start);
    let (mut requests, mut bytes) = (0, 0);
    // First block that is not read yet.
    let mut next: Option<u64> = None;
    for page in pages.into_iter().filter(|page| !page.is_empty()) {
        let (first, end) = (page.start / BLOCK_BYTES, page.end.div_ceil(BLOCK_BYTES));
        // The cache joins ranges that lie no more than a block apart.
        let (from, is_new) = match next {
            Some(next) if first <= next.saturating_add(1) => (next, false),
            _ => (first, true),
        };
        requests += u64::from(is_new);
        bytes += end.saturating_sub(from) * BLOCK_BYTES;
        next = Some(next.unwrap_or(0).max(end));
    }
    (requests, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn neighbouring_pages_share_a_request() {
        let block = |n: u64| n * BLOCK_BYTES..n * BLOCK_BYTES + 10;
        assert_eq!(reads(vec![]), (0, 0));
        assert_eq!(reads(vec![block(7), block(7), block(8)]), (1, 2 * BLOCK_BYTES));
        assert_eq!(reads(vec![block(9), block(0)]), (2, 2 * BLOCK_BYTES));
        let long = 0..5 * BLOCK_BYTES;
        assert_eq!(reads(vec![long.clone(), block(1), block(4)]), (1, 5 * BLOCK_BYTES));
        assert_eq!(reads(vec![block(0), 0..0]), (1, BLOCK_BYTES));
    }

    #[test]
    fn few_rows_are_read_by_page_and_many_by_scanning() {
        let scattered = |count: u64| (0..count).map(|n| n * MIB / 8..n * MIB / 8 + 1000).collect::<Vec<_>>();
        assert_eq!(choose(scattered(1), 2 * MIB, 8 * MIB), Way::Pages);
        assert_eq!(choose(scattered(8), 2 * MIB, 8 * MIB), Way::Pages);
        assert_eq!(choose(scattered(16), 2 * MIB, 8 * MIB), Way::Scan);
        // Many rows side by side are few bytes.
        let together: Vec<_> = std::iter::repeat_n(5 * MIB..5 * MIB + 60_000, 1000).collect();
        assert_eq!(choose(together, 2 * MIB, 8 * MIB), Way::Pages);
        // All of it, in one run.
        assert_eq!(choose(std::iter::once(4..2 * MIB).collect(), 2 * MIB, 8 * MIB), Way::Scan);
        // A group that is hardly more than its pages.
        assert_eq!(choose(vec![0..10_000, 100_000..110_000], 120_000, 300_000), Way::Scan);
    }
}
