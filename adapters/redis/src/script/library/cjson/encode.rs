//! Lua values as JSON.

use mlua::{Table, Value};

use super::{Config, Invalid, MAX_DEPTH};
use crate::script::library::bounded;
use crate::script::vm::native::{Failure, type_name};

pub(super) fn encode(value: &Value, config: Config) -> Result<Vec<u8>, Failure> {
    let mut encoder = Encoder {
        config,
        out: Vec::new(),
    };
    encoder.value(value, 0)?;
    Ok(encoder.out)
}

struct Encoder {
    config: Config,
    out: Vec<u8>,
}

impl Encoder {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Failure> {
        bounded(&self.out)?;
        match value {
            Value::String(text) => self.text(&text.as_bytes()),
            Value::Integer(number) => self.number(*number as f64)?,
            Value::Number(number) => self.number(*number)?,
            Value::Boolean(true) => self.out.extend_from_slice(b"true"),
            Value::Boolean(false) => self.out.extend_from_slice(b"false"),
            Value::Table(table) => return self.table(table, depth + 1),
            Value::Nil => self.out.extend_from_slice(b"null"),
            Value::LightUserData(pointer) if pointer.0.is_null() => {
                self.out.extend_from_slice(b"null");
            }
            other => return Err(unsupported(other, "type not supported")),
        }
        Ok(())
    }

    fn table(&mut self, table: &Table, depth: usize) -> Result<(), Failure> {
        let most = usize::try_from(self.config.encode_max_depth).unwrap_or(usize::MAX);
        if depth > most.min(MAX_DEPTH) {
            return Err(Failure::Text(format!(
                "Cannot serialise, excessive nesting ({depth})"
            )));
        }
        match self.array_length(table)? {
            Some(length) => self.array(table, length, depth),
            None => self.object(table, depth),
        }
    }

    /// How long an array `table` is; `None` if it is an object.
    fn array_length(&self, table: &Table) -> Result<Option<i64>, Failure> {
        let (mut most, mut items) = (0, 0);
        for pair in table.pairs::<Value, Value>() {
            match pair?.0 {
                Value::Integer(index) if index > 0 => {
                    most = most.max(index);
                    items += 1;
                }
                _ => return Ok(None),
            }
        }
        let config = self.config;
        if config.sparse_ratio > 0
            && most > items * config.sparse_ratio
            && most > config.sparse_safe
        {
            if config.sparse_convert {
                return Ok(None);
            }
            return Err(Failure::text(
                "Cannot serialise table: excessively sparse array",
            ));
        }
        Ok((most > 0).then_some(most))
    }

    fn array(&mut self, table: &Table, length: i64, depth: usize) -> Result<(), Failure> {
        self.out.push(b'[');
        for index in 1..=length {
            if index > 1 {
                self.out.push(b',');
            }
            self.value(&table.raw_get::<Value>(index)?, depth)?;
        }
        self.out.push(b']');
        Ok(())
    }

    fn object(&mut self, table: &Table, depth: usize) -> Result<(), Failure> {
        self.out.push(b'{');
        let mut first = true;
        for pair in table.pairs::<Value, Value>() {
            let (key, value) = pair?;
            if !first {
                self.out.push(b',');
            }
            first = false;
            match &key {
                Value::String(text) => self.text(&text.as_bytes()),
                Value::Integer(_) | Value::Number(_) => {
                    self.out.push(b'"');
                    self.value(&key, depth)?;
                    self.out.push(b'"');
                }
                other => {
                    return Err(unsupported(other, "table key must be a number or string"));
                }
            }
            self.out.push(b':');
            self.value(&value, depth)?;
        }
        self.out.push(b'}');
        Ok(())
    }

    fn number(&mut self, number: f64) -> Result<(), Failure> {
        if !number.is_finite() {
            match self.config.encode_invalid {
                Invalid::Refuse => {
                    return Err(Failure::text(
                        "Cannot serialise number: must not be NaN or Inf",
                    ));
                }
                Invalid::Null => {
                    self.out.extend_from_slice(b"null");
                    return Ok(());
                }
                Invalid::Write if number.is_nan() => {
                    self.out.extend_from_slice(b"nan");
                    return Ok(());
                }
                Invalid::Write => {}
            }
        }
        let precision = usize::try_from(self.config.precision).unwrap_or(14);
        self.out
            .extend_from_slice(general(number, precision).as_bytes());
        Ok(())
    }

    fn text(&mut self, text: &[u8]) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        self.out.push(b'"');
        for &byte in text {
            match byte {
                b'"' => self.out.extend_from_slice(b"\\\""),
                b'\\' => self.out.extend_from_slice(b"\\\\"),
                b'/' => self.out.extend_from_slice(b"\\/"),
                0x08 => self.out.extend_from_slice(b"\\b"),
                b'\t' => self.out.extend_from_slice(b"\\t"),
                b'\n' => self.out.extend_from_slice(b"\\n"),
                0x0C => self.out.extend_from_slice(b"\\f"),
                b'\r' => self.out.extend_from_slice(b"\\r"),
                0..0x20 | 0x7F => {
                    self.out.extend_from_slice(b"\\u00");
                    self.out.push(HEX[usize::from(byte >> 4)]);
                    self.out.push(HEX[usize::from(byte & 15)]);
                }
                plain => self.out.push(plain),
            }
        }
        self.out.push(b'"');
    }
}

fn unsupported(value: &Value, why: &str) -> Failure {
    Failure::Text(format!("Cannot serialise {}: {why}", type_name(value)))
}

/// C's `%.*g`: `precision` significant digits, no zeros at the end.
fn general(number: f64, precision: usize) -> String {
    if !number.is_finite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    if number == 0.0 {
        return if number.is_sign_negative() { "-0" } else { "0" }.to_owned();
    }
    let scientific = format!("{number:.*e}", precision - 1);
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trimmed = |text: &str| {
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text.to_owned()
        }
    };
    if exponent < -4 || exponent >= i32::try_from(precision).unwrap_or(i32::MAX) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trimmed(mantissa), exponent.abs());
    }
    let decimals = i32::try_from(precision).unwrap_or(i32::MAX) - 1 - exponent;
    trimmed(&format!(
        "{number:.*}",
        usize::try_from(decimals).unwrap_or(0)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_with_fourteen_digits_at_most() {
        for (number, text) in [
            (1e15, "1e+15"),
            (1e14, "1e+14"),
            (12_345_678_901_234.0, "12345678901234"),
            (0.1, "0.1"),
            (1.0 / 3.0, "0.33333333333333"),
            (1e300, "1e+300"),
            (1.5e-7, "1.5e-07"),
            (0.0001, "0.0001"),
            (100.0, "100"),
        ] {
            assert_eq!(general(number, 14), text);
        }
        assert_eq!(general(2.71, 2), "2.7");
    }
}
