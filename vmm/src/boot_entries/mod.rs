//! Finds the kernel that a whole-disk image boots, so that unmodified cloud images start without firmware.
//!
//! The image is the tenant's, and its file system is read by code in this process: so it is a process of its
//! own (`vmm boot-entries`), which opens nothing (disk, kernel and initrd come as descriptors), locks itself
//! into a sandbox (seccomp allow-list, 10 s of CPU, 512 MiB of memory) before it reads the first byte, and
//! ends. It runs at every start of a guest, because the guest may have installed another kernel since.
//!
//! ```text
//! disk ─▶ partitions (GPT, MBR, none) ─▶ file systems (ext2/3/4, FAT)
//!      ─▶ entries (Boot Loader Specification, grub.cfg, extlinux) ─▶ the default one whose files exist
//!      ─▶ kernel and initrd copied out, command line as JSON
//! ```
//!
//! `vmm boot-entries --disk-fd N --kernel-fd M --initrd-fd O`: N is readable; M and O are empty files
//! (memfds) open for writing, left at offset 0. On stdout comes one line of JSON: a [`Found`] with exit
//! status 0, or `{"error", "remedy"}` with status 1. A process that was killed by a signal says nothing: it
//! ran out of time (SIGXCPU, SIGKILL), memory (SIGABRT) or was caught doing something forbidden (SIGSYS); the
//! image is then not to be trusted.
#![allow(unsafe_code)]

pub mod bls;
pub mod disk;
pub mod entry;
pub mod extlinux;
pub mod fat;
pub mod find;
pub mod fs;
pub mod grub;
pub mod partitions;
pub mod probe;
mod sandbox;
#[cfg(test)]
mod tests;
pub mod xfs;

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{FromRawFd, RawFd};
use std::process::ExitCode;
use std::sync::Arc;

use serde::Serialize;

/// What to boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The kernel command line of the entry, unchanged.
    pub command_line: String,
    /// Name of the entry, for people.
    pub entry: String,
    /// Number of the partition that holds the entry; 0 is a disk without partitions.
    pub partition: u32,
    /// Whether there is an initial RAM disk.
    pub has_initrd: bool,
}

/// Why nothing can be booted.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// No usable entry anywhere.
    #[error("no boot entry was found on the disk: {}", notes.join("; "))]
    NoEntry {
        /// What was found instead, a sentence each.
        notes: Vec<String>,
    },
    /// The entry's kernel is something else.
    #[error("the boot entry's kernel is {is}")]
    NotAKernel {
        /// What it is.
        is: &'static str,
    },
    /// A file is beyond its limit.
    #[error("the boot entry's {what} is larger than {} MiB", limit >> 20)]
    TooLarge {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// The limit in bytes.
        limit: u64,
    },
    /// The command line is beyond its limit.
    #[error("the boot entry's command line has {length} bytes; Linux takes {}", find::MAX_COMMAND_LINE)]
    CommandLine {
        /// Its length in bytes.
        length: usize,
    },
    /// The command line holds what no command line holds.
    #[error("the boot entry's command line has control characters")]
    ControlCharacters,
    /// The image is damaged where the file lies.
    #[error("cannot read the boot entry's {what} from the disk: {source}")]
    Read {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// What went wrong.
        source: io::Error,
    },
    /// The host has no room.
    #[error("cannot store the kernel or initrd: {0}")]
    Write(io::Error),
    /// A descriptor is not what the arguments say.
    #[error("descriptor {fd} cannot be used: {source}")]
    Descriptor {
        /// Its number.
        fd: RawFd,
        /// What the kernel said.
        source: io::Error,
    },
    /// The process could not be locked in.
    #[error("cannot enter the sandbox: {why}")]
    Sandbox {
        /// What failed.
        why: String,
    },
}

impl Trouble {
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NoEntry { .. } => {
                "use an image whose /boot is on ext2, ext3, ext4 or FAT with boot loader entries, grub.cfg or extlinux.conf, or \
                 name its kernel and initrd images (kernel_id, ramdisk_id)"
            }
            Self::NotAKernel { .. } => {
                "use an x86-64 image that boots a Linux kernel with a separate initrd, or name its kernel and initrd images \
                 (kernel_id, ramdisk_id)"
            }
            Self::TooLarge { .. } => "install a smaller kernel or initrd in the image",
            Self::CommandLine { .. } | Self::ControlCharacters => {
                "correct the kernel command line in the image's boot loader configuration"
            }
            Self::Read { .. } => {
                "upload the image again, or repair the disk's file system from another server"
            }
            Self::Write(_) => "free memory on the host",
            Self::Descriptor { .. } => "hand in the disk readable, and two empty writable files",
            Self::Sandbox { .. } => "run on a kernel with seccomp",
        }
    }
}

/// Arguments of `vmm boot-entries`.
#[derive(Debug, Clone, clap::Args)]
pub struct BootEntriesArgs {
    /// Descriptor of the raw disk image, readable.
    #[arg(long)]
    pub disk_fd: RawFd,
    /// Descriptor of an empty file for the kernel, writable.
    #[arg(long)]
    pub kernel_fd: RawFd,
    /// Descriptor of an empty file for the initial RAM disk, writable.
    #[arg(long)]
    pub initrd_fd: RawFd,
}

#[derive(Serialize)]
struct Failure {
    error: String,
    remedy: &'static str,
}

/// Runs `vmm boot-entries`: see the module's head. Locks the calling process in for good, so it can only end
/// after this.
#[must_use]
pub fn main_boot_entries(args: &BootEntriesArgs) -> ExitCode {
    let (line, code) = match run(args) {
        Ok(found) => (serde_json::to_string(&found), ExitCode::SUCCESS),
        Err(trouble) => {
            let failure = Failure { error: trouble.to_string(), remedy: trouble.remedy() };
            (serde_json::to_string(&failure), ExitCode::FAILURE)
        }
    };
    let line = line.unwrap_or_else(|error| format!("{{\"error\":\"{error}\",\"remedy\":\"\"}}"));
    let mut stdout = io::stdout();
    match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(args: &BootEntriesArgs) -> Result<Found, Trouble> {
    let disk = disk::DiskFile::new(take(args.disk_fd)?)
        .map_err(|source| Trouble::Descriptor { fd: args.disk_fd, source })?;
    let (mut kernel, mut initrd) = (take(args.kernel_fd)?, take(args.initrd_fd)?);
    for (file, fd) in [(&kernel, args.kernel_fd), (&initrd, args.initrd_fd)] {
        file.set_len(0).map_err(|source| Trouble::Descriptor { fd, source })?;
    }
    sandbox::enter()?;
    let found = find::find(Arc::new(disk), &mut kernel, &mut initrd)?;
    // The descriptors share their offset with the caller's.
    kernel.rewind().and_then(|()| initrd.rewind()).map_err(Trouble::Write)?;
    Ok(found)
}

/// Takes over a descriptor that the caller handed in.
fn take(fd: RawFd) -> Result<File, Trouble> {
    // SAFETY: fcntl(F_GETFD) touches no memory and answers EBADF for a number that is no descriptor.
    if fd <= 2 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(Trouble::Descriptor { fd, source: io::Error::from_raw_os_error(libc::EBADF) });
    }
    // SAFETY: it is open (just checked), and by the command's contract it was handed in for this process
    // alone to own.
    Ok(unsafe { File::from_raw_fd(fd) })
}
