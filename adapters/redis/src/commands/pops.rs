//! What LMPOP and ZMPOP, and the commands that wait for something to pop, have in common.
//!
//! A command that waits is a series of attempts, one for each key: plain commands that only nodes
//! know, and that answer [`Reply::Block`] where there is nothing to pop.

use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;

use crate::args::{Args, parse_double};
use crate::commands::boxed;
use crate::reply::{Reply, ReplyError};
use crate::rows::Db;
use crate::spec::{Attempt, Blocking, Command, Keys};

/// The keys of `BLPOP` and its kin.
pub(super) const KEYS_THEN_TIMEOUT: Keys = Keys::Every {
    first: 1,
    step: 1,
    last_from_end: 1,
};

/// An end of a list or sorted set.
pub(super) trait PopEnd: Copy + Debug + PartialEq + Send + Sync + 'static {
    /// Both, with their words.
    const BOTH: [(Self, &'static str); 2];
    /// The name of [`AttemptPop`] of this type.
    const ATTEMPT_POP: &'static str;
    /// The name of [`MultiPop::attempt`] of this type.
    const ATTEMPT_MULTI_POP: &'static str;

    /// Takes up to `count` elements off this end of what is at `key`, in the order they come off;
    /// `None` if nothing is there.
    fn pop(self, db: &mut Db<'_>, key: &[u8], count: u64)
    -> Result<Option<Vec<Reply>>, ReplyError>;

    fn parse(args: &mut Args<'_>) -> Result<Self, ReplyError> {
        Self::BOTH
            .into_iter()
            .find_map(|(end, word)| args.take(word).then_some(end))
            .ok_or(ReplyError::Syntax)
    }

    fn word(self) -> Bytes {
        let [first, second] = Self::BOTH;
        let (_, word) = if first.0 == self { first } else { second };
        Bytes::from_static(word.as_bytes())
    }
}

/// `LMPOP | ZMPOP numkeys key … end [COUNT count]`: pops from the first key that has something.
#[derive(Debug)]
pub(super) struct MultiPop<E> {
    keys: Vec<Bytes>,
    end: E,
    count: u64,
    nothing: Reply,
}

impl<E: PopEnd> MultiPop<E> {
    pub(super) fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        boxed(Self::new(args, Reply::NullArray)?)
    }

    /// One try of a command that waits.
    pub(super) fn attempt(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        boxed(Self::new(args, Reply::Block)?)
    }

    fn new(args: &mut Args<'_>, nothing: Reply) -> Result<Self, ReplyError> {
        let keys = args
            .integer()
            .ok()
            .and_then(|count| usize::try_from(count).ok())
            .filter(|count| *count > 0)
            .ok_or_else(|| ReplyError::err("numkeys should be greater than 0"))?;
        if keys >= args.len() {
            return Err(ReplyError::Syntax);
        }
        let keys = (0..keys).map(|_| args.key()).collect::<Result<_, _>>()?;
        let end = E::parse(args)?;
        let mut count = 1;
        if args.take("COUNT") {
            count = args
                .unsigned()
                .ok()
                .filter(|count| *count > 0)
                .ok_or_else(|| ReplyError::err("count should be greater than 0"))?;
        }
        args.end()?;
        Ok(Self {
            keys,
            end,
            count,
            nothing,
        })
    }
}

impl<E: PopEnd> Command for MultiPop<E> {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        for key in &self.keys {
            if let Some(elements) = self.end.pop(db, key, self.count)? {
                let key = Reply::Bulk(key.clone());
                return Ok(Reply::Array(vec![key, Reply::Array(elements)]));
            }
        }
        Ok(self.nothing.clone())
    }
}

/// One try of `BLPOP` and its kin at one key: the key and its element (and that one's score).
#[derive(Debug)]
pub(super) struct AttemptPop<E> {
    key: Bytes,
    end: E,
}

impl<E: PopEnd> AttemptPop<E> {
    pub(super) fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        boxed(Self {
            key: args.key()?,
            end: E::parse(args)?,
        })
    }
}

impl<E: PopEnd> Command for AttemptPop<E> {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some(elements) = self.end.pop(db, &self.key, 1)? else {
            return Ok(Reply::Block);
        };
        let mut flat = vec![Reply::Bulk(self.key.clone())];
        for element in elements {
            match element {
                Reply::Array(pair) => flat.extend(pair),
                element => flat.push(element),
            }
        }
        Ok(Reply::Array(flat))
    }
}

/// `BLPOP | BRPOP | BZPOPMIN | BZPOPMAX key … timeout`
pub(super) fn blocking_pop<E: PopEnd>(args: &mut Args<'_>, end: E) -> Result<Blocking, ReplyError> {
    let (timeout, keys) = args.rest().split_last().ok_or(ReplyError::Syntax)?;
    let name = Bytes::from_static(E::ATTEMPT_POP.as_bytes());
    let attempts = keys.iter().map(|key| Attempt {
        watch: key.clone(),
        args: vec![name.clone(), key.clone(), end.word()],
    });
    Ok(Blocking {
        timeout: parse_timeout(timeout)?,
        attempts: attempts.collect(),
        on_timeout: Reply::NullArray,
    })
}

/// `BLMPOP | BZMPOP timeout numkeys key … end [COUNT count]`
pub(super) fn blocking_multi_pop<E: PopEnd>(args: &mut Args<'_>) -> Result<Blocking, ReplyError> {
    let timeout = parse_timeout(&args.bytes()?)?;
    let whole = MultiPop::<E>::new(args, Reply::Block)?;
    let attempts = whole.keys.iter().map(|key| Attempt {
        watch: key.clone(),
        args: vec![
            Bytes::from_static(E::ATTEMPT_MULTI_POP.as_bytes()),
            Bytes::from_static(b"1"),
            key.clone(),
            whole.end.word(),
            Bytes::from_static(b"COUNT"),
            Bytes::from(whole.count.to_string()),
        ],
    });
    Ok(Blocking {
        timeout,
        attempts: attempts.collect(),
        on_timeout: Reply::NullArray,
    })
}

/// A timeout in seconds; `None` for 0, which waits for ever.
pub(super) fn parse_timeout(text: &[u8]) -> Result<Option<Duration>, ReplyError> {
    let seconds = parse_double(text)
        .filter(|seconds| seconds.is_finite())
        .ok_or_else(|| ReplyError::err("timeout is not a float or out of range"))?;
    if seconds < 0.0 {
        return Err(ReplyError::err("timeout is negative"));
    }
    if seconds == 0.0 {
        return Ok(None);
    }
    // As Redis: whole milliseconds, rounded up.
    Duration::try_from_secs_f64((seconds * 1000.0).ceil() / 1000.0)
        .map(Some)
        .map_err(|_| ReplyError::err("timeout is out of range"))
}
