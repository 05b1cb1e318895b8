//! `grub.cfg`: enough of GRUB's shell to find out which kernel it would start.
//!
//! The generated files of the distributions choose their default entry by `if`, `set` and the environment
//! block (`next_entry`, `saved_entry`), and Ubuntu's entries hold two `linux` lines of which an `if` takes
//! one; so lines are not picked out by pattern, the file is run: [`parse`] makes statements, [`run`] runs
//! them with variables, conditions, menu entries and submenus. Commands that touch the screen, modules or
//! devices do nothing and succeed.

pub mod parse;
pub mod run;

use std::collections::HashMap;

/// Reads an environment block (`grubenv`): a comment line, then `name=value` lines, filled up with `#`.
#[must_use]
pub fn environment(text: &str) -> HashMap<String, String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.replace("\\\\", "\\")))
        .take(256)
        .collect()
}
