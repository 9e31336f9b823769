//! `COMMAND` and its subcommands: the table of commands, as clients ask for it.

use bytes::Bytes;

use super::{all, find};
use crate::command_docs;
use crate::glob;
use crate::operation::key_positions;
use crate::reply::{Reply, ReplyError};
use crate::session::{Answer, Session, run_subcommand};
use crate::spec::{Arity, Keys, Run, Spec, Subcommand};

type Answered = Result<Answer, ReplyError>;

pub(super) const SPECS: &[Spec] = &[Spec::connection(
    "COMMAND",
    "command",
    "connection",
    Arity::AtLeast(1),
    command,
)
.slow()];

const SUBCOMMANDS: &[Subcommand] = &[
    Subcommand {
        name: "COUNT",
        lower: "command|count",
        arity: Arity::Exactly(2),
        syntax: "",
        summary: "Return how many commands there are.",
        run: |_, _| Ok(integer(public().count()).into()),
    },
    Subcommand {
        name: "DOCS",
        lower: "command|docs",
        arity: Arity::AtLeast(2),
        syntax: "[<command-name> ...]",
        summary: "Describe commands. Without names: all.",
        run: |_, args| Ok(Reply::Map(named(&args[2..]).filter_map(docs).collect()).into()),
    },
    Subcommand {
        name: "GETKEYS",
        lower: "command|getkeys",
        arity: Arity::AtLeast(3),
        syntax: "<full-command>",
        summary: "Return the keys of a whole command.",
        run: get_keys,
    },
    Subcommand {
        name: "GETKEYSANDFLAGS",
        lower: "command|getkeysandflags",
        arity: Arity::AtLeast(3),
        syntax: "<full-command>",
        summary: "Return the keys of a whole command and what it does to them.",
        run: get_keys_and_flags,
    },
    Subcommand {
        name: "INFO",
        lower: "command|info",
        arity: Arity::AtLeast(2),
        syntax: "[<command-name> ...]",
        summary: "Return the table's rows of commands. Without names: all.",
        run: |_, args| {
            let rows = if args.len() == 2 {
                public().map(row).collect()
            } else {
                args[2..]
                    .iter()
                    .map(|name| Entry::named(name).map_or(Reply::NullArray, row))
                    .collect()
            };
            Ok(Reply::Array(rows).into())
        },
    },
    Subcommand {
        name: "LIST",
        lower: "command|list",
        arity: Arity::AtLeast(2),
        syntax: "[FILTERBY (MODULE <module-name>|ACLCAT <category>|PATTERN <pattern>)]",
        summary: "Return the names of the commands.",
        run: list,
    },
];

fn command(session: &mut Session, args: &[Bytes]) -> Answered {
    if args.len() == 1 {
        return Ok(Reply::Array(public().map(row).collect()).into());
    }
    run_subcommand("command", SUBCOMMANDS, session, args)
}

/// A row of the table: a command that clients may call, or a subcommand of it.
#[derive(Clone, Copy)]
struct Entry {
    spec: &'static Spec,
    subcommand: Option<&'static Subcommand>,
}

impl Entry {
    fn of(spec: &'static Spec) -> Self {
        let subcommand = None;
        Self { spec, subcommand }
    }

    /// Of this name, such as `get` or `config|get`, in any case.
    fn named(name: &[u8]) -> Option<Self> {
        let mut words = name.splitn(2, |byte| *byte == b'|');
        let command = Self::of(find(words.next()?).filter(|spec| !spec.flags.internal)?);
        words
            .next()
            .map_or(Some(command), |word| command.subcommand(word))
    }

    fn subcommand(self, word: &[u8]) -> Option<Self> {
        self.subcommands().find(|entry| {
            let own = entry.subcommand.map_or("", |subcommand| subcommand.name);
            word.eq_ignore_ascii_case(own.as_bytes())
        })
    }

    fn subcommands(self) -> impl Iterator<Item = Self> {
        let subcommands = match self.spec.run {
            _ if self.subcommand.is_some() => &[],
            Run::Container(subcommands) => subcommands,
            Run::Connection(_) if self.spec.name == "COMMAND" => SUBCOMMANDS,
            Run::Rows(_) | Run::Blocking(_) | Run::Script(_) | Run::Connection(_) => &[],
        };
        subcommands.iter().map(move |subcommand| Self {
            spec: self.spec,
            subcommand: Some(subcommand),
        })
    }

    /// Not to be called without one of its subcommands: what there is to say is said of those.
    fn is_container(self) -> bool {
        self.subcommand.is_none() && matches!(self.spec.run, Run::Container(_))
    }

    fn name(self) -> &'static str {
        self.subcommand
            .map_or(self.spec.lower, |subcommand| subcommand.lower)
    }

    fn arity(self) -> Arity {
        self.subcommand
            .map_or(self.spec.arity, |subcommand| subcommand.arity)
    }

    fn keys(self) -> Keys {
        match self.name() {
            "memory|usage" => Keys::At(2),
            _ if self.subcommand.is_some() => Keys::None,
            _ => self.spec.keys,
        }
    }

    /// Whether [`WORDS`] gives it `word`, itself or as a subcommand.
    fn has(self, word: &str) -> bool {
        let own = [self.name(), self.spec.lower];
        let mut lines = WORDS.iter();
        !self.is_container()
            && lines.any(|(words, names)| {
                words.split(' ').any(|other| other == word)
                    && names.split(' ').any(|name| own.contains(&name))
            })
    }

    fn flags(self) -> Vec<&'static str> {
        let own = self.spec.flags;
        let is_command = self.subcommand.is_none();
        let (rows, script) = match self.spec.run {
            Run::Rows(_) | Run::Blocking(_) => (true, false),
            Run::Script(_) => (false, true),
            Run::Connection(_) | Run::Container(_) => (false, false),
        };
        let counted = matches!(
            self.keys(),
            Keys::Counted(_) | Keys::DestinationCounted { .. }
        );
        [
            // What a script does is not known; a read-only one is known to write nothing.
            ("write", rows && own.write),
            ("readonly", (rows || script) && !own.write),
            ("denyoom", own.denyoom),
            ("admin", own.admin && !self.is_container()),
            ("noscript", false),
            ("blocking", own.blocking),
            ("loading", false),
            ("stale", false),
            ("fast", own.fast && is_command),
            ("no_auth", own.no_auth),
            ("movablekeys", counted),
        ]
        .into_iter()
        .filter_map(|(word, set)| (set || self.has(word)).then_some(word))
        .collect()
    }

    /// ACL categories, without their `@`: of [`CATEGORIES`].
    fn categories(self) -> Vec<&'static str> {
        let flags = self.flags();
        let is = |flag: &str| flags.contains(&flag);
        let group = self.spec.category;
        let has_group = CATEGORIES.contains(&group) && !self.is_container();
        [
            (group, has_group),
            ("write", is("write")),
            ("read", is("readonly") && group != "scripting"),
            ("admin", is("admin") || self.has("@admin")),
            ("dangerous", is("admin") || self.has("@dangerous")),
            ("blocking", is("blocking")),
            ("fast", is("fast")),
            ("slow", !is("fast")),
        ]
        .into_iter()
        .filter_map(|(category, set)| set.then_some(category))
        .collect()
    }
}

/// Words of COMMAND, and who has them besides those who have them by their nature; a container's are
/// its subcommands'. As Redis has them, where `loading` and `stale` are more than words.
const WORDS: &[(&str, &str)] = &[
    (
        "noscript loading stale",
        "acl auth client config discard exec hello latency multi quit reset role shutdown unwatch watch",
    ),
    (
        "loading stale",
        "command echo info lastsave select slowlog time",
    ),
    (
        "noscript stale",
        "eval eval_ro evalsha evalsha_ro failover fcall fcall_ro replicaof slaveof",
    ),
    (
        "noscript",
        "bgrewriteaof bgsave function module save script wait waitaof",
    ),
    ("stale", "script|load"),
    (
        "admin",
        "acl|list acl|users client|kill client|list client|no-evict client|pause client|unblock client|unpause",
    ),
    (
        "write",
        "function|delete function|flush function|load function|restore",
    ),
    ("denyoom", "function|load function|restore"),
    ("readonly", "lolwut memory|usage"),
    ("movablekeys", "deadline"),
    ("@admin", "lastsave role"),
    ("@dangerous", "flushall flushdb info keys lastsave role"),
];

/// Every ACL category that a command has, in the order of Redis.
pub(super) const CATEGORIES: &[&str] = &[
    "keyspace",
    "read",
    "write",
    "set",
    "sortedset",
    "list",
    "hash",
    "string",
    "bitmap",
    "admin",
    "fast",
    "slow",
    "blocking",
    "dangerous",
    "connection",
    "transaction",
    "scripting",
];

/// The names of the commands and subcommands of an ACL category, written in any case.
pub(super) fn in_category(category: &[u8]) -> impl Iterator<Item = &'static str> {
    everything()
        .filter(move |entry| {
            let categories = entry.categories();
            let mut own = categories.iter();
            own.any(|own| category.eq_ignore_ascii_case(own.as_bytes()))
        })
        .map(Entry::name)
}

/// The commands that clients may call.
fn public() -> impl Iterator<Item = Entry> {
    all().filter(|spec| !spec.flags.internal).map(Entry::of)
}

/// The same with their subcommands.
fn everything() -> impl Iterator<Item = Entry> {
    public().flat_map(|entry| [entry].into_iter().chain(entry.subcommands()))
}

/// The rows of these names that exist; all commands if there are no names.
fn named(names: &[Bytes]) -> impl Iterator<Item = Entry> {
    let all_of_them = names.is_empty().then(public).into_iter().flatten();
    all_of_them.chain(names.iter().filter_map(|name| Entry::named(name)))
}

fn integer(number: usize) -> Reply {
    Reply::Integer(i64::try_from(number).unwrap_or(i64::MAX))
}

fn text(text: &'static str) -> Reply {
    Reply::Bulk(Bytes::from_static(text.as_bytes()))
}

/// Status words: simple strings in Redis.
fn words(words: impl IntoIterator<Item = &'static str>) -> Reply {
    Reply::Set(words.into_iter().map(Reply::Simple).collect())
}

/// Whether keys are read only.
fn access(entry: Entry) -> &'static str {
    if entry.spec.flags.write { "RW" } else { "RO" }
}

/// First key, last key, step, as the old part of the table has them.
fn key_range(keys: Keys) -> (i64, i64, i64) {
    let number = |position: usize| i64::try_from(position).unwrap_or(0);
    match keys {
        Keys::None | Keys::Beside | Keys::EveryShard | Keys::ScanCursor(_) | Keys::Counted(_) => {
            (0, 0, 0)
        }
        Keys::At(position) => (number(position), number(position), 1),
        Keys::Range { first, last } => (number(first), number(last), 1),
        Keys::Every {
            first,
            step,
            last_from_end,
        } => (number(first), -1 - number(last_from_end), number(step)),
        Keys::DestinationCounted { destination, .. } => {
            (number(destination), number(destination), 1)
        }
    }
}

/// The newer, exact description of where keys are.
fn key_specs(entry: Entry) -> Vec<Reply> {
    let access = access(entry);
    let describe = |begin: usize, kind: &'static str, details: Vec<(Reply, Reply)>| {
        Reply::Map(vec![
            (text("flags"), words([access])),
            (
                text("begin_search"),
                Reply::Map(vec![
                    (text("type"), text("index")),
                    (
                        text("spec"),
                        Reply::Map(vec![(text("index"), integer(begin))]),
                    ),
                ]),
            ),
            (
                text("find_keys"),
                Reply::Map(vec![
                    (text("type"), text(kind)),
                    (text("spec"), Reply::Map(details)),
                ]),
            ),
        ])
    };
    let range = |first: usize, last: i64, step: usize| {
        describe(
            first,
            "range",
            vec![
                (text("lastkey"), Reply::Integer(last)),
                (text("keystep"), integer(step)),
                (text("limit"), Reply::Integer(0)),
            ],
        )
    };
    let counted = |position: usize| {
        describe(
            position,
            "keynum",
            vec![
                (text("keynumidx"), Reply::Integer(0)),
                (text("firstkey"), Reply::Integer(1)),
                (text("keystep"), Reply::Integer(1)),
            ],
        )
    };
    match entry.keys() {
        Keys::None | Keys::Beside | Keys::EveryShard | Keys::ScanCursor(_) => Vec::new(),
        Keys::At(position) => vec![range(position, 0, 1)],
        Keys::Range { first, last } => vec![range(
            first,
            i64::try_from(last.saturating_sub(first)).unwrap_or(0),
            1,
        )],
        Keys::Every {
            first,
            step,
            last_from_end,
        } => vec![range(
            first,
            -1 - i64::try_from(last_from_end).unwrap_or(0),
            step,
        )],
        Keys::Counted(position) => vec![counted(position)],
        Keys::DestinationCounted { destination, count } => {
            vec![range(destination, 0, 1), counted(count)]
        }
    }
}

/// The ten elements of a row.
fn row(entry: Entry) -> Reply {
    let (first, last, step) = key_range(entry.keys());
    let categories = entry.categories().into_iter();
    let categories = categories.map(|name| Reply::Status(Bytes::from(format!("@{name}"))));
    let subcommands: Vec<Reply> = entry.subcommands().map(row).collect();
    Reply::Array(vec![
        text(entry.name()),
        Reply::Integer(entry.arity().as_redis()),
        words(entry.flags()),
        Reply::Integer(first),
        Reply::Integer(last),
        Reply::Integer(step),
        Reply::Set(categories.collect()),
        Reply::Set(Vec::new()),
        Reply::Set(key_specs(entry)),
        // Redis, too, has an empty set and an array that is not empty.
        if subcommands.is_empty() {
            Reply::Set(subcommands)
        } else {
            Reply::Array(subcommands)
        },
    ])
}

fn docs(entry: Entry) -> Option<(Reply, Reply)> {
    let doc = command_docs::find(entry.spec.lower)?;
    let summary = entry
        .subcommand
        .map_or(doc.summary, |subcommand| subcommand.summary);
    let mut about = vec![
        (text("summary"), text(summary)),
        (text("since"), text(doc.since)),
        (text("group"), text(doc.group)),
        (text("arity"), Reply::Integer(entry.arity().as_redis())),
    ];
    let subcommands: Vec<_> = entry.subcommands().filter_map(docs).collect();
    if !subcommands.is_empty() {
        about.push((text("subcommands"), Reply::Map(subcommands)));
    }
    Some((text(entry.name()), Reply::Map(about)))
}

/// The command in `args`, and its keys there. Of one behind a DEADLINE: those of that one.
fn keys_of(mut args: &[Bytes]) -> Result<(Entry, Vec<Bytes>), ReplyError> {
    if args.len() > 2 && args[0].eq_ignore_ascii_case(b"DEADLINE") {
        args = &args[2..];
    }
    let mut entry = args.first().and_then(|name| Entry::named(name));
    if let (Some(container), Some(word)) = (entry, args.get(1))
        && container.subcommands().next().is_some()
    {
        entry = container.subcommand(word);
    }
    let entry = entry.ok_or_else(|| ReplyError::err("Invalid command specified"))?;
    if !entry.arity().admits(args.len()) {
        return Err(ReplyError::err(
            "Invalid number of arguments specified for command",
        ));
    }
    let positions = key_positions(entry.keys(), args)
        .map_err(|_| ReplyError::err("Invalid arguments specified for command"))?;
    if positions.is_empty() {
        return Err(ReplyError::err("The command has no key arguments"));
    }
    let keys = positions.into_iter().map(|at| args[at].clone());
    Ok((entry, keys.collect()))
}

fn get_keys(_: &mut Session, args: &[Bytes]) -> Answered {
    let (_, keys) = keys_of(&args[2..])?;
    Ok(Reply::bulks(keys).into())
}

fn get_keys_and_flags(_: &mut Session, args: &[Bytes]) -> Answered {
    let (entry, keys) = keys_of(&args[2..])?;
    let keys = keys
        .into_iter()
        .map(|key| Reply::Array(vec![Reply::Bulk(key), words([access(entry)])]))
        .collect();
    Ok(Reply::Array(keys).into())
}

/// `COMMAND LIST [FILTERBY MODULE name | ACLCAT category | PATTERN glob]`
fn list(_: &mut Session, args: &[Bytes]) -> Answered {
    let names: Vec<&str> = match &args[2..] {
        [] => everything().map(Entry::name).collect(),
        [filter, kind, value] if filter.eq_ignore_ascii_case(b"FILTERBY") => {
            if kind.eq_ignore_ascii_case(b"MODULE") {
                Vec::new()
            } else if kind.eq_ignore_ascii_case(b"ACLCAT") {
                in_category(value).collect()
            } else if kind.eq_ignore_ascii_case(b"PATTERN") {
                let names = everything().map(Entry::name);
                names
                    .filter(|name| glob::matches_ignoring_case(value, name.as_bytes()))
                    .collect()
            } else {
                return Err(ReplyError::Syntax);
            }
        }
        _ => return Err(ReplyError::Syntax),
    };
    Ok(Reply::Array(names.into_iter().map(text).collect()).into())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::reply::{self, Resp};
    use crate::testing::{Oracle, Value};

    /// What these flags speak of is not here, or is the same for every command.
    const WITHOUT_MEANING: [&str; 6] = [
        "allow_busy",
        "no_async_loading",
        "no_mandatory_keys",
        "no_multi",
        "skip_monitor",
        "skip_slowlog",
    ];

    /// Refused here, whatever the arguments are; not a container here; changed since Redis 7.0.
    const DIFFERENT: [&str; 10] = [
        "bgrewriteaof",
        "replicaof",
        "save",
        "slaveof",
        "swapdb",
        "object",
        "command|getkeys",
        "command|getkeysandflags",
        "zrank",
        "zrevrank",
    ];

    #[test]
    fn the_list_of_categories_is_that_of_the_categories_in_use() {
        let used: BTreeSet<_> = everything().flat_map(Entry::categories).collect();
        assert_eq!(used, CATEGORIES.iter().copied().collect());
        // A mistyped name would give nothing to anyone.
        let names: BTreeSet<_> = everything().map(Entry::name).collect();
        for name in WORDS.iter().flat_map(|(_, names)| names.split(' ')) {
            assert!(names.contains(name), "{name}");
        }
    }

    /// Rows by name, those of subcommands too.
    fn by_name(rows: &[Value], found: &mut BTreeMap<String, Vec<Value>>) {
        for row in rows.iter().map(Value::items) {
            let name = String::from_utf8_lossy(row[0].text().unwrap()).into_owned();
            by_name(row[9].items(), found);
            found.insert(name, row.to_vec());
        }
    }

    fn words_of(value: &Value) -> BTreeSet<String> {
        let words = value.items().iter().filter_map(Value::text);
        words
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .filter(|word| !WITHOUT_MEANING.contains(&word.as_str()))
            .collect()
    }

    #[test]
    fn a_row_says_what_that_of_redis_says() {
        let Some(mut redis) = Oracle::start() else {
            return;
        };
        redis.reset(Resp::V3);
        let (mut theirs, mut ours) = (BTreeMap::new(), BTreeMap::new());
        by_name(
            redis.run(&[Bytes::from_static(b"COMMAND")]).items(),
            &mut theirs,
        );
        let mut table = bytes::BytesMut::new();
        let rows = Reply::Array(public().map(row).collect());
        reply::encode(&rows, Resp::V3, &mut table);
        by_name(Value::parse_all(&table).items(), &mut ours);

        let mut different = Vec::new();
        for (name, row) in &ours {
            let Some(same) = theirs.get(name) else {
                continue;
            };
            if DIFFERENT.contains(&name.as_str()) {
                continue;
            }
            for (what, at) in [("flags", 2), ("categories", 6)] {
                let (own, mut expected) = (words_of(&row[at]), words_of(&same[at]));
                // Scripts may call them here, where they do not wait.
                if expected.contains("blocking") {
                    expected.remove("noscript");
                }
                if own != expected {
                    different.push(format!("{name}: {what} {own:?}, not {expected:?}"));
                }
            }
            let numbers = |row: &[Value]| [1, 3, 4, 5].map(|at| row[at].integer());
            if numbers(row) != numbers(same) {
                different.push(format!(
                    "{name}: {:?}, not {:?}",
                    numbers(row),
                    numbers(same)
                ));
            }
            let kinds =
                |row: &[Value]| [2, 6, 7, 8].map(|at| matches!(row[at], Value::Items(b'~', _)));
            if kinds(row) != kinds(same) {
                different.push(format!("{name}: kinds {:?}", kinds(row)));
            }
        }
        assert!(different.is_empty(), "{}", different.join("\n"));
    }
}
