//! Histories of what clients saw, and checkers that decide whether a correct store could have
//! answered so. The `leadline-jepsen` binary makes histories by hurting real processes; the checkers
//! work on any history of the same form.

pub mod check;
pub mod history;
