use super::*;
use kvm_ioctls::Kvm;
use proptest::prelude::*;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use vm_memory::GuestAddress;

/// A device that knows whether it works, and fails to start when told to.
struct Fake {
    working: Arc<AtomicBool>,
    fail: bool,
    /// How far its queues were when it started.
    seen: Arc<Mutex<Vec<QueueProgress>>>,
}

impl VirtioDevice for Fake {
    fn device_type(&self) -> u16 {
        4
    }
    fn queue_sizes(&self) -> &[u16] {
        &[8, 16]
    }
    fn features(&self) -> u64 {
        (1 << 32) | (1 << 29) | 5
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(u8::try_from(offset % 251).unwrap());
    }
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        assert!(!self.working.load(Ordering::SeqCst), "started twice");
        assert_eq!(activation.queues.len(), 2);
        *self.seen.lock().unwrap() = activation
            .queues
            .iter()
            .map(|active| QueueProgress {
                queue: active.index,
                next_avail: active.queue.next_avail(),
                next_used: active.queue.next_used(),
            })
            .collect();
        assert_eq!(activation.features & !self.features(), 0, "a feature that was not offered");
        if self.fail {
            return Err(ActivateError::Driver("told to".into()));
        }
        self.working.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn reset(&mut self) {
        self.working.store(false, Ordering::SeqCst);
    }
    fn pause(&mut self) -> Vec<QueueProgress> {
        if !self.working.load(Ordering::SeqCst) {
            return Vec::new();
        }
        (0..2).map(|queue| QueueProgress { queue, next_avail: 7 + queue, next_used: 5 + queue }).collect()
    }
    fn resume(&mut self) {}
    fn save(&self) -> DeviceState {
        DeviceState::Rng
    }
    fn restore(&mut self, _state: &DeviceState) -> Result<(), RestoreError> {
        Ok(())
    }
}

fn host() -> Option<Host> {
    let Ok(kvm) = Kvm::new() else {
        println!("skipped: there is no usable /dev/kvm");
        return None;
    };
    let vm = Arc::new(kvm.create_vm().unwrap());
    let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
    let signals = Arc::new(Signals::new().unwrap());
    Some(Host { routes: Arc::new(Routes::new(vm.clone())), vm, memory, signals })
}

fn device(host: &Host, fail: bool) -> (VirtioPci, Arc<AtomicBool>) {
    let working = Arc::new(AtomicBool::new(false));
    let fake = Fake { working: working.clone(), fail, seen: Arc::default() };
    (VirtioPci::new(host.clone(), 3, Box::new(fake)).unwrap(), working)
}

fn status(device: &mut VirtioPci) -> u8 {
    let mut byte = [0];
    device.read_bar(0x14, &mut byte);
    byte[0]
}

/// Brings a device to `DRIVER_OK` with these features.
fn drive(device: &mut VirtioPci, features: u64) {
    device.write_config(4, &[6, 0]);
    device.write_bar(0x14, &[3]);
    for (half, value) in [(0u32, features & 0xffff_ffff), (1, features >> 32)] {
        device.write_bar(0x08, &half.to_le_bytes());
        device.write_bar(0x0c, &u32::try_from(value).unwrap().to_le_bytes());
    }
    device.write_bar(0x14, &[11]);
    for queue in 0u16..2 {
        device.write_bar(0x16, &queue.to_le_bytes());
        for (at, address) in [(0x20, 0x1000u64), (0x28, 0x2000), (0x30, 0x3000)] {
            device.write_bar(at, &(address + 0x4000 * u64::from(queue)).to_le_bytes());
        }
        device.write_bar(0x1c, &[1, 0]);
    }
    device.write_bar(0x14, &[15]);
}

#[test]
fn the_driver_thread_starts_and_resets_what_the_guest_asked_for() {
    let Some(host) = host() else { return };
    let (mut device, working) = device(&host, false);
    drive(&mut device, (1 << 32) | 1);
    assert!(!working.load(Ordering::SeqCst), "a vCPU does not start devices");
    assert_eq!(host.signals.take().0, 1 << 3);
    device.settle().unwrap();
    assert!(working.load(Ordering::SeqCst) && device.driver_ok());
    device.settle().unwrap();
    device.write_bar(0x14, &[0]);
    assert_ne!(status(&mut device), 0, "reset is not done yet");
    device.write_bar(0x14, &[15]);
    device.settle().unwrap();
    assert_eq!(status(&mut device), 0);
    assert!(!working.load(Ordering::SeqCst) && !device.driver_ok());
    drive(&mut device, 1 << 32);
    device.settle().unwrap();
    assert!(working.load(Ordering::SeqCst));
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let Some(host) = host() else { return };
    for features in [(1u64 << 32) | 2, 1, 0] {
        let (mut device, working) = device(&host, false);
        drive(&mut device, features);
        assert_eq!(status(&mut device) & 12, 0, "neither FEATURES_OK nor DRIVER_OK");
        device.settle().unwrap();
        assert!(!working.load(Ordering::SeqCst));
    }
}

#[test]
fn a_failed_start_asks_for_a_reset_and_can_be_tried_again() {
    let Some(host) = host() else { return };
    let (mut device, _) = device(&host, true);
    for _ in 0..2 {
        drive(&mut device, 1 << 32);
        assert!(device.settle().is_err());
        assert_eq!(status(&mut device) & 0x40, 0x40);
        device.settle().unwrap();
        device.write_bar(0x14, &[0]);
        device.settle().unwrap();
        assert_eq!(status(&mut device), 0);
    }
}

#[test]
fn the_capability_list_ends_and_the_window_of_the_last_one_works() {
    let Some(host) = host() else { return };
    let (mut device, _) = device(&host, false);
    let mut at = 0x40u8;
    let mut kinds = Vec::new();
    while at != 0 {
        let mut head = [0u8; 4];
        device.read_config(at, &mut head);
        kinds.push((head[0], if head[0] == 9 { head[3] } else { 0 }));
        if head[3] == 5 {
            device.write_config(at + 8, &0x12u32.to_le_bytes());
            device.write_config(at + 12, &2u32.to_le_bytes());
            let mut data = [0u8; 2];
            device.read_config(at + 16, &mut data);
            assert_eq!(data, [2, 0], "number of queues");
        }
        at = head[1];
    }
    assert_eq!(kinds, [(0x11, 0), (9, 1), (9, 3), (9, 4), (9, 2), (9, 5)]);
}

#[test]
fn a_saved_device_goes_on_in_another_machine_where_it_was() {
    let (Some(host), Some(other)) = (host(), host()) else { return };
    let (mut device, _) = device(&host, false);
    device.write_bar(TABLE, &0xfee0_0000_u32.to_le_bytes());
    device.write_bar(0x10, &[1, 0]);
    drive(&mut device, 1 << 32);
    device.settle().unwrap();
    device.pause();
    let state = device.save();
    let text = serde_json::to_string(&state).unwrap();
    let state: VirtioPciState = serde_json::from_str(&text).unwrap();

    let seen = Arc::new(Mutex::new(Vec::new()));
    let make = |seen: &Arc<Mutex<Vec<QueueProgress>>>| {
        let fake = Fake { working: Arc::default(), fail: false, seen: seen.clone() };
        VirtioPci::new(other.clone(), 3, Box::new(fake)).unwrap()
    };
    let mut copy = make(&seen);
    copy.restore(&state).unwrap();
    assert_eq!(copy.save(), state, "before it starts");
    assert_eq!(other.signals.take().0, 1 << 3);
    copy.settle().unwrap();
    assert!(copy.driver_ok());
    assert_eq!(*seen.lock().unwrap(), state.progress);
    copy.pause();
    let again = copy.save();
    assert_eq!((again.common, again.msix.table), (state.common.clone(), state.msix.table.clone()));
    // An interrupt for each queue, because one may have been on its way; MSI-X is off, so they stay in the status.
    assert_eq!(again.interrupt.isr, 1);

    let wrong = |change: &dyn Fn(&mut VirtioPciState)| {
        let mut state = state.clone();
        change(&mut state);
        make(&seen).restore(&state).unwrap_err()
    };
    assert!(matches!(wrong(&|state| state.device_type = 2), RestoreError::Kind { .. }));
    assert!(matches!(wrong(&|state| state.common.driver_features |= 2), RestoreError::Host(_)));
    assert!(matches!(wrong(&|state| state.common.queues[0].size = 9), RestoreError::Damaged(_)));
    assert!(matches!(wrong(&|state| state.space.truncate(9)), RestoreError::Damaged(_)));
    assert!(matches!(wrong(&|state| state.msix.table.truncate(9)), RestoreError::Host(_)));
    assert!(matches!(wrong(&|state| state.interrupt.queues.push(0)), RestoreError::Host(_)));
}

#[derive(Debug, Clone)]
enum Act {
    ReadConfig(u8, usize),
    WriteConfig(u8, Vec<u8>),
    ReadBar(u32, usize),
    WriteBar(u32, Vec<u8>),
    Settle,
    Signal(u16),
}

fn acts() -> impl Strategy<Value = Act> {
    let bytes = || {
        proptest::sample::select(vec![1usize, 2, 4])
            .prop_flat_map(|n| proptest::collection::vec(any::<u8>(), n))
    };
    let bar =
        || prop_oneof![0u32..0x40, 0x100u32..0x104, 0xff8u32..0x1040, 0x17f8u32..0x2010, 0x3ff0u32..0x4000];
    prop_oneof![
        (any::<u8>(), 1usize..5).prop_map(|(at, length)| Act::ReadConfig(at, length)),
        (any::<u8>(), bytes()).prop_map(|(at, data)| Act::WriteConfig(at, data)),
        (bar(), 1usize..9).prop_map(|(at, length)| Act::ReadBar(at, length)),
        (bar(), bytes()).prop_map(|(at, data)| Act::WriteBar(at, data)),
        Just(Act::WriteBar(0x14, vec![15])),
        Just(Act::Settle),
        any::<u16>().prop_map(Act::Signal),
    ]
}

#[test]
fn a_hostile_driver_neither_panics_nor_starts_a_device_twice() {
    let Some(host) = host() else { return };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(64));
    let strategy = proptest::collection::vec(acts(), 0..120);
    let outcome = runner.run(&strategy, |acts| {
        let (mut device, working) = device(&host, false);
        drive(&mut device, 1 << 32);
        let mut data = [0u8; 8];
        for act in acts {
            match act {
                Act::ReadConfig(at, length) => device.read_config(at, &mut data[..length]),
                Act::WriteConfig(at, bytes) => device.write_config(at, &bytes),
                Act::ReadBar(at, length) => device.read_bar(at, &mut data[..length]),
                Act::WriteBar(at, bytes) => device.write_bar(at, &bytes),
                Act::Settle => drop(device.settle()),
                Act::Signal(queue) => crate::virtio::Interrupt::queue(&*device.interrupt, queue),
            }
        }
        drop(device);
        prop_assert!(!working.load(Ordering::SeqCst), "a dropped device still works");
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn an_event_that_its_holder_keeps_full_blocks_nobody() {
    let Some(host) = host() else { return };
    host.vm.create_irq_chip().unwrap();
    let msix = Msix::new(host.routes.clone(), 2, 2).unwrap();
    let event = msix.event(1).unwrap().unwrap();
    crate::virtio::vhost_user::testing::fill(&event);
    // Closed: it is pending, as often as one looks; our own signals are besides.
    for _ in 0..2 {
        assert_eq!(msix.save().pending, 2);
    }
    msix.signal(1);
    msix.signal(0);
    assert_eq!(msix.save().pending, 3);
    // Open: KVM takes what waits from both, and nothing is pending any more.
    let message: Vec<u8> = [0xfee0_0000u32, 0, 0x41, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    msix.write_table(16, &message);
    msix.set_control(1 << 15);
    msix.signal(1);
    assert_eq!(msix.save().pending, 1);
}
