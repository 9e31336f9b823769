//! Random commands from templates.

use bytes::Bytes;

/// A reproducible source of choices (splitmix64).
pub(crate) struct Dice(u64);

const KEYS: &[&[u8]] = &[
    b"a",
    b"b",
    b"c",
    b"d{a}",
    b"zero\0byte",
    b"",
    b"user:1:name",
];
const ELEMENTS: &[&[u8]] = &[
    b"x", b"y", b"z", b"1", b"2", b"10", b"", b"\0\xFF", b"foo", b"w w",
];
const VALUES: &[&[u8]] = &[
    b"",
    b"0",
    b"1",
    b"-7",
    b"10",
    b"3.25",
    b"0.1",
    b"1e3",
    b"abc",
    b"hello world",
    b"\r\n\0\xFF",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"007",
    b" 1",
    b"ohmytext",
    b"mynewtext",
    b"foobar",
    b"\xFF\xF0\x00",
];
const INTEGERS: &[&[u8]] = &[
    b"0",
    b"1",
    b"-1",
    b"2",
    b"-2",
    b"3",
    b"5",
    b"-5",
    b"7",
    b"17",
    b"100",
    b"-100",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"9223372036854775808",
    b"x",
    b"1.5",
    b"",
];
const SMALL: &[&[u8]] = &[
    b"0", b"1", b"2", b"3", b"-1", b"-2", b"-3", b"5", b"-100", b"100",
];
const FLOATS: &[&[u8]] = &[
    b"0",
    b"1",
    b"-1",
    b"0.1",
    b"0.2",
    b"-0.3",
    b"3.14159",
    b"1e3",
    b"1e-5",
    b"1000.1",
    b"1e17",
    b"-12345.678901234",
    b"inf",
    b"-inf",
    b"nan",
    b"x",
    b"",
    b"0.00000000000000001",
    b"1e300",
];
/// As milliseconds none of these ends while a test runs.
const TIMES: &[&[u8]] = &[
    b"100000",
    b"200000",
    b"3000000",
    b"-1",
    b"0",
    b"x",
    b"9223372036854775807",
    b"9223372036854775",
    b"-9223372036854775808",
];
const FIELDS: &[&[u8]] = &[
    b"u8", b"i8", b"u2", b"i5", b"i64", b"u63", b"u64", b"i0", b"u1", b"x", b"i65", b"u16",
];
const OFFSETS: &[&[u8]] = &[
    b"0",
    b"1",
    b"3",
    b"7",
    b"8",
    b"17",
    b"#0",
    b"#1",
    b"#2",
    b"-1",
    b"x",
    b"4294967296",
];
const UNIX_TIMES: &[&[u8]] = &[b"4102444800", b"5000000000", b"1", b"0", b"-5", b"x"];
const PATTERNS: &[&[u8]] = &[
    b"*", b"a*", b"?", b"[a-c]", b"[^a]", b"*\0*", b"\\a", b"user:*", b"x*",
];
const SCORES: &[&[u8]] = &[
    b"0", b"1", b"1", b"2", b"-3.5", b"1e20", b"1.5e-7", b"0.1", b"inf", b"-inf", b"nan", b"x",
    b"3", b"10",
];
const BOUNDS: &[&[u8]] = &[
    b"-inf", b"+inf", b"inf", b"(1", b"1", b"(2", b"2", b"0", b"(-inf", b"3.5", b"x",
];
const LEX_BOUNDS: &[&[u8]] = &[b"-", b"+", b"[x", b"(x", b"[foo", b"(z", b"[", b"x", b"[1"];

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % bound as u64).unwrap()
    }

    pub(crate) fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    /// A command from one of `templates`, its placeholders filled in.
    pub(crate) fn command(&mut self, templates: &[&str]) -> Vec<Bytes> {
        let template = self.pick(templates);
        let mut args = Vec::new();
        for word in template.split(' ') {
            let pool = match word {
                "{k}" => KEYS,
                "{e}" => ELEMENTS,
                "{v}" => VALUES,
                "{i}" => INTEGERS,
                "{s}" => SMALL,
                "{f}" => FLOATS,
                "{t}" => TIMES,
                "{field}" => FIELDS,
                "{offset}" => OFFSETS,
                "{at}" => UNIX_TIMES,
                "{p}" => PATTERNS,
                "{score}" => SCORES,
                "{bound}" => BOUNDS,
                "{lex}" => LEX_BOUNDS,
                "{EX}" => &[b"EX" as &[u8], b"PX"],
                "{NX}" => &[b"NX" as &[u8], b"XX", b"GT", b"LT"],
                literal => {
                    args.push(Bytes::copy_from_slice(literal.as_bytes()));
                    continue;
                }
            };
            args.push(Bytes::from_static(self.pick(pool)));
        }
        args
    }
}
