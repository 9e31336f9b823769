//! Strings as bits and as small integers. Bit 0 is the highest bit of the first byte; what lies
//! behind the end of a string counts as zeros.

use std::ops::Range;

use bytes::Bytes;

use crate::args::{Args, parse_integer};
use crate::commands::boxed;
use crate::commands::strings::{MOST_BYTES, inclusive_range};
use crate::reply::{Reply, ReplyError};
use crate::rows::Db;
use crate::spec::{Arity, Command, Keys, Spec};

const CATEGORY: &str = "bitmap";
const AFTER_OPERATION: Keys = Keys::Every {
    first: 2,
    step: 1,
    last_from_end: 0,
};

#[rustfmt::skip] // One per line.
pub(super) const SPECS: &[Spec] = &[
    Spec::write("SETBIT", "setbit", CATEGORY, Arity::Exactly(4), Keys::At(1), SetBit::parse),
    Spec::read("GETBIT", "getbit", CATEGORY, Arity::Exactly(3), Keys::At(1), GetBit::parse).fast(),
    Spec::read("BITCOUNT", "bitcount", CATEGORY, Arity::AtLeast(2), Keys::At(1), BitCount::parse),
    Spec::read("BITPOS", "bitpos", CATEGORY, Arity::AtLeast(3), Keys::At(1), BitPos::parse),
    Spec::write("BITOP", "bitop", CATEGORY, Arity::AtLeast(4), AFTER_OPERATION, BitOp::parse),
    Spec::write("BITFIELD", "bitfield", CATEGORY, Arity::AtLeast(2), Keys::At(1), |args| {
        BitField::parse(args, false)
    }),
    Spec::read("BITFIELD_RO", "bitfield_ro", CATEGORY, Arity::AtLeast(2), Keys::At(1), |args| {
        BitField::parse(args, true)
    })
    .fast(),
];

fn bad_offset() -> ReplyError {
    ReplyError::err("bit offset is not an integer or out of range")
}

/// A bit's place; `#n` means the n-th field of `width` bits where that is allowed.
fn offset(text: &[u8], width: Option<u32>) -> Result<usize, ReplyError> {
    let (digits, scale) = match (text, width) {
        ([b'#', digits @ ..], Some(width)) => (digits, u64::from(width)),
        _ => (text, 1),
    };
    parse_integer(digits)
        .and_then(|number| u64::try_from(number).ok())
        .and_then(|number| usize::try_from(number.checked_mul(scale)?).ok())
        .filter(|offset| offset / 8 < MOST_BYTES)
        .ok_or_else(bad_offset)
}

fn bit(bytes: &[u8], at: usize) -> bool {
    bytes
        .get(at / 8)
        .is_some_and(|byte| byte >> (7 - at % 8) & 1 == 1)
}

fn set_bit(bytes: &mut [u8], at: usize, on: bool) {
    let mask = 1 << (7 - at % 8);
    if on {
        bytes[at / 8] |= mask;
    } else {
        bytes[at / 8] &= !mask;
    }
}

/// The string at `key` for changing, long enough that `last_bit` is in it.
fn grown(
    db: &mut Db<'_>,
    key: &[u8],
    last_bit: usize,
) -> Result<(Vec<u8>, Option<u64>), ReplyError> {
    let (old, expires_at) = db.string_and_expiry(key)?.unwrap_or_default();
    let mut bytes = Vec::with_capacity(old.len().max(last_bit / 8 + 1));
    bytes.extend_from_slice(&old);
    bytes.resize(old.len().max(last_bit / 8 + 1), 0);
    Ok((bytes, expires_at))
}

/// `SETBIT key offset 0|1`: answers the bit that was there.
#[derive(Debug)]
struct SetBit {
    key: Bytes,
    offset: usize,
    on: bool,
}

impl SetBit {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (key, offset) = (args.key()?, offset(&args.bytes()?, None)?);
        let on = match args.bytes()?.as_ref() {
            b"0" => false,
            b"1" => true,
            _ => return Err(ReplyError::err("bit is not an integer or out of range")),
        };
        boxed(Self { key, offset, on })
    }
}

impl Command for SetBit {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let (mut bytes, expires_at) = grown(db, &self.key, self.offset)?;
        let old = bit(&bytes, self.offset);
        set_bit(&mut bytes, self.offset, self.on);
        db.set_string(&self.key, bytes.into(), expires_at)?;
        Ok(Reply::Integer(i64::from(old)))
    }
}

/// `GETBIT key offset`.
#[derive(Debug)]
struct GetBit {
    key: Bytes,
    offset: usize,
}

impl GetBit {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (key, offset) = (args.key()?, offset(&args.bytes()?, None)?);
        boxed(Self { key, offset })
    }
}

impl Command for GetBit {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let value = db.string(&self.key)?.unwrap_or_default();
        Ok(Reply::Integer(i64::from(bit(&value, self.offset))))
    }
}

/// `start end [BYTE|BIT]` of BITCOUNT and BITPOS.
#[derive(Clone, Copy, Debug)]
struct Part {
    start: i64,
    /// BITPOS may leave it out: then the zeros behind the string count too.
    end: Option<i64>,
    in_bits: bool,
}

impl Part {
    fn parse(args: &mut Args<'_>, end_optional: bool) -> Result<Option<Self>, ReplyError> {
        if args.is_empty() {
            return Ok(None);
        }
        if args.len() > 3 || (args.len() == 1 && !end_optional) {
            return Err(ReplyError::Syntax);
        }
        let start = args.integer()?;
        let end = if args.is_empty() {
            None
        } else {
            Some(args.integer()?)
        };
        let in_bits = args.take("BIT");
        if !in_bits && !args.is_empty() && !args.take("BYTE") {
            return Err(ReplyError::Syntax);
        }
        Ok(Some(Self {
            start,
            end,
            in_bits,
        }))
    }

    /// The bits of a string of `length` bytes that this names.
    fn bits(self, length: usize) -> Option<Range<usize>> {
        let unit = if self.in_bits { 1 } else { 8 };
        let part = inclusive_range(self.start, self.end.unwrap_or(-1), length * 8 / unit)?;
        Some(part.start * unit..part.end * unit)
    }
}

/// Counts what `bits` of `bytes` are set, by whole bytes where it can.
fn count_ones(bytes: &[u8], bits: Range<usize>) -> usize {
    let (first, last) = (bits.start.div_ceil(8), bits.end / 8);
    if first >= last {
        return bits.filter(|&at| bit(bytes, at)).count();
    }
    let whole: usize = bytes[first..last]
        .iter()
        .map(|byte| byte.count_ones() as usize)
        .sum();
    let edges = (bits.start..first * 8).chain(last * 8..bits.end);
    whole + edges.filter(|&at| bit(bytes, at)).count()
}

/// The first of `bits` that is `on`, by whole bytes where it can.
fn find(bytes: &[u8], bits: Range<usize>, on: bool) -> Option<usize> {
    let without = if on { 0x00 } else { 0xFF };
    let mut at = bits.start;
    while at < bits.end {
        if at.is_multiple_of(8) && bytes[at / 8] == without {
            at += 8;
        } else if bit(bytes, at) == on {
            return Some(at);
        } else {
            at += 1;
        }
    }
    None
}

/// `BITCOUNT key [start end [BYTE|BIT]]`.
#[derive(Debug)]
struct BitCount {
    key: Bytes,
    /// Looked at only if there is a string, as in Redis.
    part: Result<Option<Part>, ReplyError>,
}

impl BitCount {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let key = args.key()?;
        let part = Part::parse(args, false);
        boxed(Self { key, part })
    }
}

impl Command for BitCount {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some(value) = db.string(&self.key)? else {
            return Ok(Reply::Integer(0));
        };
        let bits = match self.part.clone()? {
            None => Some(0..value.len() * 8),
            Some(part) => part.bits(value.len()),
        };
        Ok(Reply::count(
            bits.map_or(0, |bits| count_ones(&value, bits)),
        ))
    }
}

/// `BITPOS key bit [start [end [BYTE|BIT]]]`: -1 if there is none.
#[derive(Debug)]
struct BitPos {
    key: Bytes,
    on: bool,
    part: Result<Option<Part>, ReplyError>,
}

impl BitPos {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let key = args.key()?;
        let on = match args.integer()? {
            0 => false,
            1 => true,
            _ => return Err(ReplyError::err("The bit argument must be 1 or 0.")),
        };
        let part = Part::parse(args, true);
        boxed(Self { key, on, part })
    }
}

impl Command for BitPos {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some(value) = db.string(&self.key)? else {
            return Ok(Reply::Integer(if self.on { -1 } else { 0 }));
        };
        let part = self.part.clone()?.unwrap_or(Part {
            start: 0,
            end: None,
            in_bits: false,
        });
        let Some(bits) = part.bits(value.len()) else {
            return Ok(Reply::Integer(-1));
        };
        Ok(match find(&value, bits, self.on) {
            Some(at) => Reply::count(at),
            None if !self.on && part.end.is_none() => Reply::count(value.len() * 8),
            None => Reply::Integer(-1),
        })
    }
}

/// `BITOP AND|OR|XOR|NOT destination key …`: shorter strings count as if followed by zeros.
#[derive(Debug)]
struct BitOp {
    operation: Combine,
    destination: Bytes,
    sources: Vec<Bytes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Combine {
    And,
    Or,
    Xor,
    Not,
}

impl BitOp {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let operation = match () {
            () if args.take("AND") => Combine::And,
            () if args.take("OR") => Combine::Or,
            () if args.take("XOR") => Combine::Xor,
            () if args.take("NOT") => Combine::Not,
            () => return Err(ReplyError::Syntax),
        };
        let (destination, sources) = (args.key()?, args.rest().to_vec());
        if operation == Combine::Not && sources.len() != 1 {
            return Err(ReplyError::err(
                "BITOP NOT must be called with a single source key.",
            ));
        }
        boxed(Self {
            operation,
            destination,
            sources,
        })
    }
}

impl Command for BitOp {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let mut values = Vec::with_capacity(self.sources.len());
        for key in &self.sources {
            values.push(db.string(key)?.unwrap_or_default());
        }
        let length = values.iter().map(Bytes::len).max().unwrap_or(0);
        if length == 0 {
            db.remove(&self.destination)?;
            return Ok(Reply::Integer(0));
        }
        let mut values = values.into_iter();
        let mut result = values.next().unwrap_or_default().to_vec();
        result.resize(length, 0);
        if self.operation == Combine::Not {
            result.iter_mut().for_each(|byte| *byte = !*byte);
        }
        for value in values {
            let zeros = std::iter::repeat(&0);
            for (byte, other) in result.iter_mut().zip(value.iter().chain(zeros)) {
                match self.operation {
                    Combine::And => *byte &= other,
                    Combine::Or => *byte |= other,
                    Combine::Xor | Combine::Not => *byte ^= other,
                }
            }
        }
        db.set_string(&self.destination, result.into(), None)?;
        Ok(Reply::count(length))
    }
}

/// `BITFIELD key [GET type offset | [OVERFLOW WRAP|SAT|FAIL] SET type offset value | INCRBY type
/// offset increment] …`, and BITFIELD_RO with GET alone.
#[derive(Debug)]
struct BitField {
    key: Bytes,
    steps: Vec<Step>,
    /// The last bit that a SET or INCRBY concerns.
    last_written: Option<usize>,
}

#[derive(Debug)]
struct Step {
    field: Field,
    offset: usize,
    action: Action,
    overflow: Overflow,
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Get,
    Set(i64),
    IncrBy(i64),
}

#[derive(Clone, Copy, Debug)]
enum Overflow {
    Wrap,
    Saturate,
    Fail,
}

/// An integer type: up to 64 bits signed, 63 unsigned.
#[derive(Clone, Copy, Debug)]
struct Field {
    signed: bool,
    width: u32,
}

impl Field {
    fn parse(text: &[u8]) -> Result<Self, ReplyError> {
        let (signed, digits, most) = match text {
            [b'i', digits @ ..] => (true, digits, 64),
            [b'u', digits @ ..] => (false, digits, 63),
            _ => (false, b"".as_slice(), 0),
        };
        let width = parse_integer(digits).and_then(|width| u32::try_from(width).ok());
        match width {
            Some(width @ 1..) if width <= most => Ok(Self { signed, width }),
            _ => Err(ReplyError::err(
                "Invalid bitfield type. Use something like i16 u8. Note that u64 is not supported \
                 but i64 is.",
            )),
        }
    }

    fn range(self) -> (i128, i128) {
        if self.signed {
            (-(1 << (self.width - 1)), (1 << (self.width - 1)) - 1)
        } else {
            (0, (1 << self.width) - 1)
        }
    }

    /// The low bits of `number` as this type reads them.
    fn wrapped(self, number: i128) -> i128 {
        let low = number & ((1 << self.width) - 1);
        if self.signed && low >> (self.width - 1) == 1 {
            low - (1 << self.width)
        } else {
            low
        }
    }

    fn read(self, bytes: &[u8], offset: usize) -> i128 {
        let bits = (0..self.width as usize).fold(0, |number: i128, at| {
            number << 1 | i128::from(bit(bytes, offset + at))
        });
        self.wrapped(bits)
    }

    fn write(self, bytes: &mut [u8], offset: usize, number: i128) {
        for at in 0..self.width {
            let on = number >> (self.width - 1 - at) & 1 == 1;
            set_bit(bytes, offset + at as usize, on);
        }
    }

    /// `number` within this type's range, or `None` if it must not be written.
    fn fit(self, number: i128, overflow: Overflow) -> Option<i128> {
        let (least, most) = self.range();
        match overflow {
            _ if (least..=most).contains(&number) => Some(number),
            Overflow::Wrap => Some(self.wrapped(number)),
            Overflow::Saturate => Some(number.clamp(least, most)),
            Overflow::Fail => None,
        }
    }
}

impl BitField {
    fn parse(args: &mut Args<'_>, read_only: bool) -> Result<Box<dyn Command>, ReplyError> {
        let mut fields = Self {
            key: args.key()?,
            steps: Vec::new(),
            last_written: None,
        };
        let mut overflow = Overflow::Wrap;
        let mut writes = false;
        while !args.is_empty() {
            let operands = args.len() - 1;
            let action: fn(i64) -> Action = if operands >= 2 && args.take("GET") {
                |_| Action::Get
            } else if operands >= 3 && args.take("SET") {
                Action::Set
            } else if operands >= 3 && args.take("INCRBY") {
                Action::IncrBy
            } else if operands >= 1 && args.take("OVERFLOW") {
                overflow = match () {
                    () if args.take("WRAP") => Overflow::Wrap,
                    () if args.take("SAT") => Overflow::Saturate,
                    () if args.take("FAIL") => Overflow::Fail,
                    () => return Err(ReplyError::err("Invalid OVERFLOW type specified")),
                };
                continue;
            } else {
                return Err(ReplyError::Syntax);
            };
            let field = Field::parse(&args.bytes()?)?;
            let offset = offset(&args.bytes()?, Some(field.width))?;
            let mut action = action(0);
            if !matches!(action, Action::Get) {
                writes = true;
                let last = offset + field.width as usize - 1;
                fields.last_written = fields.last_written.max(Some(last));
                let operand = args.integer()?;
                action = match action {
                    Action::Set(_) => Action::Set(operand),
                    _ => Action::IncrBy(operand),
                };
            }
            fields.steps.push(Step {
                field,
                offset,
                action,
                overflow,
            });
        }
        if writes && read_only {
            return Err(ReplyError::err(
                "BITFIELD_RO only supports the GET subcommand",
            ));
        }
        boxed(fields)
    }
}

impl Command for BitField {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let (mut bytes, expires_at) = match self.last_written {
            Some(last) => grown(db, &self.key, last)?,
            None => (db.string(&self.key)?.unwrap_or_default().to_vec(), None),
        };
        let mut replies = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let old = step.field.read(&bytes, step.offset);
            let (new, answers_new) = match step.action {
                Action::Get => (None, false),
                // An unsigned field takes a negative number's bits, as Redis' cast does.
                Action::Set(value) if !step.field.signed => {
                    (Some(i128::from(value.cast_unsigned())), false)
                }
                Action::Set(value) => (Some(i128::from(value)), false),
                Action::IncrBy(increment) => (Some(old + i128::from(increment)), true),
            };
            let mut answer = Some(old);
            if let Some(new) = new {
                let fitted = step.field.fit(new, step.overflow);
                if let Some(fitted) = fitted {
                    step.field.write(&mut bytes, step.offset, fitted);
                }
                answer = fitted.map(|fitted| if answers_new { fitted } else { old });
            }
            // Every type's range lies within 64 signed bits.
            replies.push(answer.map_or(Reply::Null, |number| {
                Reply::Integer(i64::try_from(number).unwrap_or(i64::MAX))
            }));
        }
        if self.last_written.is_some() {
            db.set_string(&self.key, bytes.into(), expires_at)?;
        }
        Ok(Reply::Array(replies))
    }
}
