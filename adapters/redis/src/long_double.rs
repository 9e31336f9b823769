//! The x87 extended number that INCRBYFLOAT and HINCRBYFLOAT calculate with in Redis: 64 bits of
//! mantissa, read from decimal text, added, and written as `%.17Lf` without trailing zeros.
//!
//! A double would be near, but `0.1 + 0.2` would answer `0.30000000000000004`. Each operation here
//! is exact and then rounded once, half to even, as the hardware does.

/// A finite number: `mantissa × 2^exponent`; the mantissa's top bit is set unless it is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LongDouble {
    negative: bool,
    mantissa: u64,
    exponent: i32,
}

/// A number as text names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    Finite(LongDouble),
    Infinite,
}

impl From<LongDouble> for Parsed {
    fn from(number: LongDouble) -> Self {
        Self::Finite(number)
    }
}

/// Longest text that Redis takes as a number.
const LONGEST: usize = 5119;
/// The exponent of the mantissa's lowest bit in the largest finite number.
const LARGEST_EXPONENT: i32 = 16383 - 63;
/// Decimal exponents beyond this are out of range whatever the digits.
const DECIMAL_RANGE: i64 = 11_000;

impl LongDouble {
    const ZERO: Self = Self {
        negative: false,
        mantissa: 0,
        exponent: 0,
    };

    /// Reads a decimal number; `None` if it is none, is NaN or is out of range.
    pub(crate) fn parse(text: &[u8]) -> Option<Parsed> {
        if text.len() > LONGEST {
            return None;
        }
        let (negative, unsigned) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            rest => (false, rest),
        };
        if unsigned.eq_ignore_ascii_case(b"inf") || unsigned.eq_ignore_ascii_case(b"infinity") {
            return Some(Parsed::Infinite);
        }
        let mut digits = Natural::default();
        let (mut any, mut point, mut scale) = (false, false, 0i64);
        let mut rest = unsigned;
        while let Some((&byte, after)) = rest.split_first() {
            match byte {
                b'0'..=b'9' => {
                    digits.multiply_add(10, u32::from(byte - b'0'));
                    any = true;
                    scale -= i64::from(point);
                }
                b'.' if !point => point = true,
                _ => break,
            }
            rest = after;
        }
        if !any {
            return None;
        }
        match rest {
            [] => {}
            [b'e' | b'E', exponent @ ..] => {
                let exponent = exponent.strip_prefix(b"+").unwrap_or(exponent);
                let exponent: i64 = std::str::from_utf8(exponent).ok()?.parse().ok()?;
                scale = scale.checked_add(exponent)?;
            }
            _ => return None,
        }
        if digits.is_zero() {
            let zero = Self {
                negative,
                ..Self::ZERO
            };
            return Some(Parsed::Finite(zero));
        }
        if scale.abs() > DECIMAL_RANGE {
            return None;
        }
        let power = usize::try_from(scale.unsigned_abs()).ok()?;
        let number = if scale >= 0 {
            digits.multiply_by_power_of_ten(power);
            Self::round(negative, &digits, 0, false)
        } else {
            // Enough bits that the quotient has more than 64; 10 takes less than 3.33 bits.
            let shift = 70 + power * 10 / 3;
            digits.shift_left(shift);
            let inexact = digits.divide_by_power_of_ten(power);
            Self::round(negative, &digits, -i32::try_from(shift).ok()?, inexact)
        };
        let smallest = -16_445 - 63;
        (number.exponent <= LARGEST_EXPONENT && number.exponent >= smallest)
            .then_some(Parsed::Finite(number))
    }

    /// The sum, or `None` if it is too large to be finite.
    pub(crate) fn add(self, other: Self) -> Option<Self> {
        if self.mantissa == 0 {
            return Some(other);
        }
        if other.mantissa == 0 {
            return Some(self);
        }
        let (high, low) = if (self.exponent, self.mantissa) >= (other.exponent, other.mantissa) {
            (self, other)
        } else {
            (other, self)
        };
        let distance = high.exponent.abs_diff(low.exponent);
        let base = u128::from(high.mantissa) << 63;
        let wide = u128::from(low.mantissa) << 63;
        let (aligned, inexact) = match distance {
            0 => (wide, false),
            1..=127 => (wide >> distance, wide << (128 - distance) != 0),
            _ => (0, true),
        };
        let sum = if high.negative == low.negative {
            base + aligned
        } else {
            // What was cut off the subtrahend makes the true difference a little smaller.
            base - aligned - u128::from(inexact)
        };
        let sum = Self::round_wide(high.negative, sum, high.exponent - 63, inexact);
        (sum.exponent <= LARGEST_EXPONENT).then_some(sum)
    }

    /// As Redis writes it: up to 17 decimals, no trailing zeros, never an exponent.
    pub(crate) fn format(self) -> String {
        let mut scaled = Natural::from(self.mantissa);
        scaled.multiply_by_power_of_ten(17);
        let shift = usize::try_from(self.exponent.unsigned_abs()).unwrap_or(0);
        if self.exponent >= 0 {
            scaled.shift_left(shift);
        } else {
            scaled.shift_right_rounded(shift);
        }
        let digits = format!("{:0>18}", scaled.decimal());
        let (whole, fraction) = digits.split_at(digits.len() - 17);
        let fraction = fraction.trim_end_matches('0');
        let text = if fraction.is_empty() {
            whole.to_owned()
        } else {
            format!("{whole}.{fraction}")
        };
        if self.negative && text != "0" {
            format!("-{text}")
        } else {
            text
        }
    }

    fn round_wide(negative: bool, number: u128, exponent: i32, inexact: bool) -> Self {
        let mut natural = Natural::default();
        for part in (0..4).rev() {
            natural.shift_left(32);
            let word = u32::try_from(number >> (32 * part) & u128::from(u32::MAX)).unwrap_or(0);
            natural.multiply_add(1, word);
        }
        Self::round(negative, &natural, exponent, inexact)
    }

    /// `number × 2^exponent`, plus something below its lowest bit if `inexact`, in 64 bits.
    fn round(negative: bool, number: &Natural, exponent: i32, inexact: bool) -> Self {
        if number.is_zero() {
            return Self::ZERO;
        }
        let bits = i32::try_from(number.bits()).unwrap_or(i32::MAX);
        let mut number = number.clone();
        if bits <= 64 {
            let mantissa = number.low_64() << (64 - bits);
            return Self {
                negative,
                mantissa,
                exponent: exponent - (64 - bits),
            };
        }
        let excess = bits - 64;
        if inexact {
            // Below half of the last place kept, so it only breaks a tie.
            number.shift_left(1);
            number.multiply_add(1, 1);
            number.shift_right_rounded(usize::try_from(excess + 1).unwrap_or(0));
        } else {
            number.shift_right_rounded(usize::try_from(excess).unwrap_or(0));
        }
        // Rounding up may have carried into a 65th bit.
        let carried = number.bits() > 64;
        if carried {
            number.shift_right_rounded(1);
        }
        Self {
            negative,
            mantissa: number.low_64(),
            exponent: exponent + excess + i32::from(carried),
        }
    }
}

/// A natural number of any size; words from low to high, none of the highest zero.
#[derive(Clone, Debug, Default)]
struct Natural(Vec<u32>);

impl From<u64> for Natural {
    fn from(number: u64) -> Self {
        let mut natural = Self::default();
        natural.multiply_add(1, u32::try_from(number >> 32).unwrap_or(0));
        natural.shift_left(32);
        natural.multiply_add(1, u32::try_from(number & u64::from(u32::MAX)).unwrap_or(0));
        natural
    }
}

impl Natural {
    fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    fn bits(&self) -> usize {
        self.0
            .last()
            .map_or(0, |last| self.0.len() * 32 - last.leading_zeros() as usize)
    }

    fn low_64(&self) -> u64 {
        let word = |at: usize| self.0.get(at).copied().map_or(0, u64::from);
        word(0) | word(1) << 32
    }

    fn trim(&mut self) {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }

    fn multiply_add(&mut self, factor: u32, addend: u32) {
        let mut carry = u64::from(addend);
        for word in &mut self.0 {
            let product = u64::from(*word) * u64::from(factor) + carry;
            *word = low(product);
            carry = product >> 32;
        }
        if carry > 0 {
            self.0.push(low(carry));
        }
    }

    /// Divides by `divisor` and gives the remainder.
    fn divide(&mut self, divisor: u32) -> u32 {
        let mut rest = 0;
        for word in self.0.iter_mut().rev() {
            let dividend = rest << 32 | u64::from(*word);
            *word = low(dividend / u64::from(divisor));
            rest = dividend % u64::from(divisor);
        }
        self.trim();
        low(rest)
    }

    fn multiply_by_power_of_ten(&mut self, mut power: usize) {
        while power > 0 {
            let step = power.min(9);
            self.multiply_add(power_of_ten(step), 0);
            power -= step;
        }
    }

    /// Divides; says whether there was a remainder.
    fn divide_by_power_of_ten(&mut self, mut power: usize) -> bool {
        let mut inexact = false;
        while power > 0 {
            let step = power.min(9);
            inexact |= self.divide(power_of_ten(step)) != 0;
            power -= step;
        }
        inexact
    }

    fn shift_left(&mut self, bits: usize) {
        if self.is_zero() {
            return;
        }
        let mut carry = 0;
        let part = bits % 32;
        for word in &mut self.0 {
            let shifted = u64::from(*word) << part | carry;
            *word = low(shifted);
            carry = shifted >> 32;
        }
        if carry > 0 {
            self.0.push(low(carry));
        }
        self.0.splice(0..0, std::iter::repeat_n(0, bits / 32));
    }

    /// Shifts and rounds half to even.
    fn shift_right_rounded(&mut self, bits: usize) {
        if bits == 0 {
            return;
        }
        let bit = |words: &[u32], at: usize| {
            words
                .get(at / 32)
                .is_some_and(|word| word >> (at % 32) & 1 == 1)
        };
        let half = bit(&self.0, bits - 1);
        let below = (bits - 1) / 32;
        let rest = self.0.iter().take(below).any(|&word| word != 0)
            || self
                .0
                .get(below)
                .is_some_and(|word| word & ((1 << ((bits - 1) % 32)) - 1) != 0);
        let odd = bit(&self.0, bits);
        self.0.drain(..(bits / 32).min(self.0.len()));
        let part = bits % 32;
        let mut carry = 0;
        for word in self.0.iter_mut().rev() {
            let dividend = carry << 32 | u64::from(*word);
            *word = low(dividend >> part);
            carry = dividend & ((1 << part) - 1);
        }
        self.trim();
        if half && (rest || odd) {
            self.multiply_add(1, 1);
        }
    }

    fn decimal(mut self) -> String {
        let mut parts = Vec::new();
        while !self.is_zero() {
            parts.push(self.divide(1_000_000_000));
        }
        let mut text = parts
            .pop()
            .map_or_else(|| "0".into(), |first| first.to_string());
        for part in parts.iter().rev() {
            text.push_str(&format!("{part:09}"));
        }
        text
    }
}

/// The low word of `number`.
fn low(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).unwrap_or(0)
}

/// 10 to a power of at most 9.
fn power_of_ten(power: usize) -> u32 {
    10u32.pow(u32::try_from(power).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> LongDouble {
        match LongDouble::parse(text.as_bytes()) {
            Some(Parsed::Finite(number)) => number,
            other => panic!("{text}: {other:?}"),
        }
    }

    /// What Redis 7.0 answers to `SET k a` and `INCRBYFLOAT k b`.
    #[test]
    fn sums_are_those_of_an_x87() {
        for (a, b, sum) in [
            ("0.1", "0.2", "0.3"),
            ("10.50", "0.1", "10.6"),
            ("5.0e3", "2.0e2", "5200"),
            ("3", "1.1", "4.1"),
            ("1000.1", "0", "1000.09999999999999998"),
            ("-1.5", "1.5", "0"),
            ("1e19", "-1", "9999999999999999999"),
            ("9007199254740993", "0", "9007199254740993"),
            ("-0.1", "0", "-0.1"),
            ("1e-30", "0", "0"),
        ] {
            let result = number(a).add(number(b)).map(LongDouble::format);
            assert_eq!(result.as_deref(), Some(sum), "{a} + {b}");
        }
    }

    #[test]
    fn text_that_is_no_number_is_refused() {
        for text in [
            "", "-", ".", "1e", "e5", "1 ", " 1", "0x1", "nan", "1e5000", "1.2.3",
        ] {
            assert_eq!(LongDouble::parse(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(LongDouble::parse(b"-inf"), Some(Parsed::Infinite));
    }
}
