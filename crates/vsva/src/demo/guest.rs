//! Guests: a VM on the host, an IOMMU in front of it, a driver for that, and a device.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use iommu::format::vtd::{DirectoryEntry, PasidEntry, PasidWord0, PasidWord1, PasidWord2};
use iommu::pasid::{PasidAllocator, PasidCommands};
use iommu::{
    AddressSpace, DmaError, Host as _, Pasid, SoftwareHost, SoftwareVm, Vm as _, VmConfig,
};
use mem::{Gpa, GuestMemory as _, Iova, MemoryMap};
use pci::RequesterId;
use virtio_iommu::driver::{Driver, SharedDriver, DEFAULT_PATIENCE_NS};
use vtd::driver::{LayoutChoice, Registers as _, SharedVirtualCommands, VirtualCommands};
use vtd::spec::{
    GlobalCommand, RegisterId, RootTableAddress, ScalableContextEntry, ScalableRootHalf, TableMode,
    VcmdLayout, REGISTERS,
};

use super::trace::Trace;
use super::vm::TracedVm;
use super::wires::{Queue, Unit, Watch};

/// Whatever keeps a scene from going on.
pub(super) type Failure = Box<dyn Error + Send + Sync>;

/// How a guest comes by its PASIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interface {
    /// It does not ask: its unit is as in hardware, and the numbers are its own.
    Own,
    /// VT-d virtual commands.
    VirtualCommands(VcmdLayout),
    /// virtio-iommu requests.
    Requests,
}

/// The ways to ask.
pub(super) const PARAVIRTUAL: [Interface; 3] = [
    Interface::VirtualCommands(VcmdLayout::Revision30),
    Interface::VirtualCommands(VcmdLayout::Revision33),
    Interface::Requests,
];

impl Interface {
    /// For people.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Own => "emulated VT-d",
            Self::VirtualCommands(VcmdLayout::Revision30) => "VT-d 3.0 commands",
            Self::VirtualCommands(VcmdLayout::Revision33) => "VT-d 3.3 commands",
            Self::Requests => "virtio-iommu",
        }
    }
}

/// Bytes of a guest's memory.
const MEMORY: u64 = 1 << 20;
const PAGE: u64 = 1 << 12;
/// Where a guest keeps its queue.
const QUEUE: Gpa = Gpa(0x8_0000);
/// From here on a guest makes its tables.
const TABLES: Gpa = Gpa(0x1_0000);
/// The address that every mapped PASID has.
pub(super) const VIRTUAL: Iova = Iova(0x40_0000);
/// What is mapped there, first of all, says whose it is, in this many bytes.
pub(super) const SECRET_SIZE: usize = 16;
/// The guest's device, 00:10.0.
pub(super) const DEVICE: RequesterId = RequesterId::from_bits(0x80);
/// P, R/W and U/S of a first-stage entry.
const PRESENT_WRITABLE_USER: u64 = 7;
/// PGTT of a PASID-table entry: first stage only.
const FIRST_STAGE: u8 = 1;
/// The domain of everything here.
const DOMAIN: u16 = 1;

/// A guest.
pub(super) struct Guest {
    pub(super) vm: SoftwareVm,
    /// Where its kernel's users of PASIDs go.
    pub(super) allocator: PasidAllocator,
    /// Its way to the host, without its kernel's books: what an ill-meaning guest would use.
    pub(super) commands: Option<Arc<dyn PasidCommands>>,
    unit: Option<Arc<Unit>>,
    /// The numbers of a guest that does not ask.
    space: Option<SoftwareHost>,
}

impl Guest {
    /// Starts a guest on `host`.
    pub(super) fn start(
        host: &SoftwareHost,
        trace: &Trace,
        interface: Interface,
        config: VmConfig,
    ) -> Result<Self, Failure> {
        let vm = host.create_vm(config)?;
        let _ = vm.set_memory(MemoryMap::anonymous(&[(Gpa(0), MEMORY)])?);
        let traced = TracedVm { vm: vm.clone(), host: host.clone(), trace: trace.clone() };
        match interface {
            Interface::Own => {
                let unit = unit(traced, None)?;
                if VirtualCommands::probe(&*unit, &*unit, LayoutChoice::Detect)?.is_some() {
                    return Err("a unit as in hardware has virtual commands".into());
                }
                // A kernel on what it takes for bare metal.
                let space = SoftwareHost::new();
                let allocator = space.pasid_allocator();
                Ok(Self { vm, allocator, commands: None, unit: Some(unit), space: Some(space) })
            }
            Interface::VirtualCommands(layout) => {
                let unit = unit(traced, Some(layout))?;
                let choice = LayoutChoice::Known(layout);
                let probed = VirtualCommands::probe(unit.clone(), unit.clone(), choice)?;
                let commands = probed.ok_or("the unit has no virtual commands")?;
                Ok(Self::asking(vm, Arc::new(SharedVirtualCommands::new(commands)), Some(unit)))
            }
            Interface::Requests => {
                let options = virtio_iommu::model::Options::default();
                let model = virtio_iommu::model::Model::new(options, traced.clone());
                let queue = Queue::new(model, traced);
                let (memory, watch) = (vm.memory(), Watch(Instant::now()));
                let driver = Driver::new(queue, memory, QUEUE, watch, DEFAULT_PATIENCE_NS)?;
                Ok(Self::asking(vm, Arc::new(SharedDriver::new(driver)), None))
            }
        }
    }

    fn asking(vm: SoftwareVm, commands: Arc<dyn PasidCommands>, unit: Option<Arc<Unit>>) -> Self {
        let allocator = PasidAllocator::guest(commands.clone());
        Self { vm, allocator, commands: Some(commands), unit, space: None }
    }

    /// How many PASIDs are out in the space that its numbers are of.
    pub(super) fn live(&self) -> u32 {
        match &self.space {
            Some(space) => space.pasid_report().live,
            None => self.vm.pasid_usage().live,
        }
    }

    /// Its way to the host.
    pub(super) fn commands(&self) -> Result<&dyn PasidCommands, Failure> {
        self.commands.as_deref().ok_or_else(|| "the guest has no way to its host".into())
    }

    /// Makes tables in its own memory in which each of these PASIDs has a page at [`VIRTUAL`] with
    /// a secret in it, and turns translation on: as its kernel would.
    pub(super) fn map(&self, pages: &[(Pasid, [u8; SECRET_SIZE])]) -> Result<(), Failure> {
        let unit = self.unit.as_deref().ok_or("the guest has no unit")?;
        let mut tables = Tables { memory: self.vm.memory(), next: TABLES };
        let root = tables.root(pages)?;
        let root =
            RootTableAddress::new().with_mode(TableMode::Scalable as u8).with_page(root.0 >> 12);
        unit.write64(offset_of(RegisterId::RootTableAddress)?, root.into_bits());
        let command = offset_of(RegisterId::GlobalCommand)?;
        let set_root = GlobalCommand::new().with_set_root_pointer(true);
        unit.write32(command, set_root.into_bits());
        unit.write32(command, GlobalCommand::new().with_translation(true).into_bits());
        Ok(())
    }

    /// What its device reads at [`VIRTUAL`] with a PASID.
    pub(super) fn read(&self, pasid: Pasid) -> Result<[u8; SECRET_SIZE], DmaError> {
        let endpoint = self.vm.attach(DEVICE).map_err(|_| DmaError::Detached)?;
        let mut bytes = [0; SECRET_SIZE];
        let space = AddressSpace { pasid: Some(pasid), privileged: false };
        endpoint.channel().enter().read(space, VIRTUAL, &mut bytes)?;
        Ok(bytes)
    }
}

fn unit(vm: TracedVm, virtual_commands: Option<VcmdLayout>) -> Result<Arc<Unit>, Failure> {
    let options = vtd::model::Options { virtual_commands, ..Default::default() };
    let trace = vm.trace.clone();
    let model = vtd::model::Model::new(vtd::model::Caps::new(options)?, vm);
    Ok(Arc::new(Unit::new(model, virtual_commands, trace)))
}

fn offset_of(id: RegisterId) -> Result<u16, Failure> {
    let register = REGISTERS.iter().find(|register| register.id == id);
    Ok(register.ok_or("no such register")?.offset)
}

/// A guest's tables in the making, one page after the other.
struct Tables {
    memory: Arc<MemoryMap>,
    next: Gpa,
}

impl Tables {
    fn page(&mut self) -> Gpa {
        let page = self.next;
        self.next = Gpa(page.0 + PAGE);
        page
    }

    fn store(&self, at: Gpa, word: u64) -> Result<(), Failure> {
        Ok(self.memory.store_u64(at, word)?)
    }

    /// Root, context of [`DEVICE`], PASID directory, and what hangs on it.
    fn root(&mut self, pages: &[(Pasid, [u8; SECRET_SIZE])]) -> Result<Gpa, Failure> {
        let (root, contexts, directory) = (self.page(), self.page(), self.page());
        let half = ScalableRootHalf::new().with_present(true).with_table(contexts.0 >> 12);
        // The upper half has devices from 16 on, of which this is the first.
        self.store(Gpa(root.0 + 8), half.into_bits())?;
        let context = ScalableContextEntry::new()
            .with_present(true)
            .with_pasid(true)
            .with_directory(directory.0 >> 12)
            .into_bits();
        self.store(contexts, context as u64)?;
        self.store(Gpa(contexts.0 + 8), (context >> 64) as u64)?;
        for (pasid, secret) in pages {
            let entry = DirectoryEntry::address(directory, *pasid).ok_or("no such PASID")?;
            let found = DirectoryEntry::from_bits(self.memory.load_u64(entry)?);
            let table = if found.present() { found.table() } else { self.page() };
            self.store(entry, DirectoryEntry::to_table(table).into_bits())?;
            let words = self.entry(secret)?.words();
            let at = PasidEntry::address(table, *pasid).ok_or("no such PASID")?;
            for (offset, word) in (0..).step_by(8).zip(words) {
                self.store(Gpa(at.0 + offset), word)?;
            }
        }
        Ok(root)
    }

    /// A PASID-table entry whose first stage has `secret` at [`VIRTUAL`].
    fn entry(&mut self, secret: &[u8; SECRET_SIZE]) -> Result<PasidEntry, Failure> {
        let levels = [self.page(), self.page(), self.page(), self.page()];
        let data = self.page();
        self.memory.write(data, secret)?;
        let below = levels.iter().skip(1).chain([&data]);
        for ((table, next), shift) in levels.iter().zip(below).zip([39, 30, 21, 12]) {
            let index = VIRTUAL.0 >> shift & 0x1ff;
            self.store(Gpa(table.0 + 8 * index), next.0 | PRESENT_WRITABLE_USER)?;
        }
        let first = PasidWord0::new().with_present(true).with_translation_type(FIRST_STAGE);
        let domain = PasidWord1::new().with_domain(DOMAIN).with_page_walk_snoop(true);
        let root = PasidWord2::new().with_first_stage_page(levels[0].0 >> 12);
        let mut words = [0; 8];
        words[..3].copy_from_slice(&[first.into_bits(), domain.into_bits(), root.into_bits()]);
        Ok(PasidEntry::from_words(words))
    }
}
