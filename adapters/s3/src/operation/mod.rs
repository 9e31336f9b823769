//! S3 requests as the data plane sees them: one [`S3Operation`] on one bucket, decided by the
//! executor of the bucket's shard, over rows.
//!
//! A reply says what was found or done, or why nothing was ([`Refusal`]); access is decided here
//! too, at the same instant as all else ([`access`]).

mod access;
mod buckets;
mod delete;
mod get;
mod keys;
mod lifecycle;
mod list;
mod put;
#[cfg(test)]
mod tests;
mod uploads;
mod versions;
mod wire;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use leadline_kv::{Access, Door, Operation, OperationCodec, Route, RowError, Rows, Scattered};
use prost::Message;

pub(crate) use access::{matches_pattern, policy_is_public};
pub(crate) use lifecycle::LifecycleSweep;
pub(crate) use wire::*;

use crate::rows::{self, BucketKeys, BucketRow, Level};

/// The highest format of a request that this binary reads, and the one it writes.
const FORMAT: u32 = 1;

/// The smallest part of a multipart upload, except the last.
pub(crate) const LEAST_PART: u64 = 5 << 20;
/// The highest part number.
pub(crate) const MOST_PARTS: u16 = 10_000;

/// One request, with the row key that says where it belongs.
#[derive(Debug)]
pub(crate) struct S3Operation {
    request: Request,
    keys: [Bytes; 1],
    size: usize,
}

/// Why an operation stops without a reply of its own kind.
#[derive(Debug)]
enum Stop {
    Rows(RowError),
    Refused(Refused),
}

impl From<RowError> for Stop {
    fn from(error: RowError) -> Self {
        Self::Rows(error)
    }
}

impl From<Refusal> for Stop {
    fn from(why: Refusal) -> Self {
        Self::Refused(Refused {
            why: why.into(),
            ..Refused::default()
        })
    }
}

fn refused(why: Refusal, text: impl Into<String>) -> Stop {
    Stop::Refused(Refused {
        why: why.into(),
        text: text.into(),
        found: None,
    })
}

type Evaluated = Result<Answer, Stop>;

impl S3Operation {
    pub(crate) fn new(who: Who, bucket: &str, action: &str, act: Action) -> Self {
        Self::from_request(Request {
            format: FORMAT,
            who: Some(who),
            bucket: bucket.to_owned(),
            action: action.to_owned(),
            act: Some(act),
        })
    }

    /// An operation on the access keys, which the meta group keeps.
    pub(crate) fn on_keys(act: KeyAction) -> Self {
        let keys = Keys { act: Some(act) };
        Self::new(Who::default(), "", "", Action::Keys(keys))
    }

    fn from_request(request: Request) -> Self {
        let route = match &request.act {
            Some(Action::Keys(_)) => rows::access_keys().start,
            _ => BucketKeys::new(&request.bucket).prefix(),
        };
        Self {
            size: request.encoded_len() + 256,
            keys: [route],
            request,
        }
    }

    fn evaluate_request(&self, rows: &mut dyn Rows) -> Evaluated {
        let request = &self.request;
        let Some(act) = &request.act else {
            return Err(Refusal::Unspecified.into());
        };
        match act {
            Action::Keys(keys) => return keys::evaluate(rows, keys),
            Action::ListBuckets(_) => return buckets::list(rows),
            Action::CreateBucket(create) => return buckets::create(rows, request, create),
            Action::Lifecycle(step) => return lifecycle::evaluate(rows, step).map(|(a, _)| a),
            _ => {}
        }
        let keys = BucketKeys::new(&request.bucket);
        let Some(bucket) = rows.get(&keys.bucket())? else {
            return Err(Refusal::NoSuchBucket.into());
        };
        let bucket: BucketRow = rows::decode(&bucket)?;
        let mut expected = request.who.iter().flat_map(|who| &who.expected_owners);
        if expected.any(|owner| *owner != bucket.owner) {
            return Err(Refusal::AccessDenied.into());
        }
        let mut on = On {
            rows,
            request,
            keys,
            bucket,
        };
        match act {
            Action::HeadBucket(head) => buckets::head(&mut on, head),
            Action::DeleteBucket(_) => buckets::delete(&mut on),
            Action::Configure(change) => buckets::configure(&mut on, change),
            Action::Configuration(which) => buckets::configuration(&mut on, which),
            Action::Put(put) => put::put(&mut on, put),
            Action::Get(get) => get::get(&mut on, get),
            Action::ReadParts(read) => get::read_parts(&mut on, read),
            Action::Delete(delete) => delete::delete(&mut on, delete),
            Action::SetTags(set) => put::set_tags(&mut on, set),
            Action::SetAcl(set) => put::set_acl(&mut on, set),
            Action::List(list) if list.versions => list::versions(&mut on, list),
            Action::List(list) => list::objects(&mut on, list),
            Action::ListUploads(list) => list::uploads(&mut on, list),
            Action::CreateUpload(create) => uploads::create(&mut on, create),
            Action::PutPart(put) => uploads::put_part(&mut on, put),
            Action::ListParts(list) => uploads::list_parts(&mut on, list),
            Action::GetUpload(name) => uploads::get(&mut on, name),
            Action::AbortUpload(name) => uploads::abort(&mut on, name),
            Action::Complete(complete) => uploads::complete(&mut on, complete),
            Action::Keys(_)
            | Action::ListBuckets(_)
            | Action::CreateBucket(_)
            | Action::Lifecycle(_) => Err(Refusal::Unspecified.into()),
        }
    }
}

/// A request on a bucket that is there.
struct On<'a> {
    rows: &'a mut dyn Rows,
    request: &'a Request,
    keys: BucketKeys,
    bucket: BucketRow,
}

impl On<'_> {
    /// Refuses what `who` may not do: `key` is the object it is about, if any.
    fn authorize(&self, key: Option<&str>, level: Level) -> Result<(), Stop> {
        self.authorize_action(&self.request.action, key, level)
    }

    /// The same for an action that is part of the request.
    fn authorize_action(&self, action: &str, key: Option<&str>, level: Level) -> Result<(), Stop> {
        if access::allows(&self.bucket, self.request, action, key, level, None) {
            Ok(())
        } else {
            Err(Refusal::AccessDenied.into())
        }
    }

    /// The same for a write that does other things `also`.
    fn authorize_write(&self, key: &str, also: &[String]) -> Result<(), Stop> {
        self.authorize(Some(key), Level::Write)?;
        also.iter()
            .try_for_each(|action| self.authorize_action(action, Some(key), Level::Write))
    }

    fn owner_only(&self) -> Result<(), Stop> {
        if access::is_owner(&self.bucket, self.request) {
            Ok(())
        } else {
            self.authorize(None, Level::Owner)
        }
    }
}

fn answer(evaluated: Evaluated) -> Result<Bytes, RowError> {
    let answer = match evaluated {
        Ok(answer) => answer,
        Err(Stop::Refused(refused)) => Answer::Refused(refused),
        Err(Stop::Rows(error)) => return Err(error),
    };
    let reply = Reply {
        answer: Some(answer),
    };
    Ok(reply.encode_to_vec().into())
}

impl Operation for S3Operation {
    fn name(&self) -> &'static str {
        match &self.request.act {
            None => "s3",
            Some(act) => match act {
                Action::CreateBucket(_) => "s3.create_bucket",
                Action::HeadBucket(_) => "s3.head_bucket",
                Action::DeleteBucket(_) => "s3.delete_bucket",
                Action::ListBuckets(_) => "s3.list_buckets",
                Action::Configure(_) => "s3.configure",
                Action::Configuration(_) => "s3.configuration",
                Action::Put(_) => "s3.put",
                Action::Get(_) => "s3.get",
                Action::ReadParts(_) => "s3.read_parts",
                Action::Delete(_) => "s3.delete",
                Action::SetTags(_) => "s3.set_tags",
                Action::SetAcl(_) => "s3.set_acl",
                Action::List(_) => "s3.list",
                Action::CreateUpload(_) => "s3.create_upload",
                Action::PutPart(_) => "s3.put_part",
                Action::ListParts(_) => "s3.list_parts",
                Action::ListUploads(_) => "s3.list_uploads",
                Action::AbortUpload(_) => "s3.abort_upload",
                Action::Complete(_) => "s3.complete",
                Action::Keys(_) => "s3.keys",
                Action::Lifecycle(_) => "s3.lifecycle",
                Action::GetUpload(_) => "s3.get_upload",
            },
        }
    }

    fn door(&self) -> Door {
        Door::S3
    }

    fn access(&self) -> Access {
        match &self.request.act {
            Some(
                Action::HeadBucket(_)
                | Action::ListBuckets(_)
                | Action::Configuration(_)
                | Action::Get(_)
                | Action::ReadParts(_)
                | Action::List(_)
                | Action::ListParts(_)
                | Action::ListUploads(_)
                | Action::GetUpload(_),
            ) => Access::Read,
            Some(Action::Keys(Keys {
                act: Some(KeyAction::Get(_) | KeyAction::List(_)),
            })) => Access::Read,
            _ => Access::Write,
        }
    }

    fn route(&self) -> Route<'_> {
        match &self.request.act {
            Some(Action::ListBuckets(_)) => Route::EveryShard,
            _ => Route::Keys(&self.keys),
        }
    }

    fn size(&self) -> usize {
        self.size
    }

    fn evaluate(&self, rows: &mut dyn Rows) -> Result<Bytes, RowError> {
        answer(self.evaluate_request(rows))
    }

    fn encode(&self, out: &mut BytesMut) {
        self.request
            .encode(out)
            .expect("a BytesMut grows as needed");
    }

    fn scatter(self: Arc<Self>) -> Option<Scattered> {
        match &self.request.act {
            Some(Action::ListBuckets(_)) => Some(Scattered {
                part: self,
                gather: Box::new(all_buckets),
            }),
            _ => None,
        }
    }
}

/// The buckets that all shards list, by name.
fn all_buckets(replies: Vec<Bytes>) -> Bytes {
    let mut all = Buckets::default();
    for reply in replies {
        match Reply::decode(reply.clone()).map(|reply| reply.answer) {
            Ok(Some(Answer::Buckets(part))) => all.buckets.extend(part.buckets),
            // A part that was refused, or is not what was asked for, is the answer.
            _ => return reply,
        }
    }
    all.buckets.sort_by(|a, b| a.name.cmp(&b.name));
    let reply = Reply {
        answer: Some(Answer::Buckets(all)),
    };
    reply.encode_to_vec().into()
}

/// Decodes S3 operations that another node forwarded.
#[derive(Clone, Copy, Debug, Default)]
pub struct S3Codec;

impl OperationCodec for S3Codec {
    fn decode(&self, bytes: Bytes) -> Result<Arc<dyn Operation>, String> {
        let request = Request::decode(bytes).map_err(|error| error.to_string())?;
        if request.format > FORMAT {
            return Err(format!(
                "a forwarded S3 request has format {}; this node reads up to {FORMAT}",
                request.format
            ));
        }
        if request.act.is_none() {
            return Err("a forwarded S3 request asks for what this node does not know".to_owned());
        }
        Ok(Arc::new(S3Operation::from_request(request)))
    }
}
