//! The driver thread: the only one that starts, stops and changes anything about a machine.
//!
//! It waits for vCPUs (marks in [`super::signals`]), the control socket and, for machines run by hand, the terminal; after each round
//! it compares what [`MachineStatus`] would say with what it said before, which is what makes the sequence number grow.

use super::Machine;
use super::connector::Connector;
use super::devices;
use super::incoming::Arrival;
use super::memory;
use super::slots::PlugError;
use super::transfer::Transfer;
use super::vcpu;
use crate::control::{ClientId, Incoming, Server};
use crate::migration::announce;
use crate::migration::frame::Stream;
use crate::virtio::blk::BlkConfig;
use crate::virtio::limit;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::ids::{Mac, PortId};
use wire::machine::{
    BackendDevice, BackendName, EndReason, Limits, MachineCall, MachineEnd, MachineReply, MachineState,
    MachineStatus, MigrationPlan, NicLimits, PROTOCOL, SnapshotTaken, WatchdogAction,
};
use wire::{MiB, Refused};

/// Longest wait of a `Status` call.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Longest name and serial of a disk in bytes.
const LONGEST_KEY: usize = 128;
/// Lines about the guest's misbehaviour that are logged before silence: the log is not the guest's to fill.
const LOG_LINES: u32 = 100;
/// Typed bytes kept until the guest's serial port takes them.
const TYPED: usize = 4096;
/// How soon to offer typed bytes to a full serial port again.
const TYPE_AGAIN: Duration = Duration::from_millis(10);

/// A client that waits for a change.
struct Waiter {
    client: ClientId,
    after: u64,
    until: Instant,
}

/// The terminal's input of a machine run by hand.
pub struct Typed {
    from: std::fs::File,
    bytes: VecDeque<u8>,
    open: bool,
    /// The last byte was the escape key.
    escaped: bool,
    /// Where the next snapshot goes: state and memory.
    snapshot_to: Option<[std::fs::File; 2]>,
    snapshot_wanted: bool,
    /// Where another monitor may wait for the machine.
    migrate_to: Option<UnixListener>,
    migrate_wanted: bool,
    back_wanted: bool,
}

/// Ctrl-A: followed by `x` it ends the machine, by `s` it takes a snapshot, by `m` it moves the machine to the monitor that waits for it,
/// by `b` it takes one back that is in doubt, twice it is itself.
const ESCAPE: u8 = 1;

impl Typed {
    /// Input from a descriptor; the files for the one snapshot that may be asked for; and where another monitor may wait for the machine
    /// (a listener that answers at once).
    #[must_use]
    pub fn new(
        from: OwnedFd,
        snapshot_to: Option<[std::fs::File; 2]>,
        migrate_to: Option<UnixListener>,
    ) -> Self {
        Self {
            from: from.into(),
            bytes: VecDeque::new(),
            open: true,
            escaped: false,
            snapshot_to,
            snapshot_wanted: false,
            migrate_to,
            migrate_wanted: false,
            back_wanted: false,
        }
    }

    /// Reads what is there. Returns whether the user asked for the end.
    fn take(&mut self) -> bool {
        let mut buffer = [0u8; 256];
        match self.from.read(&mut buffer) {
            Ok(0) => self.open = false,
            Ok(count) => {
                for byte in buffer.iter().take(count) {
                    match (self.escaped, *byte) {
                        (false, ESCAPE) => self.escaped = true,
                        (true, b'x') => return true,
                        (true, b's') => {
                            (self.escaped, self.snapshot_wanted) = (false, true);
                        }
                        (true, b'm') => (self.escaped, self.migrate_wanted) = (false, true),
                        (true, b'b') => (self.escaped, self.back_wanted) = (false, true),
                        (_, byte) => {
                            self.escaped = false;
                            self.bytes.push_back(byte);
                        }
                    }
                }
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {}
            Err(_) => self.open = false,
        }
        false
    }
}

/// Drives one machine until it ends.
pub struct Driver {
    machine: Machine,
    server: Option<Server>,
    typed: Option<Typed>,
    /// Keeps devices connected to their back ends, in a machine run by hand.
    pub connector: Option<Connector>,
    waiters: Vec<Waiter>,
    status: MachineStatus,
    transfer: Option<Transfer>,
    arrival: Option<Arrival>,
    /// The interfaces that still have to tell where the machine is now, and when.
    announces: VecDeque<Instant>,
    interfaces: Vec<(std::fs::File, Mac)>,
    logged: u32,
    /// It begins standing still.
    stands: bool,
}

impl Driver {
    /// A driver for a machine that waits to be run.
    #[must_use]
    pub fn new(machine: Machine, server: Option<Server>, typed: Option<Typed>) -> Self {
        let status = MachineStatus {
            protocol: PROTOCOL,
            sequence: 0,
            state: MachineState::Paused,
            disks: machine.slots.disks(),
            nics: machine.slots.nics(),
            power_button_presses: 0,
            vcpus: machine.plugged_vcpus(),
            panicked: false,
            transfer: None,
            backends: machine.slots.backends(),
            bites: 0,
        };
        Self {
            machine,
            server,
            typed,
            connector: None,
            waiters: Vec::new(),
            status,
            transfer: None,
            arrival: None,
            announces: VecDeque::new(),
            interfaces: Vec::new(),
            logged: 0,
            stands: false,
        }
    }

    /// The machine stands still until it is told to go on.
    #[must_use]
    pub fn standing(self, stands: bool) -> Self {
        Self { stands, ..self }
    }

    /// The machine comes from another monitor: it goes on as it was there. `before` is what the control socket said so far.
    #[must_use]
    pub fn arriving(mut self, arrival: Arrival, before: &MachineStatus) -> Self {
        self.arrival = Some(arrival);
        self.status.sequence = before.sequence;
        self
    }

    /// Runs the machine until it ends, and returns how.
    pub fn run(&mut self) -> MachineEnd {
        match self.arrival.take() {
            None if self.stands => {}
            None => self.machine.resume(),
            Some(arrival) => {
                let (status, interfaces) = arrival.start(&mut self.machine);
                self.status.transfer = Some(status);
                self.interfaces = interfaces;
                let now = Instant::now();
                self.announces = announce::TIMES.into_iter().skip(1).map(|after| now + after).collect();
            }
        }
        loop {
            self.refresh();
            self.answer_waiters();
            if let Err(error) = self.wait()
                && error != Errno::EINTR
            {
                self.machine.signals().end(EndReason::Failed, format!("cannot wait for events: {error}"));
            }
            let (devices, ejected) = self.machine.signals().take();
            if self.machine.watchdog_deadline().is_some_and(|then| then <= Instant::now()) {
                self.bite();
            }
            if let Some(end) = self.machine.take_end() {
                self.finish();
                return end;
            }
            for trouble in self.machine.slots.settle(devices) {
                self.log(&trouble);
            }
            self.machine.slots.eject(ejected);
            if self.machine.signals().take_processors() {
                self.machine.settle_vcpus();
            }
            self.tend_transfer();
            self.machine.slow_down(self.transfer.as_ref().map_or(0, Transfer::throttle));
            self.announce();
            self.type_input();
            if self.connector.as_mut().is_some_and(|connector| !connector.turn(&self.machine.slots)) {
                // Polling what is closed would return at once, for ever.
                self.connector = None;
                self.log("the process that connects devices to their back ends is gone: lost ones stay lost");
            }
            self.snapshot_by_hand();
            self.migrate_by_hand();
            for incoming in self.server.as_mut().map(Server::take).unwrap_or_default() {
                self.serve(incoming);
            }
        }
    }

    /// The guest stopped calling its watchdog.
    fn bite(&mut self) {
        match self.machine.watchdog_action() {
            WatchdogAction::End => {
                let what = "the guest started its watchdog and stopped calling it";
                return self.machine.signals().end(EndReason::Watchdog, what);
            }
            WatchdogAction::Pause => self.machine.pause(),
            WatchdogAction::Count => {}
        }
        self.machine.rewind_watchdog();
        self.status.bites = self.status.bites.saturating_add(1);
        self.status.sequence += 1;
    }

    /// Says where the machine is now, when it is time.
    fn announce(&mut self) {
        while self.announces.front().is_some_and(|then| *then <= Instant::now()) {
            self.announces.pop_front();
            announce::say(&self.interfaces);
        }
        if self.announces.is_empty() {
            self.interfaces.clear();
        }
    }

    /// Leaves nothing half-written: the console's last words, and no client without an answer.
    fn finish(&mut self) {
        self.machine.pause();
        self.machine.flush_console();
        if let Some((client, reply)) = self.transfer.as_mut().and_then(Transfer::abandon) {
            self.reply(client, &reply);
        }
        self.refresh();
        for waiter in std::mem::take(&mut self.waiters) {
            self.reply(waiter.client, &MachineReply::Status(self.status.clone()));
        }
    }

    fn log(&mut self, line: &str) {
        self.logged = self.logged.saturating_add(1);
        match self.logged {
            0..LOG_LINES => eprintln!("vmm: {line}"),
            LOG_LINES => eprintln!("vmm: {line}; no more lines like this will follow"),
            _ => {}
        }
    }

    fn wait(&self) -> Result<(), Errno> {
        let mut fds = vec![PollFd::new(self.machine.signals().event(), PollFlags::POLLIN)];
        let bite = self.machine.watchdog_deadline();
        let announce = self.announces.front().copied();
        // A guest that is slowed down is taken out again and again.
        let slow = self.transfer.as_ref().is_some_and(|transfer| transfer.throttle() > 0);
        let slice = slow.then(|| Instant::now() + vcpu::SLICE);
        let mut timeout =
            self.waiters.iter().map(|waiter| waiter.until).chain(bite).chain(announce).chain(slice).min();
        if let Some(typed) = &self.typed {
            if typed.open && typed.bytes.len() < TYPED {
                fds.push(PollFd::new(typed.from.as_fd(), PollFlags::POLLIN));
            }
            if !typed.bytes.is_empty() {
                let again = Instant::now() + TYPE_AGAIN;
                timeout = Some(timeout.map_or(again, |until| until.min(again)));
            }
        }
        if let Some(connector) = &self.connector {
            fds.push(PollFd::new(connector.answers(), PollFlags::POLLIN));
            timeout = timeout.into_iter().chain(connector.deadline()).min();
        }
        if let Some(server) = &self.server {
            fds.extend(server.poll_fds());
            if server.has_ready() {
                timeout = Some(Instant::now());
            }
        }
        let timeout = match timeout {
            None => PollTimeout::NONE,
            // Rounded up, so that a deadline is past when the wait for it returns.
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                let millis = left.as_millis() + u128::from(!left.is_zero());
                PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
            }
        };
        poll(&mut fds, timeout).map(drop)
    }

    fn type_input(&mut self) {
        let Some(typed) = &mut self.typed else { return };
        let mut fds = [PollFd::new(typed.from.as_fd(), PollFlags::POLLIN)];
        if typed.open
            && typed.bytes.len() < TYPED
            && poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
        {
            let ended = typed.take();
            if ended && let Err(refused) = self.stop() {
                eprintln!("vmm: {refused}");
            }
        }
        let Some(typed) = &mut self.typed else { return };
        if !typed.bytes.is_empty() {
            let taken = self.machine.input(typed.bytes.make_contiguous());
            typed.bytes.drain(..taken.min(typed.bytes.len()));
        }
    }

    fn snapshot_by_hand(&mut self) {
        let Some(typed) = &mut self.typed else { return };
        if !std::mem::take(&mut typed.snapshot_wanted) {
            return;
        }
        let Some([state, memory]) = typed.snapshot_to.take() else {
            eprintln!(
                "vmm: there is nowhere for a snapshot to go: start with --snapshot DIR, and take one only once"
            );
            return;
        };
        if let Err(refused) = self.start_snapshot([state, memory], false, false, None) {
            eprintln!("vmm: no snapshot: {refused}");
        }
    }

    fn migrate_by_hand(&mut self) {
        let Some(typed) = &mut self.typed else { return };
        if std::mem::take(&mut typed.back_wanted)
            && let Err(refused) = self.take_back()
        {
            eprintln!("vmm: {refused}");
        }
        let Some(typed) = &mut self.typed else { return };
        if !std::mem::take(&mut typed.migrate_wanted) {
            return;
        }
        let waits = typed.migrate_to.as_ref().map(UnixListener::accept);
        let begun = match waits {
            None => Err(Refused::invalid("there is nowhere to go").remedy("start with --migrate SOCKET")),
            Some(Err(error)) => {
                Err(Refused::unavailable(format!("no other monitor waits for the guest: {error}"))
                    .remedy("start one with --incoming SOCKET, then try again"))
            }
            Some(Ok((socket, _))) => self.migrate(Some(socket.into()), MigrationPlan::default()),
        };
        if let Err(refused) = begun {
            eprintln!("vmm: {refused}");
        }
    }

    /// Does what a transfer asks for, and answers for it at its end.
    fn tend_transfer(&mut self) {
        let Some(ended) = self.transfer.as_mut().and_then(|transfer| transfer.tend(&mut self.machine)) else {
            return;
        };
        self.transfer = None;
        self.status.transfer = Some(ended.status);
        if let Some(detail) = ended.gone {
            let stood = self.status.transfer.as_ref().map_or(0, |transfer| transfer.stood_us / 1000);
            eprintln!("vmm: the guest goes on in another monitor; it stood still for about {stood} ms");
            self.machine.signals().end(EndReason::Migrated, detail);
        }
        match (ended.client, &ended.reply) {
            (Some(client), reply) => self.reply(client, reply),
            (None, MachineReply::Snapshot(SnapshotTaken { memory_bytes, stood_us })) => {
                let (mib, millis) = (memory_bytes >> 20, stood_us / 1000);
                eprintln!("vmm: snapshot taken: {mib} MiB of memory, the guest stood still for {millis} ms");
            }
            (None, MachineReply::Refused(refused)) => eprintln!("vmm: {refused}"),
            (
                None,
                MachineReply::Done
                | MachineReply::Status(_)
                | MachineReply::Balloon(_)
                | MachineReply::Memory(_)
                | MachineReply::Counts(_),
            ) => {}
        }
    }

    fn start_snapshot(
        &mut self,
        files: [std::fs::File; 2],
        track: bool,
        changes: bool,
        client: Option<ClientId>,
    ) -> Result<(), Refused> {
        self.no_transfer("take a snapshot")?;
        self.transfer = Some(Transfer::snapshot(&mut self.machine, files, track, changes, client)?);
        Ok(())
    }

    fn migrate(&mut self, socket: Option<OwnedFd>, plan: MigrationPlan) -> Result<(), Refused> {
        let socket = with_fd(socket)?;
        self.no_transfer("migrate the machine")?;
        let stream = Stream::new(socket).map_err(|error| {
            Refused::invalid(format!("the descriptor is no stream to migrate over: {error}"))
        })?;
        self.transfer = Some(Transfer::migration(&mut self.machine, stream, plan)?);
        Ok(())
    }

    fn take_back(&mut self) -> Result<(), Refused> {
        let back = self.transfer.as_mut().and_then(|transfer| transfer.take_back(&mut self.machine));
        let Some(ended) = back else {
            return Err(Refused::conflict("this machine is not in doubt: there is nothing to take back"));
        };
        self.transfer = None;
        self.status.transfer = Some(ended.status);
        Ok(())
    }

    /// Refuses changes that would be lost: the machine's state is on its way to another monitor.
    fn changeable(&self) -> Result<(), Refused> {
        self.transfer.as_ref().map_or(Ok(()), Transfer::changeable)
    }

    /// Ends the machine, unless that is not ours to say any more.
    fn stop(&self) -> Result<(), Refused> {
        self.transfer.as_ref().map_or(Ok(()), Transfer::may_end)?;
        self.machine.signals().end(EndReason::Stopped, "");
        Ok(())
    }

    /// Refuses what cannot be done while the machine is on its way.
    fn no_transfer(&self, what: &str) -> Result<(), Refused> {
        match &self.transfer {
            None => Ok(()),
            Some(_) => {
                let text = format!("cannot {what} while a snapshot or a migration is under way");
                Err(Refused::conflict(text).remedy("wait until it is over, or cancel it"))
            }
        }
    }

    /// Brings the status up to date, with a new sequence number when it changed.
    fn refresh(&mut self) {
        let state = if self.machine.running() { MachineState::Running } else { MachineState::Paused };
        let now = MachineStatus {
            state,
            disks: self.machine.slots.disks(),
            nics: self.machine.slots.nics(),
            backends: self.machine.slots.backends(),
            vcpus: self.machine.plugged_vcpus(),
            panicked: self.machine.signals().panicked(),
            transfer: match &self.transfer {
                Some(transfer) => Some(transfer.status()),
                None => self.status.transfer.clone(),
            },
            ..self.status.clone()
        };
        if now != self.status || now.sequence == 0 {
            self.status = MachineStatus { sequence: now.sequence + 1, ..now };
        }
    }

    fn answer_waiters(&mut self) {
        let now = Instant::now();
        for waiter in std::mem::take(&mut self.waiters) {
            if self.status.sequence > waiter.after || waiter.until <= now {
                self.reply(waiter.client, &MachineReply::Status(self.status.clone()));
            } else if self.server.as_ref().is_some_and(|server| server.connected(waiter.client)) {
                self.waiters.push(waiter);
            }
        }
    }

    fn reply(&mut self, client: ClientId, reply: &MachineReply) {
        if let Some(server) = &mut self.server {
            server.reply(client, reply);
        }
    }

    fn serve(&mut self, incoming: Incoming) {
        let Incoming { client, call, mut fds } = incoming;
        // A change by an earlier call of this round shows in a later one's status.
        self.refresh();
        let result = match call {
            MachineCall::Status { after: None, .. } => {
                return self.reply(client, &MachineReply::Status(self.status.clone()));
            }
            MachineCall::Status { after: Some(after), wait_ms } => {
                let until = Instant::now() + Duration::from_millis(wait_ms).min(LONGEST_WAIT);
                return self.waiters.push(Waiter { client, after, until });
            }
            MachineCall::Pause => {
                let later = self.transfer.as_mut().map_or(Ok(false), |transfer| transfer.wants(false));
                later.map(|later| {
                    if !later {
                        self.machine.pause();
                    }
                })
            }
            MachineCall::Resume => {
                let later = self.transfer.as_mut().map_or(Ok(false), |transfer| transfer.wants(true));
                later.map(|later| {
                    if !later {
                        self.machine.resume();
                    }
                })
            }
            MachineCall::PowerButton => self.changeable().map(|()| {
                self.machine.press_power_button();
                self.status.power_button_presses += 1;
                self.status.sequence += 1;
            }),
            MachineCall::Stop => self.stop(),
            MachineCall::PlugDisk { key, read_only, serial, block_size, limits } => {
                let queues = devices::disk_queues(self.machine.vcpus());
                let of = BlkConfig { read_only, serial, queues, block_size, limits, ..BlkConfig::default() };
                self.no_transfer("plug a disk in").and_then(|()| self.plug_disk(key, &of, fds.pop()))
            }
            MachineCall::LimitDisk { key, limits } => {
                self.changeable().and_then(|()| self.limit_disk(&key, limits))
            }
            MachineCall::UnplugDisk { key } => {
                self.no_transfer("unplug a disk").map(|()| self.unplug(self.machine.slots.disk(&key)))
            }
            MachineCall::PlugNic { port, mac, mtu, limits } => match self.machine.slots.nic(port) {
                Some(slot) => self.already(slot),
                None => self
                    .no_transfer("plug a network interface in")
                    .and_then(|()| check_nic(&limits))
                    .and_then(|()| with_fd(fds.pop()))
                    .and_then(|fd| {
                        let (role, device) =
                            devices::nic(port, vec![fd], mac, mtu, &limits).map_err(refuse)?;
                        self.machine.slots.plug(role, device, true).map(drop).map_err(refuse)
                    }),
            },
            MachineCall::LimitNic { port, limits } => {
                self.changeable().and_then(|()| self.limit_nic(port, &limits))
            }
            MachineCall::UnplugNic { port } => {
                let free = self.no_transfer("unplug a network interface");
                free.map(|()| self.unplug(self.machine.slots.nic(port)))
            }
            MachineCall::Snapshot { track, changes } => match self.snapshot(client, &mut fds, track, changes)
            {
                // Answered when it is taken.
                Ok(()) => return,
                Err(refused) => Err(refused),
            },
            MachineCall::Migrate { plan } => self.migrate(fds.pop(), plan),
            MachineCall::CancelTransfer => match &self.transfer {
                Some(transfer) if !transfer.cancel() => {
                    Err(Refused::conflict("the machine was handed over already"))
                }
                Some(_) | None => Ok(()),
            },
            MachineCall::TakeBack => self.take_back(),
            MachineCall::Balloon { target } => self.changeable().and_then(|()| self.set_balloon(target)),
            MachineCall::BalloonStatus => match self.machine.slots.balloon() {
                Some(balloon) => return self.reply(client, &MachineReply::Balloon(balloon)),
                None => Err(no_balloon()),
            },
            MachineCall::PlugVcpus { count } => self.changeable().and_then(|()| self.plug_vcpus(count)),
            MachineCall::ResizeMemory { target } => {
                self.changeable().and_then(|()| self.resize_memory(target))
            }
            MachineCall::MemoryStatus => match self.machine.slots.plugged() {
                Some(memory) => return self.reply(client, &MachineReply::Memory(memory)),
                None => Err(no_plugging()),
            },
            MachineCall::PlugBackend { device } => {
                self.no_transfer("plug a device in").and_then(|()| self.plug_backend(&device, fds.pop()))
            }
            MachineCall::ConnectBackend { device } => self.connect_backend(&device, fds.pop()),
            MachineCall::UnplugFiles { tag } => {
                let free = self.no_transfer("unplug a shared directory");
                free.map(|()| self.unplug(self.machine.slots.files(&tag)))
            }
            MachineCall::Counts => {
                return self.reply(client, &MachineReply::Counts(self.machine.slots.counts()));
            }
            MachineCall::ResizeDisk { key } => self.changeable().and_then(|()| self.resize(&key)),
        };
        let reply = match result {
            Ok(()) => MachineReply::Done,
            Err(refused) => MachineReply::Refused(refused),
        };
        self.reply(client, &reply);
    }

    fn plug_disk(&mut self, key: String, config: &BlkConfig, fd: Option<OwnedFd>) -> Result<(), Refused> {
        check_disk(&key, &config.serial, &config.limits)?;
        if let Some(slot) = self.machine.slots.disk(&key) {
            return self.already(slot);
        }
        let (role, device) = devices::disk(key, with_fd(fd)?, config).map_err(refuse)?;
        self.machine.slots.plug(role, device, true).map(drop).map_err(refuse)
    }

    fn plug_backend(&mut self, device: &BackendDevice, fd: Option<OwnedFd>) -> Result<(), Refused> {
        if let BackendDevice::Disk { key } = device {
            check_disk(key, "", &Limits::default())?;
        }
        let slots = &mut self.machine.slots;
        if let Some(slot) = slots.role(&devices::role_of(&device.name())) {
            return self.already(slot);
        }
        let signals = slots.signals();
        let notify = Arc::new(move || signals.wake());
        let (socket, memory) = (with_fd(fd)?, slots.guest_memory());
        let made = devices::backend(device, socket, &memory, self.machine.vcpus(), notify);
        let (role, device) = made.map_err(refuse)?;
        self.machine.slots.plug(role, device, true).map_err(refuse)?;
        // What another process writes is not in the log, and that process may be gone by the next snapshot: that has to be a whole one.
        if let (vm, memory, Some(log)) = self.machine.lend() {
            let _ = log.stop(&vm, &memory);
        }
        Ok(())
    }

    fn connect_backend(&self, device: &BackendName, fd: Option<OwnedFd>) -> Result<(), Refused> {
        let (role, connection) = (devices::role_of(device), with_fd(fd)?);
        let slot = self.machine.slots.role(&role);
        match slot.and_then(|slot| self.machine.slots.connect(slot, connection)) {
            Some(connected) => connected.map_err(|error| Refused::invalid(format!("the {role}: {error}"))),
            None => Err(Refused::missing(format!("this machine has no {role} with a back end"))),
        }
    }

    fn snapshot(
        &mut self,
        client: ClientId,
        fds: &mut Vec<OwnedFd>,
        track: bool,
        changes: bool,
    ) -> Result<(), Refused> {
        let (Some(memory), Some(state), None) = (fds.pop(), fds.pop(), fds.pop()) else {
            return Err(Refused::invalid("a snapshot needs two descriptors")
                .remedy("send the state file and the memory file as SCM_RIGHTS in the same packet"));
        };
        self.start_snapshot([state.into(), memory.into()], track, changes, Some(client))
    }

    /// The answer to plugging in what is there already.
    fn already(&self, slot: u8) -> Result<(), Refused> {
        if self.machine.slots.unplugging(slot) {
            return Err(Refused::conflict("the guest was asked to give this device back and has not yet")
                .remedy("wait until the status does not list it any more, then plug it in again"));
        }
        Ok(())
    }

    fn unplug(&mut self, slot: Option<u8>) {
        if let Some(slot) = slot {
            self.machine.slots.ask_back(slot);
        }
    }

    fn limit_disk(&self, key: &str, limits: Limits) -> Result<(), Refused> {
        limit::check(&limits).map_err(Refused::invalid)?;
        let slot = self.machine.slots.disk(key);
        if slot.is_some_and(|slot| self.machine.slots.set_limits(slot, [limits; 2])) {
            return Ok(());
        }
        Err(Refused::missing(format!("there is no disk '{key}' in this machine")))
    }

    fn set_balloon(&self, target: MiB) -> Result<(), Refused> {
        check_balloon(target, self.machine.slots.memory())?;
        let set = self.machine.slots.set_balloon(target.bytes().unwrap_or(u64::MAX));
        if set { Ok(()) } else { Err(no_balloon()) }
    }

    fn plug_vcpus(&self, count: u32) -> Result<(), Refused> {
        let most = self.machine.vcpus();
        if !(1..=most).contains(&count) {
            return Err(Refused::invalid(format!(
                "this machine cannot have {count} vCPUs: it has 1 to {most}"
            )));
        }
        if self.machine.plug_vcpus(count) || count == most {
            return Ok(());
        }
        Err(Refused::missing("this machine always has the vCPUs of its start")
            .remedy("start it with a most number of vCPUs (max_vcpus) above its vCPUs"))
    }

    fn resize_memory(&self, target: MiB) -> Result<(), Refused> {
        let now = self.machine.slots.plugged().ok_or_else(no_plugging)?;
        let block = memory::PLUG_BLOCK as u64;
        let (least, most) = (now.least, now.most);
        let more = target.bytes().filter(|bytes| (least..=most).contains(bytes)).map(|bytes| bytes - least);
        let Some(more) = more.filter(|more| more % block == 0) else {
            return Err(Refused::invalid(format!(
                "this machine cannot have {} MiB of memory: it has {} to {} MiB, in steps of {} MiB",
                target.0,
                least >> 20,
                most >> 20,
                block >> 20
            )));
        };
        if self.machine.slots.set_plugged(more) { Ok(()) } else { Err(no_plugging()) }
    }

    fn limit_nic(&self, port: PortId, limits: &NicLimits) -> Result<(), Refused> {
        check_nic(limits)?;
        let slot = self.machine.slots.nic(port);
        let both = [limits.to_guest, limits.from_guest];
        if slot.is_some_and(|slot| self.machine.slots.set_limits(slot, both)) {
            return Ok(());
        }
        Err(Refused::missing(format!("there is no network interface {port} in this machine")))
    }

    fn resize(&mut self, key: &str) -> Result<(), Refused> {
        let slot = self.machine.slots.disk(key);
        let result = slot.and_then(|slot| self.machine.slots.resize(slot));
        match result {
            None => Err(Refused::missing(format!("there is no disk '{key}' in this machine"))),
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(Refused::unavailable(format!("cannot look at disk '{key}': {error}"))),
        }
    }
}

/// Least memory that a balloon leaves to its guest.
const LEFT: MiB = MiB(16);

/// Checks what a caller wants of a balloon in a machine with so much memory.
///
/// # Errors
/// When too little would be left.
pub fn check_balloon(target: MiB, memory: MiB) -> Result<(), Refused> {
    if target.0.saturating_add(LEFT.0) > memory.0 {
        return Err(Refused::invalid(format!(
            "a balloon of {} MiB leaves a guest with {} MiB less than {} MiB",
            target.0, memory.0, LEFT.0
        ))
        .remedy("ask for a smaller balloon"));
    }
    Ok(())
}

fn no_plugging() -> Refused {
    Refused::missing("this machine cannot have more memory than at its start")
        .remedy("start it with a most memory (max_memory) above its memory")
}

fn no_balloon() -> Refused {
    Refused::missing("this machine has no balloon").remedy("start it with one")
}

/// Checks what a caller says about a network interface.
///
/// # Errors
/// Limits of nothing.
pub fn check_nic(limits: &NicLimits) -> Result<(), Refused> {
    limit::check(&limits.to_guest).and_then(|()| limit::check(&limits.from_guest)).map_err(Refused::invalid)
}

/// Checks what a caller says about a disk.
///
/// # Errors
/// Names that are empty or too long, limits of nothing.
pub fn check_disk(key: &str, serial: &str, limits: &Limits) -> Result<(), Refused> {
    limit::check(limits).map_err(Refused::invalid)?;
    if key.is_empty() || key.len() > LONGEST_KEY {
        return Err(Refused::invalid(format!(
            "a disk's key has 1 to {LONGEST_KEY} bytes, not {}",
            key.len()
        )));
    }
    if serial.len() > LONGEST_KEY || !serial.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Refused::invalid(format!(
            "a disk's serial has at most {LONGEST_KEY} printable ASCII characters, of which the guest sees the first 20"
        )));
    }
    Ok(())
}

fn with_fd(fd: Option<OwnedFd>) -> Result<OwnedFd, Refused> {
    fd.ok_or_else(|| {
        Refused::invalid("no descriptor came along").remedy("send it as SCM_RIGHTS in the same packet")
    })
}

fn refuse(error: PlugError) -> Refused {
    let text = error.to_string();
    match error {
        PlugError::Exists(_) => Refused::conflict(text),
        PlugError::Full => Refused::no_space(text),
        PlugError::Host { .. } => Refused::unavailable(text),
    }
}
