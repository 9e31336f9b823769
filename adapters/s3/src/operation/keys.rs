//! Access keys: rows of the meta group.

use leadline_kv::{Rows, ScanOrder};

use super::{Answer, Empty, Evaluated, KeyAction, KeyList, Keys, Refusal, refused};
use crate::rows::{self, KeyRow, Level};

/// Grants of one key.
const MOST_GRANTS: usize = 1000;

pub(super) fn evaluate(rows: &mut dyn Rows, keys: &Keys) -> Evaluated {
    match &keys.act {
        None => Err(Refusal::Unspecified.into()),
        Some(KeyAction::Get(access_key)) => {
            let row = rows.get(&rows::access_key(access_key))?;
            let keys = row.map(|row| rows::decode(&row)).transpose()?;
            Ok(Answer::Keys(KeyList {
                keys: keys.into_iter().collect(),
            }))
        }
        Some(KeyAction::List(_)) => {
            let mut found = Vec::new();
            rows.scan(rows::access_keys(), ScanOrder::Ascending, &mut |_, row| {
                found.push(row.clone());
                true
            })?;
            let keys = found
                .iter()
                .map(|row| rows::decode(row))
                .collect::<Result<Vec<KeyRow>, _>>()?;
            Ok(Answer::Keys(KeyList { keys }))
        }
        Some(KeyAction::Create(key)) => {
            let row = rows::access_key(&key.access_key);
            if rows.get(&row)?.is_some() {
                return Err(refused(
                    Refusal::KeyExists,
                    format!("there is an access key {} already", key.access_key),
                ));
            }
            let key = KeyRow {
                created_ms: rows.commit_ts().millis(),
                ..key.clone()
            };
            rows.put(row, rows::encode(&key));
            Ok(Answer::Keys(KeyList { keys: vec![key] }))
        }
        Some(KeyAction::Delete(access_key)) => {
            let row = rows::access_key(access_key);
            if rows.get(&row)?.is_none() {
                return Err(no_such_key(access_key));
            }
            rows.delete(row);
            Ok(Answer::Done(Empty {}))
        }
        Some(KeyAction::Grant(grant)) => {
            let row = rows::access_key(&grant.access_key);
            let Some(stored) = rows.get(&row)? else {
                return Err(no_such_key(&grant.access_key));
            };
            let mut key: KeyRow = rows::decode(&stored)?;
            let wanted = grant.grant.clone().unwrap_or_default();
            key.grants.retain(|known| known.bucket != wanted.bucket);
            if wanted.level() != Level::Nothing {
                key.grants.push(wanted);
            }
            if key.grants.len() > MOST_GRANTS {
                return Err(refused(
                    Refusal::InvalidRequest,
                    format!("a key has at most {MOST_GRANTS} grants: use the bucket *"),
                ));
            }
            rows.put(row, rows::encode(&key));
            Ok(Answer::Keys(KeyList { keys: vec![key] }))
        }
    }
}

fn no_such_key(access_key: &str) -> super::Stop {
    refused(
        Refusal::NoSuchKey,
        format!("there is no access key {access_key}"),
    )
}
