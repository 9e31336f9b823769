//! The first line of a script or library: `#!lua name=library flags=no-writes,allow-stale`.

use bytes::Bytes;

use crate::reply::ReplyError;

/// What a script says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flags {
    /// There is a shebang, or the flags are a function's: what is not said is not so.
    pub(super) declared: bool,
    pub(super) no_writes: bool,
    /// Flags that ask for nothing here: there is no `maxmemory`, no stale reads, no slots to keep to.
    pub(super) others: u8,
}

/// Every flag, with its bit in [`Flags::others`].
const NAMES: [(&str, u8); 5] = [
    ("no-writes", 0),
    ("allow-oom", 1),
    ("allow-stale", 2),
    ("no-cluster", 4),
    ("allow-cross-slot-keys", 8),
];

impl Flags {
    pub(super) const FUNCTION: Self = Self {
        declared: true,
        no_writes: false,
        others: 0,
    };

    /// Sets the flag called `name`; false if there is none.
    pub(super) fn set(&mut self, name: &[u8]) -> bool {
        let Some((known, bit)) = NAMES.iter().find(|(known, _)| known.as_bytes() == name) else {
            return false;
        };
        self.no_writes |= *known == "no-writes";
        self.others |= bit;
        true
    }

    pub(super) fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES
            .into_iter()
            .filter(move |(name, bit)| {
                self.others & bit != 0 || (*name == "no-writes" && self.no_writes)
            })
            .map(|(name, _)| name)
    }

    pub(super) fn to_byte(self) -> u8 {
        self.others << 1 | u8::from(self.no_writes)
    }

    /// The flags of a function, as [`Flags::to_byte`] wrote them.
    pub(super) fn from_byte(byte: u8) -> Self {
        Self {
            declared: true,
            no_writes: byte & 1 == 1,
            others: byte >> 1,
        }
    }
}

/// A script taken apart.
#[derive(Debug)]
pub(super) struct Shebang {
    pub(super) flags: Flags,
    /// Libraries have one.
    pub(super) name: Option<Bytes>,
    /// What is to be compiled: without the first line, so that lines keep their numbers.
    pub(super) code: Bytes,
}

/// The code below the shebang.
pub(super) fn code(body: &Bytes) -> Bytes {
    if !body.starts_with(b"#!") {
        return body.clone();
    }
    let end = body.iter().position(|&byte| byte == b'\n');
    body.slice(end.unwrap_or(body.len())..)
}

/// Takes the body of a script apart.
///
/// # Errors
/// The line that Redis gives for a shebang it does not take.
pub(super) fn parse(body: &Bytes) -> Result<Shebang, ReplyError> {
    let mut flags = Flags::default();
    if !body.starts_with(b"#!") {
        return Ok(Shebang {
            flags,
            name: None,
            code: body.clone(),
        });
    }
    let end = body
        .iter()
        .position(|&byte| byte == b'\n')
        .ok_or_else(|| ReplyError::err("Invalid script shebang"))?;
    flags.declared = true;
    let mut name = None;
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut words = body[..end]
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let engine = words.next().unwrap_or_default();
    if engine != b"#!lua" {
        return Err(ReplyError::err(format_args!(
            "Unexpected engine in script shebang: {}",
            shown(engine)
        )));
    }
    for word in words {
        if let Some(list) = word.strip_prefix(b"flags=") {
            for flag in list.split(|&byte| byte == b',') {
                if !flag.is_empty() && !flags.set(flag) {
                    return Err(ReplyError::err(format_args!(
                        "Unexpected flag in script shebang: {}",
                        shown(flag)
                    )));
                }
            }
        } else if let Some(word) = word.strip_prefix(b"name=") {
            name = Some(Bytes::copy_from_slice(word));
        } else {
            return Err(ReplyError::err(format_args!(
                "Unknown lua shebang option: {}",
                shown(word)
            )));
        }
    }
    Ok(Shebang {
        flags,
        name,
        code: body.slice(end..),
    })
}

/// The name that a library's first line gives it.
///
/// # Errors
/// The line that Redis gives.
pub(super) fn library_name(body: &Bytes) -> Result<Bytes, ReplyError> {
    if !body.starts_with(b"#!") {
        return Err(ReplyError::err("Missing library metadata"));
    }
    let end = body
        .iter()
        .position(|&byte| byte == b'\n')
        .ok_or_else(|| ReplyError::err("Invalid library metadata"))?;
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut words = body[2..end]
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let engine = words.next().unwrap_or_default();
    let mut name: Option<&[u8]> = None;
    for word in words {
        match word.strip_prefix(b"name=") {
            Some(_) if name.is_some() => {
                return Err(ReplyError::err(
                    "Invalid metadata value, name argument was given multiple times",
                ));
            }
            Some(given) => name = Some(given),
            None => {
                return Err(ReplyError::err(format_args!(
                    "Invalid metadata value given: {}",
                    shown(word)
                )));
            }
        }
    }
    let Some(name) = name else {
        return Err(ReplyError::err("Library name was not given"));
    };
    if !is_name(name) {
        return Err(ReplyError::err(
            "Library names can only contain letters, numbers, or underscores(_) and must be at \
             least one character long",
        ));
    }
    if !engine.eq_ignore_ascii_case(b"lua") {
        return Err(ReplyError::err(format_args!(
            "Engine '{}' not found",
            shown(engine)
        )));
    }
    Ok(Bytes::copy_from_slice(name))
}

/// Whether a library or function may be called so.
pub(super) fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name
            .iter()
            .all(|&byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
