//! A guest that shares a queue: its memory, an address space in it, and a processor.

use dsa::spec::{CompletionRecord, Descriptor, Flags, Operation, Status};
use iommu::pasid::translation::{
    DeferrableWrite, Enqueued, Ia32Pasid, PasidTranslation, TranslationConfig, Vcpu,
};
use iommu::{
    Endpoint, FaultQueueId, GuestPasid, Host as _, HostPasid, HwptFlags, HwptId, HwptParent,
    HwptRequest, Numbering, PasidRange, ResponseCode, SoftwareHost, SoftwareVm, StageOneTable,
    Vm as _, VmConfig, VtdStageOne, VtdStageOneFlags,
};
use mem::{Gpa, GuestMemory as _, Iova, MemoryMap};
use pci::RequesterId;

/// Bytes of a guest's memory; its tables are at the end.
const MEMORY: u64 = 1 << 20;
const TABLES: u64 = 0xf_0000;
const LEVELS: u64 = 4;
/// Where its address space has its memory, a page for a page.
const BASE: u64 = 0x5000_0000;
/// Present, writable, user.
const MAPPED: u64 = 7;
const PAGE: u64 = 0x1000;

/// What is copied, from where, to where, and where the records are.
pub(super) const BYTES: usize = 256;
const SOURCE: u64 = 0x1_0000;
const TARGET: u64 = 0x2_0000;
const RECORDS: u64 = 0x3_0000;
/// Bytes of a completion record.
const RECORD: u64 = CompletionRecord::SIZE as u64;

/// A guest. It numbers its PASIDs itself.
pub(super) struct Guest {
    vm: SoftwareVm,
    memory: MemoryMap,
    pub(super) pasid: GuestPasid,
    device: RequesterId,
    hwpt: HwptId,
    faults: FaultQueueId,
    table: PasidTranslation,
    vcpu: Vcpu,
}

impl Guest {
    /// A guest with an address space attached for one PASID of `device`, and its attachment.
    /// `byte` is what it has to copy.
    pub(super) fn new(
        host: &SoftwareHost,
        name: &str,
        device: RequesterId,
        byte: u8,
    ) -> Result<(Self, Endpoint), String> {
        let config = VmConfig { numbering: Numbering::Private, ..VmConfig::named(name) };
        let vm = host.create_vm(config).map_err(text)?;
        let memory = MemoryMap::anonymous(&[(Gpa(0), MEMORY)]).map_err(text)?;
        let _ = vm.set_memory(memory.clone());
        let endpoint = vm.attach(device).map_err(text)?;
        let table = vm.translate_pasids(TranslationConfig { vcpus: 1, ..Default::default() });
        let table = table.map_err(text)?;
        let vcpu = table.vcpu().ok_or("no place for a processor")?;
        let (hwpt, faults) = address_space(&vm, device)?;
        let pasid = vm.alloc_pasid(PasidRange::ALL).map_err(text)?;
        let guest = Self { vm, memory, pasid, device, hwpt, faults, table, vcpu };
        guest.write_tables()?;
        guest.memory.write(Gpa(SOURCE), &[byte; BYTES]).map_err(text)?;
        guest.bind()?;
        Ok((guest, endpoint))
    }

    /// Attaches the address space, which opens the processors' table.
    pub(super) fn bind(&self) -> Result<(), String> {
        self.vm.attach_hwpt(self.device, Some(self.pasid), self.hwpt).map_err(text)
    }

    /// Detaches it; the caller has to see to it that no access goes on for ever.
    pub(super) fn unbind(&self) -> Result<iommu::Ticket, String> {
        self.vm.detach_hwpt(self.device, Some(self.pasid)).map_err(text)
    }

    pub(super) fn is_complete(&self, ticket: iommu::Ticket) -> bool {
        self.vm.is_complete(ticket)
    }

    /// The host's number of its PASID, if its processors can submit with it.
    pub(super) fn host_pasid(&self) -> Option<HostPasid> {
        self.table.peek(self.pasid)
    }

    /// Tables that map all of the memory from [`BASE`] on, a page for a page.
    fn write_tables(&self) -> Result<(), String> {
        for page in (0..TABLES).step_by(PAGE as usize) {
            self.map(page, MAPPED)?;
        }
        Ok(())
    }

    /// Writes the entry of a page. There is one table of each level.
    fn map(&self, page: u64, flags: u64) -> Result<(), String> {
        let address = BASE + page;
        for level in (1..=LEVELS).rev() {
            let at = table(level) + 8 * (address >> (12 + 9 * (level - 1)) & 0x1ff);
            let entry = if level == 1 { page | flags } else { table(level - 1) | MAPPED };
            self.memory.store_u64(Gpa(at), entry).map_err(text)?;
        }
        Ok(())
    }

    /// Takes the page away that copies go to. Nothing of it is cached yet.
    pub(super) fn unmap_target(&self) -> Result<(), String> {
        self.map(TARGET, 0)
    }

    /// Maps it, and answers the device's page request for it; `false` if there is none.
    pub(super) fn resolve(&self) -> Result<bool, String> {
        let Some(fault) = self.vm.take_page_fault(self.faults).map_err(text)? else {
            return Ok(false);
        };
        if (fault.request.pasid, fault.request.address) != (Some(self.pasid.0), Iova(BASE + TARGET))
        {
            return Err(format!("a page request for something else: {:?}", fault.request));
        }
        self.map(TARGET, MAPPED)?;
        self.vm
            .respond_page_fault(self.faults, fault.cookie, ResponseCode::Success)
            .map_err(text)?;
        Ok(true)
    }

    /// ENQCMD of a copy whose record is the one with number `record`.
    pub(super) fn enqcmd(
        &mut self,
        pasid: GuestPasid,
        record: u64,
        flags: Flags,
        write: impl FnOnce(&[u8; Descriptor::SIZE]) -> DeferrableWrite,
    ) -> Result<Enqueued, String> {
        let at = |offset| Iova(BASE + offset);
        let (source, destination) = (at(SOURCE), at(TARGET));
        let operation = Operation::MemoryMove { source, destination, size: BYTES as u32 };
        let descriptor = Descriptor::new(operation)
            .with_record(at(RECORDS + record * RECORD))
            .with_flags(Flags::REQUEST_RECORD | flags);
        self.vcpu.enqcmd(Ia32Pasid::of(pasid), &descriptor.to_bytes(), write).map_err(text)
    }

    /// How a copy ended; `None` if it has not.
    pub(super) fn record(&self, record: u64) -> Result<Option<Status>, String> {
        let mut bytes = [0; CompletionRecord::SIZE];
        self.memory.read(Gpa(RECORDS + record * RECORD), &mut bytes).map_err(text)?;
        Ok(CompletionRecord::from_bytes(&bytes).status.status().ok())
    }

    /// What is at the target.
    pub(super) fn target(&self) -> Result<[u8; BYTES], String> {
        let mut bytes = [0; BYTES];
        self.memory.read(Gpa(TARGET), &mut bytes).map_err(text)?;
        Ok(bytes)
    }

    pub(super) fn clear_target(&self) -> Result<(), String> {
        self.memory.write(Gpa(TARGET), &[0; BYTES]).map_err(text)
    }
}

/// Where the table of a level is.
fn table(level: u64) -> u64 {
    TABLES + level * PAGE
}

/// A page table over the guest's own, whose page requests wait in a queue.
fn address_space(vm: &SoftwareVm, device: RequesterId) -> Result<(HwptId, FaultQueueId), String> {
    let faults = vm.alloc_fault_queue().map_err(text)?;
    let parent = HwptRequest {
        device,
        parent: HwptParent::Ioas(vm.ioas().map_err(text)?),
        flags: HwptFlags::NEST_PARENT | HwptFlags::PASID,
        data: None,
        fault: None,
    };
    let parent = vm.alloc_hwpt(&parent).map_err(text)?;
    let table = VtdStageOne {
        flags: VtdStageOneFlags::empty(),
        root: Gpa(table(LEVELS)),
        address_width: 48,
    };
    let request = HwptRequest {
        device,
        parent: HwptParent::Hwpt(parent),
        flags: HwptFlags::PASID | HwptFlags::FAULT_ID_VALID,
        data: Some(StageOneTable::Vtd(table)),
        fault: Some(faults),
    };
    Ok((vm.alloc_hwpt(&request).map_err(text)?, faults))
}

/// An error for a report.
pub(super) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.vm.close();
    }
}
