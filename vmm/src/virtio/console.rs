//! virtio-console (virtio 1.2, section 5.3): one port, faster than the serial port and without a register for each byte.
//!
//! What the guest prints goes to a writer (a bounded log of its own, see [`crate::console`]); what it is to read comes from a
//! descriptor, if there is one.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::chain::{Segments, collect};
use super::vring::Vring;
use super::worker::{Confine, Engine, Ready, Turn, Worker, borrow};
use super::{ActivateError, Activation, DeviceState, QueueProgress, RestoreError, VirtioDevice, bits};

/// Size of each queue.
pub const QUEUE_SIZE: u16 = 64;

/// Chains of each queue moved before looking at orders again.
const BUDGET: usize = 32;

/// Most bytes printed by one chain: what is beyond is dropped.
const MOST: usize = 64 << 10;

/// Where the guest's words go.
pub type Output = Box<dyn Write + Send>;

/// A console.
pub struct Console {
    worker: Worker,
}

impl Console {
    /// A console that prints to `output`, which must not block for long, and reads from `input`; see [`Worker::new`] for `confine`.
    #[must_use]
    pub fn new(output: Output, input: Option<OwnedFd>, confine: Confine) -> Self {
        Self { worker: Worker::new("console", move || ConsoleEngine::new(output, input), confine) }
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u16 {
        u16::try_from(VIRTIO_ID_CONSOLE).unwrap_or(3)
    }

    fn queue_sizes(&self) -> &[u16] {
        // To the guest, from the guest.
        &[QUEUE_SIZE; 2]
    }

    fn features(&self) -> u64 {
        bits(&[VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC])
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.worker.start(activation)
    }

    fn reset(&mut self) {
        self.worker.stop();
    }

    fn pause(&mut self) -> Vec<QueueProgress> {
        self.worker.pause()
    }

    fn resume(&mut self) {
        self.worker.resume();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Console
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        if *state == DeviceState::Console { Ok(()) } else { Err(state.is_not("a console")) }
    }
}

struct Active {
    receive: Vring,
    send: Vring,
    /// The driver has no buffer for input; its kick brings us back.
    starved: bool,
}

/// The data path.
pub struct ConsoleEngine {
    output: Output,
    /// Non-blocking; gone once it ended.
    input: Option<std::fs::File>,
    active: Option<Active>,
}

impl ConsoleEngine {
    /// An idle engine.
    ///
    /// # Errors
    /// When the input cannot be made non-blocking.
    pub fn new(output: Output, input: Option<OwnedFd>) -> io::Result<Self> {
        if let Some(input) = &input {
            let flags = OFlag::from_bits_retain(fcntl(input.as_fd(), FcntlArg::F_GETFL)?);
            fcntl(input.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        Ok(Self { output, input: input.map(Into::into), active: None })
    }

    /// Prints what the guest has. Answers whether there may be more.
    fn print(&mut self, active: &mut Active) -> bool {
        let memory = Arc::clone(active.send.memory());
        let mut readable = Segments::new(Arc::clone(&memory));
        let mut writable = Segments::new(Arc::clone(&memory));
        for _ in 0..BUDGET {
            let Some(chain) = active.send.pop(&memory) else {
                if active.send.want_kicks() {
                    continue;
                }
                return false;
            };
            let head = chain.head_index();
            readable.clear();
            writable.clear();
            if collect(chain, &mut readable, &mut writable).is_ok() {
                let mut bytes = vec![0; readable.len().min(MOST)];
                readable.take(&mut bytes);
                // A console that cannot be written must not stop the guest.
                let _ = self.output.write_all(&bytes);
            }
            active.send.give(head, 0);
        }
        true
    }

    /// Gives the guest what it is to read. Answers whether there may be more.
    fn read(&mut self, active: &mut Active) -> bool {
        let memory = Arc::clone(active.receive.memory());
        let mut readable = Segments::new(Arc::clone(&memory));
        let mut writable = Segments::new(Arc::clone(&memory));
        active.starved = false;
        for _ in 0..BUDGET {
            let Some(input) = &mut self.input else { return false };
            let Some(chain) = active.receive.pop(&memory) else {
                if active.receive.want_kicks() {
                    continue;
                }
                active.starved = true;
                return false;
            };
            let head = chain.head_index();
            readable.clear();
            writable.clear();
            if collect(chain, &mut readable, &mut writable).is_err() || writable.is_empty() {
                active.receive.give(head, 0);
                continue;
            }
            let mut bytes = vec![0; writable.len().min(4096)];
            match input.read(&mut bytes) {
                Ok(count) if count > 0 => {
                    let put = writable.put(bytes.get(..count).unwrap_or_default());
                    active.receive.give(head, u32::try_from(put).unwrap_or(0));
                }
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
                {
                    active.receive.unpop(1);
                    return false;
                }
                Ok(_) | Err(_) => {
                    active.receive.unpop(1);
                    self.input = None;
                    return false;
                }
            }
        }
        true
    }
}

impl Engine for ConsoleEngine {
    fn start(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let (memory, interrupt, features) = (&activation.memory, &activation.interrupt, activation.features);
        let mut queues = activation.queues.into_iter();
        let (Some(receive), Some(send), None) = (queues.next(), queues.next(), queues.next()) else {
            return Err(ActivateError::Driver("a console has two queues".to_owned()));
        };
        let receive = Vring::new("virtio-console", receive, memory, interrupt, features)?;
        let send = Vring::new("virtio-console", send, memory, interrupt, features)?;
        self.active = Some(Active { receive, send, starved: false });
        Ok(())
    }

    fn quiesce(&mut self) {}

    fn stop(&mut self) {
        self.active = None;
        let _ = self.output.flush();
    }

    fn progress(&self) -> Vec<QueueProgress> {
        self.active.iter().flat_map(|active| [active.receive.progress(), active.send.progress()]).collect()
    }

    fn sources<'a>(&'a self, into: &mut Vec<(BorrowedFd<'a>, PollFlags)>) {
        let Some(active) = &self.active else { return };
        into.push((borrow(active.receive.kick()), PollFlags::POLLIN));
        into.push((borrow(active.send.kick()), PollFlags::POLLIN));
        if !active.starved && !active.receive.is_broken() {
            into.extend(self.input.iter().map(|input| (input.as_fd(), PollFlags::POLLIN)));
        }
    }

    fn turn(&mut self, _ready: Ready) -> Turn {
        let Some(mut active) = self.active.take() else { return Turn::Sleep };
        active.receive.heard();
        active.send.heard();
        let mut more = self.print(&mut active);
        more |= self.read(&mut active);
        active.receive.tell();
        active.send.tell();
        self.active = Some(active);
        if more { Turn::Again } else { Turn::Sleep }
    }
}

#[cfg(test)]
mod tests {
    use super::Console;
    use crate::virtio::testing::{BUFFERS, Counter, MEMORY, Ring, activation, memory};
    use crate::virtio::worker::unconfined;
    use crate::virtio::{DeviceState, VirtioDevice};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn words_go_both_ways() {
        let memory = memory();
        let (mut receive, mut send) = (Ring::new(&memory, 0, 16), Ring::new(&memory, 0x1_0000, 16));
        let (output, mut printed) = UnixStream::pair().unwrap();
        let (input, mut typed) = UnixStream::pair().unwrap();
        let mut console = Console::new(Box::new(output), Some(input.into()), unconfined());
        let features = console.features();
        console
            .activate(activation(&memory, &[&receive, &send], &Arc::new(Counter::default()), features))
            .unwrap();
        memory.write_slice(b"hello, host", GuestAddress(BUFFERS)).unwrap();
        // A broken chain and one outside of memory between good ones.
        send.add(&[(BUFFERS, 7, false), (BUFFERS + 7, 4, false)]);
        send.add(&[(MEMORY as u64, 9, false)]);
        send.add(&[(BUFFERS, 5, false)]);
        send.kick();
        for _ in 0..3 {
            assert_eq!(send.wait().1, 0);
        }
        let mut text = [0; 16];
        printed.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hello, hosthello");

        typed.write_all(b"hello, guest").unwrap();
        receive.add(&[(BUFFERS, 5, true)]);
        receive.add(&[(BUFFERS + 5, 90, true)]);
        receive.kick();
        assert_eq!((receive.wait().1, receive.wait().1), (5, 7));
        let mut text = [0; 12];
        memory.read_slice(&mut text, GuestAddress(BUFFERS)).unwrap();
        assert_eq!(&text, b"hello, guest");
        // The end of the input leaves a buffer where it is.
        receive.add(&[(BUFFERS, 5, true)]);
        receive.kick();
        drop(typed);
        send.add(&[(BUFFERS, 1, false)]);
        send.kick();
        send.wait();
        let progress = console.pause();
        assert_eq!((progress[0].next_avail, progress[1].next_avail), (2, 4));
        assert_eq!(receive.used(), None);
        assert!(console.restore(&console.save()).is_ok() && console.restore(&DeviceState::Rng).is_err());
    }
}
