//! A raw file behind a disk, read and written straight from and to guest memory by io_uring.
//!
//! [`FileQueue`] owns each transfer (its [`Segments`] keep guest memory mapped) from [`FileQueue::submit`]
//! until [`FileQueue::done`] gives it back, so the kernel never holds an address of something that is gone.
//! It finishes what the kernel does only partly (short reads and writes), copies through an aligned buffer
//! when a direct file meets an unaligned guest buffer, and works without io_uring (a kernel or container that
//! refuses it) by doing each request at once with `preadv` and `pwritev`.
//!
//! The ring is restricted before it is enabled: it does the few operations of a disk on the one registered file, and nothing else
//! for ever, so that it is no way around the process's system call filters.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::aligned::Aligned;
use crate::virtio::chain::Segments;

/// Bytes of a sector, the unit of a disk's size and of all its requests.
pub const SECTOR: u64 = 512;

/// Bytes of the buffer that unaligned transfers go through.
const BOUNCE: usize = 256 << 10;

/// A raw file that a disk is made of.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    /// For a file opened with `O_DIRECT`: what addresses in memory must be a multiple of.
    memory_align: Option<usize>,
    punches: bool,
}

impl DiskFile {
    /// Takes over an open raw file, to be used in blocks of `block` bytes. A file opened with `O_DIRECT` on a file
    /// system that cannot read single blocks that way is switched to buffered access.
    ///
    /// # Errors
    /// When the kernel does not answer about it.
    pub fn new(file: File, block: u32) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(file.as_fd(), FcntlArg::F_GETFL)?);
        let mut memory_align = None;
        if flags.contains(OFlag::O_DIRECT) {
            memory_align = direct_alignment(&file, block);
            if memory_align.is_none() {
                fcntl(file.as_fd(), FcntlArg::F_SETFL(flags - OFlag::O_DIRECT))?;
            }
        }
        let writable = flags & OFlag::O_ACCMODE != OFlag::O_RDONLY;
        let mut disk = Self { file, memory_align, punches: false };
        if writable {
            // A hole beyond the end changes nothing, but is refused where holes are not known.
            let past = disk.size()?.next_multiple_of(1 << 20);
            disk.punches = allocate(&disk.file, Change::Punch, past, 4096) == 0;
        }
        Ok(disk)
    }

    /// Its size in bytes now.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn size(&self) -> io::Result<u64> {
        (&self.file).seek(SeekFrom::End(0))
    }

    /// Whether space can be given back to the file system.
    #[must_use]
    pub fn punches(&self) -> bool {
        self.punches
    }

    /// Whether transfers bypass the host's page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.memory_align.is_some()
    }

    /// Another handle of the same open file, for asking its size.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        let file = self.file.try_clone()?;
        Ok(Self { file, memory_align: self.memory_align, punches: self.punches })
    }
}

/// The memory alignment that direct access wants, when it can transfer single blocks.
fn direct_alignment(file: &File, block: u32) -> Option<usize> {
    let mut answer: libc::statx = unsafe_zeroed();
    // SAFETY: an empty path with AT_EMPTY_PATH asks about the descriptor itself; `answer` is a valid place
    // for the answer.
    let asked = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut answer,
        )
    };
    if asked == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0 {
        let blocks = (1..=block).contains(&answer.stx_dio_offset_align);
        return blocks
            .then(|| usize::try_from(answer.stx_dio_mem_align).ok())
            .flatten()
            .filter(|align| align.is_power_of_two());
    }
    // An older kernel: try one block. Memory needs at most what offsets need.
    let block = usize::try_from(block).ok().filter(|block| (512..=4096).contains(block))?;
    let buffer = Aligned::new(4096, 4096);
    let piece = [libc::iovec { iov_base: buffer.as_ptr().cast(), iov_len: block }];
    // SAFETY: the piece is not longer than the live buffer of 4096 bytes.
    (unsafe { transfer(file, Access::Read, &piece, 0, false) } >= 0).then_some(block)
}

fn unsafe_zeroed() -> libc::statx {
    // SAFETY: `statx` is plain numbers; zero is a value of each.
    unsafe { std::mem::zeroed() }
}

/// Direction of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// File to memory.
    Read,
    /// Memory to file.
    Write,
}

/// A change of a range without data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Make it read as zeros and give its space back.
    Punch,
    /// Make it read as zeros and keep its space.
    Zero,
}

/// One thing to do with the file.
#[derive(Debug)]
pub enum Job {
    /// Moves bytes between memory and file.
    Transfer {
        /// Direction.
        access: Access,
        /// Memory.
        segments: Segments,
        /// Place in the file, in bytes.
        offset: u64,
        /// A write that is on stable storage when it is done.
        durable: bool,
    },
    /// Everything written so far, to stable storage.
    Flush,
    /// Changes a range.
    Change {
        /// How.
        change: Change,
        /// Start in bytes.
        offset: u64,
        /// Length in bytes, not zero.
        len: u64,
    },
}

/// A finished job.
#[derive(Debug)]
pub struct Done {
    /// What the submitter called it.
    pub token: u64,
    /// The memory of a transfer, all used up when it went well.
    pub segments: Option<Segments>,
    /// How it went.
    pub result: io::Result<()>,
}

struct Flying {
    token: u64,
    job: Job,
}

/// Submits jobs and collects what is done. Jobs may finish in any order.
pub struct FileQueue {
    disk: DiskFile,
    ring: Option<IoUring>,
    /// Jobs that the kernel has, at the index that is their `user_data`.
    flying: Vec<Option<Flying>>,
    free: Vec<usize>,
    done: VecDeque<Done>,
    bounce: Option<Aligned>,
}

impl FileQueue {
    /// Makes a queue for at most `depth` jobs at once, on io_uring unless the kernel refuses it or `ring` is
    /// false.
    #[must_use]
    pub fn new(disk: DiskFile, depth: u16, ring: bool) -> Self {
        let ring = if ring { restricted_ring(&disk.file, depth).ok() } else { None };
        let depth = usize::from(depth);
        let flying = (0..depth).map(|_| None).collect();
        Self { disk, ring, flying, free: (0..depth).rev().collect(), done: VecDeque::new(), bounce: None }
    }

    /// The file.
    #[must_use]
    pub fn disk(&self) -> &DiskFile {
        &self.disk
    }

    /// Whether io_uring is used.
    #[must_use]
    pub fn has_ring(&self) -> bool {
        self.ring.is_some()
    }

    /// Whether another job can be submitted.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Becomes readable when something is done; `None` when everything is done at once.
    #[must_use]
    pub fn completions(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the ring owns the descriptor, and the answer borrows `self`.
        self.ring.as_ref().map(|ring| unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) })
    }

    /// Takes a job over. It reaches the kernel at the next [`FileQueue::push`].
    ///
    /// # Errors
    /// Gives the job back when there is no room.
    pub fn submit(&mut self, token: u64, job: Job) -> Result<(), Job> {
        if self.ring.is_none() || self.needs_bounce(&job) {
            let done = self.at_once(token, job);
            self.done.push_back(done);
            return Ok(());
        }
        let Some(index) = self.free.pop() else { return Err(job) };
        if let Some(slot) = self.flying.get_mut(index) {
            *slot = Some(Flying { token, job });
        }
        self.enqueue(index);
        Ok(())
    }

    fn needs_bounce(&self, job: &Job) -> bool {
        match (job, self.disk.memory_align) {
            (Job::Transfer { segments, .. }, Some(align)) => !segments.aligned(align),
            (Job::Transfer { .. }, None) | (Job::Flush | Job::Change { .. }, _) => false,
        }
    }

    /// Puts the job at `index` into the submission ring.
    fn enqueue(&mut self, index: usize) {
        let Some(flying) = self.flying.get(index).and_then(Option::as_ref) else { return };
        // The only registered file has index 0.
        let entry = entry(types::Fd(0), &flying.job).flags(squeue::Flags::FIXED_FILE).user_data(index as u64);
        let Some(ring) = self.ring.as_mut() else { return };
        // SAFETY: the addresses in the entry belong to `flying.job`, which stays in its slot untouched until
        // the kernel is done with it.
        let mut pushed = unsafe { ring.submission().push(&entry) };
        if pushed.is_err() {
            // Full although jobs are bounded: earlier ones wait for the kernel. Hand them over.
            let _ = ring.submit();
            // SAFETY: as above.
            pushed = unsafe { ring.submission().push(&entry) };
        }
        if pushed.is_err() {
            self.finish(index, Err(io::ErrorKind::WouldBlock.into()));
        }
    }

    /// Hands all submitted jobs to the kernel.
    pub fn push(&mut self) {
        if let Some(ring) = self.ring.as_mut()
            && !ring.submission().is_empty()
        {
            // EAGAIN, EBUSY and EINTR leave the entries in the ring for the next time.
            let _ = ring.submit();
        }
    }

    /// Whether submitted jobs still wait to be handed to the kernel, because it could not take them.
    pub fn is_behind(&mut self) -> bool {
        self.ring.as_mut().is_some_and(|ring| !ring.submission().is_empty())
    }

    /// The next finished job.
    pub fn done(&mut self) -> Option<Done> {
        if self.done.is_empty() {
            self.reap();
        }
        self.done.pop_front()
    }

    fn reap(&mut self) {
        loop {
            let Some(ring) = self.ring.as_mut() else { return };
            let Some((index, result)) =
                ring.completion().next().map(|entry| (entry.user_data(), entry.result()))
            else {
                return;
            };
            let Ok(index) = usize::try_from(index) else { continue };
            self.completed(index, result);
        }
    }

    /// Looks at what the kernel says of a job: done, failed, or to go on with.
    fn completed(&mut self, index: usize, result: i32) {
        let Some(flying) = self.flying.get_mut(index).and_then(Option::as_mut) else { return };
        match progress(&mut flying.job, result) {
            Progress::Done(result) => self.finish(index, result),
            Progress::More if self.needs_bounce_at(index) => {
                let Some(Flying { token, job }) = self.release(index) else { return };
                let done = self.at_once(token, job);
                self.done.push_back(done);
            }
            Progress::More => {
                self.enqueue(index);
                self.push();
            }
        }
    }

    fn needs_bounce_at(&self, index: usize) -> bool {
        self.flying.get(index).and_then(Option::as_ref).is_some_and(|flying| self.needs_bounce(&flying.job))
    }

    fn release(&mut self, index: usize) -> Option<Flying> {
        let flying = self.flying.get_mut(index)?.take()?;
        self.free.push(index);
        Some(flying)
    }

    fn finish(&mut self, index: usize, result: io::Result<()>) {
        if let Some(Flying { token, job }) = self.release(index) {
            self.done.push_back(Done { token, segments: memory_of(job), result });
        }
    }

    /// Waits until the kernel holds no job any more. What it did is still to be collected with
    /// [`FileQueue::done`].
    pub fn drain(&mut self) {
        while self.flying.iter().any(Option::is_some) {
            let Some(ring) = self.ring.as_mut() else { return };
            // EINTR, EAGAIN, EBUSY: completions are there or will be.
            let _ = ring.submit_and_wait(1);
            self.reap();
        }
    }

    /// Does a job here and now.
    fn at_once(&mut self, token: u64, mut job: Job) -> Done {
        let bounce = self.needs_bounce(&job);
        let result = loop {
            let result = if bounce { self.bounced(&mut job) } else { direct(&self.disk.file, &job) };
            match progress(&mut job, result) {
                Progress::Done(result) => break result,
                Progress::More => {}
            }
        };
        Done { token, segments: memory_of(job), result }
    }

    /// One step of a transfer through the aligned buffer; answers bytes or a negative error number. Takes
    /// nothing off the memory.
    fn bounced(&mut self, job: &mut Job) -> i32 {
        let Job::Transfer { access, segments, offset, durable } = job else {
            return direct(&self.disk.file, job);
        };
        let bounce = self.bounce.get_or_insert_with(|| Aligned::new(BOUNCE, 4096));
        let count = segments.len().min(BOUNCE);
        let piece = [libc::iovec { iov_base: bounce.as_ptr().cast(), iov_len: count }];
        match access {
            Access::Read => {
                // SAFETY: the piece is the live buffer, `count` within it.
                let got = unsafe { transfer(&self.disk.file, Access::Read, &piece, *offset, *durable) };
                if let Ok(got) = usize::try_from(got) {
                    // `progress` takes off what was filled.
                    let filled = bounce.bytes().get(..got).unwrap_or_default();
                    segments.copy_in(filled);
                }
                got
            }
            Access::Write => {
                segments.copy_out(bounce.bytes_mut().get_mut(..count).unwrap_or_default());
                // SAFETY: as above.
                unsafe { transfer(&self.disk.file, Access::Write, &piece, *offset, *durable) }
            }
        }
    }
}

impl Drop for FileQueue {
    fn drop(&mut self) {
        self.drain();
    }
}

/// What a ring may be asked to do: what [`entry`] makes.
const OPERATIONS: [u8; 4] =
    [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];

/// A ring that only does [`OPERATIONS`], only on this file.
fn restricted_ring(file: &File, depth: u16) -> io::Result<IoUring> {
    let ring = IoUring::builder().setup_clamp().setup_r_disabled().build(u32::from(depth))?;
    let submitter = ring.submitter();
    submitter.register_files(&[file.as_raw_fd()])?;
    let mut allowed: Vec<Restriction> = OPERATIONS.iter().map(|code| Restriction::sqe_op(*code)).collect();
    allowed.push(Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits()));
    submitter.register_restrictions(&mut allowed)?;
    submitter.register_enable_rings()?;
    Ok(ring)
}

enum Progress {
    Done(io::Result<()>),
    More,
}

/// Applies the kernel's answer (bytes or a negative error number) to a job.
fn progress(job: &mut Job, result: i32) -> Progress {
    if result == -libc::EINTR || result == -libc::EAGAIN {
        return Progress::More;
    }
    if let (Job::Change { change: change @ Change::Zero, .. }, Some(libc::EOPNOTSUPP)) =
        (&mut *job, result.checked_neg())
    {
        // tmpfs and others know holes only; they read as zeros too.
        *change = Change::Punch;
        return Progress::More;
    }
    let Ok(count) = usize::try_from(result) else {
        return Progress::Done(Err(io::Error::from_raw_os_error(result.saturating_neg())));
    };
    match job {
        Job::Flush | Job::Change { .. } => Progress::Done(Ok(())),
        Job::Transfer { segments, offset, .. } => {
            segments.skip(count);
            *offset = offset.saturating_add(count as u64);
            if segments.is_empty() {
                Progress::Done(Ok(()))
            } else if count == 0 {
                // The file became shorter than the disk.
                Progress::Done(Err(io::ErrorKind::UnexpectedEof.into()))
            } else {
                Progress::More
            }
        }
    }
}

fn memory_of(job: Job) -> Option<Segments> {
    match job {
        Job::Transfer { segments, .. } => Some(segments),
        Job::Flush | Job::Change { .. } => None,
    }
}

fn entry(file: types::Fd, job: &Job) -> squeue::Entry {
    match job {
        Job::Transfer { access, segments, offset, durable } => {
            let pieces = segments.as_iovecs();
            let count = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
            match access {
                Access::Read => opcode::Readv::new(file, pieces.as_ptr(), count).offset(*offset).build(),
                Access::Write => opcode::Writev::new(file, pieces.as_ptr(), count)
                    .offset(*offset)
                    .rw_flags(if *durable { libc::RWF_DSYNC } else { 0 })
                    .build(),
            }
        }
        Job::Flush => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        Job::Change { change, offset, len } => {
            opcode::Fallocate::new(file, *len).offset(*offset).mode(mode(*change)).build()
        }
    }
}

fn mode(change: Change) -> i32 {
    libc::FALLOC_FL_KEEP_SIZE
        | match change {
            Change::Punch => libc::FALLOC_FL_PUNCH_HOLE,
            Change::Zero => libc::FALLOC_FL_ZERO_RANGE,
        }
}

/// Does a job with a plain system call; answers as io_uring would.
fn direct(file: &File, job: &Job) -> i32 {
    match job {
        // SAFETY: `segments` keeps what its pieces point to mapped.
        Job::Transfer { access, segments, offset, durable } => unsafe {
            transfer(file, *access, segments.as_iovecs(), *offset, *durable)
        },
        Job::Flush => {
            // SAFETY: takes no memory.
            answer(unsafe { libc::fdatasync(file.as_raw_fd()) } as isize)
        }
        Job::Change { change, offset, len } => allocate(file, *change, *offset, *len),
    }
}

fn allocate(file: &File, change: Change, offset: u64, len: u64) -> i32 {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return -libc::EFBIG };
    // SAFETY: takes no memory.
    answer(unsafe { libc::fallocate(file.as_raw_fd(), mode(change), offset, len) } as isize)
}

/// Moves bytes with one system call; answers how many, or a negative error number.
///
/// # Safety
/// The pieces must be valid memory for the direction.
unsafe fn transfer(file: &File, access: Access, pieces: &[libc::iovec], offset: u64, durable: bool) -> i32 {
    let Ok(offset) = i64::try_from(offset) else { return -libc::EFBIG };
    let count = i32::try_from(pieces.len()).unwrap_or(i32::MAX);
    let flags = if durable { libc::RWF_DSYNC } else { 0 };
    let (fd, pieces) = (file.as_raw_fd(), pieces.as_ptr());
    answer(match access {
        // SAFETY: by this function's contract.
        Access::Read => unsafe { libc::preadv(fd, pieces, count, offset) },
        // SAFETY: by this function's contract.
        Access::Write => unsafe { libc::pwritev2(fd, pieces, count, offset, flags) },
    })
}

/// A system call's answer, or its negative error number.
fn answer(result: isize) -> i32 {
    if result < 0 {
        io::Error::last_os_error().raw_os_error().map_or(-libc::EIO, i32::saturating_neg)
    } else {
        // One call moves at most 2 GiB less a page.
        i32::try_from(result).unwrap_or(i32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::{DiskFile, FileQueue, restricted_ring};
    use io_uring::{opcode, squeue, types};
    use std::fs::{File, OpenOptions};
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;

    #[test]
    fn the_ring_is_used_where_the_kernel_has_it_and_direct_access_where_the_file_has_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let plain = DiskFile::new(file.reopen().unwrap(), 512).unwrap();
        assert!(!plain.is_direct());
        let forbidden = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
            .is_ok_and(|text| text.trim() != "0");
        assert_eq!(FileQueue::new(plain, 8, true).has_ring(), !forbidden);
        let direct = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(file.path());
        match direct {
            Ok(direct) => assert!(DiskFile::new(direct, 512).unwrap().is_direct()),
            Err(error) => println!("this file system has no O_DIRECT ({error}): not tested"),
        }
    }

    #[test]
    fn a_read_only_file_punches_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read_only = DiskFile::new(File::open(file.path()).unwrap(), 512).unwrap();
        assert!(!read_only.punches());
        assert_eq!(read_only.size().unwrap(), 0);
    }

    #[test]
    fn a_ring_is_for_its_disk_alone() {
        let file = tempfile::tempfile().unwrap();
        let Ok(mut ring) = restricted_ring(&file, 8) else {
            println!("skipped: this kernel refuses io_uring");
            return;
        };
        let mut buffer = [0; 16];
        let other = types::Fd(file.as_raw_fd());
        let requests = [
            opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"/etc/passwd".as_ptr()).build(),
            opcode::OpenAt::new(types::Fd(0), c"/etc/passwd".as_ptr())
                .build()
                .flags(squeue::Flags::FIXED_FILE),
            opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
            opcode::Fsync::new(other).build(),
            opcode::Read::new(types::Fd(0), buffer.as_mut_ptr(), 16).build().flags(squeue::Flags::FIXED_FILE),
        ];
        for request in requests {
            // SAFETY: the path is static and the buffer lives on.
            unsafe { ring.submission().push(&request) }.unwrap();
            ring.submit_and_wait(1).unwrap();
            assert_eq!(ring.completion().next().unwrap().result(), -libc::EACCES, "{request:?}");
        }
        assert_eq!(
            ring.submitter().register_files_update(0, &[0]).unwrap_err().raw_os_error(),
            Some(libc::EACCES)
        );
        let fine = opcode::Fsync::new(types::Fd(0)).build().flags(squeue::Flags::FIXED_FILE);
        // SAFETY: takes no memory.
        unsafe { ring.submission().push(&fine) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        assert_eq!(ring.completion().next().unwrap().result(), 0);
    }
}
