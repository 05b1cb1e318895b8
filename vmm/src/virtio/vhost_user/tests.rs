use super::kind::Kind;
use super::link::LinkError;
use super::peer::{ANSWER, Patience, Peer};
use super::testing::{converse, fill, rings, shared_memory};
use crate::virtio::testing::{activation, memory};
use crate::virtio::worker::unconfined;
use crate::virtio::{VirtioDevice, bits};
use proptest::prelude::*;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use wire::machine::BackendState;

fn kinds() -> [Kind; 3] {
    [Kind::Disk { queues: 4 }, Kind::Nic { mac: [2; 6], mtu: 1500 }, Kind::Files { tag: "share".into() }]
}

/// A back end whose answers are honest but for their content: yes to all.
const YES: [u8; 200] = [0; 200];

#[test]
fn a_back_end_that_says_yes_to_everything_works() {
    let memory = shared_memory();
    for kind in kinds() {
        // Its queues are at 0, where it leaves them.
        let result = converse(&kind, &memory, &YES);
        assert!(result.is_ok(), "{kind:?}: {result:?}");
    }
    let private = converse(&Kind::Files { tag: "x".into() }, &self::memory(), &YES);
    assert!(matches!(private, Err(LinkError::Private)), "{private:?}");
}

#[test]
fn old_back_ends_and_bad_positions_are_refused_in_words() {
    let memory = shared_memory();
    // Features without version 1, honestly sent.
    let mut script = vec![64];
    script.extend((1u64 << 30).to_le_bytes());
    script.extend(YES);
    let old = converse(&Kind::Nic { mac: [2; 6], mtu: 1500 }, &memory, &script).unwrap_err();
    assert!(old.to_string().contains("before version 1"), "{old}");
    // Version 1 and no protocol features: nothing is acknowledged, the next answer is where the first queue is.
    let mut script = vec![64];
    script.extend((1u64 << 32).to_le_bytes());
    script.push(64);
    script.extend([0, 0, 0, 0, 7, 0, 0, 0]);
    let wrong = converse(&Kind::Nic { mac: [2; 6], mtu: 1500 }, &memory, &script).unwrap_err();
    assert!(matches!(wrong, LinkError::Base { queue: 0, base: 7 }), "{wrong}");
    let disk = converse(&Kind::Disk { queues: 1 }, &memory, &script).unwrap_err();
    assert!(disk.to_string().contains("VHOST_USER_PROTOCOL_F_CONFIG"), "{disk}");
}

proptest! {
    #[test]
    fn no_answer_does_harm(which in 0usize..3, script in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = converse(&kinds()[which], &shared_memory(), &script);
    }

    #[test]
    fn honest_heads_with_any_body_do_no_harm(
        which in 0usize..3,
        bodies in proptest::collection::vec((prop_oneof![Just(0u8), Just(64), Just(190)], any::<[u8; 8]>()), 0..60),
    ) {
        let script: Vec<u8> = bodies.into_iter().flat_map(|(honesty, body)| {
            std::iter::once(honesty).chain(body.into_iter().take(if honesty == 0 { 0 } else { 8 }))
        }).collect();
        let _ = converse(&kinds()[which], &shared_memory(), &script);
    }
}

/// A peer of a back end that says yes until `script` ends and then falls silent, with its connection open.
fn peer(script: &'static [u8], notified: &Arc<AtomicU32>) -> (std::io::Result<Peer>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let kept = theirs.try_clone().unwrap();
    std::thread::spawn(move || super::testing::answer(theirs, script));
    let notified = Arc::clone(notified);
    let notify = Arc::new(move || {
        notified.fetch_add(1, Ordering::SeqCst);
    });
    let kind = Kind::Nic { mac: [2; 6], mtu: 1500 };
    (Peer::open("test".into(), ours, kind, notify, unconfined()).map(|(peer, _)| peer), kept)
}

fn wait_for(peer: &Peer, state: BackendState) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while peer.state() != state {
        assert!(Instant::now() < deadline, "still {:?}", peer.state());
        std::thread::yield_now();
    }
}

#[test]
fn a_silent_back_end_costs_a_bounded_time_and_its_device_is_kept() {
    let notified = Arc::default();
    let begin = Instant::now();
    let (refused, _line) = peer(&[], &notified);
    assert!(refused.is_err() && begin.elapsed() < ANSWER * 4);
    // Enough to introduce itself, and no more.
    let (peer, _line) = peer(&YES[..5], &notified);
    let peer = peer.unwrap();
    let (_drivers, rings, _counter) = rings(&shared_memory(), 2);
    let begin = Instant::now();
    peer.start(rings);
    wait_for(&peer, BackendState::Lost);
    let progress = peer.pause();
    assert!(begin.elapsed() < ANSWER * 4, "{:?}", begin.elapsed());
    assert_eq!((progress.len(), notified.load(Ordering::SeqCst)), (2, 1));
    // Another one takes over where it was.
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || super::testing::answer(theirs, &YES));
    peer.connect(ours).unwrap();
    wait_for(&peer, BackendState::Connected);
    peer.resume();
    assert_eq!((peer.pause().len(), peer.state()), (2, BackendState::Connected));
}

#[test]
fn a_back_end_that_speaks_unasked_is_given_up() {
    let notified = Arc::default();
    let (peer, mut line) = peer(&YES, &notified);
    let peer = peer.unwrap();
    line.write_all(b"x").unwrap();
    wait_for(&peer, BackendState::Lost);
    peer.stop();
}

#[test]
fn the_guest_sees_its_link_go_down_with_the_back_end() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let kept = theirs.try_clone().unwrap();
    std::thread::spawn(move || super::testing::answer(theirs, &YES));
    let kind = Kind::Nic { mac: [2, 0, 0, 0, 0, 7], mtu: 1400 };
    let mut device = super::VhostUser::new("test".into(), kind, ours, Arc::new(|| {}), unconfined()).unwrap();
    assert_ne!(device.features() & bits(&[16]), 0, "no link status");
    let memory = shared_memory();
    let (drivers, _, counter) = rings(&memory, 2);
    let drivers: Vec<_> = drivers.iter().collect();
    device.activate(activation(&memory, &drivers, &counter, device.features())).unwrap();
    let status = |device: &super::VhostUser| {
        let mut status = [0u8; 2];
        device.read_config(6, &mut status);
        u16::from_le_bytes(status)
    };
    assert_eq!(status(&device), 1);
    kept.shutdown(std::net::Shutdown::Both).unwrap();
    wait_for(&device.peer, BackendState::Lost);
    assert_eq!(status(&device), 0);
    let deadline = Instant::now() + Duration::from_secs(10);
    while counter.config.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < deadline, "the driver is not told");
        std::thread::yield_now();
    }
    device.reset();
}

#[test]
fn a_back_end_that_keeps_an_event_full_costs_a_bounded_time_and_the_device() {
    let notified = Arc::default();
    let (peer, _line) = peer(&YES, &notified);
    let peer = peer.unwrap();
    let (_drivers, rings, _counter) = rings(&shared_memory(), 2);
    let kick = rings.rings[1].kick.try_clone().unwrap();
    fill(&kick);
    let begin = Instant::now();
    peer.start(rings);
    assert!(begin.elapsed() >= ANSWER);
    assert_eq!(peer.state(), BackendState::Lost);
    // From now on nobody waits.
    let given_up = Instant::now();
    peer.kick(1);
    peer.stop();
    assert_eq!(peer.pause().len(), 0);
    let (ours, _theirs) = UnixStream::pair().unwrap();
    assert!(peer.connect(ours).unwrap_err().to_string().contains("restart the machine"));
    drop(peer);
    assert!(given_up.elapsed() < ANSWER, "{:?}", given_up.elapsed());
    // Lets the thread end.
    kick.read().unwrap();
}

#[test]
fn a_guest_s_waits_for_a_slow_back_end_are_rationed() {
    let mut patience = Patience::new();
    assert_eq!(patience.left(), ANSWER);
    // One that answers each time, always just before it would be cut, is soon cut.
    patience.spend(ANSWER / 2);
    assert!(patience.left() < ANSWER * 3 / 4);
    patience.spend(ANSWER / 2);
    patience.spend(ANSWER / 2);
    assert!(patience.left() < ANSWER / 2, "{:?}", patience.left());
    // What was waited comes back in time, and not more.
    let deadline = Instant::now() + ANSWER * 20;
    while patience.left() < ANSWER {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
}
