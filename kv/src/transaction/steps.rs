//! The steps of a transaction as operations: they take the same way to a shard's executor as every
//! command, here or on another node.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use prost::Message;

use super::AttemptId;
use crate::wire::transaction_reply::Reply;
use crate::wire::transaction_step::Step;
use crate::wire::{self, RowRead, RowsRead, TransactionReply, TransactionStep};
use crate::{Access, Door, Moment, Operation, OperationCodec, Route, RowError, Rows, ScanOrder};

/// A read of rows answers at most about so many bytes at once; more are asked for again.
const READ_BYTES: usize = 4 << 20;

/// One step, at one shard.
#[derive(Debug)]
pub struct TransactionOperation {
    step: TransactionStep,
    /// What a read reads: it must see what its caller wrote before. Else any row of the shard.
    keys: Vec<Bytes>,
}

impl TransactionOperation {
    pub(crate) fn new(id: AttemptId, lowest_open: u64, key: Bytes, step: Step) -> Arc<Self> {
        Arc::new(Self {
            keys: keys_of(&key, Some(&step)),
            step: TransactionStep {
                session_high: (id.session >> 64) as u64,
                session_low: id.session as u64,
                number: id.number,
                lowest_open,
                key,
                step: Some(step),
            },
        })
    }

    /// Whether whoever asks compares what it got before it relies on it: rows as they were committed
    /// at any time will do for an answer, which then needs no proof of leadership.
    pub(crate) fn is_rechecked(&self) -> bool {
        matches!(&self.step.step, Some(Step::Read(read)) if read.rechecked)
    }

    /// The step, if it is one that the executor itself does.
    pub(crate) fn for_executor(&self) -> Option<(AttemptId, u64, &Step)> {
        let id = AttemptId {
            session: u128::from(self.step.session_high) << 64 | u128::from(self.step.session_low),
            number: self.step.number,
        };
        match &self.step.step {
            None | Some(Step::Read(_) | Step::Scan(_)) => None,
            Some(step) => Some((id, self.step.lowest_open, step)),
        }
    }
}

impl Operation for TransactionOperation {
    fn name(&self) -> &'static str {
        match &self.step.step {
            Some(Step::Read(_)) => "TXN.READ",
            Some(Step::Scan(_)) => "TXN.SCAN",
            Some(Step::Lock(_)) => "TXN.LOCK",
            Some(Step::Validate(_)) => "TXN.VALIDATE",
            Some(Step::Decide(_)) => "TXN.DECIDE",
            Some(Step::RollForward(_)) => "TXN.ROLLFORWARD",
            Some(Step::Release(_)) => "TXN.RELEASE",
            Some(Step::Abort(_)) => "TXN.ABORT",
            Some(Step::Forget(_)) | None => "TXN.FORGET",
        }
    }

    fn door(&self) -> Door {
        Door::Transaction
    }

    fn access(&self) -> Access {
        match &self.step.step {
            Some(Step::Read(_) | Step::Scan(_) | Step::Validate(_)) => Access::Read,
            _ => Access::Write,
        }
    }

    fn route(&self) -> Route<'_> {
        Route::Keys(&self.keys)
    }

    fn size(&self) -> usize {
        self.step.encoded_len() + 256
    }

    /// Only reads are evaluated over rows.
    fn evaluate(&self, rows: &mut dyn Rows) -> Result<Bytes, RowError> {
        let read = match &self.step.step {
            Some(Step::Read(read)) => {
                let mut found = Vec::with_capacity(read.keys.len());
                for key in &read.keys {
                    found.push(match rows.get_versioned(key)? {
                        Some((value, stamp)) => RowRead {
                            key: Bytes::new(),
                            value: Some(value),
                            stamp: stamp.0,
                        },
                        None => RowRead::default(),
                    });
                }
                let absent = found.iter().any(|row| row.value.is_none());
                (found, false, absent)
            }
            Some(Step::Scan(scan)) => {
                let order = if scan.descending {
                    ScanOrder::Descending
                } else {
                    ScanOrder::Ascending
                };
                let (mut keys, mut bytes, mut more) = (Vec::new(), 0, false);
                rows.scan(
                    scan.start.clone()..scan.end.clone(),
                    order,
                    &mut |key, value| {
                        if keys.len() >= scan.most_rows as usize || bytes >= READ_BYTES {
                            more = true;
                            return false;
                        }
                        bytes += key.len() + value.len();
                        keys.push(Bytes::copy_from_slice(key));
                        true
                    },
                )?;
                let mut found = Vec::with_capacity(keys.len());
                for key in keys {
                    if let Some((value, stamp)) = rows.get_versioned(&key)? {
                        found.push(RowRead {
                            key,
                            value: Some(value),
                            stamp: stamp.0,
                        });
                    }
                }
                (found, more, true)
            }
            _ => return Err(RowError::NeedsExecutor),
        };
        let (found, more, absent) = read;
        Ok(encode(Reply::Rows(RowsRead {
            rows: found,
            now: rows.commit_ts().0,
            more,
            moment: match absent {
                true => Some(rows.moment()?.into()),
                false => None,
            },
        })))
    }

    fn transaction(&self) -> Option<&TransactionOperation> {
        Some(self)
    }

    fn encode(&self, out: &mut BytesMut) {
        out.extend_from_slice(&self.step.encode_to_vec());
    }
}

fn keys_of(key: &Bytes, step: Option<&Step>) -> Vec<Bytes> {
    match step {
        Some(Step::Read(read)) if !read.keys.is_empty() => read.keys.clone(),
        _ => vec![key.clone()],
    }
}

impl From<wire::Moment> for Moment {
    fn from(moment: wire::Moment) -> Self {
        let wire::Moment { life, deletions } = moment;
        Self { life, deletions }
    }
}

impl From<Moment> for wire::Moment {
    fn from(moment: Moment) -> Self {
        let Moment { life, deletions } = moment;
        Self { life, deletions }
    }
}

pub(crate) fn encode(reply: Reply) -> Bytes {
    TransactionReply { reply: Some(reply) }
        .encode_to_vec()
        .into()
}

/// What a shard answered to a step.
pub(super) fn decode(reply: Bytes) -> Option<Reply> {
    TransactionReply::decode(reply).ok()?.reply
}

/// Decodes steps that another node forwarded.
#[derive(Debug)]
pub(crate) struct TransactionCodec;

impl OperationCodec for TransactionCodec {
    fn decode(&self, bytes: Bytes) -> Result<Arc<dyn Operation>, String> {
        let step = TransactionStep::decode(bytes)
            .map_err(|error| format!("a step of a transaction is malformed: {error}"))?;
        if step.step.is_none() {
            return Err("a step of a transaction that this node does not know".to_owned());
        }
        let keys = keys_of(&step.key, step.step.as_ref());
        Ok(Arc::new(TransactionOperation { step, keys }))
    }
}
