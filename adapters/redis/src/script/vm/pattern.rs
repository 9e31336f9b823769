//! Lua patterns (Lua 5.1 Reference Manual, §5.4.1), with bounds the original lacks: a depth, so that
//! no pattern takes all of the stack, and a look at the clock, so that none takes for ever.

use super::control::{Control, stopping};
use super::native::Failure;

/// As Lua's own.
const MAX_CAPTURES: usize = 32;

/// How deep a pattern may nest; later versions of Lua have the same bound.
const MAX_DEPTH: u32 = 200;

/// The clock is looked at once per this many steps.
const LOOK_EVERY: u32 = 1 << 14;

const ESCAPE: u8 = b'%';

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Unfinished,
    /// `()`: the position itself.
    Position,
    Bytes(usize),
}

/// What one capture took: a part of the subject, or a position (from 1).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Capture {
    Part(std::ops::Range<usize>),
    Position(usize),
}

pub(super) struct Matcher<'s> {
    subject: &'s [u8],
    pattern: &'s [u8],
    captures: Vec<(usize, Length)>,
    depth: u32,
    steps: u32,
    control: &'s Control,
}

type Found = Result<Option<usize>, Failure>;

impl<'s> Matcher<'s> {
    /// `pattern` without its anchor.
    pub(super) fn new(subject: &'s [u8], pattern: &'s [u8], control: &'s Control) -> Self {
        Self {
            subject,
            pattern,
            captures: Vec::new(),
            depth: 0,
            steps: 0,
            control,
        }
    }

    /// The end of a match that begins at `at`.
    pub(super) fn match_at(&mut self, at: usize) -> Found {
        self.captures.clear();
        self.depth = 0;
        self.matches(at, 0)
    }

    /// What the captures of the last match took.
    pub(super) fn captures(&self) -> Result<Vec<Capture>, Failure> {
        self.captures
            .iter()
            .map(|&(start, length)| match length {
                Length::Bytes(length) => Ok(Capture::Part(start..start + length)),
                Length::Position => Ok(Capture::Position(start + 1)),
                Length::Unfinished => Err(Failure::text("unfinished capture")),
            })
            .collect()
    }

    fn step(&mut self) -> Result<(), Failure> {
        self.steps += 1;
        if self.steps >= LOOK_EVERY {
            self.steps = 0;
            self.control.look();
            if self.control.is_stopped() {
                return Err(Failure::Lua(stopping()));
            }
        }
        Ok(())
    }

    fn matches(&mut self, at: usize, pattern_at: usize) -> Found {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Failure::text("pattern too complex"));
        }
        let found = self.matches_here(at, pattern_at);
        self.depth -= 1;
        found
    }

    fn matches_here(&mut self, mut at: usize, mut p: usize) -> Found {
        loop {
            self.step()?;
            let Some(&first) = self.pattern.get(p) else {
                return Ok(Some(at));
            };
            match first {
                b'(' if self.pattern.get(p + 1) == Some(&b')') => {
                    return self.start_capture(at, p + 2, Length::Position);
                }
                b'(' => return self.start_capture(at, p + 1, Length::Unfinished),
                b')' => return self.end_capture(at, p + 1),
                ESCAPE => match self.pattern.get(p + 1) {
                    Some(b'b') => match self.balanced(at, p + 2)? {
                        Some(end) => {
                            (at, p) = (end, p + 4);
                            continue;
                        }
                        None => return Ok(None),
                    },
                    Some(b'f') => {
                        p += 2;
                        if self.pattern.get(p) != Some(&b'[') {
                            return Err(Failure::text("missing '[' after '%f' in pattern"));
                        }
                        let end = self.class_end(p)?;
                        let before = if at == 0 { 0 } else { self.subject[at - 1] };
                        let here = self.subject.get(at).copied().unwrap_or(0);
                        if self.in_set(before, p, end - 1) || !self.in_set(here, p, end - 1) {
                            return Ok(None);
                        }
                        p = end;
                        continue;
                    }
                    Some(digit @ b'0'..=b'9') => match self.back_reference(at, *digit)? {
                        Some(end) => {
                            (at, p) = (end, p + 2);
                            continue;
                        }
                        None => return Ok(None),
                    },
                    _ => {}
                },
                b'$' if p + 1 == self.pattern.len() => {
                    return Ok((at == self.subject.len()).then_some(at));
                }
                _ => {}
            }
            let end = self.class_end(p)?;
            let one = self.single(at, p, end);
            match self.pattern.get(end) {
                Some(b'?') => {
                    if one && let Some(found) = self.matches(at + 1, end + 1)? {
                        return Ok(Some(found));
                    }
                    p = end + 1;
                }
                Some(b'*') => return self.most(at, p, end),
                Some(b'+') => {
                    return if one {
                        self.most(at + 1, p, end)
                    } else {
                        Ok(None)
                    };
                }
                Some(b'-') => return self.least(at, p, end),
                _ if one => (at, p) = (at + 1, end),
                _ => return Ok(None),
            }
        }
    }

    fn most(&mut self, at: usize, p: usize, end: usize) -> Found {
        let mut count = 0;
        while self.single(at + count, p, end) {
            count += 1;
            self.step()?;
        }
        loop {
            if let Some(found) = self.matches(at + count, end + 1)? {
                return Ok(Some(found));
            }
            if count == 0 {
                return Ok(None);
            }
            count -= 1;
        }
    }

    fn least(&mut self, mut at: usize, p: usize, end: usize) -> Found {
        loop {
            if let Some(found) = self.matches(at, end + 1)? {
                return Ok(Some(found));
            }
            if !self.single(at, p, end) {
                return Ok(None);
            }
            at += 1;
        }
    }

    fn start_capture(&mut self, at: usize, p: usize, length: Length) -> Found {
        if self.captures.len() >= MAX_CAPTURES {
            return Err(Failure::text("too many captures"));
        }
        self.captures.push((at, length));
        let found = self.matches(at, p)?;
        if found.is_none() {
            self.captures.pop();
        }
        Ok(found)
    }

    fn end_capture(&mut self, at: usize, p: usize) -> Found {
        let open = self
            .captures
            .iter()
            .rposition(|&(_, length)| length == Length::Unfinished)
            .ok_or_else(|| Failure::text("invalid pattern capture"))?;
        self.captures[open].1 = Length::Bytes(at - self.captures[open].0);
        let found = self.matches(at, p)?;
        if found.is_none() {
            self.captures[open].1 = Length::Unfinished;
        }
        Ok(found)
    }

    fn balanced(&mut self, at: usize, p: usize) -> Found {
        let (Some(&open), Some(&close)) = (self.pattern.get(p), self.pattern.get(p + 1)) else {
            return Err(Failure::text("unbalanced pattern"));
        };
        if self.subject.get(at) != Some(&open) {
            return Ok(None);
        }
        let mut depth = 1;
        for (offset, &byte) in self.subject[at + 1..].iter().enumerate() {
            self.step()?;
            if byte == close {
                depth -= 1;
                if depth == 0 {
                    return Ok(Some(at + offset + 2));
                }
            } else if byte == open {
                depth += 1;
            }
        }
        Ok(None)
    }

    fn back_reference(&mut self, at: usize, digit: u8) -> Found {
        let invalid = || Failure::text("invalid capture index");
        let index = usize::from(digit)
            .checked_sub(usize::from(b'1'))
            .ok_or_else(invalid)?;
        let &(start, length) = self.captures.get(index).ok_or_else(invalid)?;
        let Length::Bytes(length) = length else {
            return Err(invalid());
        };
        let part = &self.subject[start..start + length];
        Ok(self.subject[at..].starts_with(part).then_some(at + length))
    }

    /// The end of the single-character class that begins at `p`.
    fn class_end(&self, p: usize) -> Result<usize, Failure> {
        let pattern = self.pattern;
        match pattern[p] {
            ESCAPE if p + 1 == pattern.len() => {
                Err(Failure::text("malformed pattern (ends with '%')"))
            }
            ESCAPE => Ok(p + 2),
            b'[' => {
                let missing = || Failure::text("malformed pattern (missing ']')");
                let mut at = p + 1;
                if pattern.get(at) == Some(&b'^') {
                    at += 1;
                }
                // A ']' that comes first stands for itself.
                loop {
                    let byte = *pattern.get(at).ok_or_else(missing)?;
                    at += 1;
                    if byte == ESCAPE && at < pattern.len() {
                        at += 1;
                    }
                    if pattern.get(at).ok_or_else(missing)? == &b']' {
                        return Ok(at + 1);
                    }
                }
            }
            _ => Ok(p + 1),
        }
    }

    fn single(&self, at: usize, p: usize, end: usize) -> bool {
        let Some(&byte) = self.subject.get(at) else {
            return false;
        };
        match self.pattern[p] {
            b'.' => true,
            ESCAPE => in_class(byte, self.pattern[p + 1]),
            b'[' => self.in_set(byte, p, end - 1),
            plain => plain == byte,
        }
    }

    /// Whether `byte` is in the set between `[` at `p` and `]` at `last`.
    fn in_set(&self, byte: u8, mut p: usize, last: usize) -> bool {
        let pattern = self.pattern;
        let mut found = true;
        if pattern[p + 1] == b'^' {
            found = false;
            p += 1;
        }
        p += 1;
        while p < last {
            if pattern[p] == ESCAPE {
                p += 1;
                if in_class(byte, pattern[p]) {
                    return found;
                }
                p += 1;
            } else if pattern[p + 1] == b'-' && p + 2 < last {
                if (pattern[p]..=pattern[p + 2]).contains(&byte) {
                    return found;
                }
                p += 3;
            } else {
                if pattern[p] == byte {
                    return found;
                }
                p += 1;
            }
        }
        !found
    }
}

fn in_class(byte: u8, class: u8) -> bool {
    let found = match class.to_ascii_lowercase() {
        b'a' => byte.is_ascii_alphabetic(),
        b'c' => byte.is_ascii_control(),
        b'd' => byte.is_ascii_digit(),
        b'l' => byte.is_ascii_lowercase(),
        b'p' => byte.is_ascii_punctuation(),
        b's' => byte.is_ascii_whitespace() || byte == 0x0B,
        b'u' => byte.is_ascii_uppercase(),
        b'w' => byte.is_ascii_alphanumeric(),
        b'x' => byte.is_ascii_hexdigit(),
        b'z' => byte == 0,
        _ => return class == byte,
    };
    found != class.is_ascii_uppercase()
}
