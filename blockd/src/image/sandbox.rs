//! The life of the child that parses images: its input is descriptor 0, its output descriptor 1, and its answer goes to
//! descriptor 2 as one JSON document. Before it reads the first byte it gives up, for good, everything else: memory and
//! processor time are bounded and a system-call filter leaves reading, writing and memory, so that it cannot open a file,
//! make a socket or start a process.

use super::detect::{Form, HEAD, agree};
use super::qcow2;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use wire::Refused;
use wire::block::ImageFacts;

/// Address space of the child in bytes: tables of the largest image and the buffers.
const MEMORY: u64 = 768 << 20;

/// `fcntl` command that reads a descriptor's flags.
const F_GETFD: u64 = 1;

/// What the child is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Task {
    /// Check the image against its claimed format.
    Inspect,
    /// Write the image's disk as raw.
    Raw,
    /// Write a raw disk as qcow2.
    Qcow2,
}

impl Task {
    /// Its word on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Inspect => "inspect",
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// Arguments of the child.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// What to do.
    #[arg(long)]
    pub task: Task,
    /// The image's claimed format.
    #[arg(long)]
    pub format: String,
    /// Largest allowed disk in bytes.
    #[arg(long)]
    pub virtual_limit: u64,
    /// Free bytes of the file system to leave alone.
    #[arg(long)]
    pub reserve: u64,
    /// Processor seconds.
    #[arg(long)]
    pub seconds: u64,
}

/// Runs the child.
#[must_use]
pub fn main(arguments: &Arguments) -> ExitCode {
    let answer = prepare(arguments).and_then(|(from, to)| work(arguments, &from, &to));
    let bytes = serde_json::to_vec(&answer).unwrap_or_default();
    let written = io::stderr().write_all(&bytes);
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn prepare(arguments: &Arguments) -> Result<(File, File), Refused> {
    let enter = || -> Result<(File, File), Box<dyn std::error::Error>> {
        let from = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let to = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY)?;
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        setrlimit(Resource::RLIMIT_CPU, arguments.seconds, arguments.seconds)?;
        seccompiler::apply_filter(&filter()?)?;
        Ok((from, to))
    };
    enter().map_err(|error| Refused::internal(format!("cannot enter the image sandbox: {error}")))
}

/// The calls that stay. Anything else kills the child.
fn filter() -> Result<BpfProgram, Box<dyn std::error::Error>> {
    let allowed = [
        libc::SYS_read,
        libc::SYS_pread64,
        libc::SYS_write,
        libc::SYS_pwrite64,
        libc::SYS_copy_file_range,
        libc::SYS_lseek,
        libc::SYS_ftruncate,
        libc::SYS_fstat,
        libc::SYS_statx,
        libc::SYS_newfstatat,
        libc::SYS_fstatfs,
        libc::SYS_close,
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
        libc::SYS_futex,
        libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigaction,
        libc::SYS_sigaltstack,
        libc::SYS_clock_gettime,
        libc::SYS_getrandom,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        allowed.into_iter().map(|call| (call, Vec::new())).collect();
    // Debug builds of the standard library ask whether a descriptor is open before they close it.
    let asks = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, F_GETFD)?;
    rules.insert(libc::SYS_fcntl, vec![SeccompRule::new(vec![asks])?]);
    let filter =
        SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}

fn work(arguments: &Arguments, from: &File, to: &File) -> Result<ImageFacts, Refused> {
    let failed = |error: io::Error| Refused::internal(format!("cannot read the image: {error}"));
    let bytes = from.metadata().map_err(failed)?.len();
    if arguments.task == Task::Qcow2 {
        return facts(qcow2::from_raw(from, to, arguments.reserve));
    }
    let form = Form::claimed(&arguments.format)?;
    let mut head = vec![0u8; usize::try_from(bytes).unwrap_or(HEAD).min(HEAD)];
    qcow2::Source::fill(from, &mut head, 0).map_err(failed)?;
    if bytes == 0 {
        return Err(Refused::invalid("the image has no bytes").remedy("upload it again"));
    }
    agree(&arguments.format, form, &head)?;
    match (form, arguments.task) {
        (Form::Qcow2, Task::Inspect) => {
            facts(qcow2::check(from, arguments.virtual_limit).map(|header| header.virtual_bytes))
        }
        (Form::Qcow2, _) => {
            // Checked as a whole first: a damaged image costs no writing.
            facts(
                qcow2::check(from, arguments.virtual_limit)
                    .and_then(|_| qcow2::to_raw(from, to, arguments.virtual_limit, arguments.reserve)),
            )
        }
        (Form::Raw, _) if bytes > arguments.virtual_limit => {
            facts(Err(qcow2::Bad::TooLarge { bytes, limit: arguments.virtual_limit }))
        }
        (Form::Raw, _) => Ok(ImageFacts { virtual_bytes: bytes }),
    }
}

fn facts(outcome: Result<u64, qcow2::Bad>) -> Result<ImageFacts, Refused> {
    match outcome {
        Ok(virtual_bytes) => Ok(ImageFacts { virtual_bytes }),
        Err(bad) => {
            let (message, remedy) = (bad.to_string(), bad.remedy());
            Err(match bad {
                qcow2::Bad::Full => Refused::no_space(message),
                qcow2::Bad::Io(error) if crate::sys::is_full(&error) => {
                    return facts(Err(qcow2::Bad::Full));
                }
                qcow2::Bad::Io(_) => Refused::internal(message),
                qcow2::Bad::OtherFile { .. }
                | qcow2::Bad::Truncated { .. }
                | qcow2::Bad::Damaged(_)
                | qcow2::Bad::Unsupported(_)
                | qcow2::Bad::TooLarge { .. } => Refused::invalid(message),
            }
            .remedy(remedy))
        }
    }
}
