//! System calls that each kind of thread may make, as data. Everything else kills the process.
//!
//! A thread inherits the filter of the one that starts it: device workers run under [`DRIVER`] and [`WORKER`] both, so whatever a
//! worker needs is in both lists.

use kvm_bindings::{
    kvm_clock_data, kvm_debugregs, kvm_dirty_log, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs,
    kvm_userspace_memory_region, kvm_vcpu_events, kvm_xcrs,
};
use libc::c_long;

/// One allowed system call.
#[derive(Debug, Clone, Copy)]
pub enum Allow {
    /// With any arguments.
    Any(c_long),
    /// With one argument (by index, 32 bits of it) being one of these.
    OneOf(c_long, u8, &'static [u64]),
    /// With the execute bit not set in one argument (by index).
    NoExec(c_long, u8),
}

use Allow::{Any, NoExec, OneOf};

/// The number of an ioctl of KVM that fills in a structure, takes one, does both, or has none.
const fn kvm_reads(number: u64, size: usize) -> u64 {
    0x8000_ae00 | number | ((size as u64) << 16)
}
const fn kvm_takes(number: u64, size: usize) -> u64 {
    0x4000_ae00 | number | ((size as u64) << 16)
}
const fn kvm_exchanges(number: u64, size: usize) -> u64 {
    0xc000_ae00 | number | ((size as u64) << 16)
}
const fn kvm_plain(number: u64) -> u64 {
    0xae00 | number
}

/// What logging the guest's writes asks of KVM: GET_DIRTY_LOG, SET_USER_MEMORY_REGION. Slots of this process's memory can only be given to
/// its own guest.
const LOG: &[u64] =
    &[kvm_takes(0x42, size_of::<kvm_dirty_log>()), kvm_takes(0x46, size_of::<kvm_userspace_memory_region>())];

/// What telling a machine's state asks of KVM, in the order of their numbers.
const SNAPSHOT: &[u64] = &[
    // GET_MSR_INDEX_LIST, CHECK_EXTENSION
    kvm_exchanges(0x02, 4),
    kvm_plain(0x03),
    // GET_CLOCK, GET_REGS, GET_SREGS, GET_MSRS, GET_LAPIC
    kvm_reads(0x7c, size_of::<kvm_clock_data>()),
    kvm_reads(0x81, size_of::<kvm_regs>()),
    kvm_reads(0x83, size_of::<kvm_sregs>()),
    kvm_exchanges(0x88, 8),
    kvm_reads(0x8e, size_of::<kvm_lapic_state>()),
    // GET_MP_STATE, GET_VCPU_EVENTS, GET_DEBUGREGS, GET_TSC_KHZ, GET_XSAVE, GET_XCRS, GET_NESTED_STATE
    kvm_reads(0x98, size_of::<kvm_mp_state>()),
    kvm_reads(0x9f, size_of::<kvm_vcpu_events>()),
    kvm_reads(0xa1, size_of::<kvm_debugregs>()),
    kvm_plain(0xa3),
    kvm_reads(0xa4, 4096),
    kvm_reads(0xa6, size_of::<kvm_xcrs>()),
    kvm_exchanges(0xbe, 128),
];

/// `KVM_RUN`.
const KVM_RUN: u64 = 0xae80;
/// `KVM_KVMCLOCK_CTRL`.
const KVM_KVMCLOCK_CTRL: u64 = 0xaead;
/// `KVM_GET_REGS`, for the message about a vCPU that KVM gave up on.
const KVM_GET_REGS: u64 = 0x8090_ae81;
/// `KVM_SIGNAL_MSI`.
const KVM_SIGNAL_MSI: u64 = 0x4020_aea5;
/// `KVM_SET_GSI_ROUTING`.
const KVM_SET_GSI_ROUTING: u64 = 0x4008_ae6a;
/// `KVM_IRQFD`.
const KVM_IRQFD: u64 = 0x4020_ae76;
/// `KVM_IOEVENTFD`.
const KVM_IOEVENTFD: u64 = 0x4040_ae79;
/// `TUNSETOFFLOAD`.
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
/// `TUNSETQUEUE`.
const TUNSETQUEUE: u64 = 0x4004_54d9;
/// `TUNSETVNETHDRSZ`.
const TUNSETVNETHDRSZ: u64 = 0x4004_54d8;
/// `TUNSETVNETLE`.
const TUNSETVNETLE: u64 = 0x4004_54dc;
/// `TUNGETVNETHDRSZ`.
const TUNGETVNETHDRSZ: u64 = 0x8004_54d7;
/// `TUNGETIFF`.
const TUNGETIFF: u64 = 0x8004_54d2;
/// `TUNGETFEATURES`.
const TUNGETFEATURES: u64 = 0x8004_54cf;
/// `TCGETS`: a terminal is put back as it was.
const TCGETS: u64 = 0x5401;
/// `TCSETS`.
const TCSETS: u64 = 0x5402;
/// `FIONBIO`.
const FIONBIO: u64 = 0x5421;
/// Flags of a new thread, and of nothing else: no process, no namespace.
const THREAD_FLAGS: u64 = 0x003d_0f00;

/// What every thread needs: memory, locks, the end of a thread and of the process, a panic's message.
const COMMON: &[Allow] = &[
    Any(libc::SYS_read),
    Any(libc::SYS_write),
    Any(libc::SYS_writev),
    Any(libc::SYS_close),
    Any(libc::SYS_futex),
    Any(libc::SYS_brk),
    Any(libc::SYS_munmap),
    Any(libc::SYS_mremap),
    Any(libc::SYS_madvise),
    NoExec(libc::SYS_mmap, 2),
    NoExec(libc::SYS_mprotect, 2),
    // The allocator may ask for both when a thread first needs memory.
    Any(libc::SYS_getrandom),
    Any(libc::SYS_sched_getaffinity),
    Any(libc::SYS_clock_gettime),
    Any(libc::SYS_sched_yield),
    Any(libc::SYS_rt_sigprocmask),
    Any(libc::SYS_rt_sigreturn),
    Any(libc::SYS_sigaltstack),
    Any(libc::SYS_restart_syscall),
    Any(libc::SYS_getpid),
    Any(libc::SYS_gettid),
    Any(libc::SYS_tgkill),
    Any(libc::SYS_exit),
    Any(libc::SYS_exit_group),
];

/// A vCPU: runs the guest, delivers interrupts, writes the console log (with its rotation).
pub const VCPU: &[&[Allow]] = &[
    COMMON,
    &[
        OneOf(
            libc::SYS_ioctl,
            1,
            &[
                KVM_RUN,
                KVM_KVMCLOCK_CTRL,
                KVM_GET_REGS,
                KVM_SIGNAL_MSI,
                KVM_SET_GSI_ROUTING,
                KVM_IRQFD,
                FIONBIO,
            ],
        ),
        Any(libc::SYS_pread64),
        Any(libc::SYS_ftruncate),
        Any(libc::SYS_fdatasync),
        // Pending interrupts of events that other processes write.
        Any(libc::SYS_poll),
        // Debug builds look at a descriptor before they close it.
        OneOf(libc::SYS_fcntl, 1, &[libc::F_GETFD as u64]),
    ],
];

/// What device workers need beyond [`COMMON`].
const DEVICES: &[Allow] = &[
    OneOf(
        libc::SYS_ioctl,
        1,
        &[
            TUNSETOFFLOAD,
            TUNSETQUEUE,
            TUNSETVNETHDRSZ,
            TUNSETVNETLE,
            TUNGETVNETHDRSZ,
            TUNGETIFF,
            TUNGETFEATURES,
            FIONBIO,
            TCGETS,
            TCSETS,
            KVM_IRQFD,
            KVM_IOEVENTFD,
            KVM_SIGNAL_MSI,
            KVM_SET_GSI_ROUTING,
        ],
    ),
    Any(libc::SYS_readv),
    Any(libc::SYS_pread64),
    Any(libc::SYS_pwrite64),
    Any(libc::SYS_preadv),
    Any(libc::SYS_pwritev),
    Any(libc::SYS_preadv2),
    Any(libc::SYS_pwritev2),
    Any(libc::SYS_fallocate),
    Any(libc::SYS_fdatasync),
    Any(libc::SYS_fsync),
    Any(libc::SYS_fstat),
    Any(libc::SYS_newfstatat),
    Any(libc::SYS_statx),
    Any(libc::SYS_lseek),
    // Setting a ring up is the driver's: a worker has what it was made with.
    Any(libc::SYS_io_uring_enter),
    Any(libc::SYS_io_uring_register),
    Any(libc::SYS_poll),
    Any(libc::SYS_ppoll),
    Any(libc::SYS_epoll_create1),
    Any(libc::SYS_epoll_ctl),
    Any(libc::SYS_epoll_wait),
    Any(libc::SYS_epoll_pwait),
    Any(libc::SYS_eventfd2),
    Any(libc::SYS_timerfd_create),
    Any(libc::SYS_timerfd_settime),
    Any(libc::SYS_clock_nanosleep),
    Any(libc::SYS_nanosleep),
    Any(libc::SYS_dup),
    OneOf(
        libc::SYS_fcntl,
        1,
        &[
            libc::F_DUPFD_CLOEXEC as u64,
            libc::F_GETFD as u64,
            libc::F_SETFD as u64,
            libc::F_GETFL as u64,
            libc::F_SETFL as u64,
        ],
    ),
    // A new thread introduces itself, and locks itself in further.
    Any(libc::SYS_set_robust_list),
    Any(libc::SYS_rseq),
    Any(libc::SYS_seccomp),
    OneOf(libc::SYS_prctl, 0, &[libc::PR_SET_NAME as u64, libc::PR_SET_NO_NEW_PRIVS as u64, PR_SET_VMA]),
];

/// glibc and the kernel name stacks by it.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// A device worker.
pub const WORKER: &[&[Allow]] = &[COMMON, DEVICES];

/// What talking to sockets that others opened needs beyond that.
const TALK: &[Allow] = &[Any(libc::SYS_accept4), Any(libc::SYS_sendto), Any(libc::SYS_shutdown)];

/// The worker of a device that talks to sockets.
pub const SOCKETS: &[&[Allow]] = &[COMMON, DEVICES, TALK];

/// The thread that copies memory for a snapshot or a migration: asks KVM what was written, and writes files.
pub const MOVER: &[&[Allow]] = &[
    COMMON,
    &[
        OneOf(libc::SYS_ioctl, 1, LOG),
        Any(libc::SYS_pwrite64),
        Any(libc::SYS_ftruncate),
        Any(libc::SYS_statx),
        // Looks for holes in shared memory.
        Any(libc::SYS_lseek),
        // Waits for a stream, and for its turn when it may only move so much.
        Any(libc::SYS_poll),
        Any(libc::SYS_clock_nanosleep),
        // Debug builds look at a descriptor before they close it.
        OneOf(libc::SYS_fcntl, 1, &[libc::F_GETFD as u64]),
    ],
];

/// Who takes in what another monitor sends, before there is a machine: reads the stream and answers the control socket. Memory to put it
/// into is made by the thread that started it.
pub const RECEIVER: &[&[Allow]] = &[
    COMMON,
    &[
        Any(libc::SYS_poll),
        Any(libc::SYS_accept4),
        Any(libc::SYS_recvmsg),
        Any(libc::SYS_sendmsg),
        // Debug builds look at a descriptor before they close it.
        OneOf(libc::SYS_fcntl, 1, &[libc::F_GETFD as u64]),
    ],
];

/// Who speaks to another process that works a device: sends and receives messages with descriptors, signals events, and nothing else.
pub const BACKEND: &[&[Allow]] = &[
    COMMON,
    &[
        Any(libc::SYS_poll),
        Any(libc::SYS_recvmsg),
        Any(libc::SYS_sendmsg),
        Any(libc::SYS_shutdown),
        // Debug builds look at a descriptor before they close it.
        OneOf(libc::SYS_fcntl, 1, &[libc::F_GETFD as u64]),
    ],
];

/// The driver: what workers need, the control socket, and starting threads.
pub const DRIVER: &[&[Allow]] = &[
    COMMON,
    DEVICES,
    TALK,
    &[
        OneOf(libc::SYS_ioctl, 1, SNAPSHOT),
        OneOf(libc::SYS_ioctl, 1, LOG),
        // For a disk that is plugged in; its worker then gives it up. Opening by a ring ends at Landlock.
        Any(libc::SYS_io_uring_setup),
        Any(libc::SYS_recvmsg),
        Any(libc::SYS_sendmsg),
        OneOf(libc::SYS_clone, 0, &[THREAD_FLAGS]),
        // Answered with "no such call" by another filter, so that the C library takes `clone`, whose flags can be checked.
        Any(libc::SYS_clone3),
        Any(libc::SYS_ftruncate),
        Any(libc::SYS_rt_sigaction),
    ],
];
