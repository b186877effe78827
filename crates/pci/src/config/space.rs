//! The bytes of configuration space and the one way to change them.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::builder::Builder;
use super::capability::{Capability, Header};
use super::effects::{Change, ConfigEffects};
use super::register::Register;
use crate::function::{Bar, BarKind};
use crate::spec::{
    offset, AtsControl, Command, DeviceControl, DeviceStatus, MsiXControl, PasidControl,
    PowerControl, PriControl, PriStatus, CONFIG_SPACE_SIZE,
};

const SIZE: usize = CONFIG_SPACE_SIZE as usize;
/// D0 and D3hot, the two states every function has.
const POWER_STATES: [u8; 2] = [0, 3];

/// Offsets of the capabilities that are there.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Places {
    express: Option<u16>,
    msix: Option<u16>,
    power: Option<u16>,
    ats: Option<u16>,
    pri: Option<u16>,
    pasid: Option<u16>,
}

impl Places {
    pub(super) fn note(&mut self, offset: u16, part: &Capability) {
        let place = match part {
            Capability::Express(_) => &mut self.express,
            Capability::MsiX(_) => &mut self.msix,
            Capability::Power(_) => &mut self.power,
            Capability::Ats(_) => &mut self.ats,
            Capability::Pri(_) => &mut self.pri,
            Capability::Pasid(_) => &mut self.pasid,
            Capability::SerialNumber(_) => return,
        };
        *place = Some(offset);
    }
}

/// The 4096 bytes of a function's configuration space.
///
/// A write stores what the register table lets it store and gives what changed as a value; it
/// calls nobody. Anything outside reads as all ones and is not written.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: Box<[u8; SIZE]>,
    masks: Box<Masks>,
    registers: Vec<Register>,
    bars: Vec<Bar>,
    places: Places,
}

/// What the register table says of every byte.
#[derive(Clone, Debug)]
struct Masks {
    reset: [u8; SIZE],
    writable: [u8; SIZE],
    write_one_clears: [u8; SIZE],
    action: [u8; SIZE],
}

/// The registers whose changes are reported.
struct Watched {
    command: Command,
    bars: [u32; 6],
    msix: Option<MsiXControl>,
    power: Option<PowerControl>,
    device_control: Option<DeviceControl>,
    ats: Option<AtsControl>,
    pri: Option<PriControl>,
    pri_allocation: Option<u32>,
    pasid: Option<PasidControl>,
}

impl ConfigSpace {
    /// Begins a configuration space with this identity.
    pub fn builder(header: Header) -> Builder {
        Builder::new(header)
    }

    pub(super) fn new(registers: Vec<Register>, bars: Vec<Bar>, places: Places) -> Self {
        let mut masks = Box::new(Masks {
            reset: [0; SIZE],
            writable: [0; SIZE],
            write_one_clears: [0; SIZE],
            action: [0; SIZE],
        });
        for register in &registers {
            let bytes = usize::from(register.offset)
                ..usize::from(register.offset) + usize::from(register.width);
            for (index, at) in bytes.enumerate() {
                masks.reset[at] |= register.reset.to_le_bytes()[index];
                masks.writable[at] |= register.writable.to_le_bytes()[index];
                masks.write_one_clears[at] |= register.write_one_clears.to_le_bytes()[index];
                masks.action[at] |= register.action.to_le_bytes()[index];
            }
        }
        Self { bytes: Box::new(masks.reset), masks, registers, bars, places }
    }

    /// The register table that drives this configuration space.
    pub fn registers(&self) -> &[Register] {
        &self.registers
    }

    /// The BARs, in the order in which they were given.
    pub fn bars(&self) -> &[Bar] {
        &self.bars
    }

    /// Reads from `offset`; what is past the end reads as all ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        let inside = self.bytes.get(usize::from(offset)..).unwrap_or(&[]);
        for (to, from) in data.iter_mut().zip(inside) {
            *to = *from;
        }
    }

    /// Writes from `offset`, of any length and alignment; what is past the end is dropped.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> ConfigEffects {
        let before = self.watched();
        let mut effects = ConfigEffects::default();
        for (at, &value) in (usize::from(offset)..SIZE).zip(data) {
            let writable = self.masks.writable[at];
            let cleared = self.masks.write_one_clears[at] & value;
            self.bytes[at] = (self.bytes[at] & !writable | value & writable) & !cleared;
            if self.masks.action[at] & value != 0 {
                self.note_action(at, &mut effects);
            }
        }
        self.settle(&before, &mut effects);
        effects
    }

    /// All registers as after power-on, sticky ones included.
    pub fn reset(&mut self) {
        // By name, so that state added later cannot be forgotten; the table, the BARs and the
        // places are what the function is, not what it is in.
        let Self { bytes, masks, registers: _, bars: _, places: _ } = self;
        **bytes = masks.reset;
    }

    /// Command.
    pub fn command(&self) -> Command {
        Command::from_bits(self.word(offset::COMMAND))
    }

    /// The address programmed into BAR `index`, decoded or not; `None` if there is no such BAR.
    pub fn bar_address(&self, index: u8) -> Option<u64> {
        let bar = self.bars.iter().find(|bar| bar.index == index)?;
        let at = offset::BAR0 + 4 * u16::from(index);
        let low = u64::from(self.double_word(at));
        let high = match bar.kind {
            BarKind::Memory32 => 0,
            BarKind::Memory64 => u64::from(self.double_word(at + 4)),
        };
        Some((high << 32 | low) & !(bar.size - 1))
    }

    /// MSI-X message control, if there is MSI-X.
    pub fn msix(&self) -> Option<MsiXControl> {
        Some(MsiXControl::from_bits(self.word(self.places.msix? + 2)))
    }

    /// Power management control, if there is power management.
    pub fn power(&self) -> Option<PowerControl> {
        Some(PowerControl::from_bits(self.word(self.places.power? + 4)))
    }

    /// Device control, if there is a PCI Express capability.
    pub fn device_control(&self) -> Option<DeviceControl> {
        Some(DeviceControl::from_bits(self.word(self.places.express? + 8)))
    }

    /// ATS control, if there is ATS.
    pub fn ats(&self) -> Option<AtsControl> {
        Some(AtsControl::from_bits(self.word(self.places.ats? + 6)))
    }

    /// Page request control, if there is PRI.
    pub fn pri(&self) -> Option<PriControl> {
        Some(PriControl::from_bits(self.word(self.places.pri? + 4)))
    }

    /// Page request status, if there is PRI.
    pub fn pri_status(&self) -> Option<PriStatus> {
        Some(PriStatus::from_bits(self.word(self.places.pri? + 6)))
    }

    /// How many page requests the guest lets the function have outstanding, if there is PRI.
    pub fn pri_allocation(&self) -> Option<u32> {
        Some(self.double_word(self.places.pri? + 12))
    }

    /// PASID control, if there are PASIDs.
    pub fn pasid(&self) -> Option<PasidControl> {
        Some(PasidControl::from_bits(self.word(self.places.pasid? + 6)))
    }

    /// Sets or clears "transactions pending", which a guest polls before a reset.
    pub fn set_transactions_pending(&mut self, pending: bool) {
        if let Some(base) = self.places.express {
            let status = DeviceStatus::from_bits(self.word(base + 10));
            self.set_word(base + 10, status.with_transactions_pending(pending).into_bits());
        }
    }

    /// Sets or clears "stopped" of the page request interface. A write that enables it clears the
    /// bit and one that disables it sets it; a function with requests still unanswered clears it
    /// again on that effect, and sets it when they are answered.
    pub fn set_page_requests_stopped(&mut self, stopped: bool) {
        self.update_pri_status(|status| status.with_stopped(stopped));
    }

    /// Records that a page group response said failure.
    pub fn page_response_failed(&mut self) {
        self.update_pri_status(|status| status.with_response_failure(true));
    }

    /// Records a page group response that matched no request.
    pub fn unexpected_page_response(&mut self) {
        self.update_pri_status(|status| status.with_unexpected_group(true));
    }

    fn update_pri_status(&mut self, update: impl FnOnce(PriStatus) -> PriStatus) {
        if let (Some(base), Some(status)) = (self.places.pri, self.pri_status()) {
            self.set_word(base + 6, update(status).into_bits());
        }
    }

    /// Notes what writing 1 to the action bit of byte `at` asks for; no byte has two such bits.
    fn note_action(&self, at: usize, effects: &mut ConfigEffects) {
        let is_byte_of = |place: Option<u16>, register: u16, byte: u16| {
            place.is_some_and(|base| usize::from(base + register + byte) == at)
        };
        effects.function_reset |= is_byte_of(self.places.express, 8, 1);
        effects.pri_reset |= is_byte_of(self.places.pri, 4, 0);
    }

    /// Applies what a register does beyond storing, and collects what changed.
    fn settle(&mut self, before: &Watched, effects: &mut ConfigEffects) {
        self.refuse_power_states(before.power);
        let after = self.watched();
        effects.command = change(Some(before.command), Some(after.command));
        effects.bars = before.bars != after.bars;
        effects.msix = change(before.msix, after.msix);
        effects.power = change(before.power.map(|p| p.state()), after.power.map(|p| p.state()));
        effects.device_control = change(before.device_control, after.device_control);
        effects.ats = change(before.ats, after.ats);
        effects.pri = change(before.pri, after.pri);
        effects.pri_allocation = change(before.pri_allocation, after.pri_allocation);
        effects.pasid = change(before.pasid, after.pasid);
        if let Some(Change { to, .. }) = effects.pri {
            self.set_page_requests_stopped(!to.enable());
            if to.enable() {
                // Its errors are of the time before (10.5.2.2).
                let cleared = |status: PriStatus| {
                    status.with_response_failure(false).with_unexpected_group(false)
                };
                self.update_pri_status(cleared);
            }
        }
        // The bit works only on an interface that is, or is just being, disabled (10.5.2.2).
        effects.pri_reset &= after.pri.is_some_and(|pri| !pri.enable());
    }

    /// A write of a state that the function does not have changes nothing (7.5.2.2).
    fn refuse_power_states(&mut self, before: Option<PowerControl>) {
        if let (Some(base), Some(before), Some(now)) = (self.places.power, before, self.power()) {
            if !POWER_STATES.contains(&now.state()) {
                self.set_word(base + 4, now.with_state(before.state()).into_bits());
            }
        }
    }

    fn watched(&self) -> Watched {
        Watched {
            command: self.command(),
            bars: core::array::from_fn(|index| self.double_word(offset::BAR0 + 4 * index as u16)),
            msix: self.msix(),
            power: self.power(),
            device_control: self.device_control(),
            ats: self.ats(),
            pri: self.pri(),
            pri_allocation: self.pri_allocation(),
            pasid: self.pasid(),
        }
    }

    fn word(&self, at: u16) -> u16 {
        let mut bytes = [0; 2];
        self.read(at, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    fn double_word(&self, at: u16) -> u32 {
        let mut bytes = [0; 4];
        self.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Stores a register of ours; `at` is a place that the builder checked.
    fn set_word(&mut self, at: u16, value: u16) {
        for (to, from) in self.bytes.iter_mut().skip(usize::from(at)).zip(value.to_le_bytes()) {
            *to = from;
        }
    }
}

fn change<T: PartialEq + Copy>(from: Option<T>, to: Option<T>) -> Option<Change<T>> {
    match (from, to) {
        (Some(from), Some(to)) if from != to => Some(Change { from, to }),
        _ => None,
    }
}
