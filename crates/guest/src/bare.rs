//! The accelerator without its driver: a guest that programs it with whatever PASID it likes. Linux 6.1's `idxd` does
//! not run here, so nobody else uses it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use dsa::spec::{
    offset, Cmd, CmdStatus, CommandCode, Descriptor, Flags, GenCtrl, Iova, Offsets, Operation,
    SwError, SwErrorHead, WqConfig, WqLimits, WqMode, GRPCFG_ENGINES, GRPCFG_WQS,
};
use iommu::Pasid;

use crate::dma::PAGE;
use crate::failure::{ensure, Context, Failure, Outcome};
use crate::portal::Portal;
use crate::registers::Registers;

/// Where the accelerator sits in the lab's guests.
const FUNCTION: &str = "/sys/bus/pci/devices/0000:00:10.0";
/// Its registers' BAR, and its portals'.
const BARS: [&str; 2] = ["resource0", "resource2"];
/// The command register of configuration space, and its bits for memory and bus master.
const COMMAND: (u64, u16) = (0x04, 0x0006);
/// Its PASID capability's control register, and the enable bit.
const PASID_CONTROL: (u64, u16) = (0x236, 0x0001);
/// Units of the fields of OFFSETS, in bytes.
const OFFSET_UNIT: usize = 0x100;
/// Entries of the queue.
const QUEUE_SIZE: u16 = 4;
/// How long the device may take to answer; it takes microseconds.
const WITHIN: Duration = Duration::from_secs(5);

/// The accelerator, mapped and reset.
pub(crate) struct Bare {
    registers: Registers,
    portal: Portal,
}

impl Bare {
    /// Lets the device work, and maps it.
    pub(crate) fn open() -> Outcome<Self> {
        let function = Path::new(FUNCTION);
        let file = |name: &str| {
            let path = function.join(name);
            File::options().read(true).write(true).open(&path).at(path.display())
        };
        let configuration = file("config")?;
        for (at, bits) in [COMMAND, PASID_CONTROL] {
            set_bits(&configuration, at, bits).at(format_args!("configuration space {at:#x}"))?;
        }
        let [registers, portals] = BARS.map(file);
        let (registers, portals) = (registers?, portals?);
        let len = registers.metadata().at(BARS[0])?.len();
        let registers = Registers::map(registers.as_fd(), usize::try_from(len)?).at(BARS[0])?;
        let portal = Portal::map(portals.as_fd()).at(BARS[1])?;
        Ok(Self { registers, portal })
    }

    /// Copies from `source` to `destination`, the record at `record`, through a queue whose PASID is `pasid`; says
    /// what the device's error register has to say of it, which is the first thing that went wrong.
    pub(crate) fn copy_with(
        &mut self,
        pasid: Pasid,
        [source, destination, record]: [u64; 3],
    ) -> Outcome<SwErrorHead> {
        self.command(CommandCode::ResetDevice)?;
        self.take_error();
        self.configure(pasid);
        self.command(CommandCode::EnableDevice)?;
        self.command(CommandCode::EnableWq)?;
        let size = PAGE as u32;
        let [source, destination, record] = [source, destination, record].map(Iova);
        let copy = Operation::MemoryMove { source, destination, size };
        let descriptor =
            Descriptor::new(copy).with_record(record).with_flags(Flags::REQUEST_RECORD);
        self.portal.submit(&descriptor.to_bytes());
        let error = wait("an error of the device", || self.take_error());
        self.command(CommandCode::DisableDevice)?;
        error
    }

    /// One dedicated queue in one group, with one engine.
    fn configure(&mut self, pasid: Pasid) {
        let low = self.registers.read64(offset::OFFSETS as usize);
        let offsets = Offsets::from_bits(low.into());
        let mode = WqMode::new()
            .with_dedicated(true)
            .with_priority(1)
            .with_pasid(pasid.get())
            .with_pasid_enable(true);
        let queue = WqConfig {
            size: QUEUE_SIZE,
            mode,
            limits: WqLimits::new().with_max_transfer_shift(12).with_max_batch_shift(4),
            ..WqConfig::default()
        };
        let table = usize::from(offsets.wqcfg()) * OFFSET_UNIT;
        for (index, dword) in queue.to_dwords().into_iter().enumerate() {
            self.registers.write32(table + size_of::<u32>() * index, dword);
        }
        let group = usize::from(offsets.grpcfg()) * OFFSET_UNIT;
        for member in [GRPCFG_WQS, GRPCFG_ENGINES] {
            self.registers.write64(group + member as usize, 1);
        }
        // No interrupts: there is nobody to take them.
        self.registers.write32(offset::GENCTRL as usize, GenCtrl::new().into_bits());
    }

    fn command(&mut self, code: CommandCode) -> Outcome<()> {
        let command = Cmd::new().with_code(code as u8);
        self.registers.write32(offset::CMD as usize, command.into_bits());
        let status = wait("the end of a command", || {
            let status = CmdStatus::from_bits(self.registers.read32(offset::CMDSTATUS as usize));
            (!status.active()).then_some(status)
        })?;
        ensure!(status.error() == 0, "{code:?}: {status:?}");
        Ok(())
    }

    /// The recorded error, if there is one; there is none afterwards.
    fn take_error(&mut self) -> Option<SwErrorHead> {
        let at = offset::SWERROR as usize;
        let error = SwError::from_qwords([self.registers.read64(at), 0, 0, 0]);
        let head = error.head;
        if !head.valid() {
            return None;
        }
        let clear = SwErrorHead::new().with_valid(true).with_overflow(true);
        self.registers.write64(at, clear.into_bits());
        Some(head)
    }
}

fn set_bits(configuration: &File, at: u64, bits: u16) -> io::Result<()> {
    let mut register = [0; size_of::<u16>()];
    configuration.read_exact_at(&mut register, at)?;
    let value = u16::from_le_bytes(register) | bits;
    configuration.write_all_at(&value.to_le_bytes(), at)
}

/// Waits until `look` gives something.
fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Outcome<T> {
    let until = Instant::now() + WITHIN;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() >= until {
            return Err(Failure::new(format!("{what} did not come")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
