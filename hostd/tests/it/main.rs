//! Whole stories of `hostd`, against its real program and real guests.

mod guest;
mod lab;
mod qemu;
