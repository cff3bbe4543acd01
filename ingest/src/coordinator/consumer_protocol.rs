//! What consumers tell each other through a group: subscriptions and assignments, as Kafka's `ConsumerProtocol` writes
//! them. The broker carries them untouched; it reads them only to say which topics are subscribed to and who owns what.
//!
//! ```text
//! subscription   version i16 | count i32 | topic string ... | what later versions add
//! assignment     version i16 | count i32 | (topic string | count i32 | partition i32 ...) ... | user data
//! string         length i16 | UTF-8
//! ```

/// `protocol_type` of groups of consumers.
pub const CONSUMER_PROTOCOL_TYPE: &str = "consumer";

/// The topics of a subscription; None where it cannot be read.
pub fn subscribed_topics(subscription: &[u8]) -> Option<Vec<String>> {
    let mut reader = Reader::versioned(subscription)?;
    let count = reader.count()?;
    (0..count).map(|_| reader.string()).collect()
}

/// The partitions of an assignment by topic; None where it cannot be read.
pub fn assigned_partitions(assignment: &[u8]) -> Option<Vec<(String, Vec<i32>)>> {
    let mut reader = Reader::versioned(assignment)?;
    let count = reader.count()?;
    let topic = |_| {
        let name = reader.string()?;
        let partitions = reader.count()?;
        Some((name, (0..partitions).map(|_| reader.i32()).collect::<Option<_>>()?))
    };
    (0..count).map(topic).collect()
}

/// Reads what members send, which may be anything: every length is held against what is there.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn versioned(bytes: &'a [u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first_chunk()?;
        (i16::from_be_bytes(*version) >= 0).then_some(Self(rest))
    }

    fn i32(&mut self) -> Option<i32> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(i32::from_be_bytes(*head))
    }

    /// Elements take at least two bytes each.
    fn count(&mut self) -> Option<usize> {
        let count = usize::try_from(self.i32()?).ok()?;
        (count <= self.0.len() / 2).then_some(count)
    }

    fn string(&mut self) -> Option<String> {
        let (length, rest) = self.0.split_first_chunk()?;
        let length = usize::try_from(i16::from_be_bytes(*length)).ok()?;
        let (text, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(text).ok().map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, Bytes, BytesMut};
    use proptest::prelude::*;

    use super::*;

    fn subscription(topics: &[&str]) -> Bytes {
        let mut out = BytesMut::new();
        out.put_i16(3);
        out.put_i32(topics.len() as i32);
        for topic in topics {
            out.put_i16(topic.len() as i16);
            out.put_slice(topic.as_bytes());
        }
        out.put_slice(b"later fields");
        out.freeze()
    }

    #[test]
    fn subscriptions_and_assignments_are_read() {
        assert_eq!(subscribed_topics(&subscription(&["a", "orders"])), Some(vec!["a".to_owned(), "orders".to_owned()]));
        assert_eq!(subscribed_topics(&subscription(&[])), Some(Vec::new()));
        let mut assignment = BytesMut::new();
        assignment.put_i16(0);
        assignment.put_i32(1);
        assignment.put_i16(1);
        assignment.put_slice(b"a");
        assignment.put_i32(2);
        assignment.put_i32(0);
        assignment.put_i32(7);
        assignment.put_i32(-1);
        assert_eq!(assigned_partitions(&assignment), Some(vec![("a".to_owned(), vec![0, 7])]));
    }

    #[test]
    fn what_cannot_be_read_is_nothing() {
        let good = subscription(&["a", "orders"]);
        for length in 0..good.len() - b"later fields".len() {
            assert_eq!(subscribed_topics(&good[..length]), None, "cut to {length}");
        }
        assert_eq!(subscribed_topics(&[0, 1, 0x7f, 0xff, 0xff, 0xff]), None);
        assert_eq!(subscribed_topics(&[0xff, 0xff, 0, 0, 0, 0]), None);
        assert_eq!(subscribed_topics(b"topics"), None);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = (subscribed_topics(&bytes), assigned_partitions(&bytes));
        }
    }
}
