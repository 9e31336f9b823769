//! Standard output of the commands that print.

use std::fmt;
use std::io::{ErrorKind, Write};

/// Prints a line. A reader that has left (`leadline cluster status | head`) wants no more of them:
/// the process ends, quietly.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            eprintln!("leadline: cannot write to standard output: {error}");
            std::process::exit(1);
        }
    }
}

/// As `println!`, through [`line`].
macro_rules! say {
    ($($text:tt)*) => {
        $crate::output::line(format_args!($($text)*))
    };
}

pub(crate) use say;
