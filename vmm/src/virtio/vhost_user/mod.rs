//! Devices whose queues another process works (vhost-user): disks, network interfaces and shared directories.
//!
//! The monitor only introduces the two: it tells the back end where guest memory and the queues are, and hands it the events that KVM
//! turns notifications and interrupts into. After that it is out of the way of data. The back end can read and write all of the guest's
//! memory, so it is to be trusted with the guest, and with nothing else: the monitor believes none of its words, waits for none of its
//! answers longer than [`peer::ANSWER`], and lives when it dies.
//!
//! What is told over a connection is in [`link`], who speaks it and when in [`peer`], and what the kinds of devices are in [`kind`].

pub mod kind;
pub mod link;
pub mod peer;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;
use wire::machine::BackendState;

use self::kind::{Kind, QUEUE_SIZE, sectors};
use self::link::{Ring, Rings};
use self::peer::{Notify, Peer};
use super::worker::Confine;
use super::{
    ActivateError, Activation, DeviceState, Interrupt, QueueProgress, RestoreError, VirtioDevice, read_space,
};

/// A device that another process works.
pub struct VhostUser {
    kind: Kind,
    peer: Peer,
    features: u64,
    sizes: Vec<u16>,
    /// The configuration space as the back end told it.
    told: Vec<u8>,
    interrupt: Option<Arc<dyn Interrupt>>,
    /// The queues that were started.
    started: Vec<u16>,
}

/// What the driver knows of such a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VhostUserState {
    /// Virtio device id.
    pub device_type: u16,
    /// The configuration space as the back end told it.
    pub told: Vec<u8>,
}

impl VhostUser {
    /// A device of a connection to its back end, which is asked at once what it offers. `name` is for messages, `notify` is called
    /// when a back end comes or goes, and `confine` as [`super::worker::Worker::new`] says.
    ///
    /// # Errors
    /// The back end does not answer within [`peer::ANSWER`], or is of no use.
    pub fn new(
        name: String,
        kind: Kind,
        stream: UnixStream,
        notify: Notify,
        confine: Confine,
    ) -> io::Result<Self> {
        let (peer, offer) = Peer::open(name, stream, kind.clone(), notify, confine)?;
        let sizes = vec![QUEUE_SIZE; offer.queues.into()];
        let (features, told) = (offer.features, offer.space);
        Ok(Self { kind, peer, features, sizes, told, interrupt: None, started: Vec::new() })
    }

    fn space(&self) -> Vec<u8> {
        let queues = u16::try_from(self.sizes.len()).unwrap_or(u16::MAX);
        self.kind.space(&self.told, queues, self.peer.state() == BackendState::Connected)
    }
}

/// The event by which a queue's interrupts come.
fn call(interrupt: &Arc<dyn Interrupt>, index: u16) -> Result<EventFd, ActivateError> {
    interrupt.event(index).map_err(|source| ActivateError::Host { what: "copy an event", source })
}

impl VirtioDevice for VhostUser {
    fn device_type(&self) -> u16 {
        self.kind.device_type()
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.space(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, queues, interrupt, features } = activation;
        let mut rings = Vec::with_capacity(queues.len());
        for active in queues.into_iter().filter(|active| active.queue.ready()) {
            let call = call(&interrupt, active.index)?;
            rings.push(Ring { index: active.index, queue: active.queue, kick: active.kick, call });
        }
        if rings.is_empty() {
            return Err(ActivateError::Driver("no queue is set up".to_owned()));
        }
        self.started = rings.iter().map(|ring| ring.index).collect();
        self.interrupt = Some(Arc::clone(&interrupt));
        self.peer.start(Rings { memory, features, rings, interrupt });
        Ok(())
    }

    fn reset(&mut self) {
        self.peer.stop();
        self.interrupt = None;
        self.started.clear();
    }

    fn pause(&mut self) -> Vec<QueueProgress> {
        self.peer.pause()
    }

    fn resume(&mut self) {
        self.peer.resume();
    }

    fn rewire(&mut self) {
        if let Some(interrupt) = &self.interrupt {
            let calls = self.started.iter().map(|index| call(interrupt, *index));
            if let Ok(calls) = calls.collect::<Result<Vec<_>, _>>() {
                self.peer.rewire(calls);
            }
        }
    }

    fn kick(&self, queue: u16) -> bool {
        self.peer.kick(queue);
        true
    }

    fn refresh_size(&mut self) -> io::Result<Option<u64>> {
        if !matches!(self.kind, Kind::Disk { .. }) {
            return Ok(None);
        }
        let told = self.peer.space()?;
        if sectors(&told) != sectors(&self.told)
            && let Some(interrupt) = &self.interrupt
        {
            interrupt.config();
        }
        self.told = told;
        Ok(Some(sectors(&self.told).saturating_mul(512)))
    }

    fn connect(&mut self, connection: std::os::fd::OwnedFd) -> Option<io::Result<()>> {
        Some(peer::stream(connection).and_then(|stream| self.peer.connect(stream)))
    }

    fn backend(&self) -> Option<BackendState> {
        Some(self.peer.state())
    }

    fn unsaved(&self, track: bool) -> Option<&'static str> {
        if let Kind::Files { .. } = self.kind {
            return Some("its back end knows which files are open, and does not tell");
        }
        if track {
            return Some("what its back end writes is not tracked");
        }
        (self.peer.state() != BackendState::Connected).then_some("its back end is gone")
    }

    fn save(&self) -> DeviceState {
        DeviceState::VhostUser(VhostUserState { device_type: self.device_type(), told: self.told.clone() })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::VhostUser(state) = state else {
            return Err(state.is_not("a device of a back end"));
        };
        if state.device_type != self.device_type() || state.told.len() != self.told.len() {
            return Err(RestoreError::Damaged("it is of another kind of back end".into()));
        }
        if matches!(self.kind, Kind::Disk { .. }) && sectors(&state.told) > sectors(&self.told) {
            return Err(RestoreError::Host("the disk of the back end is smaller than it was".into()));
        }
        self.told.clone_from(&state.told);
        Ok(())
    }
}
