//! The `blockd` binary.
fn main() {}
