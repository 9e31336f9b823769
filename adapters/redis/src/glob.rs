//! Glob patterns as Redis matches them: `*`, `?`, `[a-z]`, `[^…]` and `\` before a literal byte.
//!
//! A `*` that fails is retried one byte further on; earlier ones never are, since what stands
//! between two stars matches leftmost or not at all. So the time is pattern times text at worst.
//!
//! Source: `stringmatchlen` in Redis' `util.c`.

/// Whether all of `text` matches `pattern`.
pub(crate) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    matches_with(pattern, text, false)
}

/// As [`matches`], letters of either case being equal.
pub(crate) fn matches_ignoring_case(pattern: &[u8], text: &[u8]) -> bool {
    matches_with(pattern, text, true)
}

/// Whether `pattern` matches everything, which scans need not check.
pub(crate) fn is_everything(pattern: &[u8]) -> bool {
    pattern == b"*"
}

fn matches_with(pattern: &[u8], text: &[u8], ignore_case: bool) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where the pattern goes on after the last star, and the text position it is tried at.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            retry = Some((p, t));
            continue;
        }
        let step = match (
            pattern.get(p..).filter(|rest| !rest.is_empty()),
            text.get(t),
        ) {
            (None, None) => return true,
            (Some(rest), Some(&byte)) => match_one(rest, byte, ignore_case),
            _ => None,
        };
        if let Some(length) = step {
            p += length;
            t += 1;
            continue;
        }
        match &mut retry {
            Some((after_star, from)) if *from < text.len() => {
                *from += 1;
                (p, t) = (*after_star, *from);
            }
            _ => return false,
        }
    }
}

/// Matches `byte` against the first element of `pattern`, which is no star; gives its length.
fn match_one(pattern: &[u8], byte: u8, ignore_case: bool) -> Option<usize> {
    let fold = |byte: u8| {
        if ignore_case {
            byte.to_ascii_lowercase()
        } else {
            byte
        }
    };
    let byte = fold(byte);
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', class @ ..] => {
            let (negated, mut at) = match class {
                [b'^', ..] => (true, 1),
                _ => (false, 0),
            };
            let mut found = false;
            // A class that is never closed ends with the pattern.
            let end = loop {
                match &class[at..] {
                    [] => break at,
                    [b'\\', literal, ..] => {
                        found |= fold(*literal) == byte;
                        at += 2;
                    }
                    [b']', ..] => break at + 1,
                    [low, b'-', high, ..] => {
                        let (low, high) = (fold(*low), fold(*high));
                        found |= (low.min(high)..=low.max(high)).contains(&byte);
                        at += 3;
                    }
                    [literal, ..] => {
                        found |= fold(*literal) == byte;
                        at += 1;
                    }
                }
            };
            (found != negated).then_some(end + 1)
        }
        [b'\\', literal, ..] => (fold(*literal) == byte).then_some(2),
        [literal, ..] => (fold(*literal) == byte).then_some(1),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h*llo", "heeeello", true),
            ("h[ae]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-b]llo", "hbllo", true),
            ("h[b-a]llo", "hallo", true),
            ("[a-", "a", true),
            ("[]a]", "a]", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("[\\]]", "]", true),
            ("a\\", "a\\", true),
            ("*a*b*", "xxaxxbxx", true),
            ("*ab", "aab", true),
            ("a*", "a", true),
            ("user:*:name", "user:1000:name", true),
            ("user:*:name", "user:1000:names", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern:?} {text:?}"
            );
        }
        assert!(matches_ignoring_case(b"MaX[A-C]*", b"mAxb-memory"));
    }

    /// CVE-2022-36021: a pattern of many stars took exponential time.
    #[test]
    fn many_stars_do_not_take_exponential_time() {
        let pattern = b"*a".repeat(200);
        let text = b"a".repeat(20_000);
        assert!(!matches(&[&pattern, &b"b"[..]].concat(), &text));
    }
}
