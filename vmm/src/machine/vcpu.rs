//! vCPU threads, and the gate that stops them.
//!
//! ```text
//!   run <-----> park        (Gate::pause / Gate::resume, a signal takes a vCPU out of the guest)
//!    |           |
//!    +---> quit <+          (Gate::quit: the thread returns)
//! ```
//!
//! A vCPU that is not plugged in is parked until it is; all threads are made at the start, while the process may still make them.
//!
//! A vCPU that parks has finished its last instruction: KVM leaves one that needed us (a port, a register) half done until the next
//! `KVM_RUN`, and its registers mean nothing until then. While it is parked its lock is free, and whoever paused it may read its state.
//!
//! The signal's handler sets `immediate_exit` in the vCPU's shared page, so that a signal which arrives just before `KVM_RUN` is not
//! lost.

#![allow(unsafe_code)]

use super::signals::Signals;
use crate::bus::Bus;
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::cell::Cell;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wire::machine::EndReason;

/// How long a stopped vCPU may take before it gets another signal.
const KICK_AGAIN: Duration = Duration::from_millis(20);

/// How often a guest that is slowed down is taken out.
pub const SLICE: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Run,
    Park,
    Quit,
}

struct GateState {
    wanted: Wanted,
    parked: usize,
    /// vCPUs that are not plugged in, a bit each: they wait whatever the others do.
    absent: u64,
}

/// Where vCPU threads wait.
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
    /// vCPUs that may run, a bit each.
    open: AtomicU64,
    /// Share of its time that is taken from the guest, in percent.
    slow: AtomicU8,
}

impl Gate {
    /// A gate that is closed: vCPUs wait until the first resume, and those that are absent until they are not.
    #[must_use]
    pub fn closed(absent: u64) -> Self {
        Self {
            state: Mutex::new(GateState { wanted: Wanted::Park, parked: 0, absent }),
            changed: Condvar::new(),
            open: AtomicU64::new(0),
            slow: AtomicU8::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn want(&self, wanted: Wanted) {
        let mut state = self.state();
        state.wanted = wanted;
        self.settle(&state);
    }

    fn settle(&self, state: &GateState) {
        let open = if state.wanted == Wanted::Run { !state.absent } else { 0 };
        self.open.store(open, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Says which vCPUs are not plugged in.
    fn set_absent(&self, absent: u64) {
        let mut state = self.state();
        state.absent = absent;
        self.settle(&state);
    }

    /// The machine ends: no vCPU runs again, and the driver decides when the threads may go.
    fn close(&self) {
        let mut state = self.state();
        if state.wanted == Wanted::Run {
            state.wanted = Wanted::Park;
            self.open.store(0, Ordering::SeqCst);
        }
    }

    fn is_open(&self, vcpu: u64) -> bool {
        self.open.load(Ordering::SeqCst) & vcpu != 0
    }

    /// Takes the guest's share of time away from a vCPU that has run since `since`. Whoever closes the gate does
    /// not have to wait for it.
    fn rest(&self, since: Instant) {
        let percent = u32::from(self.slow.load(Ordering::Relaxed)).min(99);
        let until = Instant::now() + since.elapsed().min(SLICE * 2) * percent / (100 - percent);
        let mut state = self.state();
        while state.wanted == Wanted::Run {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits while the gate is closed. Returns whether to go on, and whether it waited.
    fn pass(&self, vcpu: u64) -> (bool, bool) {
        if self.is_open(vcpu) {
            return (true, false);
        }
        let mut state = self.state();
        state.parked += 1;
        self.changed.notify_all();
        while state.wanted == Wanted::Park || (state.wanted == Wanted::Run && state.absent & vcpu != 0) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked -= 1;
        (state.wanted == Wanted::Run, true)
    }
}

/// The vCPU threads of a machine.
pub struct Vcpus {
    gate: Arc<Gate>,
    vcpus: Vec<Arc<Mutex<VcpuFd>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Vcpus {
    /// How many there are, plugged in or not.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.threads.len()).unwrap_or(u32::MAX)
    }

    /// Starts a thread for each vCPU; they wait for [`Vcpus::resume`], and those that are `absent` (a bit each) until they are not.
    /// `confine` runs first in each thread.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(
        vcpus: Vec<VcpuFd>,
        absent: u64,
        bus: &Arc<Bus>,
        signals: &Arc<Signals>,
        confine: fn() -> std::io::Result<()>,
    ) -> std::io::Result<Self> {
        install_handler()?;
        let mut all = Self {
            gate: Arc::new(Gate::closed(absent)),
            vcpus: Vec::with_capacity(vcpus.len()),
            threads: Vec::with_capacity(vcpus.len()),
        };
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let (bus, signals, gate) = (bus.clone(), signals.clone(), all.gate.clone());
            let vcpu = Arc::new(Mutex::new(vcpu));
            all.vcpus.push(vcpu.clone());
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .stack_size(256 << 10)
                .spawn(move || {
                    if let Err(error) = confine() {
                        signals.end(EndReason::NotStarted, format!("cannot confine a vCPU thread: {error}"));
                        return;
                    }
                    run(&vcpu, bit(index), &bus, &signals, &gate);
                })?;
            all.threads.push(thread);
        }
        Ok(all)
    }

    /// Takes every vCPU out of the guest, and returns once none runs.
    pub fn pause(&self) {
        self.gate.want(Wanted::Park);
        self.kick();
        let mut state = self.gate.state();
        while state.parked < self.threads.iter().filter(|thread| !thread.is_finished()).count() {
            let (back, timeout) =
                self.gate.changed.wait_timeout(state, KICK_AGAIN).unwrap_or_else(PoisonError::into_inner);
            state = back;
            if timeout.timed_out() {
                self.kick();
            }
        }
    }

    /// Says which vCPUs are not plugged in, a bit each: they do nothing from their next exit on, which comes at once.
    pub fn set_absent(&self, absent: u64) {
        self.gate.set_absent(absent);
        self.kick();
    }

    /// Every vCPU, to look at while all are paused.
    pub fn parked(&self) -> impl Iterator<Item = MutexGuard<'_, VcpuFd>> {
        self.vcpus.iter().map(|vcpu| vcpu.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets every vCPU run.
    pub fn resume(&self) {
        self.gate.want(Wanted::Run);
    }

    /// Takes so many percent of its time from the guest, as long as this is called again at least each [`SLICE`].
    pub fn slow_down(&self, percent: u8) {
        if self.gate.slow.swap(percent, Ordering::Relaxed) > 0 || percent > 0 {
            self.kick();
        }
    }

    fn kick(&self) {
        for thread in &self.threads {
            // SAFETY: the thread is not joined yet, so its handle is valid; the signal has a handler.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGRTMIN()) };
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.gate.want(Wanted::Quit);
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            self.kick();
            std::thread::sleep(Duration::from_micros(100));
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs.
    static EXIT_FLAG: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn on_kick(_signal: libc::c_int) {
    let flag = EXIT_FLAG.get();
    if !flag.is_null() {
        // SAFETY: the pointer is into the vCPU's mapping, and is cleared before that goes away (see `run`).
        unsafe { ptr::write_volatile(flag, 1) };
    }
}

fn install_handler() -> std::io::Result<()> {
    // SAFETY: all-zero is a valid `sigaction`, which is filled in before use.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_kick as extern "C" fn(libc::c_int) as usize;
    // SAFETY: the handler only touches a thread-local and the vCPU's page, which is async-signal-safe.
    if unsafe { libc::sigaction(libc::SIGRTMIN(), &action, ptr::null_mut()) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

fn bit(index: usize) -> u64 {
    u32::try_from(index).ok().and_then(|index| 1u64.checked_shl(index)).unwrap_or(0)
}

fn run(own: &Mutex<VcpuFd>, bit: u64, bus: &Bus, signals: &Signals, gate: &Gate) {
    let lock = || own.lock().unwrap_or_else(PoisonError::into_inner);
    EXIT_FLAG.set(&raw mut lock().get_kvm_run().immediate_exit);
    let mut held: Option<MutexGuard<'_, VcpuFd>> = None;
    let mut since = Instant::now();
    loop {
        let mut waited = false;
        if gate.slow.load(Ordering::Relaxed) > 0 && since.elapsed() >= SLICE {
            gate.rest(since);
            since = Instant::now();
        }
        if !gate.is_open(bit) {
            // Never waits with the lock held: whoever closed the gate may be about to take it.
            if let Some(mut vcpu) = held.take() {
                finish(&mut vcpu, bus, signals);
            }
            let go_on;
            (go_on, waited) = gate.pass(bit);
            if !go_on {
                break;
            }
        }
        let vcpu = held.get_or_insert_with(lock);
        if waited {
            // The guest's watchdogs must not count the time that it was stopped; refused before the guest has a kvm-clock.
            let _ = vcpu.kvmclock_ctrl();
        }
        if !step(vcpu, bus, signals) {
            gate.close();
        }
    }
    EXIT_FLAG.set(ptr::null_mut());
}

/// Completes the last instruction without running the next one. A machine that has ended stays where it is.
fn finish(vcpu: &mut VcpuFd, bus: &Bus, signals: &Signals) {
    while !signals.ended() {
        vcpu.set_kvm_immediate_exit(1);
        match vcpu.run() {
            // An access that crosses pages comes in parts.
            Ok(VcpuExit::IoOut(port, data)) => bus.ports.write(port, data),
            Ok(VcpuExit::IoIn(port, data)) => bus.ports.read(port, data),
            Ok(VcpuExit::MmioWrite(address, data)) => bus.write_memory(address, data),
            Ok(VcpuExit::MmioRead(address, data)) => bus.read_memory(address, data),
            // EINTR: nothing is left to complete. Anything else comes again when the guest runs.
            Ok(_) | Err(_) => break,
        }
    }
    vcpu.set_kvm_immediate_exit(0);
}

/// Runs the vCPU until its next exit and handles that. Returns whether the machine goes on.
fn step(vcpu: &mut VcpuFd, bus: &Bus, signals: &Signals) -> bool {
    match vcpu.run() {
        Ok(VcpuExit::IoOut(port, data)) => bus.ports.write(port, data),
        Ok(VcpuExit::IoIn(port, data)) => bus.ports.read(port, data),
        Ok(VcpuExit::MmioWrite(address, data)) => bus.write_memory(address, data),
        Ok(VcpuExit::MmioRead(address, data)) => bus.read_memory(address, data),
        Ok(VcpuExit::Shutdown) => signals.end(EndReason::TripleFault, ""),
        Ok(VcpuExit::SystemEvent(kind, _)) => match kind {
            kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => {
                signals.end(EndReason::PowerOff, "by KVM's system event")
            }
            kvm_bindings::KVM_SYSTEM_EVENT_RESET => signals.end(EndReason::Reset, "by KVM's system event"),
            other => signals.end(EndReason::Failed, format!("KVM reported system event {other}")),
        },
        Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => vcpu.set_kvm_immediate_exit(0),
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            signals.end(
                EndReason::Failed,
                format!("the processor refused to enter the guest on CPU {cpu}: reason {reason:#x}"),
            );
        }
        Ok(VcpuExit::InternalError) => {
            let detail = internal_error(vcpu);
            signals.end(EndReason::Failed, detail);
        }
        Ok(other) => {
            let detail = format!("KVM stopped a vCPU in a way that this monitor does not know: {other:?}");
            signals.end(EndReason::Failed, detail);
        }
        Err(error) => match error.errno() {
            libc::EINTR => vcpu.set_kvm_immediate_exit(0),
            libc::EAGAIN => {}
            _ => signals.end(EndReason::Failed, format!("cannot run a vCPU: {error}")),
        },
    }
    !signals.ended()
}

/// What KVM could not do, and where the guest was.
fn internal_error(vcpu: &mut VcpuFd) -> String {
    // SAFETY: for this exit reason KVM fills in the `internal` member; any bytes are valid for its integers.
    let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
    let at = vcpu.get_regs().map(|regs| regs.rip).unwrap_or_default();
    format!("KVM could not go on (internal error {suberror}) with the guest at {at:#x}")
}
