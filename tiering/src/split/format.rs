//! The package around a Tantivy index. All integers are little-endian.
//!
//! ```text
//! 0        8  magic "THCSPLIT"
//! 8        2  format version (1)
//! 10       6  zero
//! 16          the files of the index, back to back
//! F           footer body
//!             4  number of files
//!                per file: 2 length of name | name, UTF-8 | 8 position in the object | 8 length
//!             4  number of hot ranges
//!                per range: 8 position in the object | 4 length
//!                the bytes of the hot ranges, back to back, in the same order
//! end-24   8  length of the footer body
//! end-16   4  CRC-32C of the footer body
//! end-12   2  format version (1)
//! end-10   2  zero
//! end-8    8  magic "THCSPLIT"
//! ```
//!
//! Hot ranges are copies of the bytes that opening the index reads (metadata, footers, directories of the term
//! dictionaries), ascending and disjoint, so that one GET of the tail opens a split.

use std::ops::Range;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use tantivy::directory::{FileHandle, OwnedBytes};

use super::SplitError;

const MAGIC: [u8; 8] = *b"THCSPLIT";
const VERSION: u16 = 1;
const HEADER_LEN: usize = 16;
const TRAILER_LEN: usize = 24;
/// Read from the end first; a footer larger than that costs a second read. Footers grow with their splits.
const TAIL_LEN_MIN: usize = 64 << 10;
const TAIL_LEN_MAX: usize = 1 << 20;
const TAIL_FRACTION: usize = 256;
/// Largest footer that is believed.
const FOOTER_LEN_MAX: u64 = 64 << 20;
/// Most files a split may hold; Tantivy writes about eight.
const FILES_MAX: u32 = 64;
const FILE_NAME_LEN_MAX: usize = 255;
/// Most hot ranges a footer may hold.
const RANGES_MAX: u32 = 4096;

/// One file of the index within the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileEntry {
    pub name: String,
    pub range: Range<usize>,
}

/// Bytes of the object that the footer repeats.
#[derive(Clone, Debug)]
pub(super) struct HotRange {
    pub position: usize,
    pub bytes: OwnedBytes,
}

/// What a split's footer says.
#[derive(Clone, Debug)]
pub(super) struct Footer {
    pub files: Vec<FileEntry>,
    pub hot: HotRanges,
}

/// What the end of an object shows.
#[derive(Debug)]
pub(super) enum Tail {
    Holds(Footer),
    /// The footer is larger.
    BeginsAt(usize),
}

/// Header and files, back to back.
pub(super) struct Package {
    pub bytes: Vec<u8>,
    pub files: Vec<FileEntry>,
}

impl Package {
    pub fn with_capacity(files_len: usize) -> Self {
        let mut bytes = Vec::with_capacity(HEADER_LEN + files_len + TAIL_LEN_MIN);
        bytes.put_slice(&MAGIC);
        bytes.put_u16_le(VERSION);
        bytes.resize(HEADER_LEN, 0);
        Self { bytes, files: Vec::new() }
    }

    pub fn add(&mut self, name: &str, content: &[u8]) {
        let start = self.bytes.len();
        self.bytes.put_slice(content);
        self.files.push(FileEntry { name: name.to_owned(), range: start..self.bytes.len() });
    }

    /// The finished object. `hot` must be ascending, disjoint and within the files.
    pub fn finish(mut self, hot: &[Range<usize>]) -> Bytes {
        let body_start = self.bytes.len();
        self.bytes.put_u32_le(self.files.len() as u32);
        for file in &self.files {
            self.bytes.put_u16_le(file.name.len() as u16);
            self.bytes.put_slice(file.name.as_bytes());
            self.bytes.put_u64_le(file.range.start as u64);
            self.bytes.put_u64_le(file.range.len() as u64);
        }
        self.bytes.put_u32_le(hot.len() as u32);
        for range in hot {
            self.bytes.put_u64_le(range.start as u64);
            self.bytes.put_u32_le(range.len() as u32);
        }
        self.bytes.reserve(hot.iter().map(Range::len).sum::<usize>() + TRAILER_LEN);
        for range in hot {
            self.bytes.extend_from_within(range.clone());
        }
        let body = self.bytes.get(body_start..).unwrap_or_default();
        let (len, crc) = (body.len() as u64, crc32c::crc32c(body));
        self.bytes.put_u64_le(len);
        self.bytes.put_u32_le(crc);
        self.bytes.put_u16_le(VERSION);
        self.bytes.put_u16_le(0);
        self.bytes.put_slice(&MAGIC);
        Bytes::from(self.bytes)
    }
}

impl Footer {
    /// Reads and checks the footer: one read of the tail, a second where the footer is larger. Blocking.
    pub fn read(object: &dyn FileHandle) -> Result<Self, SplitError> {
        let len = object.len();
        let mut tail = object.read_bytes(Self::tail(len))?;
        loop {
            match Self::of_tail(&tail, len)? {
                Tail::Holds(footer) => return Ok(footer),
                Tail::BeginsAt(start) => tail = object.read_bytes(start..len)?,
            }
        }
    }

    /// Where to look for the footer of an object of `len` bytes.
    pub fn tail(len: usize) -> Range<usize> {
        len.saturating_sub((len / TAIL_FRACTION).clamp(TAIL_LEN_MIN, TAIL_LEN_MAX))..len
    }

    /// The footer of an object of `len` bytes that ends in `tail`.
    pub fn of_tail(tail: &OwnedBytes, len: usize) -> Result<Tail, SplitError> {
        let min = HEADER_LEN + TRAILER_LEN;
        let too_short = SplitError::TooShort { len: len as u64, min: min as u64 };
        let Some((rest, trailer)) = tail.as_slice().split_last_chunk::<TRAILER_LEN>().filter(|_| len >= min) else {
            return Err(too_short);
        };
        let (body_len, crc) = read_trailer(trailer)?;
        let max = ((len - min) as u64).min(FOOTER_LEN_MAX);
        if body_len > max {
            return Err(SplitError::FooterLength { len: body_len, max });
        }
        let body_start = len - TRAILER_LEN - body_len as usize;
        let Some(start) = rest.len().checked_sub(body_len as usize) else { return Ok(Tail::BeginsAt(body_start)) };
        let body = tail.slice(start..rest.len());
        let found = crc32c::crc32c(&body);
        if found != crc {
            return Err(SplitError::Checksum { found, expected: crc });
        }
        Ok(Tail::Holds(Self::parse(&body, body_start)?))
    }

    /// `files_end`: position of the footer body, up to which files may reach.
    fn parse(body: &OwnedBytes, files_end: usize) -> Result<Self, SplitError> {
        let mut fields = Fields { rest: body.as_slice() };
        let count = fields.u32()?;
        if count > FILES_MAX {
            return Err(SplitError::Footer("more files than a split may hold"));
        }
        let mut files = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let name_len = usize::from(fields.u16()?);
            if name_len > FILE_NAME_LEN_MAX {
                return Err(SplitError::Footer("a file name is too long"));
            }
            let name = std::str::from_utf8(fields.take(name_len)?)
                .map_err(|_| SplitError::Footer("a file name is not UTF-8"))?
                .to_owned();
            let range = checked_range(fields.u64()?, fields.u64()?, files_end)?;
            files.push(FileEntry { name, range });
        }
        let count = fields.u32()?;
        if count > RANGES_MAX {
            return Err(SplitError::Footer("more hot ranges than a split may hold"));
        }
        let mut ranges = Vec::with_capacity(count as usize);
        let mut end = 0;
        for _ in 0..count {
            let range = checked_range(fields.u64()?, u64::from(fields.u32()?), files_end)?;
            if range.start < end {
                return Err(SplitError::Footer("hot ranges are not in order"));
            }
            end = range.end;
            ranges.push(range);
        }
        let mut at = body.len() - fields.rest.len();
        let mut hot = Vec::with_capacity(ranges.len());
        for range in ranges {
            fields.take(range.len())?;
            hot.push(HotRange { position: range.start, bytes: body.slice(at..at + range.len()) });
            at += range.len();
        }
        if !fields.rest.is_empty() {
            return Err(SplitError::Footer("bytes are left over"));
        }
        Ok(Self { files, hot: HotRanges(hot.into()) })
    }
}

fn read_trailer(trailer: &[u8; TRAILER_LEN]) -> Result<(u64, u32), SplitError> {
    let mut fields = Fields { rest: trailer };
    let (body_len, crc) = (fields.u64()?, fields.u32()?);
    let (version, _zero) = (fields.u16()?, fields.u16()?);
    if fields.rest != MAGIC {
        return Err(SplitError::Magic { place: "the end", found: fields.rest.to_vec() });
    }
    if version != VERSION {
        return Err(SplitError::Version { found: version, supported: VERSION });
    }
    Ok((body_len, crc))
}

fn checked_range(position: u64, len: u64, end_max: usize) -> Result<Range<usize>, SplitError> {
    let end = position.checked_add(len).filter(|end| *end <= end_max as u64 && position >= HEADER_LEN as u64);
    match end {
        Some(end) => Ok(position as usize..end as usize),
        None => Err(SplitError::Footer("a range lies outside the files")),
    }
}

/// Little-endian fields of a byte slice; every read is checked.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], SplitError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(SplitError::Footer("it ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], SplitError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(SplitError::Footer("it ends too early"))?;
        self.rest = rest;
        Ok(*taken)
    }
    fn u16(&mut self) -> Result<u16, SplitError> {
        self.array().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Result<u32, SplitError> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Result<u64, SplitError> {
        self.array().map(u64::from_le_bytes)
    }
}

/// The hot ranges of a footer: ascending and disjoint.
#[derive(Clone, Debug)]
pub(super) struct HotRanges(Arc<[HotRange]>);

impl HotRanges {
    /// The bytes of `range`, where a hot range holds them all.
    pub fn find(&self, range: &Range<usize>) -> Option<OwnedBytes> {
        let at = self.0.partition_point(|hot| hot.position + hot.bytes.len() < range.end);
        let hot = self.0.get(at).filter(|hot| hot.position <= range.start && range.start <= range.end)?;
        Some(hot.bytes.slice(range.start - hot.position..range.end - hot.position))
    }
}

/// A local object whose hot ranges are answered from memory.
#[derive(Clone, Debug)]
pub(super) struct HotObject {
    pub inner: Arc<dyn FileHandle>,
    pub hot: HotRanges,
}

impl tantivy::HasLen for HotObject {
    fn len(&self) -> usize {
        self.inner.len()
    }
}

impl FileHandle for HotObject {
    fn read_bytes(&self, range: Range<usize>) -> std::io::Result<OwnedBytes> {
        self.hot.find(&range).map_or_else(|| self.inner.read_bytes(range), Ok)
    }
}
