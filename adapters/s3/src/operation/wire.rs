//! Operations and their replies, as they travel between nodes.

use bytes::Bytes;
use prost::Message;

use crate::rows::{
    Acl, BucketRow, ChecksumRow, GrantRow, KeyRow, Level, ObjectRow, Pair, PartRow, UploadRow,
    Versioning,
};

/// Who asks, and what the grants of the key allow for the bucket.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Who {
    /// Empty: nobody in particular.
    #[prost(string, tag = "1")]
    pub(crate) access_key: String,
    #[prost(enumeration = "Level", tag = "2")]
    pub(crate) level: i32,
    /// May make buckets.
    #[prost(bool, tag = "3")]
    pub(crate) creates: bool,
    /// Who must own the bucket, all of them.
    #[prost(string, repeated, tag = "4")]
    pub(crate) expected_owners: Vec<String>,
}

/// One operation on one bucket (or on the access keys).
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Request {
    /// A reader refuses what is above its own.
    #[prost(uint32, tag = "1")]
    pub(crate) format: u32,
    #[prost(message, optional, tag = "2")]
    pub(crate) who: Option<Who>,
    #[prost(string, tag = "3")]
    pub(crate) bucket: String,
    /// The name that policies know the request by, such as `s3:GetObject`.
    #[prost(string, tag = "4")]
    pub(crate) action: String,
    #[prost(
        oneof = "Action",
        tags = "10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31"
    )]
    pub(crate) act: Option<Action>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Action {
    #[prost(message, tag = "10")]
    CreateBucket(CreateBucket),
    #[prost(message, tag = "11")]
    HeadBucket(HeadBucket),
    #[prost(message, tag = "12")]
    DeleteBucket(Empty),
    #[prost(message, tag = "13")]
    ListBuckets(Empty),
    #[prost(message, tag = "14")]
    Configure(Configure),
    #[prost(message, tag = "15")]
    Configuration(Configuration),
    #[prost(message, tag = "16")]
    Put(Box<Put>),
    #[prost(message, tag = "17")]
    Get(Get),
    #[prost(message, tag = "18")]
    ReadParts(ReadParts),
    #[prost(message, tag = "19")]
    Delete(Delete),
    #[prost(message, tag = "20")]
    SetTags(SetTags),
    #[prost(message, tag = "21")]
    SetAcl(SetAcl),
    #[prost(message, tag = "22")]
    List(List),
    #[prost(message, tag = "23")]
    CreateUpload(Box<UploadRowFor>),
    #[prost(message, tag = "24")]
    PutPart(Box<PutPart>),
    #[prost(message, tag = "25")]
    ListParts(ListParts),
    #[prost(message, tag = "26")]
    ListUploads(List),
    #[prost(message, tag = "27")]
    AbortUpload(UploadName),
    #[prost(message, tag = "28")]
    Complete(Complete),
    #[prost(message, tag = "29")]
    Keys(Keys),
    #[prost(message, tag = "30")]
    Lifecycle(Lifecycle),
    #[prost(message, tag = "31")]
    GetUpload(UploadName),
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Empty {}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct CreateBucket {
    #[prost(string, tag = "1")]
    pub(crate) region: String,
    #[prost(enumeration = "Acl", tag = "2")]
    pub(crate) acl: i32,
    /// As [`Configure::text`].
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub(crate) tagging: Option<Bytes>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct HeadBucket {
    /// The object that the request is about, where there is one: policies may name it.
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    /// What a grant must allow.
    #[prost(enumeration = "Level", tag = "2")]
    pub(crate) level: i32,
    /// Conditions that a write will have: one that fails already need not be sent its body.
    #[prost(message, optional, tag = "3")]
    pub(crate) conditions: Option<WriteConditions>,
    /// As in a [`Put`].
    #[prost(string, repeated, tag = "4")]
    pub(crate) also: Vec<String>,
}

/// Configurations that are kept as they were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Kind {
    Unspecified = 0,
    Policy = 1,
    Cors = 2,
    Tagging = 3,
    Lifecycle = 4,
    /// Kept in the bucket's own row.
    Versioning = 5,
    Acl = 6,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Configure {
    #[prost(enumeration = "Kind", tag = "1")]
    pub(crate) kind: i32,
    /// Absent: the configuration goes.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub(crate) text: Option<Bytes>,
    #[prost(message, optional, tag = "3")]
    pub(crate) policy: Option<crate::rows::PolicyRow>,
    #[prost(enumeration = "Versioning", tag = "4")]
    pub(crate) versioning: i32,
    #[prost(enumeration = "Acl", tag = "5")]
    pub(crate) acl: i32,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Configuration {
    #[prost(enumeration = "Kind", tag = "1")]
    pub(crate) kind: i32,
    /// Not for a client: no access is asked for.
    #[prost(bool, tag = "2")]
    pub(crate) internal: bool,
}

/// What the current version must be for a write to happen.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct WriteConditions {
    /// ETags without quotes, or `*`; empty: no condition.
    #[prost(string, tag = "1")]
    pub(crate) if_match: String,
    #[prost(string, tag = "2")]
    pub(crate) if_none_match: String,
    /// Of a DELETE.
    #[prost(uint64, optional, tag = "3")]
    pub(crate) if_size: Option<u64>,
    #[prost(uint64, optional, tag = "4")]
    pub(crate) if_modified_s: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Put {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) object: Option<ObjectRow>,
    /// In the order of `object.parts`.
    #[prost(message, repeated, tag = "3")]
    pub(crate) parts: Vec<PartRow>,
    #[prost(message, optional, tag = "4")]
    pub(crate) conditions: Option<WriteConditions>,
    /// Actions besides the request's own that it does, and needs the right to: its tags, its ACL.
    #[prost(string, repeated, tag = "5")]
    pub(crate) also: Vec<String>,
}

/// What the version must be for a read to answer it.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ReadConditions {
    #[prost(string, tag = "1")]
    pub(crate) if_match: String,
    #[prost(string, tag = "2")]
    pub(crate) if_none_match: String,
    #[prost(uint64, optional, tag = "3")]
    pub(crate) if_modified_since_s: Option<u64>,
    #[prost(uint64, optional, tag = "4")]
    pub(crate) if_unmodified_since_s: Option<u64>,
    /// A range is of this version, by its ETag or its time, and else everything is wanted.
    #[prost(string, optional, tag = "5")]
    pub(crate) if_range: Option<String>,
    #[prost(uint64, optional, tag = "6")]
    pub(crate) if_range_s: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Get {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    /// Empty: the current one.
    #[prost(string, tag = "2")]
    pub(crate) version: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) conditions: Option<ReadConditions>,
    /// The rows of the parts are wanted too.
    #[prost(bool, tag = "4")]
    pub(crate) body: bool,
    /// Bytes from `first` on; with neither, all.
    #[prost(uint64, optional, tag = "5")]
    pub(crate) first: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    pub(crate) last: Option<u64>,
    /// The last so many bytes.
    #[prost(uint64, optional, tag = "7")]
    pub(crate) suffix: Option<u64>,
    #[prost(uint32, tag = "8")]
    pub(crate) part: u32,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ReadParts {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) data: Bytes,
    #[prost(uint32, repeated, tag = "2")]
    pub(crate) numbers: Vec<u32>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Delete {
    #[prost(message, repeated, tag = "1")]
    pub(crate) items: Vec<DeleteItem>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct DeleteItem {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(string, tag = "2")]
    pub(crate) version: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) conditions: Option<WriteConditions>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct SetTags {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(string, tag = "2")]
    pub(crate) version: String,
    #[prost(message, repeated, tag = "3")]
    pub(crate) tags: Vec<Pair>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct SetAcl {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(string, tag = "2")]
    pub(crate) version: String,
    #[prost(enumeration = "Acl", tag = "3")]
    pub(crate) acl: i32,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct List {
    #[prost(string, tag = "1")]
    pub(crate) prefix: String,
    #[prost(string, tag = "2")]
    pub(crate) delimiter: String,
    /// Only what comes after this key, or common prefix.
    #[prost(string, tag = "3")]
    pub(crate) after: String,
    /// With versions and uploads: and of that key what comes after this id.
    #[prost(string, tag = "4")]
    pub(crate) after_id: String,
    #[prost(uint32, tag = "5")]
    pub(crate) most: u32,
    #[prost(bool, tag = "6")]
    pub(crate) versions: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct UploadRowFor {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) upload: Option<UploadRow>,
    /// As in a [`Put`].
    #[prost(string, repeated, tag = "3")]
    pub(crate) also: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct UploadName {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) upload: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PutPart {
    #[prost(message, optional, tag = "1")]
    pub(crate) name: Option<UploadName>,
    #[prost(uint32, tag = "2")]
    pub(crate) number: u32,
    #[prost(message, optional, tag = "3")]
    pub(crate) part: Option<PartRow>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ListParts {
    #[prost(message, optional, tag = "1")]
    pub(crate) name: Option<UploadName>,
    #[prost(uint32, tag = "2")]
    pub(crate) after: u32,
    #[prost(uint32, tag = "3")]
    pub(crate) most: u32,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct CompletePart {
    #[prost(uint32, tag = "1")]
    pub(crate) number: u32,
    #[prost(string, tag = "2")]
    pub(crate) etag: String,
    /// Empty: not said.
    #[prost(string, tag = "3")]
    pub(crate) checksum: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Complete {
    #[prost(message, optional, tag = "1")]
    pub(crate) name: Option<UploadName>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) parts: Vec<CompletePart>,
    #[prost(message, optional, tag = "3")]
    pub(crate) conditions: Option<WriteConditions>,
    /// What the client says that the whole has.
    #[prost(message, optional, tag = "4")]
    pub(crate) checksum: Option<ChecksumRow>,
    #[prost(uint64, optional, tag = "5")]
    pub(crate) size: Option<u64>,
    /// What the client says that the checksum of the whole is made of.
    #[prost(bool, optional, tag = "6")]
    pub(crate) composite: Option<bool>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Keys {
    #[prost(oneof = "KeyAction", tags = "1, 2, 3, 4, 5")]
    pub(crate) act: Option<KeyAction>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub(crate) enum KeyAction {
    #[prost(message, tag = "1")]
    Create(KeyRow),
    #[prost(string, tag = "2")]
    Get(String),
    #[prost(string, tag = "3")]
    Delete(String),
    #[prost(message, tag = "4")]
    Grant(Grant),
    #[prost(message, tag = "5")]
    List(Empty),
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Grant {
    #[prost(string, tag = "1")]
    pub(crate) access_key: String,
    /// With [`Level::Nothing`] the grant is taken back.
    #[prost(message, optional, tag = "2")]
    pub(crate) grant: Option<GrantRow>,
}

/// One step of a lifecycle: what a scan found due, looked at again before it goes.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Lifecycle {
    /// Where the step before stopped.
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) after: Bytes,
}

/// Why an operation did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Refusal {
    Unspecified = 0,
    NoSuchBucket = 1,
    NoSuchKey = 2,
    NoSuchVersion = 3,
    NoSuchUpload = 4,
    BucketAlreadyOwnedByYou = 5,
    BucketAlreadyExists = 6,
    BucketNotEmpty = 7,
    PreconditionFailed = 8,
    NotModified = 9,
    InvalidPart = 10,
    InvalidPartOrder = 11,
    EntityTooSmall = 12,
    AccessDenied = 13,
    /// The version is a delete marker.
    DeleteMarker = 14,
    InvalidRange = 15,
    NoSuchConfiguration = 16,
    BadDigest = 17,
    InvalidRequest = 18,
    InvalidBucketState = 19,
    KeyExists = 20,
    InvalidPartNumber = 21,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Refused {
    #[prost(enumeration = "Refusal", tag = "1")]
    pub(crate) why: i32,
    /// For a person to read; may be empty.
    #[prost(string, tag = "2")]
    pub(crate) text: String,
    /// Of a [`Refusal::DeleteMarker`] or [`Refusal::NotModified`]: the version that was found.
    #[prost(message, optional, boxed, tag = "3")]
    pub(crate) found: Option<Box<ObjectRow>>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Reply {
    #[prost(oneof = "Answer", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
    pub(crate) answer: Option<Answer>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Answer {
    #[prost(message, tag = "1")]
    Refused(Refused),
    #[prost(message, tag = "2")]
    Done(Empty),
    #[prost(message, tag = "3")]
    Bucket(BucketRow),
    #[prost(message, tag = "4")]
    Buckets(Buckets),
    #[prost(bytes = "bytes", tag = "5")]
    Text(Bytes),
    #[prost(message, tag = "6")]
    Object(Box<Found>),
    #[prost(message, tag = "7")]
    Parts(Parts),
    #[prost(message, tag = "8")]
    Deleted(Deleted),
    #[prost(message, tag = "9")]
    Listed(Listed),
    #[prost(message, tag = "10")]
    Upload(UploadName),
    #[prost(message, tag = "11")]
    Keys(KeyList),
    #[prost(message, tag = "12")]
    UploadRow(UploadRow),
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Buckets {
    #[prost(message, repeated, tag = "1")]
    pub(crate) buckets: Vec<NamedBucket>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct NamedBucket {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(uint64, tag = "2")]
    pub(crate) created_ms: u64,
    #[prost(string, tag = "3")]
    pub(crate) owner: String,
}

/// A version, as a read or a write leaves it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Found {
    #[prost(message, optional, tag = "1")]
    pub(crate) object: Option<ObjectRow>,
    /// The bytes asked for: their first, and the one after their last.
    #[prost(uint64, tag = "2")]
    pub(crate) start: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) end: u64,
    /// Rows of the parts from `first_part` (a position in `object.parts`) on; as many as the reply
    /// takes.
    #[prost(uint32, tag = "4")]
    pub(crate) first_part: u32,
    #[prost(message, repeated, tag = "5")]
    pub(crate) parts: Vec<PartRow>,
    #[prost(enumeration = "Versioning", tag = "6")]
    pub(crate) versioning: i32,
    #[prost(bool, tag = "7")]
    pub(crate) partial: bool,
    /// The current version may be written by whoever has the bucket; here for ACL answers.
    #[prost(string, tag = "8")]
    pub(crate) bucket_owner: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Parts {
    #[prost(message, repeated, tag = "1")]
    pub(crate) parts: Vec<NumberedPart>,
    #[prost(bool, tag = "2")]
    pub(crate) truncated: bool,
    /// The upload they belong to, where one was asked for.
    #[prost(message, optional, tag = "3")]
    pub(crate) upload: Option<UploadRow>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct NumberedPart {
    #[prost(uint32, tag = "1")]
    pub(crate) number: u32,
    #[prost(message, optional, tag = "2")]
    pub(crate) part: Option<PartRow>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Deleted {
    /// One for each item, in their order.
    #[prost(message, repeated, tag = "1")]
    pub(crate) items: Vec<DeletedItem>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeletedItem {
    #[prost(message, optional, tag = "1")]
    pub(crate) refused: Option<Refused>,
    /// The version that went, or the marker that was made; empty in a bucket without versions.
    #[prost(string, tag = "2")]
    pub(crate) version: String,
    #[prost(bool, tag = "3")]
    pub(crate) delete_marker: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Listed {
    /// Entries and common prefixes, in order.
    #[prost(message, repeated, tag = "1")]
    pub(crate) entries: Vec<Entry>,
    #[prost(bool, tag = "2")]
    pub(crate) truncated: bool,
    /// Where the next page begins: after this key or common prefix …
    #[prost(string, tag = "3")]
    pub(crate) next: String,
    /// … and after this version or upload of it.
    #[prost(string, tag = "4")]
    pub(crate) next_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Entry {
    /// The key; or the common prefix, if nothing else is here.
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(message, optional, boxed, tag = "2")]
    pub(crate) object: Option<Box<ObjectRow>>,
    /// Of a version: it is the newest of its key.
    #[prost(bool, tag = "3")]
    pub(crate) latest: bool,
    #[prost(message, optional, boxed, tag = "4")]
    pub(crate) upload: Option<Box<UploadRow>>,
    #[prost(bytes = "bytes", tag = "5")]
    pub(crate) upload_id: Bytes,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct KeyList {
    #[prost(message, repeated, tag = "1")]
    pub(crate) keys: Vec<KeyRow>,
}
