//! Lua: EVAL, FCALL and their like (Redis documentation, *Scripting with Lua*, *Redis functions*).
//!
//! A script is one command to the data plane: it is evaluated once, by the executor of its shard's
//! leader, and what it changed is replicated, never the script. Its `redis.call` runs the same code
//! over the same rows as a command of a client.
//!
//! ```text
//! door.rs       what a connection does with EVAL, EVALSHA, FCALL, SCRIPT and FUNCTION
//! known.rs      what this node remembers of scripts and libraries
//! stored.rs     scripts and libraries as rows, and the commands that read and change them
//! command.rs    the command that runs a script
//! vm/           the Lua VM, its sandbox, its limits
//! library/      bit, cjson, cmsgpack, struct
//! ```

mod catalogue;
mod command;
mod door;
mod dump;
mod known;
mod library;
mod shebang;
mod stored;
mod vm;

use sha1::{Digest, Sha1};

use crate::spec::{Arity, Keys, Spec};

pub(crate) use command::RUN;
#[cfg(test)]
pub(crate) use command::args as run_args;
pub(crate) use door::{Begun, Scripted, begin, find, known};
pub(crate) use known::Known;
pub(crate) use stored::place as stored_place;

/// What clients may call.
pub(crate) const SPECS: &[Spec] = &[
    scripted("EVAL", "eval", Scripted::EVAL),
    scripted("EVAL_RO", "eval_ro", Scripted::EVAL.read_only()),
    scripted("EVALSHA", "evalsha", Scripted::EVALSHA),
    scripted("EVALSHA_RO", "evalsha_ro", Scripted::EVALSHA.read_only()),
    scripted("FCALL", "fcall", Scripted::FCALL),
    scripted("FCALL_RO", "fcall_ro", Scripted::FCALL.read_only()),
    Spec::container("FUNCTION", "function", "scripting", door::FUNCTION),
    Spec::container("SCRIPT", "script", "scripting", door::SCRIPT),
];

/// What only nodes call.
pub(crate) const INTERNAL: &[Spec] = &[command::SPEC, stored::READ, stored::WRITE];

const fn scripted(name: &'static str, lower: &'static str, how: Scripted) -> Spec {
    Spec::script(name, lower, Arity::AtLeast(3), Keys::Counted(2), how)
}

/// The name of a script: its SHA-1 in lower-case hexadecimal.
fn digest(body: &[u8]) -> String {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    Sha1::digest(body)
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(HEX[usize::from(digit)]))
        .collect()
}
