//! A back end in small: the other side of vhost-user, with a disk in memory or a network that sends everything back.

use nix::cmsg_space;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

type Memory = GuestMemoryMmap<()>;
/// Address and length of a piece of a chain.
type Piece = (GuestAddress, u32);

/// What it works.
#[derive(Clone)]
pub enum Device {
    /// A disk.
    Disk(Arc<Mutex<Vec<u8>>>),
    /// Packets come back.
    Echo,
}

/// How it behaves.
#[derive(Clone)]
pub struct Behaviour {
    pub device: Device,
    /// Dies when it has taken so many requests, with those that it took last not done.
    pub dies_after: Option<u32>,
    /// Keeps track of what is under way for its successor.
    pub tracks: bool,
}

#[derive(Default)]
struct Vring {
    size: u16,
    base: u16,
    areas: [u64; 3],
    queue: Option<Queue>,
    kick: Option<File>,
    call: Option<File>,
}

struct Backend {
    line: UnixStream,
    how: Behaviour,
    taken: u32,
    regions: Vec<[u64; 4]>,
    memory: Option<Memory>,
    rings: Vec<Vring>,
    /// A byte for each head of each queue: it is under way.
    inflight: Option<File>,
}

/// Works a device for as long as the connection stands; in a thread of its own.
pub fn start(line: UnixStream, how: Behaviour) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let rings = (0..2).map(|_| Vring::default()).collect();
        let mut backend =
            Backend { line, how, taken: 0, regions: Vec::new(), memory: None, rings, inflight: None };
        while backend.turn().is_some() {}
    })
}

const INFLIGHT: u64 = 4096;

fn word(body: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(body[at..at + 8].try_into().unwrap())
}

fn half(body: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(body[at..at + 4].try_into().unwrap())
}

impl Backend {
    fn turn(&mut self) -> Option<()> {
        let mut fds = vec![PollFd::new(self.line.as_fd(), PollFlags::POLLIN)];
        for kick in self.rings.iter().filter_map(|ring| ring.kick.as_ref()) {
            fds.push(PollFd::new(kick.as_fd(), PollFlags::POLLIN));
        }
        poll(&mut fds, PollTimeout::NONE).ok()?;
        if fds[0].any()? {
            self.message()?;
        }
        for index in 0..self.rings.len() {
            self.work(index)?;
        }
        Some(())
    }

    fn message(&mut self) -> Option<()> {
        let mut header = [0u8; 12];
        let mut space = cmsg_space!([RawFd; 16]);
        let mut fds = Vec::new();
        let length = {
            let mut parts = [IoSliceMut::new(&mut header)];
            let message =
                recvmsg::<()>(self.line.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).ok()?;
            for control in message.cmsgs().unwrap() {
                if let ControlMessageOwned::ScmRights(raw) = control {
                    // SAFETY: the kernel just made these for us.
                    fds.extend(raw.into_iter().map(|fd| unsafe { File::from_raw_fd(fd) }));
                }
            }
            message.bytes
        };
        if length == 0 {
            return None;
        }
        assert_eq!(length, 12);
        let (request, flags, size) = (half(&header, 0), half(&header, 4), half(&header, 8));
        let mut body = vec![0u8; usize::try_from(size).unwrap()];
        self.line.read_exact(&mut body).ok()?;
        let (mut reply, mut sent) = (None, None);
        match request {
            // Version 1, indirect descriptors, protocol features.
            1 => reply = Some(((1u64 << 32) | (1 << 28) | (1 << 30)).to_le_bytes().to_vec()),
            // Multiqueue, acknowledgements, configuration, requests under way.
            15 => {
                let all = 1 | (1 << 3) | (1 << 9) | if self.how.tracks { 1u64 << 12 } else { 0 };
                reply = Some(all.to_le_bytes().to_vec());
            }
            17 => reply = Some(2u64.to_le_bytes().to_vec()),
            5 => self.map(&body, fds),
            8..=10 => {
                let index = usize::try_from(half(&body, 0)).unwrap();
                let value = half(&body, 4);
                let ring = &mut self.rings[index];
                match request {
                    8 => ring.size = u16::try_from(value).unwrap(),
                    10 => ring.base = u16::try_from(value).unwrap(),
                    _ => {
                        let [descriptors, used, available] = [8, 16, 24].map(|at| word(&body, at));
                        let areas = [descriptors, available, used].map(|address| self.told(address));
                        self.rings[index].areas = areas;
                    }
                }
            }
            11 => {
                let ring = &mut self.rings[usize::try_from(half(&body, 0)).unwrap()];
                let next = ring.queue.take().map_or(ring.base, |queue| queue.next_avail());
                ring.kick = None;
                body[4..8].copy_from_slice(&u32::from(next).to_le_bytes());
                reply = Some(body);
            }
            12 => self.rings[usize::from(body[0])].kick = fds.pop(),
            13 => self.rings[usize::from(body[0])].call = fds.pop(),
            18 if half(&body, 4) == 1 => self.enable(usize::try_from(half(&body, 0)).unwrap()),
            24 => {
                if let Device::Disk(disk) = &self.how.device {
                    let sectors = disk.lock().unwrap().len() as u64 / 512;
                    body[12..20].copy_from_slice(&sectors.to_le_bytes());
                }
                reply = Some(body);
            }
            31 => {
                let memory = memfd_create(c"inflight", MFdFlags::empty()).unwrap();
                File::from(memory.try_clone().unwrap()).set_len(INFLIGHT).unwrap();
                body[..8].copy_from_slice(&INFLIGHT.to_le_bytes());
                (reply, sent) = (Some(body), Some(memory));
            }
            32 => self.inflight = fds.pop(),
            2 | 3 | 16 | 18 => {}
            other => panic!("the front end asks for {other}"),
        }
        if reply.is_none() && flags & 8 != 0 {
            reply = Some(vec![0; 8]);
        }
        if let Some(reply) = reply {
            self.reply(request, &reply, sent)?;
        }
        Some(())
    }

    fn reply(&mut self, request: u32, body: &[u8], fd: Option<OwnedFd>) -> Option<()> {
        let mut bytes = request.to_le_bytes().to_vec();
        bytes.extend(5u32.to_le_bytes());
        bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
        bytes.extend(body);
        match fd {
            None => self.line.write_all(&bytes).ok(),
            Some(fd) => {
                let fds = [fd.as_raw_fd()];
                let control = [ControlMessage::ScmRights(&fds)];
                let parts = [IoSlice::new(&bytes)];
                let line = self.line.as_raw_fd();
                sendmsg::<()>(line, &parts, &control, MsgFlags::MSG_NOSIGNAL, None).ok().map(drop)
            }
        }
    }

    fn map(&mut self, body: &[u8], fds: Vec<File>) {
        let entry = |index: usize| [0, 8, 16, 24].map(|at| word(body, 8 + index * 32 + at));
        self.regions = (0..fds.len()).map(entry).collect();
        let ranges = self.regions.iter().zip(fds).map(|(region, file)| {
            let [guest, size, _, offset] = *region;
            (GuestAddress(guest), usize::try_from(size).unwrap(), Some(FileOffset::new(file, offset)))
        });
        self.memory = Some(Memory::from_ranges_with_files(ranges).unwrap());
    }

    /// Guest address of an address as the front end tells them.
    fn told(&self, address: u64) -> u64 {
        let within = |region: &&[u64; 4]| address >= region[2] && address - region[2] < region[1];
        let [guest, _, told, _] = self.regions.iter().find(within).expect("an address in guest memory");
        address - told + guest
    }

    fn enable(&mut self, index: usize) {
        let [descriptors, available, used] = self.rings[index].areas.map(GuestAddress);
        let ring = &self.rings[index];
        let mut queue = Queue::new(1024).unwrap();
        queue.set_size(ring.size);
        queue.try_set_desc_table_address(descriptors).unwrap();
        queue.try_set_avail_ring_address(available).unwrap();
        queue.try_set_used_ring_address(used).unwrap();
        queue.set_ready(true);
        queue.set_next_used(ring.base);
        let left: Vec<u16> = (0..ring.size).filter(|head| self.is_under_way(index, *head)).collect();
        queue.set_next_avail(ring.base.wrapping_add(u16::try_from(left.len()).unwrap()));
        self.rings[index].queue = Some(queue);
        for head in left {
            self.serve(index, head);
        }
    }

    fn place(index: usize, head: u16) -> u64 {
        index as u64 * 256 + u64::from(head)
    }

    fn is_under_way(&self, index: usize, head: u16) -> bool {
        let mut byte = [0];
        self.inflight.as_ref().is_some_and(|file| file.read_at(&mut byte, Self::place(index, head)).is_ok())
            && byte[0] == 1
    }

    fn mark(&self, index: usize, head: u16, under_way: bool) {
        if let Some(file) = &self.inflight {
            file.write_at(&[u8::from(under_way)], Self::place(index, head)).unwrap();
        }
    }

    /// Takes all requests and does them, last first. `None` when it dies.
    fn work(&mut self, index: usize) -> Option<()> {
        let ring = &mut self.rings[index];
        let mut count = [0u8; 8];
        if let Some(kick) = &mut ring.kick {
            // It is not blocking.
            let _ = kick.read(&mut count);
        }
        let (Some(memory), Some(queue)) = (&self.memory, &mut ring.queue) else { return Some(()) };
        if let (Device::Echo, 0) = (&self.how.device, index) {
            return Some(());
        }
        let heads: Vec<u16> = queue.iter(memory).unwrap().map(|chain| chain.head_index()).collect();
        for head in &heads {
            self.mark(index, *head, true);
            self.taken += 1;
            if self.how.dies_after.is_some_and(|most| self.taken >= most) {
                return None;
            }
        }
        for head in heads.into_iter().rev() {
            self.serve(index, head);
        }
        Some(())
    }

    fn serve(&mut self, index: usize, head: u16) {
        let (Some(memory), Some(queue)) = (&self.memory, &self.rings[index].queue) else { return };
        let chain = chain(memory, queue.desc_table(), head);
        let written = match self.how.device.clone() {
            Device::Disk(disk) => request(memory, &chain, &mut disk.lock().unwrap()),
            Device::Echo => {
                let packet: Vec<u8> = chain.into_iter().flat_map(|piece| read(memory, piece)).collect();
                self.give_back(&packet);
                0
            }
        };
        let memory = self.memory.as_ref().unwrap();
        let ring = &mut self.rings[index];
        ring.queue.as_mut().unwrap().add_used(memory, head, written).unwrap();
        self.mark(index, head, false);
        self.interrupt(index);
    }

    /// Puts a packet into the first buffer of the other queue.
    fn give_back(&mut self, packet: &[u8]) {
        let memory = self.memory.as_ref().unwrap();
        let queue = self.rings[0].queue.as_mut().unwrap();
        let Some(chain) = queue.iter(memory).unwrap().next() else { return };
        let head = chain.head_index();
        let piece = chain.writable().next().unwrap();
        memory.write_slice(packet, piece.addr()).unwrap();
        queue.add_used(memory, head, u32::try_from(packet.len()).unwrap()).unwrap();
        self.interrupt(0);
    }

    fn interrupt(&mut self, index: usize) {
        if let Some(call) = &mut self.rings[index].call {
            call.write_all(&1u64.to_ne_bytes()).unwrap();
        }
    }
}

/// The pieces of the chain that starts at a head.
fn chain(memory: &Memory, table: u64, mut head: u16) -> Vec<Piece> {
    let mut pieces = Vec::new();
    loop {
        let descriptor: [u8; 16] = memory.read_obj(GuestAddress(table + u64::from(head) * 16)).unwrap();
        pieces.push((GuestAddress(word(&descriptor, 0)), half(&descriptor, 8)));
        if descriptor[12] & 1 == 0 {
            return pieces;
        }
        head = u16::from_le_bytes([descriptor[14], descriptor[15]]);
    }
}

fn read(memory: &Memory, (address, length): Piece) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    memory.read_slice(&mut bytes, address).unwrap();
    bytes
}

/// Does a disk's request; answers how much it wrote.
fn request(memory: &Memory, pieces: &[Piece], disk: &mut [u8]) -> u32 {
    let [header, data, (status, 1)] = *pieces else { panic!("{pieces:?}") };
    let header = read(memory, header);
    let at = usize::try_from(word(&header, 8) * 512).unwrap();
    let range = at..at + usize::try_from(data.1).unwrap();
    let mut written = 1;
    if half(&header, 0) == 1 {
        disk[range].copy_from_slice(&read(memory, data));
    } else {
        memory.write_slice(&disk[range], data.0).unwrap();
        written += data.1;
    }
    memory.write_slice(&[0], status).unwrap();
    written
}
