//! The thread that works a device's queues.
//!
//! One thread per worker, started when the guest's driver first uses the device: a machine that starts, and a
//! device that its guest never touches, cost no thread. The machine's driver thread gives it orders and waits
//! for each answer; between orders it sleeps in `poll` on what its [`Engine`] wants to hear of.
//!
//! ```text
//!           start            pause
//!   idle ----------> going --------> paused        idle: queues and memory are not held
//!    ^                |  ^ <--------   |           paused: held, not touched
//!    |      stop      |  |   resume    |
//!    +----------------+--+-------------+
//! ```
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{ActivateError, Activation, QueueProgress};

/// Runs in the new thread once it is set up and before it touches anything of the guest: applies the thread's
/// seccomp filter. The worker does no work when it fails.
pub type Confine = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// A [`Confine`] that does nothing, for tests and tools.
#[must_use]
pub fn unconfined() -> Confine {
    Box::new(|| Ok(()))
}

/// What an [`Engine`] has to say after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// There is more to do at once; orders are looked at in between, so a busy guest cannot hold them up.
    Again,
    /// Sleep until something happens.
    Sleep,
    /// Sleep until something happens, at most until then: a limit holds requests back.
    Until(Instant),
}

/// Which of an engine's sources are ready, in the order in which it told them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready(u32);

impl Ready {
    /// All of them, as far as is known: after a start, a pause, or another turn at once.
    pub const ALL: Self = Self(u32::MAX);

    /// Whether source `index` is ready.
    #[must_use]
    pub fn has(self, index: u32) -> bool {
        1_u32.checked_shl(index).is_some_and(|bit| self.0 & bit != 0)
    }
}

/// The data path of a device. All of it runs in the worker's thread.
pub trait Engine: Send {
    /// Takes over memory and queues.
    ///
    /// # Errors
    /// When it cannot work with them; nothing is held then.
    fn start(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Waits until nothing touches guest memory on its behalf.
    fn quiesce(&mut self);

    /// Quiesces, and gives back memory and queues.
    fn stop(&mut self);

    /// How far each queue that it holds is done. Only asked while quiescent.
    fn progress(&self) -> Vec<QueueProgress>;

    /// Tells what to wait for. Called before every sleep.
    fn sources<'a>(&'a self, into: &mut Vec<(BorrowedFd<'a>, PollFlags)>);

    /// Does what can be done now, within bounds.
    fn turn(&mut self, ready: Ready) -> Turn;
}

enum Order {
    Start(Box<Activation>),
    Stop,
    Pause,
    Resume,
}

type Answer = Result<Vec<QueueProgress>, ActivateError>;

/// What the thread runs: with what it hears orders by, and where it answers.
type Body = Box<dyn FnOnce(EventFd, Receiver<Order>, Sender<Answer>) + Send>;

/// A thread that was started.
struct Hand {
    orders: Sender<Order>,
    answers: Receiver<Answer>,
    wake: EventFd,
    thread: JoinHandle<()>,
}

/// The handle of a worker. Dropping it stops the device and ends the thread.
pub struct Worker {
    name: &'static str,
    body: Option<Body>,
    hand: Option<Hand>,
}

impl Worker {
    /// A worker whose thread starts with the device; `make` makes the engine in it.
    #[must_use]
    pub fn new<E: Engine>(
        name: &'static str,
        make: impl FnOnce() -> io::Result<E> + Send + 'static,
        confine: Confine,
    ) -> Self {
        let body: Body = Box::new(move |wake, ordered, answer| {
            let ready = make().and_then(|engine| confine().map(|()| engine));
            match ready {
                Ok(engine) => work(engine, &wake, &ordered, &answer),
                Err(error) => refuse(&error, &ordered, &answer),
            }
        });
        Self { name, body: Some(body), hand: None }
    }

    /// The thread, started when there is none yet.
    fn hand(&mut self) -> Result<&Hand, ActivateError> {
        let host = |what| move |source| ActivateError::Host { what, source };
        if self.hand.is_none() {
            let wake = EventFd::new(EFD_NONBLOCK).map_err(host("make an event"))?;
            let heard = wake.try_clone().map_err(host("copy an event"))?;
            let (orders, ordered) = channel();
            let (answer, answers) = channel();
            let body = self.body.take();
            let run = move || body.map_or((), |body| body(heard, ordered, answer));
            let thread = std::thread::Builder::new().name(self.name.to_owned()).spawn(run);
            let thread = thread.map_err(host("start the device's worker"))?;
            self.hand = Some(Hand { orders, answers, wake, thread });
        }
        self.hand.as_ref().ok_or_else(gone)
    }

    /// See [`Engine::start`].
    ///
    /// # Errors
    /// What the engine says, that there is no thread, or that it could not be set up.
    pub fn start(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.hand()?.order(Order::Start(Box::new(activation))).map(drop)
    }

    /// Returns once the engine holds neither memory nor queues. Harmless when idle.
    pub fn stop(&self) {
        let _ = self.order(Order::Stop);
    }

    /// Returns once the engine does not touch guest memory, with how far its queues are. Harmless unless
    /// going.
    pub fn pause(&self) -> Vec<QueueProgress> {
        self.order(Order::Pause).unwrap_or_default()
    }

    /// Gives a going engine a turn: something that it looks at has changed.
    pub fn nudge(&self) {
        if let Some(hand) = &self.hand {
            let _ = hand.wake.write(1);
        }
    }

    /// Lets the engine go on, with a turn at once. Harmless unless paused.
    pub fn resume(&self) {
        let _ = self.order(Order::Resume);
    }

    fn order(&self, order: Order) -> Answer {
        self.hand.as_ref().map_or_else(|| Ok(Vec::new()), |hand| hand.order(order))
    }
}

fn gone() -> ActivateError {
    ActivateError::Host { what: "reach the device's worker", source: io::ErrorKind::BrokenPipe.into() }
}

impl Hand {
    fn order(&self, order: Order) -> Answer {
        self.orders.send(order).map_err(|_| gone())?;
        self.wake
            .write(1)
            .map_err(|source| ActivateError::Host { what: "wake the device's worker", source })?;
        self.answers.recv().map_err(|_| gone())?
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let Some(Hand { orders, wake, thread, .. }) = self.hand.take() else { return };
        drop(orders);
        let _ = wake.write(1);
        let _ = thread.join();
    }
}

/// A worker that could not be set up: says so to whoever starts it.
fn refuse(error: &io::Error, orders: &Receiver<Order>, answer: &Sender<Answer>) {
    while let Ok(order) = orders.recv() {
        let reply = match order {
            Order::Start(_) => {
                let source = io::Error::new(error.kind(), error.to_string());
                Err(ActivateError::Host { what: "set up the device's worker", source })
            }
            Order::Stop | Order::Pause | Order::Resume => Ok(Vec::new()),
        };
        if answer.send(reply).is_err() {
            return;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Going,
    Paused,
}

fn work(mut engine: impl Engine, wake: &EventFd, orders: &Receiver<Order>, answer: &Sender<Answer>) {
    let mut state = State::Idle;
    let mut turn = Turn::Sleep;
    loop {
        let (ordered, mut ready) = sleep(&engine, wake, state == State::Going, turn);
        if ordered {
            // A nonblocking read of the counter; an empty one is an error that means nothing.
            let _ = wake.read();
        }
        loop {
            let order = match orders.try_recv() {
                Ok(order) => order,
                Err(std::sync::mpsc::TryRecvError::Empty) => break,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => {
                    engine.stop();
                    return;
                }
            };
            let reply = match (order, state) {
                (Order::Start(activation), State::Idle) => {
                    let started = engine.start(*activation);
                    if started.is_ok() {
                        state = State::Going;
                    }
                    started.map(|()| Vec::new())
                }
                (Order::Start(_), State::Going | State::Paused) => {
                    Err(ActivateError::Driver("the device is working already".to_owned()))
                }
                (Order::Stop, State::Going | State::Paused) => {
                    engine.stop();
                    state = State::Idle;
                    Ok(Vec::new())
                }
                (Order::Pause, State::Going) => {
                    engine.quiesce();
                    state = State::Paused;
                    Ok(engine.progress())
                }
                (Order::Pause, State::Paused) => Ok(engine.progress()),
                (Order::Resume, State::Paused) => {
                    state = State::Going;
                    Ok(Vec::new())
                }
                (Order::Stop | Order::Pause, State::Idle) | (Order::Resume, State::Idle | State::Going) => {
                    Ok(Vec::new())
                }
            };
            if answer.send(reply).is_err() {
                engine.stop();
                return;
            }
            // After a start or resume, kicks may have come before anybody listened.
            ready = Ready::ALL;
        }
        turn = if state == State::Going { engine.turn(ready) } else { Turn::Sleep };
    }
}

/// Sleeps until an order or (when going) a source is ready. Answers whether there may be orders, and which
/// sources are ready.
fn sleep(engine: &impl Engine, wake: &EventFd, going: bool, turn: Turn) -> (bool, Ready) {
    let mut sources = Vec::with_capacity(4);
    if going {
        engine.sources(&mut sources);
    }
    let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(sources.len().saturating_add(1));
    fds.push(PollFd::new(borrow(wake), PollFlags::POLLIN));
    fds.extend(sources.into_iter().map(|(fd, flags)| PollFd::new(fd, flags)));
    let timeout = match turn {
        Turn::Again => PollTimeout::ZERO,
        Turn::Sleep => PollTimeout::NONE,
        Turn::Until(then) => {
            // Rounded up, so that the time is past when the wait for it returns.
            let left = then.saturating_duration_since(Instant::now());
            let millis = left.as_micros().div_ceil(1000);
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
        }
    };
    if poll(&mut fds, timeout).is_err() {
        // A signal, or no memory for a moment: look at everything.
        return (true, Ready::ALL);
    }
    let happened = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
    let ordered = fds.first().is_none_or(happened);
    if turn == Turn::Again {
        return (ordered, Ready::ALL);
    }
    let bits = (0_u32..).zip(fds.iter().skip(1)).filter(|(_, fd)| happened(fd));
    (ordered, Ready(bits.fold(0, |set, (index, _)| set | 1_u32.checked_shl(index).unwrap_or(0))))
}

/// An event as something to poll.
#[must_use]
pub fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the event owns the descriptor, and the answer borrows the event.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
