use bytes::Bytes;
use chrono::{DateTime, Utc};
use rdkafka::message::{BorrowedMessage, Header, Headers as _, Message as _, OwnedHeaders};

/// A record that was consumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The topic it came from.
    pub topic: String,
    /// The partition of the topic.
    pub partition: i32,
    /// Its place in the partition.
    pub offset: i64,
    /// When it was produced or appended, as configured for the topic.
    pub timestamp: Option<DateTime<Utc>>,
    /// The key, byte for byte; no key differs from an empty one.
    pub key: Option<Bytes>,
    /// Headers in their order; a name may occur twice, and a null value is empty.
    pub headers: Vec<(String, Bytes)>,
    /// The value, byte for byte; the value of a tombstone is empty.
    pub payload: Bytes,
}

impl Record {
    /// Returns when a record was produced or appended.
    pub(crate) fn time(message: &BorrowedMessage<'_>) -> Option<DateTime<Utc>> {
        message.timestamp().to_millis().and_then(DateTime::from_timestamp_millis)
    }

    /// Returns how many bytes of memory it takes, apart from the small overhead of each record.
    pub(crate) fn bytes(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        self.payload.len() + self.key.as_ref().map_or(0, Bytes::len) + headers
    }

    /// Copies the record out of librdkafka's memory.
    pub(crate) fn read(message: &BorrowedMessage<'_>) -> Self {
        let copied = |bytes: Option<&[u8]>| bytes.map(Bytes::copy_from_slice);
        Self {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            timestamp: Self::time(message),
            key: copied(message.key()),
            headers: message.headers().map(read_headers).unwrap_or_default(),
            payload: copied(message.payload()).unwrap_or_default(),
        }
    }
}

fn read_headers(headers: &rdkafka::message::BorrowedHeaders) -> Vec<(String, Bytes)> {
    headers
        .iter()
        .map(|header| (header.key.to_owned(), header.value.map(Bytes::copy_from_slice).unwrap_or_default()))
        .collect()
}

/// A record to produce. Its key determines its partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The topic it goes to.
    pub topic: String,
    /// Records with the same key share a partition; records without a key are spread.
    pub key: Option<Bytes>,
    /// Headers in their order; a name may occur twice.
    pub headers: Vec<(String, Bytes)>,
    /// The value.
    pub payload: Bytes,
}

impl Outgoing {
    pub(crate) fn native_headers(&self) -> OwnedHeaders {
        self.headers.iter().fold(OwnedHeaders::new_with_capacity(self.headers.len()), |all, (key, value)| {
            all.insert(Header { key, value: Some(value.as_ref()) })
        })
    }
}

/// Where an acknowledged record is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The partition of its topic.
    pub partition: i32,
    /// Its place in the partition.
    pub offset: i64,
}
