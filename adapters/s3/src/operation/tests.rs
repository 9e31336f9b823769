//! What operations decide, over rows in memory.

use bytes::{Bytes, BytesMut};
use leadline_kv::Operation;
use leadline_kv::executor::LARGEST_COMMAND;
use leadline_kv::testing::MemoryRows;
use proptest::prelude::*;

use super::*;
use crate::rows::{Acl, GrantRow, KeyRow, ObjectRow, PartRow, UploadRow, Versioning};

/// A shard with the bucket `b`, its clock a second further with each operation.
struct World {
    rows: MemoryRows,
    now_ms: u64,
}

fn owner() -> Who {
    Who {
        access_key: "OWNER".into(),
        level: Level::Nothing.into(),
        creates: true,
        ..Who::default()
    }
}

fn nobody() -> Who {
    Who::default()
}

const START_MS: u64 = 1_700_000_000_000;

impl World {
    fn new() -> Self {
        let mut world = Self {
            rows: MemoryRows::default(),
            now_ms: START_MS,
        };
        let create = Action::CreateBucket(CreateBucket::default());
        world.run(create).unwrap();
        world
    }

    fn versioned(versioning: Versioning) -> Self {
        let mut world = Self::new();
        world.set_versioning(versioning);
        world
    }

    fn set_versioning(&mut self, versioning: Versioning) {
        let change = Configure {
            kind: Kind::Versioning.into(),
            versioning: versioning.into(),
            ..Configure::default()
        };
        self.run(Action::Configure(change)).unwrap();
    }

    fn set_lifecycle(&mut self, rules: &str) {
        let parsed: s3s::dto::BucketLifecycleConfiguration = serde_json::from_str(rules).unwrap();
        let change = Configure {
            kind: Kind::Lifecycle.into(),
            text: Some(Bytes::from(serde_json::to_vec(&parsed).unwrap())),
            ..Configure::default()
        };
        self.run(Action::Configure(change)).unwrap();
    }

    fn run(&mut self, act: Action) -> Result<Answer, Refusal> {
        self.run_as(owner(), "s3:Any", act)
    }

    /// Through the codec, as a forwarded one.
    fn run_as(&mut self, who: Who, action: &str, act: Action) -> Result<Answer, Refusal> {
        self.now_ms += 1000;
        self.rows.set_millis(self.now_ms);
        let mut encoded = BytesMut::new();
        S3Operation::new(who, "b", action, act).encode(&mut encoded);
        let operation = S3Codec.decode(encoded.freeze()).unwrap();
        let reply = Reply::decode(operation.evaluate(&mut self.rows).unwrap()).unwrap();
        match reply.answer.unwrap() {
            Answer::Refused(refused) => Err(refused.why()),
            answer => Ok(answer),
        }
    }

    fn put(&mut self, key: &str, bytes: &str) -> ObjectRow {
        self.put_if(key, bytes, WriteConditions::default()).unwrap()
    }

    fn put_if(
        &mut self,
        key: &str,
        bytes: &str,
        conditions: WriteConditions,
    ) -> Result<ObjectRow, Refusal> {
        let put = Put {
            key: key.into(),
            object: Some(ObjectRow {
                size: bytes.len() as u64,
                etag: format!("etag-of-{bytes}"),
                ..ObjectRow::default()
            }),
            parts: vec![PartRow {
                size: bytes.len() as u64,
                inline: Bytes::copy_from_slice(bytes.as_bytes()),
                ..PartRow::default()
            }],
            conditions: Some(conditions),
            also: Vec::new(),
        };
        match self.run(Action::Put(Box::new(put)))? {
            Answer::Object(found) => Ok(found.object.unwrap()),
            other => panic!("{other:?}"),
        }
    }

    fn get(&mut self, key: &str, version: &str) -> Result<String, Refusal> {
        let get = Get {
            key: key.into(),
            version: version.into(),
            body: true,
            ..Get::default()
        };
        match self.run(Action::Get(get))? {
            Answer::Object(found) => {
                let bytes: Vec<u8> = found
                    .parts
                    .iter()
                    .flat_map(|part| part.inline.to_vec())
                    .collect();
                Ok(String::from_utf8(bytes).unwrap())
            }
            other => panic!("{other:?}"),
        }
    }

    fn delete(&mut self, key: &str, version: &str) -> DeletedItem {
        let items = vec![DeleteItem {
            key: key.into(),
            version: version.into(),
            conditions: None,
        }];
        match self.run(Action::Delete(Delete { items })).unwrap() {
            Answer::Deleted(mut deleted) => deleted.items.pop().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn list(&mut self, list: List) -> Listed {
        match self.run(Action::List(list)).unwrap() {
            Answer::Listed(listed) => listed,
            other => panic!("{other:?}"),
        }
    }

    /// Every entry, page by page.
    fn walk(&mut self, list: &List) -> Vec<Entry> {
        let mut list = list.clone();
        let mut all = Vec::new();
        loop {
            let page = self.list(list.clone());
            all.extend(page.entries);
            if !page.truncated {
                return all;
            }
            list.after = page.next;
            list.after_id = page.next_id;
        }
    }

    fn versions(&mut self, key: &str) -> Vec<(String, bool, bool)> {
        let list = List {
            prefix: key.into(),
            most: 2,
            versions: true,
            ..List::default()
        };
        self.walk(&list)
            .into_iter()
            .map(|entry| {
                let object = entry.object.unwrap();
                (object.version_id(), object.delete_marker, entry.latest)
            })
            .collect()
    }
}

fn only_if_absent() -> WriteConditions {
    WriteConditions {
        if_none_match: "*".into(),
        ..WriteConditions::default()
    }
}

#[test]
fn of_two_that_put_only_if_absent_the_first_wins() {
    let mut world = World::new();
    assert!(world.put_if("lock", "a", only_if_absent()).is_ok());
    assert_eq!(
        world.put_if("lock", "b", only_if_absent()),
        Err(Refusal::PreconditionFailed)
    );
    assert_eq!(world.get("lock", "").unwrap(), "a");
    let matching = |etag: &str| WriteConditions {
        if_match: etag.into(),
        ..WriteConditions::default()
    };
    assert_eq!(
        world.put_if("lock", "c", matching("etag-of-b")),
        Err(Refusal::PreconditionFailed)
    );
    assert!(world.put_if("lock", "c", matching("etag-of-a")).is_ok());
    assert_eq!(
        world.put_if("other", "c", matching("*")),
        Err(Refusal::NoSuchKey)
    );
}

/// The lock pattern on a versioned bucket: a delete marker on top is as good as absent.
#[test]
fn a_delete_marker_frees_a_lock() {
    let mut world = World::versioned(Versioning::Enabled);
    assert!(world.put_if("lock", "a", only_if_absent()).is_ok());
    world.delete("lock", "");
    assert!(world.put_if("lock", "b", only_if_absent()).is_ok());
    assert_eq!(world.versions("lock").len(), 3);
}

#[test]
fn an_overwritten_or_deleted_object_leaves_no_row_behind() {
    let mut world = World::new();
    let before = world.rows.len();
    world.put("k", "one");
    world.put("k", "two");
    assert_eq!(world.rows.len(), before + 2);
    world.delete("k", "");
    assert_eq!(world.rows.len(), before);
    assert_eq!(world.get("k", ""), Err(Refusal::NoSuchKey));
}

#[test]
fn versions_come_back_when_what_hides_them_goes() {
    let mut world = World::versioned(Versioning::Enabled);
    let one = world.put("k", "one").version_id();
    let two = world.put("k", "two").version_id();
    let marker = world.delete("k", "");
    assert!(marker.delete_marker);
    assert_eq!(world.get("k", ""), Err(Refusal::NoSuchKey));
    assert_eq!(world.get("k", &one).unwrap(), "one");
    assert_eq!(world.get("k", &marker.version), Err(Refusal::DeleteMarker));
    assert_eq!(
        world.versions("k"),
        [
            (marker.version.clone(), true, true),
            (two.clone(), false, false),
            (one.clone(), false, false)
        ]
    );
    world.delete("k", &marker.version);
    assert_eq!(world.get("k", "").unwrap(), "two");
    world.delete("k", &two);
    assert_eq!(world.get("k", "").unwrap(), "one");
    assert_eq!(world.versions("k"), [(one.clone(), false, true)]);
    world.delete("k", &one);
    assert_eq!(world.get("k", &one), Err(Refusal::NoSuchVersion));
}

#[test]
fn a_suspended_bucket_has_one_null_version_per_key() {
    let mut world = World::new();
    world.put("k", "before");
    world.set_versioning(Versioning::Enabled);
    let kept = world.put("k", "kept").version_id();
    assert_eq!(world.get("k", "null").unwrap(), "before");
    world.set_versioning(Versioning::Suspended);
    world.put("k", "first");
    world.put("k", "second");
    assert_eq!(world.get("k", "null").unwrap(), "second");
    assert_eq!(
        world.versions("k"),
        [("null".into(), false, true), (kept.clone(), false, false)]
    );
    // The marker takes the null version's place.
    assert_eq!(world.delete("k", "").version, "null");
    assert_eq!(
        world.versions("k"),
        [("null".into(), true, true), (kept, false, false)]
    );
    world.delete("k", "null");
    assert_eq!(world.get("k", "").unwrap(), "kept");
}

#[test]
fn a_bucket_with_anything_in_it_cannot_be_deleted() {
    let mut world = World::versioned(Versioning::Enabled);
    let delete = || Action::DeleteBucket(Empty {});
    world.put("k", "one");
    assert_eq!(world.run(delete()), Err(Refusal::BucketNotEmpty));
    world.delete("k", "");
    assert_eq!(
        world.run(delete()),
        Err(Refusal::BucketNotEmpty),
        "versions"
    );
    for (version, _, _) in world.versions("k") {
        world.delete("k", &version);
    }
    assert!(world.run(delete()).is_ok());
    assert_eq!(world.rows.len(), 0);
    assert_eq!(world.get("k", ""), Err(Refusal::NoSuchBucket));
}

#[test]
fn who_may_do_nothing_learns_nothing() {
    let mut world = World::new();
    world.put("k", "secret");
    let get = |key: &str| {
        Action::Get(Get {
            key: key.into(),
            ..Get::default()
        })
    };
    let read = "s3:GetObject";
    assert_eq!(
        world.run_as(nobody(), read, get("k")),
        Err(Refusal::AccessDenied)
    );
    assert_eq!(
        world.run_as(nobody(), read, get("absent")),
        Err(Refusal::AccessDenied)
    );
    let set = SetAcl {
        key: "k".into(),
        acl: Acl::PublicRead.into(),
        ..SetAcl::default()
    };
    world.run(Action::SetAcl(set)).unwrap();
    assert!(world.run_as(nobody(), read, get("k")).is_ok());
    assert_eq!(
        world.run_as(nobody(), "s3:ListBucket", Action::List(List::default())),
        Err(Refusal::AccessDenied)
    );
}

#[test]
fn a_range_is_answered_with_the_parts_it_touches() {
    let mut world = World::new();
    world.put("k", "0123456789");
    let mut range = |first, last, suffix| {
        let get = Get {
            key: "k".into(),
            body: true,
            first,
            last,
            suffix,
            ..Get::default()
        };
        world.run(Action::Get(get)).map(|answer| match answer {
            Answer::Object(found) => (found.start, found.end),
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(range(Some(2), Some(4), None), Ok((2, 5)));
    assert_eq!(range(Some(2), Some(400), None), Ok((2, 10)));
    assert_eq!(range(Some(9), None, None), Ok((9, 10)));
    assert_eq!(range(None, None, Some(3)), Ok((7, 10)));
    assert_eq!(range(None, None, Some(30)), Ok((0, 10)));
    assert_eq!(range(Some(10), None, None), Err(Refusal::InvalidRange));
    assert_eq!(range(None, None, Some(0)), Err(Refusal::InvalidRange));
}

struct Upload {
    name: UploadName,
}

impl World {
    fn begin(&mut self, key: &str) -> Upload {
        let create = UploadRowFor {
            key: key.into(),
            upload: Some(UploadRow::default()),
            also: Vec::new(),
        };
        match self.run(Action::CreateUpload(Box::new(create))).unwrap() {
            Answer::Upload(name) => Upload { name },
            other => panic!("{other:?}"),
        }
    }

    fn part(&mut self, upload: &Upload, number: u32, size: u64) -> Result<String, Refusal> {
        let md5 = format!("{number:032x}");
        let put = PutPart {
            name: Some(upload.name.clone()),
            number,
            part: Some(PartRow {
                size,
                md5: md5.clone(),
                ..PartRow::default()
            }),
        };
        self.run(Action::PutPart(Box::new(put))).map(|_| md5)
    }

    fn complete(&mut self, upload: &Upload, parts: &[(u32, String)]) -> Result<ObjectRow, Refusal> {
        let complete = Complete {
            name: Some(upload.name.clone()),
            parts: parts
                .iter()
                .map(|(number, etag)| CompletePart {
                    number: *number,
                    etag: etag.clone(),
                    checksum: String::new(),
                })
                .collect(),
            ..Complete::default()
        };
        match self.run(Action::Complete(complete))? {
            Answer::Object(found) => Ok(found.object.unwrap()),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_completed_upload_is_one_object_and_completing_it_again_says_so() {
    let mut world = World::new();
    let upload = world.begin("big");
    let one = world.part(&upload, 1, LEAST_PART).unwrap();
    let stray = world.part(&upload, 2, 7).unwrap();
    let three = world.part(&upload, 3, 9).unwrap();
    let parts = [(1, one.clone()), (3, three.clone())];
    assert_eq!(
        world.complete(&upload, &[(3, three.clone()), (1, one.clone())]),
        Err(Refusal::InvalidPartOrder)
    );
    assert_eq!(
        world.complete(&upload, &[(1, stray.clone())]),
        Err(Refusal::InvalidPart)
    );
    assert_eq!(
        world.complete(&upload, &[(2, stray), (3, three.clone())]),
        Err(Refusal::EntityTooSmall)
    );
    let done = world.complete(&upload, &parts).unwrap();
    assert_eq!((done.size, done.parts.len()), (LEAST_PART + 9, 2));
    assert!(done.etag.ends_with("-2"));
    assert_eq!(world.complete(&upload, &parts).unwrap(), done);
    // The stray part is gone, and a late one has nowhere to go.
    assert_eq!(world.part(&upload, 4, 1), Err(Refusal::NoSuchUpload));
    let rows = world.rows.len();
    world.delete("big", "");
    assert_eq!(world.rows.len(), rows - 3);
}

#[test]
fn an_aborted_upload_leaves_nothing() {
    let mut world = World::new();
    let before = world.rows.len();
    let upload = world.begin("big");
    world.part(&upload, 1, 5).unwrap();
    world.run(Action::AbortUpload(upload.name.clone())).unwrap();
    assert_eq!(world.rows.len(), before);
    assert_eq!(
        world.run(Action::AbortUpload(upload.name)),
        Err(Refusal::NoSuchUpload)
    );
}

#[test]
fn uploads_are_listed_by_key_and_by_age_within_it() {
    let mut world = World::new();
    let keys = ["b", "a/x", "a/y", "b"];
    let ids: Vec<_> = keys
        .iter()
        .map(|key| world.begin(key).name.upload)
        .collect();
    let list = |delimiter: &str, most| List {
        delimiter: delimiter.into(),
        most,
        ..List::default()
    };
    let mut page = list("", 1);
    let mut found = Vec::new();
    loop {
        let Answer::Listed(listed) = world.run(Action::ListUploads(page.clone())).unwrap() else {
            panic!("not a list")
        };
        found.extend(
            listed
                .entries
                .iter()
                .map(|entry| (entry.key.clone(), entry.upload_id.clone())),
        );
        if !listed.truncated {
            break;
        }
        (page.after, page.after_id) = (listed.next, listed.next_id);
    }
    let expected = [("a/x", 1), ("a/y", 2), ("b", 0), ("b", 3)];
    let expected: Vec<_> = expected
        .into_iter()
        .map(|(key, at): (&str, usize)| (key.to_owned(), ids[at].clone()))
        .collect();
    assert_eq!(found, expected);
    let Answer::Listed(listed) = world.run(Action::ListUploads(list("/", 10))).unwrap() else {
        panic!("not a list")
    };
    let keys: Vec<_> = listed
        .entries
        .iter()
        .map(|entry| entry.key.as_str())
        .collect();
    assert_eq!(keys, ["a/", "b", "b"]);
}

/// What AWS documents for a listing, spelled out over a plain list of keys.
fn listed_by_hand(keys: &[String], list: &List) -> Vec<(String, bool)> {
    let mut sorted: Vec<_> = keys.to_vec();
    sorted.sort();
    sorted.dedup();
    let mut found: Vec<(String, bool)> = Vec::new();
    for key in sorted.iter().filter(|key| key.starts_with(&list.prefix)) {
        let rest = &key[list.prefix.len()..];
        let common = (!list.delimiter.is_empty())
            .then(|| rest.find(&list.delimiter))
            .flatten()
            .map(|at| key[..list.prefix.len() + at + list.delimiter.len()].to_owned());
        let entry = match common {
            Some(common) => (common, true),
            None => (key.clone(), false),
        };
        if entry.0 > list.after && found.last() != Some(&entry) {
            found.push(entry);
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_listing_by_pages_is_what_the_keys_say(
        keys in proptest::collection::vec("[ab/é]{1,5}", 0..25),
        prefix in "[ab/]{0,2}",
        delimiter in prop_oneof![Just(""), Just("/"), Just("a"), Just("/a")],
        after in "[ab/é]{0,4}",
        most in 1..4_u32,
    ) {
        let mut world = World::new();
        for key in &keys {
            world.put(key, "x");
        }
        let list = List {
            prefix,
            delimiter: delimiter.into(),
            after,
            most,
            ..List::default()
        };
        let found: Vec<_> = world
            .walk(&list)
            .into_iter()
            .map(|entry| (entry.key, entry.object.is_none()))
            .collect();
        prop_assert_eq!(found, listed_by_hand(&keys, &list));
    }

    /// Each write and deletion on a versioned key against a plain stack of versions.
    #[test]
    fn versions_behave_like_a_stack(steps in proptest::collection::vec(0..12_u8, 1..24)) {
        let mut world = World::versioned(Versioning::Enabled);
        // (version id, bytes; None for a delete marker), newest last.
        let mut stack: Vec<(String, Option<String>)> = Vec::new();
        for (at, step) in steps.into_iter().enumerate() {
            match step {
                0..5 => {
                    let bytes = format!("v{at}");
                    stack.push((world.put("k", &bytes).version_id(), Some(bytes)));
                }
                5..8 => stack.push((world.delete("k", "").version, None)),
                _ if stack.is_empty() => {}
                chosen => {
                    let gone = stack.remove(usize::from(chosen) % stack.len());
                    world.delete("k", &gone.0);
                }
            }
            let current = match stack.last() {
                Some((_, Some(bytes))) => Ok(bytes.clone()),
                _ => Err(Refusal::NoSuchKey),
            };
            prop_assert_eq!(world.get("k", ""), current);
            let expected: Vec<_> = stack
                .iter()
                .rev()
                .enumerate()
                .map(|(depth, (id, bytes))| (id.clone(), bytes.is_none(), depth == 0))
                .collect();
            prop_assert_eq!(world.versions("k"), expected);
        }
        for (id, _) in stack {
            world.delete("k", &id);
        }
        // The bucket's own row is left.
        prop_assert_eq!(world.rows.len(), 1);
    }
}

#[test]
fn keys_are_made_granted_and_deleted() {
    let mut rows = MemoryRows::default();
    let mut run = |act| {
        let reply = S3Operation::on_keys(act).evaluate(&mut rows).unwrap();
        match Reply::decode(reply).unwrap().answer.unwrap() {
            Answer::Keys(list) => Ok(list.keys),
            Answer::Done(_) => Ok(Vec::new()),
            Answer::Refused(refused) => Err(refused.why()),
            other => panic!("{other:?}"),
        }
    };
    let key = KeyRow {
        access_key: "A".into(),
        ..KeyRow::default()
    };
    run(KeyAction::Create(key.clone())).unwrap();
    assert_eq!(run(KeyAction::Create(key)), Err(Refusal::KeyExists));
    let grant = |level: Level| {
        KeyAction::Grant(Grant {
            access_key: "A".into(),
            grant: Some(GrantRow {
                bucket: "b".into(),
                level: level.into(),
            }),
        })
    };
    let granted = run(grant(Level::Write)).unwrap();
    assert_eq!(granted[0].level("b"), Level::Write);
    assert_eq!(granted[0].level("c"), Level::Nothing);
    assert_eq!(run(grant(Level::Nothing)).unwrap()[0].grants, []);
    assert_eq!(run(KeyAction::List(Empty {})).unwrap().len(), 1);
    run(KeyAction::Delete("A".into())).unwrap();
    assert_eq!(run(KeyAction::Delete("A".into())), Err(Refusal::NoSuchKey));
    assert_eq!(run(KeyAction::Get("A".into())), Ok(vec![]));
}

#[test]
fn lifecycle_rules_expire_what_is_due_and_nothing_else() {
    let mut world = World::new();
    world.put("old/a", "x");
    world.put("keep/a", "x");
    let upload = world.begin("old/upload");
    world.part(&upload, 1, 5).unwrap();
    world.set_lifecycle(
        r#"{"rules":[{"status":"Enabled","filter":{"prefix":"old/"},
        "expiration":{"days":2},
        "abort_incomplete_multipart_upload":{"days_after_initiation":1}}]}"#,
    );
    let pass = |world: &mut World, days: u64| {
        world.now_ms = START_MS + days * 24 * 3600 * 1000 + 60_000;
        world.run(Action::Lifecycle(Lifecycle::default())).unwrap();
    };
    pass(&mut world, 1);
    assert!(world.get("old/a", "").is_ok());
    assert_eq!(world.part(&upload, 2, 5), Err(Refusal::NoSuchUpload));
    pass(&mut world, 2);
    assert_eq!(world.get("old/a", ""), Err(Refusal::NoSuchKey));
    assert!(world.get("keep/a", "").is_ok());
}

/// A step that wrote more than the store takes at once would fail as a whole, each time anew.
#[test]
fn lifecycle_steps_get_past_any_number_of_large_rows() {
    let mut world = World::versioned(Versioning::Enabled);
    let keys: Vec<String> = (0..200).map(|number| format!("k{number:03}")).collect();
    for key in &keys {
        let put = Put {
            key: key.clone(),
            object: Some(ObjectRow {
                etag: "e".repeat(100 << 10),
                ..ObjectRow::default()
            }),
            ..Put::default()
        };
        world.run(Action::Put(Box::new(put))).unwrap();
    }
    world.set_lifecycle(r#"{"rules":[{"status":"Enabled","expiration":{"days":2}}]}"#);
    world.rows.set_millis(START_MS + 3 * 24 * 3600 * 1000);

    let mut next = Some(Bytes::new());
    let mut steps = 0;
    while let Some(after) = next {
        world.rows.take_written();
        (_, next) = lifecycle::evaluate(&mut world.rows, &Lifecycle { after }).unwrap();
        let written = world.rows.take_written();
        assert!(written < LARGEST_COMMAND / 2, "{written} bytes");
        steps += 1;
    }
    assert!(steps > 1);
    for key in &keys {
        assert_eq!(world.get(key, ""), Err(Refusal::NoSuchKey));
    }
}
