//! The libraries that Redis gives to scripts beside Lua's own: `bit`, `cjson`, `cmsgpack`, `struct`.

mod bit;
pub(super) mod cjson;
mod cmsgpack;
mod packed;

use std::rc::Rc;

use super::vm::{Settings, native::Failure, native::Natives};

/// No native makes a string larger than this: what it builds is not in the VM's memory yet.
const MOST_BYTES: usize = 64 << 20;

pub(super) fn register(natives: &Natives<'_>, settings: &Rc<Settings>) -> mlua::Result<()> {
    bit::register(natives)?;
    cjson::register(natives, settings)?;
    cmsgpack::register(natives)?;
    packed::register(natives)
}

/// Refuses to build more than [`MOST_BYTES`].
fn bounded(out: &[u8]) -> Result<(), Failure> {
    if out.len() > MOST_BYTES {
        return Err(Failure::text("not enough memory"));
    }
    Ok(())
}
