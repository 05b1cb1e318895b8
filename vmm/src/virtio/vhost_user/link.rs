//! One connection to a back end: what is said over it, and what is believed of the answers.
//!
//! Every call here may block for as long as the back end likes: [`super::peer`] runs them in a thread of its own and cuts the
//! connection when they take too long.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::kind::Kind;
use crate::virtio::{Interrupt, Memory, QueueProgress};

/// `VHOST_USER_F_PROTOCOL_FEATURES`: never the guest's.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Where guest memory begins in the number space that addresses are told to back ends in: the monitor's own addresses are none of
/// their business.
const TOLD_BASE: u64 = 1 << 44;

/// How long requests that a back end has taken may take to be done once it was asked to stop.
pub const DRAIN: Duration = Duration::from_secs(2);

/// Why a back end is of no use.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It went away, said nonsense, or did not answer in time.
    #[error("cannot {what}: {source}")]
    Spoke {
        /// What was asked of it.
        what: &'static str,
        /// What came of it.
        source: vhost::Error,
    },
    /// It cannot do what is needed.
    #[error("{0}")]
    Lacks(String),
    /// It says what cannot be true.
    #[error("it says that queue {queue} is at {base}, where it cannot be")]
    Base {
        /// Which queue.
        queue: u16,
        /// Its word.
        base: u32,
    },
    /// It goes on with requests after it was asked to stop.
    #[error("it does not finish what it has taken from queue {0}")]
    Busy(u16),
    /// Its process has no way to the guest's memory.
    #[error("the guest's memory is not shared: start the machine with shared memory")]
    Private,
    /// The host has no more descriptors.
    #[error("cannot copy a descriptor: {0}")]
    Descriptor(std::io::Error),
}

fn spoke(what: &'static str) -> impl Fn(vhost::Error) -> LinkError {
    move |source| LinkError::Spoke { what, source }
}

/// What a back end offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Features that a guest may use: those of the back end that the monitor knows too.
    pub features: u64,
    /// Queues.
    pub queues: u16,
    /// Its configuration space, when the kind of device has one that the back end knows.
    pub space: Vec<u8>,
}

/// One queue of a device.
pub struct Ring {
    /// Which.
    pub index: u16,
    /// Where it is and how far.
    pub queue: Queue,
    /// The driver's kick, which KVM writes. Only the back end's thread may, too, by [`Ring::kick`].
    pub kick: EventFd,
    /// The driver's interrupt, which KVM reads. The back end's to write: [`Rings::interrupt`] is for others.
    pub call: EventFd,
}

/// The queues of a device that its driver uses.
pub struct Rings {
    /// Guest memory.
    pub memory: Arc<Memory>,
    /// Features that the driver chose.
    pub features: u64,
    /// Those that it set up.
    pub rings: Vec<Ring>,
    /// Interrupts from the monitor itself.
    pub interrupt: Arc<dyn Interrupt>,
}

impl Ring {
    /// Tells the back end to look at the queue. This may block for as long as a back end likes that has filled the event, which cutting
    /// the connection does not end.
    pub fn kick(&self) {
        let _ = self.kick.write(1);
    }

    fn index_at(&self, memory: &Memory, ring: u64) -> u16 {
        // Flags, then the index.
        let at = ring.checked_add(2).map(GuestAddress);
        at.and_then(|at| memory.load::<u16>(at, Ordering::Acquire).ok()).map_or(0, u16::from_le)
    }

    /// How many requests the device has done, as the guest sees it.
    pub fn used(&self, memory: &Memory) -> u16 {
        self.index_at(memory, self.queue.used_ring())
    }

    /// How many requests the driver has made.
    pub fn available(&self, memory: &Memory) -> u16 {
        self.index_at(memory, self.queue.avail_ring())
    }
}

impl Rings {
    /// How far each queue is when nothing is under way.
    pub fn progress(&self) -> Vec<QueueProgress> {
        let progress = |ring: &Ring| {
            let used = ring.used(&self.memory);
            QueueProgress { queue: ring.index, next_avail: used, next_used: used }
        };
        self.rings.iter().map(progress).collect()
    }

    /// Whether the driver waits for requests, as far as the rings tell.
    pub fn waiting(&self) -> bool {
        self.rings.iter().any(|ring| ring.used(&self.memory) != ring.available(&self.memory))
    }
}

/// Requests under way, in memory that the back end made and its successor gets.
pub struct Inflight {
    layout: VhostUserInflight,
    memory: std::fs::File,
}

/// A connection to a back end that has said what it offers.
pub struct Link {
    frontend: Frontend,
    protocol: VhostUserProtocolFeatures,
    /// It knows of protocol features.
    extended: bool,
}

impl Link {
    /// Asks a back end what it offers.
    ///
    /// # Errors
    /// It is of no use for this kind of device.
    pub fn open(stream: UnixStream, kind: &Kind) -> Result<(Self, Offer), LinkError> {
        let mut frontend = Frontend::from_stream(stream, kind.most_queues().into());
        let offered = frontend.get_features().map_err(spoke("ask for its features"))?;
        let extended = offered & PROTOCOL_FEATURES != 0;
        let mut protocol = VhostUserProtocolFeatures::empty();
        let mut queues = kind.most_queues();
        if extended {
            protocol = frontend.get_protocol_features().map_err(spoke("ask for its protocol features"))?;
            protocol &= kind.protocol();
            frontend.set_protocol_features(protocol).map_err(spoke("choose protocol features"))?;
            if protocol.contains(VhostUserProtocolFeatures::MQ) {
                let most = frontend.get_queue_num().map_err(spoke("ask for its number of queues"))?;
                queues = queues.min(u16::try_from(most).unwrap_or(u16::MAX));
            } else {
                queues = queues.min(kind.least_queues());
            }
            if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
                // From now on each request is answered, and a failed one is known at once.
                frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            }
        } else {
            queues = queues.min(kind.least_queues());
        }
        frontend.set_owner().map_err(spoke("become its owner"))?;
        let mut link = Self { frontend, protocol, extended };
        let space = link.space(kind)?;
        let features = kind.known_features(offered)?;
        let queues = kind.queues(features, queues, &space)?;
        Ok((link, Offer { features, queues, space }))
    }

    /// Whether the back end's successor can be told what was under way.
    pub fn tracks(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    }

    /// The configuration space, empty for a kind of device that has none there.
    ///
    /// # Errors
    /// It has none, or cannot tell.
    pub fn space(&mut self, kind: &Kind) -> Result<Vec<u8>, LinkError> {
        let length = kind.space_length();
        if length == 0 {
            return Ok(Vec::new());
        }
        if !self.protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            return Err(LinkError::Lacks(
                "it does not tell the device's configuration (VHOST_USER_PROTOCOL_F_CONFIG)".into(),
            ));
        }
        let size = u32::try_from(length).unwrap_or(0);
        let empty = vec![0; length];
        let told = self.frontend.get_config(0, size, VhostUserConfigFlags::WRITABLE, &empty);
        told.map(|(_, space)| space).map_err(spoke("ask for the device's configuration"))
    }

    /// Lets the back end work the queues from where they are.
    ///
    /// # Errors
    /// The back end is of no use any more; it may have started some of them.
    pub fn start(&mut self, rings: &Rings, inflight: &mut Option<Inflight>) -> Result<(), LinkError> {
        let chosen = rings.features | if self.extended { PROTOCOL_FEATURES } else { 0 };
        self.frontend.set_features(chosen).map_err(spoke("choose features"))?;
        if self.tracks() {
            self.share_inflight(rings, inflight)?;
        }
        let table = table(&rings.memory)?;
        self.frontend.set_mem_table(&table).map_err(spoke("share the guest's memory"))?;
        for ring in &rings.rings {
            let index = usize::from(ring.index);
            let size = ring.queue.size();
            let told = |address: u64| address.saturating_add(TOLD_BASE);
            let config = VringConfigData {
                queue_max_size: ring.queue.max_size(),
                queue_size: size,
                flags: 0,
                desc_table_addr: told(ring.queue.desc_table()),
                used_ring_addr: told(ring.queue.used_ring()),
                avail_ring_addr: told(ring.queue.avail_ring()),
                log_addr: None,
            };
            let refused = spoke("set up a queue");
            self.frontend.set_vring_num(index, size).map_err(&refused)?;
            self.frontend.set_vring_base(index, ring.queue.next_avail()).map_err(&refused)?;
            self.frontend.set_vring_addr(index, &config).map_err(&refused)?;
            self.frontend.set_vring_call(index, &ring.call).map_err(&refused)?;
            self.frontend.set_vring_kick(index, &ring.kick).map_err(&refused)?;
        }
        if self.extended {
            for ring in &rings.rings {
                let index = usize::from(ring.index);
                self.frontend.set_vring_enable(index, true).map_err(spoke("enable a queue"))?;
            }
        }
        for ring in &rings.rings {
            // Kicks may have gone to nobody, and so may interrupts: one too many of either is harmless.
            ring.kick();
            rings.interrupt.queue(ring.index);
        }
        Ok(())
    }

    fn share_inflight(&mut self, rings: &Rings, inflight: &mut Option<Inflight>) -> Result<(), LinkError> {
        if inflight.is_none() {
            let queues = rings.rings.iter().map(|ring| ring.index.saturating_add(1)).max().unwrap_or(1);
            let size = rings.rings.iter().map(|ring| ring.queue.size()).max().unwrap_or(1);
            let wanted = VhostUserInflight::new(0, 0, queues, size);
            let (layout, memory) =
                self.frontend.get_inflight_fd(&wanted).map_err(spoke("get memory for requests under way"))?;
            let layout = VhostUserInflight { num_queues: queues, queue_size: size, ..layout };
            *inflight = Some(Inflight { layout, memory });
        }
        if let Some(Inflight { layout, memory }) = inflight {
            let shared = self.frontend.set_inflight_fd(layout, memory.as_raw_fd());
            shared.map_err(spoke("hand over the requests under way"))?;
        }
        Ok(())
    }

    /// Interrupts come by other events from now on.
    ///
    /// # Errors
    /// The back end is of no use any more.
    pub fn rewire(&mut self, rings: &Rings) -> Result<(), LinkError> {
        for ring in &rings.rings {
            let told = self.frontend.set_vring_call(usize::from(ring.index), &ring.call);
            told.map_err(spoke("change an interrupt"))?;
            rings.interrupt.queue(ring.index);
        }
        Ok(())
    }

    /// Makes the back end stop, and waits until all that it has taken is done; the queues then say where to go on.
    ///
    /// # Errors
    /// The back end is of no use any more, and may go on with what it has.
    pub fn stop(&mut self, rings: &mut Rings) -> Result<(), LinkError> {
        let memory = Arc::clone(&rings.memory);
        let deadline = Instant::now() + DRAIN;
        for ring in &mut rings.rings {
            let asked = self.frontend.get_vring_base(usize::from(ring.index));
            let base = asked.map_err(spoke("stop a queue"))?;
            let (used, available) = (ring.used(&memory), ring.available(&memory));
            let possible = |base: &u16| base.wrapping_sub(used) <= available.wrapping_sub(used);
            let Some(base) = u16::try_from(base).ok().filter(possible) else {
                return Err(LinkError::Base { queue: ring.index, base });
            };
            while ring.used(&memory) != base {
                if Instant::now() >= deadline {
                    return Err(LinkError::Busy(ring.index));
                }
                let _ = poll(&mut [], PollTimeout::from(1_u8));
            }
            ring.queue.set_next_avail(base);
            ring.queue.set_next_used(base);
        }
        Ok(())
    }

    /// Makes the back end forget what the driver chose.
    ///
    /// # Errors
    /// The back end is of no use any more.
    pub fn reset(&mut self) -> Result<(), LinkError> {
        if self.protocol.contains(VhostUserProtocolFeatures::RESET_DEVICE) {
            self.frontend.reset_device().map_err(spoke("reset the device"))?;
        }
        Ok(())
    }

    /// What is readable when the back end goes away, or speaks unasked, which it must not.
    pub fn line(&self) -> BorrowedFd<'_> {
        // SAFETY: the frontend owns the descriptor, and the answer borrows it.
        unsafe { BorrowedFd::borrow_raw(self.frontend.as_raw_fd()) }
    }
}

/// Guest memory as it is told to a back end.
fn table(memory: &Memory) -> Result<Vec<VhostUserMemoryRegionInfo>, LinkError> {
    let region = |region: &<Memory as GuestMemoryBackend>::R| {
        let file = region.file_offset().ok_or(LinkError::Private)?;
        Ok(VhostUserMemoryRegionInfo {
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.start_addr().0.saturating_add(TOLD_BASE),
            mmap_offset: file.start(),
            mmap_handle: file.file().as_raw_fd(),
        })
    };
    memory.iter().map(region).collect()
}

/// Whether other processes can be given this memory.
#[must_use]
pub fn is_shared(memory: &Memory) -> bool {
    table(memory).is_ok()
}
