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
                    .map(|name| visible(name).map_or(Reply::NullArray, row))
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

/// The commands that clients may call.
fn public() -> impl Iterator<Item = &'static Spec> {
    all().filter(|spec| !spec.flags.internal)
}

fn visible(name: &[u8]) -> Option<&'static Spec> {
    find(name).filter(|spec| !spec.flags.internal)
}

/// The commands of these names that exist; all if there are no names.
fn named(names: &[Bytes]) -> impl Iterator<Item = &'static Spec> {
    let all_of_them = names.is_empty().then(public).into_iter().flatten();
    all_of_them.chain(names.iter().filter_map(|name| visible(name)))
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

fn flags(spec: &Spec) -> Vec<&'static str> {
    let over_rows = matches!(spec.run, Run::Rows(_) | Run::Blocking(_) | Run::Script(_));
    [
        (spec.flags.write, "write"),
        (over_rows && !spec.flags.write, "readonly"),
        (spec.flags.denyoom, "denyoom"),
        (spec.flags.admin, "admin"),
        (spec.flags.blocking, "blocking"),
        (spec.flags.fast, "fast"),
        (spec.flags.no_auth, "no_auth"),
        (
            matches!(
                spec.keys,
                Keys::Counted(_) | Keys::DestinationCounted { .. }
            ),
            "movablekeys",
        ),
    ]
    .into_iter()
    .filter_map(|(set, word)| set.then_some(word))
    .collect()
}

/// ACL categories with their `@`.
fn categories(spec: &Spec) -> Vec<String> {
    let over_rows = matches!(spec.run, Run::Rows(_) | Run::Blocking(_) | Run::Script(_));
    let group = match spec.category {
        "generic" => "keyspace",
        "sorted-set" | "sorted_set" => "sortedset",
        "server" => "admin",
        other => other,
    };
    let mut categories = vec![format!("@{group}")];
    for (set, word) in [
        (spec.flags.write, "@write"),
        (over_rows && !spec.flags.write, "@read"),
        (spec.flags.admin && group != "admin", "@admin"),
        (spec.flags.admin, "@dangerous"),
        (spec.flags.blocking, "@blocking"),
        (spec.flags.fast, "@fast"),
        (!spec.flags.fast, "@slow"),
    ] {
        if set {
            categories.push(word.to_owned());
        }
    }
    categories
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
fn key_specs(spec: &Spec) -> Vec<Reply> {
    let access = if spec.flags.write { "RW" } else { "RO" };
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
    match spec.keys {
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

/// The ten elements of a command's row.
fn row(spec: &'static Spec) -> Reply {
    let (first, last, step) = key_range(spec.keys);
    let categories = categories(spec)
        .into_iter()
        .map(|category| Reply::Bulk(Bytes::from(category)))
        .collect();
    let subcommands = match spec.run {
        Run::Container(subcommands) => subcommands.iter().map(|sub| sub_row(spec, sub)).collect(),
        Run::Rows(_) | Run::Blocking(_) | Run::Script(_) | Run::Connection(_) => Vec::new(),
    };
    Reply::Array(vec![
        text(spec.lower),
        Reply::Integer(spec.arity.as_redis()),
        words(flags(spec)),
        Reply::Integer(first),
        Reply::Integer(last),
        Reply::Integer(step),
        Reply::Set(categories),
        Reply::Array(Vec::new()),
        Reply::Array(key_specs(spec)),
        Reply::Array(subcommands),
    ])
}

fn sub_row(spec: &Spec, subcommand: &Subcommand) -> Reply {
    let categories = categories(spec)
        .into_iter()
        .map(|category| Reply::Bulk(Bytes::from(category)))
        .collect();
    Reply::Array(vec![
        text(subcommand.lower),
        Reply::Integer(subcommand.arity.as_redis()),
        words(flags(spec)),
        Reply::Integer(0),
        Reply::Integer(0),
        Reply::Integer(0),
        Reply::Set(categories),
        Reply::Array(Vec::new()),
        Reply::Array(Vec::new()),
        Reply::Array(Vec::new()),
    ])
}

fn docs(spec: &'static Spec) -> Option<(Reply, Reply)> {
    let doc = command_docs::find(spec.lower)?;
    let mut entry = vec![
        (text("summary"), text(doc.summary)),
        (text("since"), text(doc.since)),
        (text("group"), text(doc.group)),
        (text("arity"), Reply::Integer(spec.arity.as_redis())),
    ];
    if let Run::Container(subcommands) = spec.run {
        let subcommands = subcommands
            .iter()
            .map(|sub| {
                let about = vec![
                    (text("summary"), text(sub.summary)),
                    (text("since"), text(doc.since)),
                    (text("group"), text(doc.group)),
                ];
                (text(sub.lower), Reply::Map(about))
            })
            .collect();
        entry.push((text("subcommands"), Reply::Map(subcommands)));
    }
    Some((text(spec.lower), Reply::Map(entry)))
}

/// The command in `args` and the positions of its keys there.
fn keys_of(args: &[Bytes]) -> Result<(&'static Spec, Vec<usize>), ReplyError> {
    let spec = args
        .first()
        .and_then(|name| visible(name))
        .ok_or_else(|| ReplyError::err("Invalid command specified"))?;
    if !spec.arity.admits(args.len()) {
        return Err(ReplyError::err(
            "Invalid number of arguments specified for command",
        ));
    }
    let positions = key_positions(spec.keys, args)
        .map_err(|_| ReplyError::err("Invalid arguments specified for command"))?;
    if positions.is_empty() {
        return Err(ReplyError::err("The command has no key arguments"));
    }
    Ok((spec, positions))
}

fn get_keys(_: &mut Session, args: &[Bytes]) -> Answered {
    let args = &args[2..];
    let (_, positions) = keys_of(args)?;
    Ok(Reply::bulks(positions.into_iter().map(|at| args[at].clone())).into())
}

fn get_keys_and_flags(_: &mut Session, args: &[Bytes]) -> Answered {
    let args = &args[2..];
    let (spec, positions) = keys_of(args)?;
    let access = if spec.flags.write { "RW" } else { "RO" };
    let keys = positions
        .into_iter()
        .map(|at| Reply::Array(vec![Reply::Bulk(args[at].clone()), words([access])]))
        .collect();
    Ok(Reply::Array(keys).into())
}

/// `COMMAND LIST [FILTERBY MODULE name | ACLCAT category | PATTERN glob]`
fn list(_: &mut Session, args: &[Bytes]) -> Answered {
    let wanted: Box<dyn Fn(&Spec) -> bool> = match &args[2..] {
        [] => Box::new(|_| true),
        [filter, kind, value] if filter.eq_ignore_ascii_case(b"FILTERBY") => {
            let value = value.to_ascii_lowercase();
            if kind.eq_ignore_ascii_case(b"MODULE") {
                Box::new(|_| false)
            } else if kind.eq_ignore_ascii_case(b"ACLCAT") {
                let category = [b"@", value.as_slice()].concat();
                Box::new(move |spec| {
                    categories(spec)
                        .iter()
                        .any(|own| own.as_bytes() == category)
                })
            } else if kind.eq_ignore_ascii_case(b"PATTERN") {
                Box::new(move |spec| glob::matches_ignoring_case(&value, spec.lower.as_bytes()))
            } else {
                return Err(ReplyError::Syntax);
            }
        }
        _ => return Err(ReplyError::Syntax),
    };
    let names = public()
        .filter(|spec| wanted(spec))
        .map(|spec| text(spec.lower));
    Ok(Reply::Array(names.collect()).into())
}
