//! The `image` binary.
fn main() {}
