//! Names of the objects of the cold tier. Pure: built and parsed here, nowhere else.
//!
//! ```text
//! epochs/<epoch>.json                                                      a start of a broker
//! topics/<topic>.<topic id>/topic.json                                     what the topic is besides its records
//! topics/<topic>.<topic id>/deleted.json                                   the topic is gone, its objects are going
//! topics/<topic>.<topic id>/<partition>/data/<base>-<last>-<attempt>.parquet
//! topics/<topic>.<topic id>/<partition>/index/<base>-<last>-<attempt>.split
//! topics/<topic>.<topic id>/<partition>/raw/<base>-<last>-<attempt>.log    batches that could not be decoded
//! topics/<topic>.<topic id>/<partition>/manifest/<version>.json
//! topics/<topic>.<topic id>/<partition>/manifest/parts/<base>-<last>-<attempt>.json.zst    or .json, as earlier programs wrote them
//! ```
//!
//! `base`, `last` (inclusive), `version` and `epoch` have 20 digits, so that names sort as numbers do. The topic id is
//! a hyphenated UUID, so that a topic that is deleted and created again starts in an empty folder. The attempt id is
//! 32 hex digits and fresh for each upload, so that a retry never overwrites what an earlier one may have published.

use std::fmt;

use object_store::path::Path as ObjectPath;
use thermocline_ingest::model::{Offset, PartitionId, TopicId, TopicName};
use uuid::Uuid;

const EPOCHS: &str = "epochs";
const TOPICS: &str = "topics";
const MANIFEST: &str = "manifest";
const PARTS: &str = "parts";
const TOPIC_FILE: &str = "topic.json";
const TOMBSTONE: &str = "deleted.json";
const VERSION_EXTENSION: &str = ".json";
/// Digits of offsets and versions in names.
const NUMBER_LEN: usize = 20;
const UUID_LEN: usize = 36;
/// `topics`, the topic's folder, the partition's.
const PARTITION_ROOT_PARTS: usize = 3;

/// Where everything of one partition lies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PartitionPath {
    pub topic: TopicName,
    pub topic_id: TopicId,
    pub partition: PartitionId,
}

/// What an object that covers a range of offsets holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    /// Records as Parquet.
    Data,
    /// Their packaged Tantivy index.
    Split,
    /// Record batches byte for byte, as in a Kafka segment.
    Raw,
    /// Entries of a manifest that moved out of its newest version.
    ManifestPart,
}

/// Identity of one upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttemptId(Uuid);

/// The name of an object that covers the offsets `base` to `last`, inclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeName {
    pub kind: ObjectKind,
    pub base: Offset,
    pub last: Offset,
    pub attempt: AttemptId,
}

impl ObjectKind {
    pub const ALL: [Self; 4] = [Self::Data, Self::Split, Self::Raw, Self::ManifestPart];

    const fn folder(self) -> &'static [&'static str] {
        match self {
            Self::Data => &["data"],
            Self::Split => &["index"],
            Self::Raw => &["raw"],
            Self::ManifestPart => &[MANIFEST, PARTS],
        }
    }

    const fn extension(self) -> &'static str {
        match self {
            Self::Data => ".parquet",
            Self::Split => ".split",
            Self::Raw => ".log",
            Self::ManifestPart => ".json.zst",
        }
    }

    /// What earlier programs gave instead.
    const fn old_extension(self) -> Option<&'static str> {
        match self {
            Self::ManifestPart => Some(".json"),
            Self::Data | Self::Split | Self::Raw => None,
        }
    }
}

impl AttemptId {
    pub fn fresh() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

/// The folder of the epochs that brokers have claimed.
pub fn epochs_root() -> ObjectPath {
    ObjectPath::from(EPOCHS)
}

pub fn epoch(epoch: u64) -> ObjectPath {
    epochs_root().join(format!("{epoch:0NUMBER_LEN$}{VERSION_EXTENSION}"))
}

/// The epoch of a claim; `None` for any other name.
pub fn parse_epoch(path: &ObjectPath) -> Option<u64> {
    parse_number(name_in(path, &epochs_root())?.strip_suffix(VERSION_EXTENSION)?)
}

/// The folder that holds a folder per topic.
pub fn topics_root() -> ObjectPath {
    ObjectPath::from(TOPICS)
}

/// The folder of a topic, all partitions.
pub fn topic_root(topic: &TopicName, id: TopicId) -> ObjectPath {
    topics_root().join(format!("{topic}.{id}"))
}

/// What the topic is: partitions, settings.
pub fn topic_file(topic: &TopicName, id: TopicId) -> ObjectPath {
    topic_root(topic, id).join(TOPIC_FILE)
}

/// The mark that says a topic was deleted and its objects may go.
pub fn tombstone(topic: &TopicName, id: TopicId) -> ObjectPath {
    topic_root(topic, id).join(TOMBSTONE)
}

/// The topic whose folder this is; `None` for anything else.
pub fn parse_topic_root(path: &ObjectPath) -> Option<(TopicName, TopicId)> {
    let mut parts = path.parts();
    let (root, folder, rest) = (parts.next()?, parts.next()?, parts.next());
    if root.as_ref() != TOPICS || rest.is_some() {
        return None;
    }
    let folder = folder.as_ref();
    let (name, id) = folder.split_at_checked(folder.len().checked_sub(UUID_LEN + 1)?)?;
    let id = parse_uuid(id.strip_prefix('.')?, |id| id.hyphenated().to_string())?;
    Some((TopicName::new(name).ok()?, TopicId(id)))
}

/// The partition whose folder this is within its topic's; `None` for anything else.
pub fn parse_partition_root(topic: &TopicName, id: TopicId, path: &ObjectPath) -> Option<PartitionId> {
    let name = name_in(path, &topic_root(topic, id))?;
    name.parse().ok().filter(|id: &i32| *id >= 0 && id.to_string() == name).map(PartitionId)
}

impl PartitionPath {
    pub fn new(topic: TopicName, topic_id: TopicId, partition: PartitionId) -> Self {
        Self { topic, topic_id, partition }
    }

    /// The partition whose folder `path` is, or lies in; `None` for anything else.
    pub fn of(path: &ObjectPath) -> Option<Self> {
        let parts: Vec<_> = path.parts().take(PARTITION_ROOT_PARTS).collect();
        let (partition, topic_root) = parts.split_last()?;
        let (topic, topic_id) = parse_topic_root(&topic_root.iter().cloned().collect())?;
        let id: i32 = partition.as_ref().parse().ok()?;
        let path = Self::new(topic, topic_id, PartitionId(id));
        (id >= 0 && id.to_string() == partition.as_ref()).then_some(path)
    }

    pub fn root(&self) -> ObjectPath {
        topic_root(&self.topic, self.topic_id).join(self.partition.to_string())
    }

    /// The folder that lists the manifest's versions.
    pub fn manifest_folder(&self) -> ObjectPath {
        self.root().join(MANIFEST)
    }

    pub fn manifest(&self, version: u64) -> ObjectPath {
        self.manifest_folder().join(format!("{version:0NUMBER_LEN$}{VERSION_EXTENSION}"))
    }

    /// The version of a manifest object; `None` for any other name.
    pub fn parse_manifest(&self, path: &ObjectPath) -> Option<u64> {
        parse_number(name_in(path, &self.manifest_folder())?.strip_suffix(VERSION_EXTENSION)?)
    }

    /// The folder of all objects of one kind.
    pub fn folder(&self, kind: ObjectKind) -> ObjectPath {
        kind.folder().iter().fold(self.root(), |path, part| path.join(*part))
    }

    pub fn object(&self, name: &RangeName) -> ObjectPath {
        let RangeName { kind, base, last, attempt } = name;
        let extension = kind.extension();
        self.folder(*kind).join(format!("{:0NUMBER_LEN$}-{:0NUMBER_LEN$}-{attempt}{extension}", base.0, last.0))
    }

    /// The name of an object of this partition; `None` for manifest versions and strangers.
    pub fn parse_object(&self, path: &ObjectPath) -> Option<RangeName> {
        ObjectKind::ALL.into_iter().find_map(|kind| {
            let name = name_in(path, &self.folder(kind))?;
            let old = || kind.old_extension().and_then(|extension| name.strip_suffix(extension));
            let mut fields = name.strip_suffix(kind.extension()).or_else(old)?.split('-');
            let (base, last, attempt) = (fields.next()?, fields.next()?, fields.next()?);
            let offset = |digits| parse_number(digits).and_then(|n| i64::try_from(n).ok()).map(Offset);
            let attempt = AttemptId(parse_uuid(attempt, |id| id.simple().to_string())?);
            match (fields.next(), offset(base)?, offset(last)?) {
                (None, base, last) if base <= last => Some(RangeName { kind, base, last, attempt }),
                _ => None,
            }
        })
    }
}

/// The name of `path` within `folder`, where it lies directly in it.
fn name_in<'a>(path: &'a ObjectPath, folder: &ObjectPath) -> Option<&'a str> {
    if path.prefix_match(folder)?.count() == 1 { path.filename() } else { None }
}

fn parse_number(digits: &str) -> Option<u64> {
    let plain = digits.len() == NUMBER_LEN && digits.bytes().all(|b| b.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}

/// Only the spelling that we write: one object must not have two names.
fn parse_uuid(text: &str, spell: impl Fn(&Uuid) -> String) -> Option<Uuid> {
    Uuid::parse_str(text).ok().filter(|id| spell(id) == text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn partition() -> impl Strategy<Value = PartitionPath> {
        ("[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,60}", any::<u128>(), 0..=i32::MAX).prop_map(|(name, id, partition)| {
            let topic = TopicName::new(&name).unwrap();
            PartitionPath::new(topic, TopicId(Uuid::from_u128(id)), PartitionId(partition))
        })
    }

    proptest! {
        #[test]
        fn names_read_back_as_built(
            path in partition(), kind in 0_usize..4, base in 0..i64::MAX, span in 0..1_000_000_i64,
            attempt in any::<u128>(), version in any::<u64>(),
        ) {
            let name = RangeName {
                kind: ObjectKind::ALL[kind],
                base: Offset(base),
                last: Offset(base.saturating_add(span)),
                attempt: AttemptId(Uuid::from_u128(attempt)),
            };
            let object = path.object(&name);
            prop_assert_eq!(path.parse_object(&object), Some(name));
            prop_assert_eq!(path.parse_manifest(&object), None);
            let manifest = path.manifest(version);
            prop_assert_eq!(path.parse_manifest(&manifest), Some(version));
            prop_assert_eq!(path.parse_object(&manifest), None);
            let root = topic_root(&path.topic, path.topic_id);
            prop_assert_eq!(parse_topic_root(&root), Some((path.topic.clone(), path.topic_id)));
            prop_assert_eq!(parse_topic_root(&path.root()), None);
            prop_assert_eq!(parse_partition_root(&path.topic, path.topic_id, &path.root()), Some(path.partition));
            prop_assert_eq!(parse_partition_root(&path.topic, path.topic_id, &path.manifest_folder()), None);
            prop_assert_eq!(parse_epoch(&epoch(version)), Some(version));
            prop_assert_eq!(parse_epoch(&manifest), None);
            for within in [path.root(), object.clone(), manifest] {
                prop_assert_eq!(PartitionPath::of(&within), Some(path.clone()));
            }
            prop_assert_eq!(PartitionPath::of(&root), None);
            // What we name must survive the way through any store.
            prop_assert_eq!(ObjectPath::parse(object.as_ref()).unwrap(), object);
        }

        #[test]
        fn strangers_are_not_parsed(path in partition(), text in "[a-z0-9/._-]{0,90}") {
            let stranger = ObjectPath::from(format!("{}/{text}", path.root()));
            prop_assert_eq!(path.parse_manifest(&stranger), None);
            prop_assert_eq!(path.parse_object(&stranger), None);
            let _ = parse_topic_root(&ObjectPath::from(text));
        }
    }

    #[test]
    fn names_are_as_pinned() {
        let id = TopicId(Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef));
        let path = PartitionPath::new(TopicName::new("orders.v1").unwrap(), id, PartitionId(7));
        let root = "topics/orders.v1.01234567-89ab-cdef-0123-456789abcdef/7";
        let attempt = AttemptId(Uuid::from_u128(0xff));
        let name = |kind| RangeName { kind, base: Offset(5), last: Offset(104), attempt };
        let stem = "00000000000000000005-00000000000000000104-000000000000000000000000000000ff";
        assert_eq!(path.object(&name(ObjectKind::Data)).as_ref(), format!("{root}/data/{stem}.parquet"));
        assert_eq!(path.object(&name(ObjectKind::Split)).as_ref(), format!("{root}/index/{stem}.split"));
        assert_eq!(path.object(&name(ObjectKind::Raw)).as_ref(), format!("{root}/raw/{stem}.log"));
        assert_eq!(
            path.object(&name(ObjectKind::ManifestPart)).as_ref(),
            format!("{root}/manifest/parts/{stem}.json.zst")
        );
        let old = ObjectPath::from(format!("{root}/manifest/parts/{stem}.json"));
        assert_eq!(path.parse_object(&old), Some(name(ObjectKind::ManifestPart)));
        assert_eq!(path.manifest(12).as_ref(), format!("{root}/manifest/00000000000000000012.json"));
        let upper = ObjectPath::from(format!("{root}/data/{}.parquet", stem.to_uppercase()));
        assert_eq!(path.parse_object(&upper), None);
    }
}
