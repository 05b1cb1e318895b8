//! A monitor whose machine has not come yet: takes it in, and answers its control socket meanwhile.

use super::cpuid::{self, Layout};
use super::job::begun;
use super::memory::{MemoryError, Ram};
use super::slots::Role;
use super::{BuildError, Life, Machine, Origin, Source, kvm};
use crate::control::{ClientId, Incoming, Server};
use crate::jail::{self, ThreadKind};
use crate::migration::announce;
use crate::migration::describe::{Host, Tsc};
use crate::migration::frame::{Kind, Stream, StreamError};
use crate::migration::receive::{ReceiveError, Received, receive, refuse};
use kvm_ioctls::{Cap, Kvm};
use std::fs::File;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use wire::Refused;
use wire::ids::Mac;
use wire::machine::{
    CpuModel, MachineCall, MachineReply, MachineState, MachineStatus, PROTOCOL, Topology, TransferKind,
    TransferPhase, TransferStatus,
};

/// How often progress alone is news.
const NEWS: Duration = Duration::from_millis(100);
/// Longest wait of a `Status` call.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The control socket of a machine that has not come yet.
pub struct Reception {
    /// `None` for a machine that is run by hand.
    server: Option<Server>,
    waiters: Vec<(ClientId, u64, Instant)>,
    status: MachineStatus,
    told: Instant,
}

impl Reception {
    /// Opens.
    #[must_use]
    pub fn new(server: Option<Server>) -> Self {
        let status = MachineStatus {
            protocol: PROTOCOL,
            sequence: 1,
            state: MachineState::Paused,
            disks: Vec::new(),
            nics: Vec::new(),
            power_button_presses: 0,
            vcpus: 0,
            panicked: false,
            backends: Vec::new(),
            bites: 0,
            transfer: Some(begun(TransferKind::Incoming)),
        };
        Self { server, waiters: Vec::new(), status, told: Instant::now() }
    }

    /// Closes: what is left belongs to the driver, who goes on with these numbers.
    #[must_use]
    pub fn close(self) -> (Option<Server>, MachineStatus) {
        let Self { mut server, waiters, mut status, .. } = self;
        status.sequence += 1;
        for (client, ..) in waiters {
            if let Some(server) = &mut server {
                server.reply(client, &MachineReply::Status(status.clone()));
            }
        }
        (server, status)
    }

    /// Hears how far the machine is, and answers who asks.
    ///
    /// # Errors
    /// [`StreamError::Cancelled`] when somebody does not want the machine any more.
    pub fn look(&mut self, now: &TransferStatus) -> Result<(), StreamError> {
        let known = self.status.transfer.as_ref();
        let phase = known.map(|known| known.phase) != Some(now.phase);
        if phase || (known != Some(now) && self.told.elapsed() >= NEWS) {
            self.told = Instant::now();
            self.status.transfer = Some(now.clone());
            self.status.sequence += 1;
        }
        let Some(server) = &mut self.server else { return Ok(()) };
        let mut ended = false;
        for Incoming { client, call, .. } in server.take() {
            match call {
                MachineCall::Status { after: Some(after), wait_ms } => {
                    let until = Instant::now() + Duration::from_millis(wait_ms).min(LONGEST_WAIT);
                    self.waiters.push((client, after, until));
                }
                MachineCall::Status { after: None, .. } => {
                    server.reply(client, &MachineReply::Status(self.status.clone()));
                }
                MachineCall::Stop | MachineCall::CancelTransfer => {
                    ended = true;
                    server.reply(client, &MachineReply::Done);
                }
                MachineCall::Pause
                | MachineCall::Resume
                | MachineCall::PowerButton
                | MachineCall::PlugDisk { .. }
                | MachineCall::LimitDisk { .. }
                | MachineCall::UnplugDisk { .. }
                | MachineCall::PlugNic { .. }
                | MachineCall::LimitNic { .. }
                | MachineCall::UnplugNic { .. }
                | MachineCall::Snapshot { .. }
                | MachineCall::Migrate { .. }
                | MachineCall::TakeBack
                | MachineCall::Balloon { .. }
                | MachineCall::BalloonStatus
                | MachineCall::PlugVcpus { .. }
                | MachineCall::ResizeMemory { .. }
                | MachineCall::MemoryStatus
                | MachineCall::Counts
                | MachineCall::PlugBackend { .. }
                | MachineCall::ConnectBackend { .. }
                | MachineCall::UnplugFiles { .. }
                | MachineCall::ResizeDisk { .. } => {
                    let why = Refused::conflict("the machine has not come from its other monitor yet")
                        .remedy("wait until the status says so");
                    server.reply(client, &MachineReply::Refused(why));
                }
            }
        }
        let (status, time) = (&self.status, Instant::now());
        self.waiters.retain(|(client, after, until)| {
            let due = status.sequence > *after || *until <= time;
            if due {
                server.reply(*client, &MachineReply::Status(status.clone()));
            }
            !due && server.connected(*client)
        });
        if ended { Err(StreamError::Cancelled) } else { Ok(()) }
    }
}

/// What this host has for a machine with these devices.
///
/// # Errors
/// What KVM says.
pub fn host(
    system: &Kvm,
    vcpus: u32,
    topology: Option<Topology>,
    ram: &Ram,
    roles: Vec<Role>,
) -> Result<Host, BuildError> {
    let layout = Layout::new(vcpus, topology)?;
    let supported = cpuid::shared(system, layout, CpuModel::Host)?;
    // Only a processor can tell its frequency.
    let probe = system.create_vm().map_err(kvm("create a virtual machine"))?;
    let khz = probe.create_vcpu(0).and_then(|vcpu| vcpu.get_tsc_khz()).unwrap_or(0);
    let tsc = Tsc { khz, scales: system.check_extension(Cap::TscControl) };
    Ok(Host { vcpus, memory: ram.size, supported, roles, tsc })
}

/// What is left to do for a machine that came, once it is built.
pub struct Arrival {
    stream: Stream,
    runs: bool,
    status: TransferStatus,
    /// The interfaces that tell where the machine is now.
    interfaces: Vec<(File, Mac)>,
    stopped: Instant,
}

/// Reads the stream in a thread of its own, which may do nothing else: what comes over it is not believed, and this thread may still do
/// all that building a machine takes.
fn confined(
    stream: Stream,
    host: &Host,
    ram: &Ram,
    reception: &mut Reception,
) -> Result<Received, ReceiveError> {
    let (wants, wanted) = channel::<()>();
    let (gives, given) = channel();
    std::thread::scope(|scope| {
        let receiver = std::thread::Builder::new().name("receiver".into()).spawn_scoped(scope, move || {
            jail::confine(ThreadKind::Receiver).map_err(ReceiveError::Thread)?;
            let mut reserve = || {
                let _ = wants.send(());
                let made: Result<_, MemoryError> = given.recv().map_err(|_| StreamError::Cancelled)?;
                Ok(made?)
            };
            receive(stream, host, &mut reserve, &mut |status| reception.look(status))
        });
        let receiver = receiver.map_err(ReceiveError::Thread)?;
        // Until the thread ends.
        for () in wanted {
            let _ = gives.send(ram.reserve());
        }
        receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Takes a machine in.
///
/// # Errors
/// Why none came.
pub fn take_in(
    stream: Stream,
    host: &Host,
    ram: &Ram,
    interfaces: Vec<(File, Mac)>,
    reception: &mut Reception,
) -> Result<(Origin, Arrival), ReceiveError> {
    let received = confined(stream, host, ram, reception)?;
    let Received { stream, state, memory, stopped, runs, status } = received;
    let origin =
        Origin::Snapshot { state, memory: Source::Ready(memory), track: false, life: Life::Same { stopped } };
    Ok((origin, Arrival { stream, runs, status, interfaces, stopped }))
}

impl Arrival {
    /// Tells the source why the machine that came cannot be built.
    pub fn refuse(&mut self, why: &str) {
        refuse(&mut self.stream, why);
    }

    /// Waits until the machine is ours.
    ///
    /// # Errors
    /// When it did not become ours: it must never run here.
    pub fn await_commit(&mut self, reception: &mut Reception) -> Result<(), ReceiveError> {
        let Self { stream, status, .. } = self;
        stream.send(Kind::Ready, 0, 0, &[], &mut || reception.look(status))?;
        let frame = stream.expect(Kind::Commit, &mut || reception.look(status))?;
        frame.map(drop).map_err(ReceiveError::GivenUp)
    }

    /// The machine is ours: lets it go on, and says so. Answers how the transfer went, and where to say that the machine is here now.
    pub fn start(mut self, machine: &mut Machine) -> (TransferStatus, Vec<(File, Mac)>) {
        if self.runs {
            machine.resume();
        }
        let mut once = || Ok(());
        // Whoever does not hear it leaves the machine to us all the same.
        let _ = self.stream.send(Kind::Running, 0, 0, &[], &mut once);
        announce::say(&self.interfaces);
        let stood = u64::try_from(self.stopped.elapsed().as_micros()).unwrap_or(u64::MAX);
        let status = TransferStatus { phase: TransferPhase::Done, stood_us: stood, ..self.status };
        (status, self.interfaces)
    }
}
