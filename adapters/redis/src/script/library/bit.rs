//! `bit`: operations on 32 bits. Results are signed (Lua BitOp, <https://bitop.luajit.org/semantics.html>).

use crate::script::vm::native::{Arguments, Failure, Natives};

pub(super) fn register(natives: &Natives<'_>) -> mlua::Result<()> {
    natives.add("bit.tobit", |a| bits(a, 0).map(signed))?;
    natives.add("bit.bnot", |a| bits(a, 0).map(|x| signed(!x)))?;
    natives.add("bit.band", |a| fold(a, |x, y| x & y))?;
    natives.add("bit.bor", |a| fold(a, |x, y| x | y))?;
    natives.add("bit.bxor", |a| fold(a, |x, y| x ^ y))?;
    natives.add("bit.lshift", |a| shifted(a, |x, n| x << n))?;
    natives.add("bit.rshift", |a| shifted(a, |x, n| x >> n))?;
    natives.add("bit.arshift", |a| {
        shifted(a, |x, n| (x.cast_signed() >> n).cast_unsigned())
    })?;
    natives.add("bit.rol", |a| shifted(a, u32::rotate_left))?;
    natives.add("bit.ror", |a| shifted(a, u32::rotate_right))?;
    natives.add("bit.bswap", |a| bits(a, 0).map(|x| signed(x.swap_bytes())))?;
    natives.add("bit.tohex", |a| {
        let value = bits(a, 0)?;
        let digits = if a.is_absent(1) {
            8
        } else {
            bits(a, 1)?.cast_signed()
        };
        let text = if digits < 0 {
            format!("{value:08X}")
        } else {
            format!("{value:08x}")
        };
        let kept = usize::try_from(digits.unsigned_abs().min(8)).unwrap_or(8);
        Ok(text[8 - kept..].to_owned())
    })
}

fn signed(bits: u32) -> i32 {
    bits.cast_signed()
}

/// A number as 32 bits: rounded half to even, modulo 2^32.
fn bits(arguments: &Arguments<'_>, index: usize) -> Result<u32, Failure> {
    // The sum puts the integer into the low bits of the mantissa.
    const SHIFTER: f64 = 6_755_399_441_055_744.0;
    let number = arguments.number(index)? + SHIFTER;
    Ok((number.to_bits() & 0xFFFF_FFFF) as u32)
}

fn fold(arguments: &Arguments<'_>, join: fn(u32, u32) -> u32) -> Result<i32, Failure> {
    let mut all = bits(arguments, 0)?;
    for index in 1..arguments.len() {
        all = join(all, bits(arguments, index)?);
    }
    Ok(signed(all))
}

/// The lower five bits of the second argument say how far.
fn shifted(arguments: &Arguments<'_>, shift: fn(u32, u32) -> u32) -> Result<i32, Failure> {
    let value = bits(arguments, 0)?;
    let by = bits(arguments, 1)? & 31;
    Ok(signed(shift(value, by)))
}
