//! The `hostd` binary.
fn main() {}
