//! What a failure of the data plane looks like to a Redis client.

use bytes::Bytes;
use leadline_kv::KvError;
use leadline_raft::Ended;

/// The error line of `error`, without its `-`. Its first word tells a client what to do, its text
/// tells a person whether the command may have taken effect.
pub(crate) fn line(error: &KvError) -> Bytes {
    Bytes::from(match error {
        KvError::NoLeader { leader: None } => {
            "CLUSTERDOWN not applied: no leader for the key's shard now, try again".to_owned()
        }
        KvError::NoLeader { leader: Some(node) } => {
            format!(
                "CLUSTERDOWN not applied: no leader for the key's shard now (node {node} led last), try again"
            )
        }
        KvError::Overloaded {
            what,
            retry_after_ms,
        } => format!("TRYAGAIN not applied: overloaded ({what}), try again in {retry_after_ms} ms"),
        KvError::NotApplied(Ended::Deadline) => {
            "TIMEOUT not applied: the command's deadline passed".to_owned()
        }
        KvError::NotApplied(Ended::Cancelled) => {
            "TIMEOUT not applied: the command was cancelled".to_owned()
        }
        KvError::Unknown(why) => format!("UNKNOWN the write may have been applied: {why}"),
        KvError::CrossShard => "CROSSSLOT Keys in request don't hash to the same slot".to_owned(),
        KvError::Invalid(why) => format!("ERR {why}"),
        KvError::Storage(why) => format!("MISCONF not applied: storage failed: {why}"),
        KvError::Stopping => {
            "CLUSTERDOWN not applied: the node is stopping, try another".to_owned()
        }
    })
}
