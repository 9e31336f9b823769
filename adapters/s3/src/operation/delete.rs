//! Deletions: one request may name up to a thousand versions, each with an outcome of its own.

use super::{Answer, Delete, DeleteItem, Deleted, DeletedItem, Evaluated, On, Stop, versions};
use crate::rows::{Level, Versioning};

impl DeleteItem {
    /// The name that policies know it by: a version goes for good.
    pub(crate) fn action(&self) -> &'static str {
        if self.version.is_empty() {
            "s3:DeleteObject"
        } else {
            "s3:DeleteObjectVersion"
        }
    }
}

pub(super) fn delete(on: &mut On<'_>, delete: &Delete) -> Evaluated {
    let mut items = Vec::with_capacity(delete.items.len());
    for item in &delete.items {
        items.push(match one(on, item) {
            Ok(done) => done,
            Err(Stop::Refused(refused)) => DeletedItem {
                refused: Some(refused),
                ..DeletedItem::default()
            },
            Err(Stop::Rows(error)) => return Err(error.into()),
        });
    }
    Ok(Answer::Deleted(Deleted { items }))
}

fn one(on: &mut On<'_>, item: &DeleteItem) -> Result<DeletedItem, Stop> {
    // One request may name both kinds.
    on.authorize_action(item.action(), Some(&item.key), Level::Write)?;
    let current = versions::current(on, &item.key)?;
    if !item.version.is_empty() {
        let found = versions::find(on, &item.key, &item.version)?;
        if let Some(conditions) = &item.conditions {
            versions::check_write(found.as_ref().map(|(_, object)| object), conditions)?;
        }
        let mut done = DeletedItem {
            version: item.version.clone(),
            ..DeletedItem::default()
        };
        // What is not there needs no deletion.
        if let Some((place, object)) = found {
            done.delete_marker = object.delete_marker;
            versions::remove(on, &item.key, place, &object)?;
        }
        return Ok(done);
    }
    if let Some(conditions) = &item.conditions {
        versions::check_write(current.as_ref(), conditions)?;
    }
    if on.bucket.versioning() == Versioning::Never {
        if let Some(current) = current {
            versions::drop_data(on, &current);
            on.rows.delete(on.keys.object(&item.key));
        }
        return Ok(DeletedItem::default());
    }
    let marker = versions::mark_deleted(on, &item.key, current)?;
    Ok(DeletedItem {
        version: marker.version_id(),
        delete_marker: true,
        ..DeletedItem::default()
    })
}
