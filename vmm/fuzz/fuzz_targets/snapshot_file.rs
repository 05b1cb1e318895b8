//! The state file of a snapshot, and what a machine's board takes over from one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use vmm::bus::ioapic::{IoApic, MsiSink};
use vmm::bus::pci::PciBus;
use vmm::bus::ports::Ports;
use vmm::bus::power::Power;
use vmm::machine::signals::Signals;
use vmm::snapshot::MachineState;
use vmm::snapshot::file;

struct Nowhere;
impl MsiSink for Nowhere {
    fn send(&self, _address: u64, _data: u32) {}
}

/// Restores what does not need KVM, uses it, and saves it again.
fn restore(state: &MachineState) {
    let Ok(signals) = Signals::new().map(Arc::new) else { return };
    let ioapic = Arc::new(IoApic::new(Arc::new(Nowhere)));
    let power = Arc::new(Power::new(ioapic.clone(), signals.clone()));
    let (pci, console) = (Arc::new(PciBus::default()), Box::new(std::io::sink()));
    let ports =
        Ports::new(console, Some(&state.board.serial), ioapic.clone(), power.clone(), pci.clone(), signals);
    pci.set_address(state.board.pci_address);
    power.restore(&state.board.power);
    ioapic.restore(&state.board.ioapic);
    power.new_generation();
    let mut data = [0; 4];
    for port in (0x3f8..0x400).chain([0x600, 0x610, 0xcf8, 0xcfc]) {
        ports.write(port, &data);
        ports.read(port, &mut data);
    }
    ports.input(b"x");
    assert_eq!(ioapic.save().entries, state.board.ioapic.entries);
    let bytes = file::encode(state).expect("a state that was read can be written");
    assert!(file::read(&bytes).is_ok_and(|again| again == *state), "what was written reads differently");
}

fuzz_target!(|data: &[u8]| {
    let _ = file::read(data);
    // Behind a header that is right, so that the body is reached.
    if let Ok(state) = file::read(&file::frame(data)) {
        restore(&state);
    }
});
