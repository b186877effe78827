//! A device on a bench: memory with holes, engines run by hand, and what a driver does.
// Each test file uses its part, and is a crate of its own.
#![allow(dead_code, unreachable_pub)]

use std::sync::{Arc, Mutex};

use dsa::model::{Config, Device, Engine, Ran, Submission};
use dsa::spec::*;
use iommu::Endpoint;
use mem::{Gpa, GuestMemory, MemoryMap};
use pci::{Function, InterruptSink, RequesterId};

pub mod naive;
pub mod paged;

/// Offsets of the tables in BAR 0, as OFFSETS gives them.
pub const MSIXPERM: u64 = 0x200;
pub const GRPCFG: u64 = 0x300;
pub const WQCFG: u64 = 0x400;

/// Where completion records go: its own memory, away from everything else.
pub const RECORDS: u64 = 0x8000_0000;
/// Where memory begins that is in one piece.
pub const FLAT: u64 = 0x10_0000;
pub const FLAT_LEN: u64 = 0x80_0000;
/// No memory is here.
pub const HOLE: u64 = 0x4000_0000;

/// Who the device is.
pub const DEVICE: RequesterId = RequesterId::from_bits(0x80);

/// Steps after which an engine that is still busy is stuck: no test has more work than this.
const STEPS: usize = 100_000;

/// The PASID of the queue that `Rig::dedicated` enables.
pub const PASID: u32 = 0x42;

/// The vectors that were raised, in order.
#[derive(Default)]
pub struct Interrupts(Mutex<Vec<u16>>);

impl InterruptSink for Interrupts {
    fn raise(&self, vector: u16) {
        self.0.lock().unwrap().push(vector);
    }
}

impl Interrupts {
    pub fn take(&self) -> Vec<u16> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

pub struct Rig {
    pub device: Device,
    pub memory: Arc<MemoryMap>,
    pub engines: Vec<Engine>,
    pub interrupts: Arc<Interrupts>,
}

impl Rig {
    /// A device as after power-on, in flat memory.
    pub fn new() -> Self {
        Self::with(Config::default(), &[(Gpa(FLAT), FLAT_LEN)])
    }

    pub fn with(config: Config, ranges: &[(Gpa, u64)]) -> Self {
        let mut ranges = ranges.to_vec();
        ranges.push((Gpa(RECORDS), 0x1000));
        let memory = Arc::new(MemoryMap::anonymous(&ranges).unwrap());
        let endpoint = Endpoint::identity(DEVICE, memory.clone());
        Self::on(config, memory, endpoint)
    }

    /// A device as after power-on at `endpoint`, beyond which `memory` is.
    pub fn on(config: Config, memory: Arc<MemoryMap>, endpoint: Endpoint) -> Self {
        let device = Device::new(config, endpoint).unwrap();
        let engines = (0..device.engines()).map(|i| device.engine(i).unwrap()).collect();
        let interrupts = Arc::new(Interrupts::default());
        device.set_interrupts(Some(interrupts.clone()));
        Self { device, memory, engines, interrupts }
    }

    /// With queue 0 (16 entries, group 0, all engines) enabled as a dedicated queue with [`PASID`].
    pub fn dedicated() -> Self {
        let rig = Self::new();
        rig.enable_function();
        rig.configure(0, 0, 16, user_mode(true).with_pasid(PASID));
        rig.set_engines(0, 0xf);
        rig.enable(&[0]);
        rig
    }

    /// Bus master, memory, PASID and ATS on, as a driver leaves them.
    pub fn enable_function(&self) {
        self.device.config_write(0x04, &6u16.to_le_bytes());
        self.device.config_write(0x236, &1u16.to_le_bytes());
        self.device.config_write(0x226, &0x8000u16.to_le_bytes());
    }

    /// Writes the configuration of a queue and puts it into `group`.
    pub fn configure(&self, wq: u64, group: u64, size: u16, mode: WqMode) {
        let limits = WqLimits::new().with_max_transfer_shift(21).with_max_batch_shift(5);
        let config = WqConfig { size, threshold: size, mode, limits, ..WqConfig::default() };
        for (i, dword) in config.to_dwords().into_iter().enumerate() {
            self.write32(WQCFG + wq * 32 + i as u64 * 4, dword);
        }
        let wqs = self.read64(GRPCFG + group * 64);
        self.write64(GRPCFG + group * 64, wqs | 1 << wq);
    }

    pub fn set_engines(&self, group: u64, engines: u64) {
        self.write64(GRPCFG + group * 64 + 32, engines);
    }

    /// Enables the device and these queues.
    pub fn enable(&self, wqs: &[u32]) {
        assert_eq!(self.command(CommandCode::EnableDevice, 0), 0);
        for &wq in wqs {
            assert_eq!(self.command(CommandCode::EnableWq, wq), 0, "queue {wq}");
        }
    }

    pub fn read32(&self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.device.bar_read(0, at, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn read64(&self, at: u64) -> u64 {
        let mut data = [0; 8];
        self.device.bar_read(0, at, &mut data);
        u64::from_le_bytes(data)
    }

    pub fn write32(&self, at: u64, value: u32) {
        self.device.bar_write(0, at, &value.to_le_bytes());
    }

    pub fn write64(&self, at: u64, value: u64) {
        self.device.bar_write(0, at, &value.to_le_bytes());
    }

    /// Starts a command without an interrupt.
    pub fn start(&self, code: CommandCode, operand: u32) {
        let cmd = Cmd::new().with_code(code as u8).with_operand(operand);
        self.write32(0xa0, cmd.into_bits());
    }

    pub fn command_status(&self) -> CmdStatus {
        CmdStatus::from_bits(self.read32(0xa8))
    }

    /// A command that must end without an engine's help; gives CMDSTATUS.
    pub fn command(&self, code: CommandCode, operand: u32) -> u32 {
        self.start(code, operand);
        let status = self.command_status();
        assert!(!status.active(), "{code:?} waits");
        status.into_bits()
    }

    /// GENSTS.
    pub fn state(&self) -> GenSts {
        GenSts::from_bits(self.read32(0x90))
    }

    pub fn wq(&self, wq: u64) -> WqConfig {
        WqConfig::from_dwords(core::array::from_fn(|i| self.read32(WQCFG + wq * 32 + i as u64 * 4)))
    }

    pub fn swerror(&self) -> SwError {
        SwError::from_qwords(core::array::from_fn(|i| self.read64(0xc0 + i as u64 * 8)))
    }

    /// Stores a descriptor to the limited portal of a queue.
    pub fn post(&self, wq: u8, descriptor: &Descriptor) {
        let at = Portal::LIMITED.offset(wq);
        self.device.bar_write(2, at, &descriptor.to_bytes());
    }

    pub fn submit(&self, wq: usize, portal: Portal, descriptor: &Descriptor) -> Submission {
        self.device.submit(wq, portal, &descriptor.to_bytes())
    }

    /// Runs engine 0 for `steps`.
    pub fn step(&mut self, steps: usize) -> Ran {
        self.engines[0].run(steps)
    }

    /// Runs all engines until none has work.
    pub fn settle(&mut self) {
        for _ in 0..STEPS {
            let busy =
                self.engines.iter_mut().fold(false, |busy, e| (e.run(16) == Ran::More) | busy);
            if !busy {
                return;
            }
        }
        panic!("engines never become idle");
    }

    /// The address of record `index`.
    pub fn record_at(index: u64) -> Iova {
        Iova(RECORDS + index * 32)
    }

    pub fn record(&self, index: u64) -> CompletionRecord {
        let mut bytes = [0; 32];
        self.memory.read(Gpa(Self::record_at(index).0), &mut bytes).unwrap();
        CompletionRecord::from_bytes(&bytes)
    }

    pub fn clear_records(&self) {
        self.memory.write(Gpa(RECORDS), &[0; 0x1000]).unwrap();
    }

    /// Executes `descriptor` on queue 0 with record 0 asked for, and gives the record.
    pub fn execute(&mut self, descriptor: Descriptor) -> CompletionRecord {
        self.clear_records();
        let descriptor =
            descriptor.with_record(Self::record_at(0)).with_flags(Flags::REQUEST_RECORD);
        self.post(0, &descriptor);
        self.settle();
        self.record(0)
    }

    pub fn run_operation(&mut self, operation: Operation) -> CompletionRecord {
        self.execute(Descriptor::new(operation))
    }

    /// Executes and expects the status.
    pub fn expect(&mut self, operation: Operation, status: Status) -> CompletionRecord {
        let record = self.run_operation(operation);
        assert_eq!(record.status.status(), Ok(status), "{operation:?}: {record:?}");
        record
    }

    pub fn fill(&self, at: u64, bytes: &[u8]) {
        self.memory.write(Gpa(at), bytes).unwrap();
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(Gpa(at), &mut bytes).unwrap();
        bytes
    }
}

/// A queue as accel-config sets it up, without a PASID number.
pub fn user_mode(dedicated: bool) -> WqMode {
    WqMode::new().with_dedicated(dedicated).with_priority(10).with_pasid_enable(true)
}

pub fn memory_move(source: u64, destination: u64, size: u32) -> Operation {
    Operation::MemoryMove { source: Iova(source), destination: Iova(destination), size }
}

/// Bytes that look like nothing in particular.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}
