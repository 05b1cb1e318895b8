//! The plan as a table, and against a machine that does what it is told.

use super::plan::{Act, Asked, Device, Now, Stop, View, after_end, next, restart_delay};
use super::record::Down;
use super::wanted::Wanted;
use crate::hypervisor::{Control, DiskNow, End, How, Life, Status};
use proptest::prelude::{Just, Strategy, any, prop, prop_oneof};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use wire::host::{Bite, Boot, DiskSpec, Hardware, Power, Reboots, ServerSpec};
use wire::ids::PortId;
use wire::machine::{Limit, Limits, NicLimits};
use wire::{Generation, MiB};

const UNPLUG: Duration = Duration::from_secs(30);

fn disk(key: &str) -> DiskSpec {
    DiskSpec {
        key: key.into(),
        path: format!("/pool/{key}").into(),
        read_only: false,
        serial: key.into(),
        limits: Limits::default(),
    }
}

fn wanted(generation: u64, power: Power, disks: &[&str]) -> Wanted {
    Wanted {
        generation: Generation(generation),
        spec: ServerSpec {
            name: "one".into(),
            vcpus: 1,
            memory: MiB(64),
            boot: Boot::Disk,
            disks: disks.iter().map(|key| disk(key)).collect(),
            nics: Vec::new(),
            hardware: Hardware::default(),
        },
        power,
        reboots: Reboots::default(),
        uid: 1,
        forget: false,
    }
}

fn up(disks: &[&str], life: Life) -> Now {
    let disks = disks.iter().map(|key| DiskNow { key: (*key).into(), bytes: Some(10) }).collect();
    Now::Up(Status { life, disks, nics: Vec::new(), panicked: false, bitten: false })
}

/// What a driver carries between steps.
struct Carried {
    wanted: Wanted,
    now: Now,
    settled: u64,
    failed: Option<u64>,
    reboots: u64,
    stop: Option<Stop>,
    asked: BTreeMap<Device, Asked>,
    plugged: BTreeMap<String, DiskSpec>,
    carried: BTreeMap<PortId, NicLimits>,
    sizes: BTreeMap<String, u64>,
}

impl Carried {
    fn new(wanted: Wanted, now: Now) -> Self {
        Self {
            wanted,
            now,
            settled: 0,
            failed: None,
            reboots: 0,
            stop: None,
            asked: BTreeMap::new(),
            plugged: BTreeMap::new(),
            carried: BTreeMap::new(),
            sizes: BTreeMap::new(),
        }
    }

    fn next(&self, at: Instant) -> Act {
        next(
            &View {
                wanted: &self.wanted,
                now: &self.now,
                settled: Generation(self.settled),
                failed: self.failed.map(Generation),
                reboots: self.reboots,
                stop: self.stop,
                asked: &self.asked,
                plugged: &self.plugged,
                carried: &self.carried,
                sizes: &self.sizes,
                not_before: None,
                unplug_within: UNPLUG,
            },
            at,
        )
    }
}

#[test]
fn what_is_wanted_decides_what_is_done() {
    let at = Instant::now();
    let running = || up(&["a"], Life::Running);
    let off = |grace_secs| wanted(1, Power::Off { grace_secs }, &["a"]);
    let cases: [(&str, Wanted, Now, Act); 14] = [
        ("start", wanted(1, Power::On, &["a"]), Now::Down(Down::Off), Act::Start),
        (
            "start a crashed one again",
            wanted(1, Power::On, &["a"]),
            Now::Down(Down::Crashed { fault: "x".into() }),
            Act::Start,
        ),
        ("settle", wanted(1, Power::On, &["a"]), running(), Act::Settle),
        ("pause", wanted(1, Power::Paused, &["a"]), running(), Act::Control(Control::Pause)),
        ("resume", wanted(1, Power::On, &["a"]), up(&["a"], Life::Paused), Act::Control(Control::Resume)),
        ("hard off", off(0), running(), Act::Kill { restart: false }),
        ("soft off", off(5), running(), Act::Press(at + Duration::from_secs(5))),
        ("wake for the button", off(5), up(&["a"], Life::Paused), Act::Control(Control::Resume)),
        ("off is off", off(5), Now::Down(Down::Guest), Act::Settle),
        ("plug", wanted(1, Power::On, &["a", "b"]), running(), Act::Control(Control::PlugDisk(disk("b")))),
        (
            "unplug first",
            wanted(1, Power::On, &["b"]),
            running(),
            Act::Control(Control::UnplugDisk("a".into())),
        ),
        ("forget kills", Wanted { forget: true, ..off(5) }, running(), Act::Kill { restart: false }),
        ("forget removes", Wanted { forget: true, ..off(5) }, Now::Down(Down::Restart), Act::Remove),
        ("mute and off", off(5), Now::Mute, Act::Kill { restart: false }),
    ];
    for (name, wanted, now, act) in cases {
        assert_eq!(Carried::new(wanted, now).next(at), act, "{name}");
    }
}

#[test]
fn a_guest_that_shut_itself_down_stays_down_until_something_newer_is_wanted() {
    let at = Instant::now();
    let mut carried = Carried::new(wanted(3, Power::On, &["a"]), Now::Down(Down::Guest));
    carried.settled = 3;
    assert_eq!(carried.next(at), Act::Wait(None));
    carried.wanted.reboots.count = 1;
    assert_eq!(carried.next(at), Act::Start);
    carried.wanted = wanted(4, Power::On, &["a"]);
    assert_eq!(carried.next(at), Act::Start);
    carried.failed = Some(4);
    assert_eq!(carried.next(at), Act::Wait(None), "what failed is not tried for ever");
    carried.now = Now::Down(Down::Restart);
    assert_eq!(carried.next(at), Act::Start, "but a guest's reset is followed");
}

#[test]
fn patience_with_the_button_and_with_unplugging_ends() {
    let at = Instant::now();
    let mut carried =
        Carried::new(wanted(1, Power::Off { grace_secs: 8 }, &["a"]), up(&["a"], Life::Running));
    let until = at + Duration::from_secs(8);
    carried.stop = Some(Stop { until, last: at });
    let again = at + Duration::from_secs(5);
    assert_eq!(carried.next(at), Act::Wait(Some(again)));
    assert_eq!(carried.next(again), Act::Press(until), "a guest that was still booting hears it now");
    carried.stop = Some(Stop { until, last: again });
    assert_eq!(carried.next(again), Act::Wait(Some(until)));
    assert_eq!(carried.next(until), Act::Kill { restart: false });

    let mut carried = Carried::new(wanted(1, Power::On, &[]), up(&["a"], Life::Running));
    carried.asked.insert(Device::Disk("a".into()), Asked { first: at, last: at });
    assert!(matches!(carried.next(at), Act::Wait(Some(_))));
    let later = at + Duration::from_secs(6);
    assert_eq!(carried.next(later), Act::Control(Control::UnplugDisk("a".into())), "asked again");
    let Act::Fail(why) = carried.next(at + UNPLUG) else { panic!("patience has no end") };
    assert!(why.contains("disk a within 30 s"), "{why}");
}

#[test]
fn another_file_under_the_same_key_is_another_disk_and_a_grown_one_is_told() {
    let at = Instant::now();
    let mut carried = Carried::new(wanted(1, Power::On, &["a"]), up(&["a"], Life::Running));
    carried.plugged.insert("a".into(), DiskSpec { path: "/pool/old".into(), ..disk("a") });
    assert_eq!(carried.next(at), Act::Control(Control::UnplugDisk("a".into())));
    carried.plugged.insert("a".into(), disk("a"));
    carried.sizes.insert("a".into(), 20);
    assert_eq!(carried.next(at), Act::Control(Control::ResizeDisk("a".into(), 20)));
    carried.sizes.insert("a".into(), 10);
    assert_eq!(carried.next(at), Act::Settle);
}

#[test]
fn limits_change_in_place() {
    let at = Instant::now();
    let bytes = Some(Limit { per_second: 1000, burst: 1000 });
    let mut carried = Carried::new(wanted(1, Power::On, &["a"]), up(&["a"], Life::Running));
    carried.plugged.insert("a".into(), disk("a"));
    carried.wanted.spec.disks[0].limits.bytes = bytes;
    let limits = carried.wanted.spec.disks[0].limits;
    assert_eq!(carried.next(at), Act::Control(Control::LimitDisk("a".into(), limits)));
    carried.plugged.insert("a".into(), carried.wanted.spec.disks[0].clone());
    assert_eq!(carried.next(at), Act::Settle);
}

#[test]
fn a_guest_that_its_watchdog_stopped_waits_for_its_owner() {
    let at = Instant::now();
    let mut carried = Carried::new(wanted(2, Power::On, &["a"]), up(&["a"], Life::Paused));
    let Now::Up(status) = &mut carried.now else { panic!("it is up") };
    status.bitten = true;
    carried.settled = 2;
    assert_eq!(carried.next(at), Act::Wait(None));
    carried.wanted.generation = Generation(3);
    assert_eq!(carried.next(at), Act::Control(Control::Resume));
}

#[test]
fn a_suspended_machine_has_its_devices_and_goes_on_or_not_as_is_wanted() {
    let at = Instant::now();
    let mut carried = Carried::new(wanted(2, Power::Suspended, &["a", "b"]), up(&["a"], Life::Running));
    assert_eq!(carried.next(at), Act::Control(Control::PlugDisk(disk("b"))));
    carried.now = up(&["a", "b"], Life::Running);
    assert_eq!(carried.next(at), Act::Suspend);
    carried.failed = Some(2);
    assert_eq!(carried.next(at), Act::Wait(None), "it runs on");
    carried.now = Now::Down(Down::Suspended);
    carried.failed = None;
    assert_eq!(carried.next(at), Act::Settle);
    carried.wanted.power = Power::Off { grace_secs: 60 };
    assert_eq!(carried.next(at), Act::Kill { restart: false }, "its memory goes");
    carried.wanted.power = Power::On;
    assert_eq!(carried.next(at), Act::Start);
    carried.failed = Some(2);
    assert_eq!(carried.next(at), Act::Wait(None), "another try is its owner's wish");
}

#[test]
fn a_guest_that_hangs_is_started_again_unless_its_owner_wants_it_off() {
    let end = End { how: How::Watchdog, detail: String::new() };
    let mut on = wanted(1, Power::On, &["a"]);
    assert_eq!(after_end(&end, &on, false, 1000), Down::Restart);
    on.spec.hardware.watchdog = Some(Bite::PowerOff);
    assert_eq!(after_end(&end, &on, false, 0), Down::Guest);
}

#[test]
fn ends_mean_what_was_wanted_at_the_time() {
    let on = wanted(1, Power::On, &["a"]);
    let off = wanted(1, Power::Off { grace_secs: 1 }, &["a"]);
    let end = |how| End { how, detail: "why".into() };
    let all = [
        How::PowerOff,
        How::PowerButton,
        How::Reset,
        How::Watchdog,
        How::TripleFault,
        How::Panicked,
        How::Stopped,
        How::NotStarted,
        How::Failed,
    ];
    for how in all {
        assert_eq!(after_end(&end(how), &off, false, 0), Down::Off, "{how:?}");
    }
    for how in [How::PowerOff, How::PowerButton] {
        assert_eq!(after_end(&end(how), &on, false, 0), Down::Guest);
        assert_eq!(after_end(&end(how), &on, true, 0), Down::Restart);
    }
    assert_eq!(after_end(&end(How::Reset), &on, false, 1000), Down::Restart);
    for how in [How::TripleFault, How::Panicked] {
        assert_eq!(after_end(&end(how), &on, false, 1), Down::Restart);
    }
    for (how, resets) in [(How::TripleFault, 5), (How::Panicked, 5), (How::Failed, 0), (How::NotStarted, 0)] {
        let Down::Crashed { fault } = after_end(&end(how), &on, false, resets) else { panic!("{how:?}") };
        assert!(fault.ends_with(": why"), "{fault}");
    }
    assert_eq!(restart_delay(2), Duration::ZERO);
    assert_eq!(restart_delay(usize::MAX), Duration::from_secs(32));
}

fn any_power() -> impl Strategy<Value = Power> {
    prop_oneof![
        Just(Power::On),
        Just(Power::Paused),
        Just(Power::Suspended),
        (0..3u32).prop_map(|grace_secs| Power::Off { grace_secs }),
    ]
}

/// Does an act to a machine that obeys at once, except that a deaf one hears neither button nor unplugging.
fn obey(carried: &mut Carried, act: Act, deaf: bool, clock: &mut Instant) {
    let at = *clock;
    match act {
        Act::Start => {
            let keys: Vec<&str> = carried.wanted.spec.disks.iter().map(|disk| disk.key.as_str()).collect();
            carried.now = up(&keys, Life::Running);
            carried.plugged =
                carried.wanted.spec.disks.iter().map(|disk| (disk.key.clone(), disk.clone())).collect();
            carried.reboots = carried.wanted.reboots.count;
            carried.stop = None;
            carried.asked.clear();
        }
        Act::Press(until) => {
            carried.stop = Some(Stop { until, last: at });
            if !deaf {
                let end = End { how: How::PowerOff, detail: String::new() };
                carried.now = Now::Down(after_end(&end, &carried.wanted, true, 0));
                carried.stop = None;
            }
        }
        Act::Kill { restart } => {
            carried.now = Now::Down(if restart { Down::Restart } else { Down::Off });
            carried.stop = None;
        }
        Act::Control(control) => {
            let Now::Up(status) = &mut carried.now else { panic!("{control:?} without a machine") };
            match control {
                Control::Pause => status.life = Life::Paused,
                Control::Resume => status.life = Life::Running,
                Control::PlugDisk(disk) => {
                    status.disks.push(DiskNow { key: disk.key.clone(), bytes: None });
                    carried.plugged.insert(disk.key.clone(), disk);
                }
                Control::UnplugDisk(key) => {
                    let device = Device::Disk(key.clone());
                    let asked = carried.asked.entry(device).or_insert(Asked { first: at, last: at });
                    asked.last = at;
                    if !deaf {
                        status.disks.retain(|disk| disk.key != key);
                        carried.asked.clear();
                    }
                }
                Control::PowerButton
                | Control::PlugNic(_)
                | Control::UnplugNic(_)
                | Control::ResizeDisk(..)
                | Control::LimitDisk(..)
                | Control::LimitNic(..) => panic!("{control:?} was not expected"),
            }
        }
        Act::Suspend => carried.now = Now::Down(Down::Suspended),
        Act::Settle => carried.settled = carried.wanted.generation.0,
        Act::Fail(_) => {
            carried.settled = carried.wanted.generation.0;
            carried.failed = Some(carried.settled);
        }
        Act::Wait(Some(until)) => *clock = until.max(at),
        Act::Wait(None) | Act::Remove => (),
    }
}

proptest::proptest! {
    /// Whatever is wanted one after the other, each wish is settled in few steps, and is what is there then.
    #[test]
    fn every_wish_is_settled(
        deaf in any::<bool>(),
        wishes in prop::collection::vec((any_power(), prop::sample::subsequence(vec!["a", "b", "c"], 0..=3), 0..3u64), 1..8),
    ) {
        let mut clock = Instant::now();
        let mut carried = Carried::new(wanted(0, Power::Off { grace_secs: 0 }, &[]), Now::Down(Down::Off));
        let mut count = 0;
        for (number, (power, disks, more)) in wishes.into_iter().enumerate() {
            count += more;
            let generation = number as u64 + 1;
            carried.wanted = wanted(generation, power, &disks);
            carried.wanted.reboots = Reboots { count, grace_secs: u32::from(deaf) };
            let mut steps = 0;
            while carried.settled < generation {
                steps += 1;
                proptest::prop_assert!(steps < 60, "no end: {:?}", carried.next(clock));
                let act = carried.next(clock);
                proptest::prop_assert!(act != Act::Wait(None), "stuck at {:?}", carried.now);
                obey(&mut carried, act, deaf, &mut clock);
            }
            if carried.failed == Some(generation) {
                proptest::prop_assert!(deaf);
                continue;
            }
            match (&carried.now, power) {
                (Now::Down(_), Power::Off { .. } | Power::Suspended) => (),
                (Now::Up(status), Power::On | Power::Paused) => {
                    let life = if power == Power::On { Life::Running } else { Life::Paused };
                    proptest::prop_assert_eq!(&status.life, &life);
                    let mut keys: Vec<&str> = status.disks.iter().map(|disk| disk.key.as_str()).collect();
                    keys.sort_unstable();
                    proptest::prop_assert_eq!(keys, disks);
                    proptest::prop_assert_eq!(carried.reboots, count);
                }
                (now, power) => proptest::prop_assert!(false, "{now:?} for {power:?}"),
            }
        }
    }
}
