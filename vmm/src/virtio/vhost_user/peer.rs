//! The thread that speaks to a back end.
//!
//! Back ends are other people's programs: they answer late, wrongly or never. So nobody but this thread speaks to them, and whoever
//! waits for it does so with a deadline, at which the connection is cut: then whatever the thread was doing ends at once. A device
//! whose back end is gone keeps its queues, and the next back end goes on with them. How long a guest can make the monitor wait for a slow
//! back end is rationed ([`Patience`]).
//!
//! A back end holds the events that it is kicked by, and can make whoever writes one block, connection or not. So only this thread does, and
//! when it does not come back even then, the device is given up for good: nobody waits for the thread any more.
//!
//! ```text
//!               open                     start
//!   (nothing) --------> connected, idle --------> connected, working <-+
//!                          ^     |  ^              |   |   ^           | connect
//!                  connect |     |  +---- stop ----+   |   | resume    |
//!                          |     v lost            pause   |        lost, queues kept
//!                        lost, idle                    v   |           ^
//!                                                     paused ----------+ lost
//! ```

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use wire::machine::BackendState;

use super::kind::{Kind, sectors};
use super::link::{DRAIN, Inflight, Link, LinkError, Offer, Rings};
use crate::virtio::QueueProgress;
use crate::virtio::worker::{Confine, borrow};

/// Longest that a back end may take for what somebody waits for.
pub const ANSWER: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(5) };

/// Longest that the thread may take once its connection is cut.
const CUT: Duration = ANSWER.saturating_add(DRAIN);

/// Of what time passes, the part that may be waited for what a guest makes its back end do; [`ANSWER`] can be saved up.
const RATION: u32 = 4;

/// Lines about a back end that are logged before silence.
const LOG_LINES: u32 = 50;

/// Told when a back end comes or goes.
pub type Notify = Arc<dyn Fn() + Send + Sync>;

enum Order {
    /// A new connection; the first is answered with what it offers.
    Connect(UnixStream, Option<Sender<Result<Offer, LinkError>>>),
    Start(Box<Rings>, Sender<()>),
    Stop(Sender<()>),
    Pause(Sender<Vec<QueueProgress>>),
    Resume(Sender<()>),
    Rewire(Vec<EventFd>, Sender<()>),
    Space(Sender<Result<Vec<u8>, LinkError>>),
}

/// What the thread and its handle share.
struct Shared {
    state: AtomicU8,
    /// The connection, to be cut.
    line: Mutex<Option<UnixStream>>,
    /// Queues to kick, as bits.
    kicks: AtomicU64,
    /// The thread hangs, and nobody waits for it any more.
    hangs: AtomicBool,
}

/// How long may be waited for what the guest causes.
pub(super) struct Patience {
    left: Duration,
    at: Instant,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self { left: ANSWER, at: Instant::now() }
    }

    pub(super) fn left(&mut self) -> Duration {
        let earned = self.at.elapsed() / RATION;
        self.at = Instant::now();
        self.left = self.left.saturating_add(earned).min(ANSWER);
        self.left
    }

    pub(super) fn spend(&mut self, time: Duration) {
        (self.left, self.at) = (self.left.saturating_sub(time), Instant::now());
    }
}

impl Shared {
    fn line(&self) -> MutexGuard<'_, Option<UnixStream>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self) {
        if let Some(line) = &*self.line() {
            let _ = line.shutdown(std::net::Shutdown::Both);
        }
    }
}

const CONNECTED: u8 = 0;
const LOST: u8 = 1;
const STUCK: u8 = 2;
const CONNECTING: u8 = 3;

/// The handle of the thread.
pub struct Peer {
    orders: Option<Sender<Order>>,
    wake: EventFd,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
    patience: Mutex<Patience>,
}

impl Peer {
    /// Starts the thread on a connection and answers what its back end offers, within [`ANSWER`].
    ///
    /// # Errors
    /// The back end is of no use, or there is no thread.
    pub fn open(
        name: String,
        stream: UnixStream,
        kind: Kind,
        notify: Notify,
        confine: Confine,
    ) -> io::Result<(Self, Offer)> {
        let wake = EventFd::new(EFD_NONBLOCK)?;
        let (heard, cut) = (wake.try_clone()?, stream.try_clone()?);
        stream.set_nonblocking(false)?;
        let shared = Arc::new(Shared {
            state: AtomicU8::new(CONNECTED),
            line: Mutex::new(Some(cut)),
            kicks: AtomicU64::new(0),
            hangs: AtomicBool::new(false),
        });
        let (orders, ordered) = channel();
        let mut talker = Talker {
            name,
            kind,
            notify,
            shared: Arc::clone(&shared),
            link: None,
            rings: None,
            offer: None,
            paused: false,
            inflight: None,
            unknown: false,
            logged: 0,
        };
        let (ends, ended) = channel();
        let run = move || {
            let _ends: Sender<()> = ends;
            match confine() {
                Ok(()) => talker.run(&heard, &ordered),
                Err(error) => talker.log(&format!("cannot be confined: {error}")),
            }
        };
        let thread = std::thread::Builder::new().name("vhost-user".to_owned()).spawn(run)?;
        let patience = Mutex::new(Patience::new());
        let peer = Self { orders: Some(orders), wake, shared, thread: Some(thread), ended, patience };
        let offer = peer.ask(|answer| Order::Connect(stream, Some(answer)));
        match offer {
            Some(Ok(offer)) => Ok((peer, offer)),
            Some(Err(error)) => Err(io::Error::other(format!("its back end is of no use: {error}"))),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// How the back end is.
    #[must_use]
    pub fn state(&self) -> BackendState {
        if self.hangs() {
            return BackendState::Lost;
        }
        match self.shared.state.load(Ordering::Acquire) {
            CONNECTED => BackendState::Connected,
            STUCK => BackendState::Stuck,
            CONNECTING => BackendState::Connecting,
            _ => BackendState::Lost,
        }
    }

    /// Gives the device a connection to another back end. What comes of it shows in [`Peer::state`] later.
    ///
    /// # Errors
    /// When it cannot be used at all, or the back end before is still there.
    pub fn connect(&self, stream: UnixStream) -> io::Result<()> {
        if self.hangs() {
            let why = "the back end before does not let go of the device: restart the machine";
            return Err(io::Error::other(why));
        }
        if self.shared.state.load(Ordering::Acquire) == CONNECTED {
            let why = "its back end is still connected: end that first";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
        stream.set_nonblocking(false)?;
        let cut = stream.try_clone()?;
        // Should the thread still wait for the one before, it stops now.
        self.shared.cut();
        *self.shared.line() = Some(cut);
        self.shared.state.store(CONNECTING, Ordering::Release);
        self.order(Order::Connect(stream, None));
        Ok(())
    }

    /// The driver is ready: works these queues from where they are.
    pub fn start(&self, rings: Rings) {
        self.ask_for_guest(|answer| Order::Start(Box::new(rings), answer));
    }

    /// The driver has reset the device.
    pub fn stop(&self) {
        self.ask_for_guest(Order::Stop);
    }

    /// Returns once the back end does not touch guest memory any more, with how far the queues are.
    #[must_use]
    pub fn pause(&self) -> Vec<QueueProgress> {
        self.ask(Order::Pause).unwrap_or_default()
    }

    /// Goes on after [`Peer::pause`].
    pub fn resume(&self) {
        self.ask(Order::Resume);
    }

    /// Interrupts of the started queues, in their order, come by these events from now on.
    pub fn rewire(&self, calls: Vec<EventFd>) {
        self.ask_for_guest(|answer| Order::Rewire(calls, answer));
    }

    /// The configuration space as the back end tells it now.
    ///
    /// # Errors
    /// It is gone, or does not say.
    pub fn space(&self) -> io::Result<Vec<u8>> {
        match self.ask(Order::Space) {
            Some(told) => told.map_err(|error| io::Error::other(error.to_string())),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(order);
            let _ = self.wake.write(1);
        }
    }

    /// Makes the back end look at a queue.
    pub fn kick(&self, queue: u16) {
        let bit = 1u64.checked_shl(queue.into()).unwrap_or_default();
        self.shared.kicks.fetch_or(bit, Ordering::AcqRel);
        let _ = self.wake.write(1);
    }

    /// The thread is given up.
    fn hangs(&self) -> bool {
        self.shared.hangs.load(Ordering::Acquire)
    }

    /// Gives an order and waits for what comes of it; cuts the connection when that takes too long, and gives the thread up when that does
    /// not help.
    fn ask<T>(&self, order: impl FnOnce(Sender<T>) -> Order) -> Option<T> {
        self.ask_within(ANSWER, order)
    }

    /// Likewise for what a guest can cause as often as it likes.
    fn ask_for_guest<T>(&self, order: impl FnOnce(Sender<T>) -> Order) -> Option<T> {
        let mut patience = self.patience.lock().unwrap_or_else(PoisonError::into_inner);
        let (longest, begin) = (patience.left(), Instant::now());
        let answer = self.ask_within(longest, order);
        patience.spend(begin.elapsed());
        answer
    }

    fn ask_within<T>(&self, longest: Duration, order: impl FnOnce(Sender<T>) -> Order) -> Option<T> {
        if self.hangs() {
            return None;
        }
        let (answer, answers) = channel();
        self.order(order(answer));
        match answers.recv_timeout(longest) {
            Ok(answer) => return Some(answer),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => self.shared.cut(),
        }
        match answers.recv_timeout(CUT) {
            Ok(answer) => return Some(answer),
            Err(RecvTimeoutError::Disconnected) => {}
            Err(RecvTimeoutError::Timeout) => self.shared.hangs.store(true, Ordering::Release),
        }
        None
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.orders = None;
        self.shared.cut();
        let _ = self.wake.write(1);
        let longest = if self.hangs() { Duration::ZERO } else { CUT };
        let ended = self.ended.recv_timeout(longest) != Err(RecvTimeoutError::Timeout);
        if let Some(thread) = self.thread.take().filter(|_| ended) {
            let _ = thread.join();
        }
    }
}

/// What the thread knows.
struct Talker {
    /// For messages.
    name: String,
    kind: Kind,
    notify: Notify,
    shared: Arc<Shared>,
    link: Option<Link>,
    rings: Option<Box<Rings>>,
    /// Of the first back end: the guest was told so.
    offer: Option<Offer>,
    paused: bool,
    inflight: Option<Inflight>,
    /// The last back end may have had requests under way when it went.
    unknown: bool,
    logged: u32,
}

impl Talker {
    fn log(&mut self, line: &str) {
        self.logged = self.logged.saturating_add(1);
        match self.logged {
            0..LOG_LINES => eprintln!("vmm: {}: {line}", self.name),
            LOG_LINES => eprintln!("vmm: {}: {line}; no more lines of it will follow", self.name),
            _ => {}
        }
    }

    fn run(&mut self, wake: &EventFd, orders: &Receiver<Order>) {
        loop {
            if self.wait(wake) {
                self.lose("it went away");
            }
            let _ = wake.read();
            loop {
                match orders.try_recv() {
                    Ok(order) => self.obey(order),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            self.kick();
        }
    }

    /// Kicks what is to be kicked. Without a back end there is no need: the next one looks at all queues.
    fn kick(&self) {
        let kicks = self.shared.kicks.swap(0, Ordering::AcqRel);
        if kicks == 0 || self.link.is_none() {
            return;
        }
        for ring in self.rings.iter().flat_map(|rings| &rings.rings) {
            if kicks & 1u64.checked_shl(ring.index.into()).unwrap_or_default() != 0 {
                ring.kick();
            }
        }
    }

    /// Sleeps until there is an order; answers whether the back end went away, or spoke unasked.
    fn wait(&self, wake: &EventFd) -> bool {
        let mut fds = vec![PollFd::new(borrow(wake), PollFlags::POLLIN)];
        fds.extend(self.link.iter().map(|link| PollFd::new(link.line(), PollFlags::POLLIN)));
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            return false;
        }
        fds.get(1).is_some_and(|fd| fd.any().unwrap_or(true))
    }

    fn set_state(&mut self, state: u8) {
        if self.shared.state.swap(state, Ordering::AcqRel) == state {
            return;
        }
        if let (Some(rings), Kind::Nic { .. }) = (&self.rings, &self.kind) {
            // Its link went up or down.
            rings.interrupt.config();
        }
        (self.notify)();
    }

    /// Gives the back end up; the queues stay, as far as they are.
    fn lose(&mut self, why: &str) {
        if self.link.take().is_none() {
            return;
        }
        self.log(&format!("lost its back end: {why}"));
        // Requests that come from now on are nobody's yet.
        self.unknown = self.rings.as_ref().is_some_and(|rings| rings.waiting());
        if let Some(rings) = &mut self.rings {
            // What it had taken and not done is to be done again, or known by the memory of requests under way.
            for progress in rings.progress() {
                if let Some(ring) = rings.rings.iter_mut().find(|ring| ring.index == progress.queue) {
                    virtio_queue::QueueT::set_next_avail(&mut ring.queue, progress.next_used);
                    virtio_queue::QueueT::set_next_used(&mut ring.queue, progress.next_used);
                }
            }
        }
        self.set_state(LOST);
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Connect(stream, answer) => self.connect(stream, answer),
            Order::Start(rings, answer) => {
                (self.rings, self.paused, self.inflight) = (Some(rings), false, None);
                self.unknown = false;
                self.go();
                let _ = answer.send(());
            }
            Order::Stop(answer) => {
                self.halt();
                let reset = self.link.as_mut().map_or(Ok(()), Link::reset);
                if let Err(error) = reset {
                    self.lose(&error.to_string());
                }
                (self.rings, self.paused, self.inflight) = (None, false, None);
                // What was under way is of no interest to a driver that begins anew.
                self.unknown = false;
                if self.shared.state.load(Ordering::Acquire) == STUCK {
                    self.set_state(CONNECTED);
                }
                let _ = answer.send(());
            }
            Order::Pause(answer) => {
                self.halt();
                self.paused = true;
                let _ = answer.send(self.rings.as_ref().map(|rings| rings.progress()).unwrap_or_default());
            }
            Order::Resume(answer) => {
                if std::mem::take(&mut self.paused) {
                    self.go();
                }
                let _ = answer.send(());
            }
            Order::Rewire(calls, answer) => {
                let mut told = Ok(());
                if let Some(rings) = &mut self.rings {
                    for (ring, call) in rings.rings.iter_mut().zip(calls) {
                        ring.call = call;
                    }
                    if let Some(link) = self.link.as_mut().filter(|_| !self.paused) {
                        told = link.rewire(rings);
                    }
                }
                if let Err(error) = told {
                    self.lose(&error.to_string());
                }
                let _ = answer.send(());
            }
            Order::Space(answer) => {
                let told = match &mut self.link {
                    Some(link) => link.space(&self.kind),
                    None => Err(LinkError::Lacks("it has no back end now".into())),
                };
                let _ = answer.send(told);
            }
        }
    }

    /// Makes the back end work the queues, if there are both.
    fn go(&mut self) {
        let stuck = self.shared.state.load(Ordering::Acquire) == STUCK;
        let (Some(link), Some(rings), false, false) = (&mut self.link, &mut self.rings, self.paused, stuck)
        else {
            return;
        };
        if let Err(error) = link.start(rings, &mut self.inflight) {
            self.lose(&error.to_string());
        }
    }

    /// Makes the back end stop with them.
    fn halt(&mut self) {
        let stuck = self.shared.state.load(Ordering::Acquire) == STUCK;
        let (Some(link), Some(rings), false, false) = (&mut self.link, &mut self.rings, self.paused, stuck)
        else {
            return;
        };
        match link.stop(rings) {
            // Nothing is under way: the memory of it is of no use to anybody.
            Ok(()) => self.inflight = None,
            Err(error) => {
                self.lose(&error.to_string());
                self.shared.cut();
            }
        }
    }

    fn connect(&mut self, stream: UnixStream, answer: Option<Sender<Result<Offer, LinkError>>>) {
        // The one before is in the way, if it could not go on.
        self.lose("another one takes its place");
        if answer.is_none() {
            self.shared.state.store(CONNECTING, Ordering::Release);
        }
        let opened = Link::open(stream, &self.kind);
        let opened = opened.and_then(|(link, offer)| self.check(&offer).map(|()| (link, offer)));
        match (opened, answer) {
            (Ok((link, offer)), Some(answer)) => {
                (self.link, self.offer) = (Some(link), Some(offer.clone()));
                let _ = answer.send(Ok(offer));
            }
            (Ok((link, _)), None) => self.succeed(link),
            (Err(error), Some(answer)) => drop(answer.send(Err(error))),
            (Err(error), None) => {
                self.log(&format!("its new back end is of no use: {error}"));
                self.set_state(LOST);
            }
        }
    }

    /// Goes on with another back end.
    fn succeed(&mut self, link: Link) {
        let told = self.inflight.is_some() && link.tracks();
        if self.inflight.is_some() && !told {
            self.inflight = None;
        }
        let goes_on = self.rings.is_none() || told || self.kind.goes_on(self.unknown);
        self.link = Some(link);
        if !goes_on {
            let why =
                "cannot go on with another back end: what was under way is not known. Restart the guest";
            self.log(why);
            self.set_state(STUCK);
            return;
        }
        self.log("has a back end again");
        self.set_state(CONNECTED);
        self.go();
    }

    /// What a later back end offers has to hold what the first one did, which the guest knows.
    fn check(&self, offer: &Offer) -> Result<(), LinkError> {
        let Some(first) = &self.offer else { return Ok(()) };
        let missing = first.features & !offer.features;
        if missing != 0 || offer.queues < first.queues {
            return Err(LinkError::Lacks(format!(
                "it lacks features {missing:#x} that the guest was offered, or has fewer queues"
            )));
        }
        if let Kind::Disk { .. } = self.kind
            && sectors(&offer.space) < sectors(&first.space)
        {
            return Err(LinkError::Lacks("its disk is smaller than the guest's".into()));
        }
        Ok(())
    }
}

/// Makes a stream of a connected socket.
///
/// # Errors
/// When it is something else.
pub fn stream(fd: std::os::fd::OwnedFd) -> io::Result<UnixStream> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    let stat = nix::sys::stat::fstat(fd.as_fd())?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFSOCK {
        return Err(wrong("the descriptor is no socket: give a connected unix stream socket"));
    }
    Ok(fd.into())
}
