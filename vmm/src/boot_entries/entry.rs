//! What every kind of boot entry comes down to.

/// One way to boot: a kernel, its initial RAM disks in order, and the command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Name for people.
    pub title: String,
    /// Path of the kernel on its file system.
    pub kernel: String,
    /// Paths of the initial RAM disks; the kernel sees them joined.
    pub initrds: Vec<String>,
    /// The kernel's command line, as the entry has it.
    pub command_line: String,
}
