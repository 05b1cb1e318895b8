//! I/O ports. Ports that nobody has read as all-ones and drop what is written: Linux probes many.

use super::ioapic::IoApic;
use super::pci::PciBus;
use super::power::Power;
use super::processors::Processors;
use super::watchdog::Watchdog;
use crate::machine::layout::{
    ACPI_PORTS, ACPI_PORTS_LEN, COM1, COM1_IRQ, I8042_COMMAND, PANIC_PORT, PCI_ADDRESS, PCI_DATA,
    PROCESSOR_PORTS, PROCESSOR_PORTS_LEN, RESET_PORT, WATCHDOG_PORTS, WATCHDOG_PORTS_LEN,
};
use crate::machine::signals::Signals;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use wire::machine::EndReason;

/// i8042: pulse the processor's reset line.
const I8042_RESET: u8 = 0xfe;
/// Reset control register: do it now.
const RESET_NOW: u8 = 1 << 2;

/// pvpanic: the guest panicked, and the guest panicked and will load another kernel to write a dump.
const PANICKED: u8 = 1;
const DUMPS: u8 = 2;

/// Raises the serial port's interrupt.
pub struct SerialInterrupt(Arc<IoApic>);

impl Trigger for SerialInterrupt {
    type E = Infallible;
    fn trigger(&self) -> Result<(), Infallible> {
        self.0.raise(COM1_IRQ);
        Ok(())
    }
}

/// The serial port in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialRegisters {
    /// Divisor latch, low and high byte.
    pub divisor: [u8; 2],
    /// Interrupt enable and identification.
    pub interrupt: [u8; 2],
    /// Line control and status.
    pub line: [u8; 2],
    /// Modem control and status.
    pub modem: [u8; 2],
    /// Scratch.
    pub scratch: u8,
    /// Input that the guest has not read.
    pub input: Vec<u8>,
}

impl SerialRegisters {
    fn of(state: SerialState) -> Self {
        Self {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt: [state.interrupt_enable, state.interrupt_identification],
            line: [state.line_control, state.line_status],
            modem: [state.modem_control, state.modem_status],
            scratch: state.scratch,
            input: state.in_buffer,
        }
    }

    fn to_state(&self) -> SerialState {
        // What does not fit into the port's buffer was never in one.
        let input = self.input.iter().copied().take(SERIAL_FIFO).collect();
        SerialState {
            baud_divisor_low: self.divisor[0],
            baud_divisor_high: self.divisor[1],
            interrupt_enable: self.interrupt[0],
            interrupt_identification: self.interrupt[1],
            line_control: self.line[0],
            line_status: self.line[1],
            modem_control: self.modem[0],
            modem_status: self.modem[1],
            scratch: self.scratch,
            in_buffer: input,
        }
    }
}

/// Bytes of input that a serial port keeps.
const SERIAL_FIFO: usize = 64;

/// Where the serial port's output goes.
pub type Console = Box<dyn Write + Send>;

/// The ports.
pub struct Ports {
    serial: Mutex<Serial<SerialInterrupt, NoEvents, Console>>,
    /// ACPI registers.
    pub power: Arc<Power>,
    /// The watchdog, in a machine that has one.
    pub watchdog: Option<Watchdog>,
    /// The processors' registers, in a machine that can have more of them.
    pub processors: Option<Processors>,
    pci: Arc<PciBus>,
    signals: Arc<Signals>,
    /// Accesses to ports that nobody has.
    pub unknown: AtomicU64,
}

impl Ports {
    /// Ports with the serial port's output going to `console`; the serial port goes on from `serial`.
    #[must_use]
    pub fn new(
        console: Console,
        serial: Option<&SerialRegisters>,
        ioapic: Arc<IoApic>,
        power: Arc<Power>,
        pci: Arc<PciBus>,
        signals: Arc<Signals>,
    ) -> Self {
        let state = serial.map(SerialRegisters::to_state).unwrap_or_default();
        // The state fits, and raising an interrupt cannot fail.
        let serial = match Serial::from_state(&state, SerialInterrupt(ioapic.clone()), NoEvents, console) {
            Ok(serial) => serial,
            Err(_) => Serial::new(SerialInterrupt(ioapic), Box::new(std::io::sink()) as Console),
        };
        let serial = Mutex::new(serial);
        Self { serial, power, watchdog: None, processors: None, pci, signals, unknown: AtomicU64::new(0) }
    }

    /// The serial port's state.
    #[must_use]
    pub fn save_serial(&self) -> SerialRegisters {
        SerialRegisters::of(self.serial.lock().unwrap_or_else(PoisonError::into_inner).state())
    }

    /// Marks for the driver thread.
    #[must_use]
    pub fn signals(&self) -> &Signals {
        &self.signals
    }

    /// Input for the serial port. Returns how many bytes it took: its FIFO is small.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        let room = serial.fifo_capacity().min(bytes.len());
        serial.enqueue_raw_bytes(bytes.get(..room).unwrap_or_default()).unwrap_or(0)
    }

    /// Flushes the console.
    pub fn flush(&self) {
        let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        // The console has nobody to complain to.
        let _ = serial.writer_mut().flush();
    }

    /// `in`, with as many bytes as were asked for in all (a repeated instruction asks for several at once).
    pub fn read(&self, port: u16, data: &mut [u8]) {
        if let Some(offset) = offset(port, COM1, 8) {
            let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
            for byte in data {
                *byte = serial.read(offset.to_le_bytes()[0]);
            }
        } else if let Some(offset) = offset(port, ACPI_PORTS, ACPI_PORTS_LEN) {
            self.power.read(offset, data);
        } else if let (Some(watchdog), Some(offset)) = (&self.watchdog, watchdog_offset(port)) {
            watchdog.read(offset, data);
        } else if let (Some(processors), Some(offset)) = (&self.processors, processors_offset(port)) {
            processors.read(offset, data);
        } else if let Some(offset) = offset(port, PCI_DATA, 4) {
            self.pci.read_data(offset, data);
        } else if port == PCI_ADDRESS && data.len() == 4 {
            data.copy_from_slice(&self.pci.address().to_le_bytes());
        } else if port == I8042_COMMAND {
            // No key was pressed, and the controller takes commands.
            data.fill(0);
        } else if port == RESET_PORT {
            data.fill(0);
        } else if port == PANIC_PORT {
            // What may be reported.
            data.fill(PANICKED | DUMPS);
        } else {
            self.unknown.fetch_add(1, Ordering::Relaxed);
            data.fill(0xff);
        }
    }

    /// `out`, with as many bytes as were given in all.
    pub fn write(&self, port: u16, data: &[u8]) {
        if let Some(offset) = offset(port, COM1, 8) {
            let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
            for byte in data {
                // A console that cannot be written must not stop the guest.
                let _ = serial.write(offset.to_le_bytes()[0], *byte);
            }
        } else if let Some(offset) = offset(port, ACPI_PORTS, ACPI_PORTS_LEN) {
            self.power.write(offset, data);
        } else if let (Some(watchdog), Some(offset)) = (&self.watchdog, watchdog_offset(port)) {
            watchdog.write(offset, data);
        } else if let (Some(processors), Some(offset)) = (&self.processors, processors_offset(port)) {
            processors.write(offset, data);
        } else if let Some(offset) = offset(port, PCI_DATA, 4) {
            self.pci.write_data(offset, data);
        } else if let (PCI_ADDRESS, Ok(bytes)) = (port, <[u8; 4]>::try_from(data)) {
            self.pci.set_address(u32::from_le_bytes(bytes));
        } else {
            match (port, data) {
                (I8042_COMMAND, [I8042_RESET]) => self.signals.end(EndReason::Reset, ""),
                (RESET_PORT, [value]) if value & RESET_NOW != 0 => self.signals.end(EndReason::Reset, ""),
                (RESET_PORT, _) => {}
                (PANIC_PORT, [events]) if events & (PANICKED | DUMPS) != 0 => self.signals.panic(),
                (PANIC_PORT, _) => {}
                _ => {
                    self.unknown.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

fn processors_offset(port: u16) -> Option<u16> {
    offset(port, PROCESSOR_PORTS, PROCESSOR_PORTS_LEN)
}

fn watchdog_offset(port: u16) -> Option<u16> {
    offset(port, WATCHDOG_PORTS, WATCHDOG_PORTS_LEN)
}

fn offset(port: u16, base: u16, length: u16) -> Option<u16> {
    port.checked_sub(base).filter(|offset| *offset < length)
}
