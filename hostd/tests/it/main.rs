//! Whole stories of `hostd`, against its real program and real guests.

// Helpers of tests count as tests here: what fails, fails the test.
#![allow(clippy::unwrap_used)]

mod crash;
mod guest;
mod lab;
mod qemu;
mod simulated;
mod vmm;
