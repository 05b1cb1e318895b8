//! What a machine needs of the world, opened: disks from the pool, taps from `netd`, the guest's own kernel.
//!
//! Everything here blocks and belongs on a blocking thread. Whatever is opened is closed again by its drop, so a start
//! that fails half way leaves nothing.
#![allow(unsafe_code)]

use crate::{confine, durable};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::Deserialize;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wire::Refused;
use wire::fd::{FdReply, FdRequest};
use wire::host::{Boot, DiskSpec, ServerSpec};
use wire::ids::PortId;

/// How long `netd` may be away (it is being restarted, say) before a start fails for it.
const NETD_PATIENCE: Duration = Duration::from_secs(10);
/// How long the reader of boot entries may take.
const BOOT_PATIENCE: Duration = Duration::from_secs(30);
/// Most that the reader of boot entries may print, in bytes.
const BOOT_OUTPUT: u64 = 64 << 10;
/// Largest kernel named by an image, in bytes.
const KERNEL_MAX: u64 = 128 << 20;
/// Largest initrd named by an image, in bytes.
const INITRD_MAX: u64 = 512 << 20;

/// A server's UEFI variables, in its state directory.
const UEFI_VARIABLES: &str = "uefi-variables.fd";

/// Opens what machines need.
#[derive(Debug, Clone)]
pub struct Resources {
    /// `netd`'s descriptor socket.
    pub netd_fd_socket: PathBuf,
    /// Where disks are.
    pub disks_dir: PathBuf,
    /// Where kernels and initial RAM disks are.
    pub kernels_dir: PathBuf,
    /// Whether QEMU may run where it cannot be confined.
    pub qemu_unconfined: bool,
    /// The `vmm` program, which also reads boot entries.
    pub vmm: PathBuf,
    /// UEFI firmware.
    pub firmware: PathBuf,
    /// Its variables as they are at first.
    pub firmware_variables: PathBuf,
}

/// What a machine boots.
#[derive(Debug)]
pub struct BootFiles {
    /// bzImage or PVH ELF; readable by any user through `/proc/self/fd`.
    pub kernel: File,
    /// Initial RAM disk, likewise.
    pub initrd: Option<File>,
    /// Kernel command line.
    pub command_line: String,
}

/// What `vmm boot-entries` prints.
#[derive(Debug, Deserialize)]
struct BootAnswer {
    #[serde(default)]
    command_line: String,
    #[serde(default)]
    entry: String,
    #[serde(default)]
    has_initrd: bool,
    error: Option<String>,
    #[serde(default)]
    remedy: Option<String>,
}

impl Resources {
    /// Opens a disk's file as the guest may use it, through the page cache.
    ///
    /// # Errors
    /// Those of [`confine::open`]; `Invalid` when it is empty.
    pub fn disk(&self, disk: &DiskSpec) -> Result<File, Refused> {
        let what = format!("disk {}", disk.key);
        let file = confine::open(&self.disks_dir, &disk.path, !disk.read_only, &what)?;
        match file.metadata() {
            Ok(facts) if facts.len() > 0 => Ok(file),
            Ok(_) => Err(Refused::invalid(format!("disk {} at {} is empty", disk.key, disk.path.display()))),
            Err(error) => Err(Refused::internal(format!("cannot look at disk {}: {error}", disk.key))),
        }
    }

    /// Asks `netd` for the tap of a port.
    ///
    /// # Errors
    /// What `netd` refused; `Unavailable` when it stays away.
    pub fn tap(&self, port: PortId) -> Result<OwnedFd, Refused> {
        let deadline = Instant::now() + NETD_PATIENCE;
        loop {
            match self.ask_tap(port) {
                Ok(answer) => return answer,
                Err(error) if Instant::now() < deadline => {
                    tracing::debug!(%error, "netd does not answer yet");
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(error) => {
                    let at = self.netd_fd_socket.display();
                    return Err(Refused::unavailable(format!("netd at {at} gives no tap: {error}"))
                        .remedy("see whether netd runs and what its log says"));
                }
            }
        }
    }

    fn ask_tap(&self, port: PortId) -> io::Result<Result<OwnedFd, Refused>> {
        let socket = base::fdpass::connect(&self.netd_fd_socket)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
        base::fdpass::send(socket.as_fd(), &serde_json::to_vec(&FdRequest::Tap { port })?, &[])?;
        let (bytes, mut fds) = base::fdpass::receive(socket.as_fd())?;
        if bytes.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
        }
        Ok(match serde_json::from_slice(&bytes)? {
            FdReply::Here => fds.pop().ok_or_else(|| Refused::internal("netd sent no tap with its answer")),
            FdReply::Refused(refused) => Err(refused),
        })
    }

    /// Opens UEFI firmware, and the server's own copy of its variables, which is made when there is none.
    ///
    /// # Errors
    /// `Unavailable` when the firmware is not installed.
    pub fn uefi(&self, state: &Path) -> Result<[File; 2], Refused> {
        let missing = |path: &Path, error: io::Error| {
            Refused::unavailable(format!("the UEFI firmware {} cannot be read: {error}", path.display()))
                .remedy("install the package ovmf, or set firmware and firmware_variables in hostd's configuration")
        };
        let code = File::open(&self.firmware).map_err(|error| missing(&self.firmware, error))?;
        let own = state.join(UEFI_VARIABLES);
        if !own.exists() {
            let first = std::fs::read(&self.firmware_variables)
                .map_err(|error| missing(&self.firmware_variables, error))?;
            durable::write_bytes(&own, &first)
                .map_err(|error| Refused::internal(format!("cannot keep {}: {error}", own.display())))?;
        }
        let variables = File::options().read(true).write(true).open(&own);
        let variables = variables
            .map_err(|error| Refused::internal(format!("cannot open {}: {error}", own.display())))?;
        Ok([code, variables])
    }

    /// Gets what the machine boots. `user` runs the reader of a guest's disk.
    ///
    /// # Errors
    /// When there is nothing to boot, with what was found instead.
    pub fn boot(&self, spec: &ServerSpec, disks: &[File], user: u32) -> Result<BootFiles, Refused> {
        match &spec.boot {
            Boot::Kernel { kernel, initrd, command_line } => Ok(BootFiles {
                kernel: copy(&self.kernels_dir, kernel, "kernel", KERNEL_MAX)?,
                initrd: initrd
                    .as_deref()
                    .map(|path| copy(&self.kernels_dir, path, "initrd", INITRD_MAX))
                    .transpose()?,
                command_line: command_line.clone(),
            }),
            Boot::Disk => match disks.first() {
                Some(disk) => self.boot_entry(disk, user),
                None => Err(Refused::invalid("a server without a disk needs a kernel to boot from")),
            },
        }
    }

    fn boot_entry(&self, disk: &File, user: u32) -> Result<BootFiles, Refused> {
        let trouble = |error: io::Error| {
            Refused::internal(format!("cannot read the boot entries of the first disk: {error}"))
        };
        // The reader shares no file offset with anyone, and may not write.
        let disk = File::open(format!("/proc/self/fd/{}", disk.as_raw_fd())).map_err(trouble)?;
        let (kernel, initrd) = (memory("kernel").map_err(trouble)?, memory("initrd").map_err(trouble)?);
        let (child, said) = self.run_reader(&disk, &kernel, &initrd, user).map_err(|error| {
            Refused::internal(format!("cannot run {} boot-entries: {error}", self.vmm.display()))
                .remedy("check the vmm path in hostd's configuration")
        })?;
        let answer: BootAnswer = serde_json::from_str(&said.output).map_err(|_| {
            let errors = said.errors.trim();
            Refused::internal(format!(
                "the reader of boot entries ended with {child} and no answer: {errors}"
            ))
        })?;
        if let Some(error) = answer.error {
            return Err(Refused::invalid(format!("the server's first disk does not boot: {error}"))
                .remedy(answer.remedy.unwrap_or_default()));
        }
        tracing::info!(entry = answer.entry, "read the guest's boot entry");
        for mut file in [&kernel, &initrd] {
            file.rewind().map_err(trouble)?;
        }
        let initrd = answer.has_initrd.then_some(initrd);
        Ok(BootFiles { kernel, initrd, command_line: answer.command_line })
    }

    fn run_reader(
        &self,
        disk: &File,
        kernel: &File,
        initrd: &File,
        user: u32,
    ) -> io::Result<(std::process::ExitStatus, Said)> {
        let fds = [disk.as_raw_fd(), kernel.as_raw_fd(), initrd.as_raw_fd()];
        // By descriptor, as the reader's user may not be allowed to pass the directories above the program.
        let program = File::open(&self.vmm)?;
        let path = CString::new(self.vmm.as_os_str().as_bytes())?;
        let mut words = vec![path, c"boot-entries".to_owned()];
        for (option, fd) in [c"--disk-fd", c"--kernel-fd", c"--initrd-fd"].into_iter().zip(fds) {
            words.extend([option.to_owned(), CString::new(fd.to_string())?]);
        }
        let mut command = Command::new(&self.vmm);
        command
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut inherit = fds.to_vec();
        inherit.push(program.as_raw_fd());
        // SAFETY: only async-signal-safe system calls on values made before the fork; the pointers below point into
        // `words`, which the closure owns.
        unsafe {
            command.pre_exec(move || {
                for fd in &inherit {
                    if libc::fcntl(*fd, libc::F_SETFD, 0) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0
                    || libc::setgroups(0, std::ptr::null()) < 0
                    || libc::setresgid(user, user, user) < 0
                    || libc::setresuid(user, user, user) < 0
                {
                    return Err(io::Error::last_os_error());
                }
                let mut pointers = [std::ptr::null::<libc::c_char>(); 9];
                for (pointer, word) in pointers.iter_mut().zip(&words) {
                    *pointer = word.as_ptr();
                }
                let nothing = [std::ptr::null::<libc::c_char>()];
                // Not seen again when it succeeds.
                libc::execveat(
                    program.as_raw_fd(),
                    c"".as_ptr(),
                    pointers.as_ptr().cast(),
                    nothing.as_ptr().cast(),
                    libc::AT_EMPTY_PATH,
                );
                Err(io::Error::last_os_error())
            });
        }
        let mut child = command.spawn()?;
        let said = read_both(&mut child, Instant::now() + BOOT_PATIENCE);
        if said.is_err() {
            let _ = child.kill();
        }
        let status = child.wait()?;
        said.map(|said| (status, said))
    }
}

/// What a child printed.
struct Said {
    output: String,
    errors: String,
}

fn read_both(child: &mut Child, deadline: Instant) -> io::Result<Said> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let (Some(mut out), Some(mut err)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::Error::other("no pipes"));
    };
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let (mut out_open, mut err_open) = (true, true);
    let limit = usize::try_from(BOOT_OUTPUT).unwrap_or(usize::MAX);
    while out_open || err_open {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || output.len() > limit {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long or said too much"));
        }
        let flags = |open: bool| if open { PollFlags::POLLIN } else { PollFlags::empty() };
        let ready = {
            let mut fds =
                [PollFd::new(out.as_fd(), flags(out_open)), PollFd::new(err.as_fd(), flags(err_open))];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            poll(&mut fds, timeout)?;
            fds.map(|fd| fd.revents().is_some_and(|events| !events.is_empty()))
        };
        let mut chunk = [0u8; 4096];
        if out_open && ready[0] {
            let got = out.read(&mut chunk)?;
            out_open = got > 0;
            output.extend_from_slice(chunk.get(..got).unwrap_or_default());
        }
        if err_open && ready[1] {
            let got = err.read(&mut chunk)?;
            err_open = got > 0;
            if errors.len() < 4096 {
                errors.extend_from_slice(chunk.get(..got).unwrap_or_default());
            }
        }
    }
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Said { output: text(output), errors: text(errors) })
}

/// An anonymous file in memory.
fn memory(name: &str) -> io::Result<File> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC)?;
    Ok(File::from(fd))
}

/// Copies a file of the pool to memory: the guest's process, which may not read the pool, opens it again by number.
fn copy(folder: &Path, path: &Path, what: &str, limit: u64) -> Result<File, Refused> {
    let trouble = |error: io::Error| {
        Refused::internal(format!("cannot read the {what} at {}: {error}", path.display()))
    };
    let mut from = confine::open(folder, path, false, &format!("the {what}"))?;
    let length = from.metadata().map_err(trouble)?.len();
    if length == 0 || length > limit {
        return Err(Refused::invalid(format!(
            "the {what} at {} has {length} bytes: 1 to {limit} are possible",
            path.display()
        )));
    }
    let mut to = memory(what).map_err(trouble)?;
    io::copy(&mut from, &mut to).map_err(trouble)?;
    to.rewind().map_err(trouble)?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use wire::RefusedKind;

    fn resources(dir: &Path, script: &str) -> Resources {
        let vmm = dir.join("vmm");
        std::fs::write(&vmm, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&vmm, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        Resources {
            netd_fd_socket: dir.join("none.sock"),
            disks_dir: dir.to_owned(),
            kernels_dir: dir.to_owned(),
            qemu_unconfined: false,
            vmm,
            firmware: dir.join("firmware"),
            firmware_variables: dir.join("variables"),
        }
    }

    #[test]
    fn the_readers_answer_is_believed_only_when_it_is_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("disk"), "x").unwrap();
        let disk = File::open(dir.path().join("disk")).unwrap();
        let told = r#"echo '{"command_line":"root=LABEL=x","entry":"e","partition":1,"has_initrd":true}'
            test "$2" = "" || printf KERNEL > /proc/self/fd/$5"#;
        let mut boot = resources(dir.path(), told).boot_entry(&disk, 1_880_000_000).unwrap();
        assert_eq!(boot.command_line, "root=LABEL=x");
        assert!(boot.initrd.is_some());
        let mut kernel = String::new();
        boot.kernel.read_to_string(&mut kernel).unwrap();
        assert_eq!(kernel, "KERNEL");

        let refusing = r#"echo '{"error":"it is a photo album","remedy":"give a bootable disk"}'; exit 1"#;
        let refused = resources(dir.path(), refusing).boot_entry(&disk, 1_880_000_000).unwrap_err();
        assert_eq!(refused.kind, RefusedKind::Invalid);
        assert!(refused.to_string().contains("photo album; give a bootable disk"), "{refused}");

        let refused = resources(dir.path(), "echo broken >&2; exit 7").boot_entry(&disk, 1).unwrap_err();
        assert!(
            refused.message.contains("exit status: 7") && refused.message.contains("broken"),
            "{refused}"
        );

        // A reader that floods must not take the host's memory.
        let refused = resources(dir.path(), "exec yes").boot_entry(&disk, 1).unwrap_err();
        assert!(refused.message.contains("said too much"), "{refused}");
    }

    #[test]
    fn disks_and_kernels_that_cannot_be_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let resources = resources(dir.path(), "exit 0");
        let disk = |path: &Path| DiskSpec {
            key: "root".into(),
            path: path.to_owned(),
            read_only: false,
            serial: String::new(),
            limits: wire::machine::Limits::default(),
        };
        let refused = resources.disk(&disk(&dir.path().join("none"))).unwrap_err();
        assert_eq!(refused.kind, RefusedKind::Missing);
        assert!(refused.message.contains("root"), "{refused}");
        assert!(resources.disk(&disk(dir.path())).is_err());
        // What hostd may read is not what a server may have.
        let other = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(other.path(), "secret").unwrap();
        std::os::unix::fs::symlink(other.path(), dir.path().join("link")).unwrap();
        for path in [other.path().to_owned(), dir.path().join("link")] {
            assert_eq!(resources.disk(&disk(&path)).unwrap_err().kind, RefusedKind::Invalid, "{path:?}");
            assert_eq!(copy(dir.path(), &path, "kernel", 10).unwrap_err().kind, RefusedKind::Invalid);
        }
        std::fs::write(dir.path().join("empty"), "").unwrap();
        assert_eq!(resources.disk(&disk(&dir.path().join("empty"))).unwrap_err().kind, RefusedKind::Invalid);
        assert_eq!(
            copy(dir.path(), &dir.path().join("empty"), "kernel", 10).unwrap_err().kind,
            RefusedKind::Invalid
        );
        std::fs::write(dir.path().join("big"), "12345678901").unwrap();
        assert_eq!(
            copy(dir.path(), &dir.path().join("big"), "kernel", 10).unwrap_err().kind,
            RefusedKind::Invalid
        );
    }
}
