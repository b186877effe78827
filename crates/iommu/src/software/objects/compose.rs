//! What the hardware is told of a page table: a VT-d PASID-table entry, or the context of an SMMUv3's
//! stream-table entry.

use mem::Gpa;
use pci::RequesterId;

use super::{Hwpt, Table};
use crate::format::smmuv3::{nested_entry, StreamEntry, StreamWord0, StreamWord1, StreamWord2};
use crate::format::vtd::{PasidEntry, PasidWord0, PasidWord1, PasidWord2};
use crate::software::attached::RID_PASID;
use crate::software::control::Control;
use crate::software::vm::VmShared;
use crate::{
    DeviceContext, DomainId, Hardware, InvalidField, ObjectError, PasidTable, SmmuCaps,
    StageOneTable, StageTwoFormat, StreamContext, StreamTranslation, TableCaps, VtdPasidTable,
    VtdStageOne, VtdStageOneFlags,
};

const PAGE_BITS: u32 = 12;

/// What a device is told of a page table.
pub(super) enum Program {
    /// An entry of the host's PASID table.
    Entry(PasidEntry),
    /// One context for all of its requests.
    Whole(DeviceContext),
}

impl VmShared {
    /// What the hardware is told of a table that is attached to `device`; `domain` tags what is
    /// cached.
    pub(super) fn compose(
        &self,
        control: &Control,
        device: RequesterId,
        hwpt: &Hwpt,
        domain: DomainId,
    ) -> Result<Program, ObjectError> {
        let stage_one = match hwpt.table {
            Table::Paging => None,
            Table::Nested { stage_one, .. } => Some(stage_one),
        };
        match (&self.platform.hardware, stage_one) {
            (Hardware::Vtd(_), None) => Ok(Program::Entry(self.entry(true, domain)?)),
            (Hardware::Vtd(_), Some(StageOneTable::Vtd(table))) => {
                Ok(Program::Entry(self.nested_entry(&table, domain)?))
            }
            (Hardware::Vtd(caps), Some(StageOneTable::VtdPasidTable(table))) => {
                Ok(Program::Whole(DeviceContext::PasidTable(delegated(&table, caps))))
            }
            (Hardware::Smmuv3(caps), None) => self.stream(None, domain, caps),
            (Hardware::Smmuv3(caps), Some(StageOneTable::Smmuv3(words))) => {
                let program = self.stream(Some(words), domain, caps)?;
                // Its commands and events name the guest's number of the device.
                let known = control.objects.vdevice_of(device).is_some();
                match program.is_translating() && !known {
                    true => Err(ObjectError::Invalid(InvalidField::VirtualId)),
                    false => Ok(program),
                }
            }
            (_, Some(_)) => Err(ObjectError::WrongModel),
        }
    }

    /// Checks a guest's stream-table entry.
    pub(super) fn check_stream(&self, words: [u64; 2], caps: &SmmuCaps) -> Result<(), ObjectError> {
        self.stream(Some(words), DomainId(0), caps).map(drop)
    }

    /// The words of an entry that say where stage 2 is: with `alone` if there is that and nothing
    /// else, without if a first stage stands on it.
    fn entry(&self, alone: bool, domain: DomainId) -> Result<PasidEntry, ObjectError> {
        let word0 = match self.stage_two.as_ref().zip(self.config.stage_two) {
            // Guest memory is where the guest says it is.
            None => PasidWord0::new().with_translation_type(if alone { 4 } else { 1 }),
            Some((stage_two, config)) => {
                let StageTwoFormat::Vtd { levels } = config.format else {
                    return Err(ObjectError::NotSupported);
                };
                PasidWord0::new()
                    .with_translation_type(if alone { 2 } else { 3 })
                    .with_address_width(levels as u8 - 2)
                    .with_second_stage_accessed_dirty(true)
                    .with_second_stage_page(stage_two.walker().root().0 >> PAGE_BITS)
            }
        };
        let word1 = PasidWord1::new().with_domain(domain.0);
        Ok(PasidEntry { word0: word0.with_present(true), word1, ..PasidEntry::default() })
    }

    /// An entry for a guest's stage 1.
    fn nested_entry(
        &self,
        table: &VtdStageOne,
        domain: DomainId,
    ) -> Result<PasidEntry, ObjectError> {
        let supervisor = table.flags.contains(VtdStageOneFlags::SRE);
        let word2 = PasidWord2::new()
            .with_supervisor(supervisor)
            // Without supervisor requests there is nothing to protect from them.
            .with_write_protect(supervisor && table.flags.contains(VtdStageOneFlags::WPE))
            .with_first_stage_mode(u8::from(table.address_width > 48))
            .with_first_stage_page(table.root.0 >> PAGE_BITS);
        Ok(PasidEntry { word2, ..self.entry(false, domain)? })
    }

    /// The context of a stream-table entry for stage 2, with a guest's `words` over it if there are
    /// any.
    fn stream(
        &self,
        words: Option<[u64; 2]>,
        vmid: DomainId,
        caps: &SmmuCaps,
    ) -> Result<Program, ObjectError> {
        let stage_two = self.stage_two_stream(vmid)?;
        let invalid = ObjectError::Invalid(InvalidField::StreamTableEntry);
        let (entry, ats) = match words {
            None => (stage_two, caps.ats),
            Some(words) => {
                let nested = nested_entry(words, &stage_two, caps).map_err(|_| invalid)?;
                (nested.entry, nested.ats)
            }
        };
        let entry = StreamEntry { word1: entry.word1.with_ats(u8::from(ats)), ..entry };
        let context = entry.decode_over_host(caps).map_err(|_| invalid)?;
        Ok(Program::Whole(DeviceContext::Smmuv3(context)))
    }

    /// A stream-table entry for stage 2 alone.
    fn stage_two_stream(&self, vmid: DomainId) -> Result<StreamEntry, ObjectError> {
        let word0 = StreamWord0::new().with_valid(true);
        // Shareability as the accesses have it.
        let word1 = StreamWord1::new().with_incoming_shareability(1);
        let word2 = StreamWord2::new().with_vmid(vmid.0);
        let Some((stage_two, config)) = self.stage_two.as_ref().zip(self.config.stage_two) else {
            // Guest memory is where the guest says it is.
            let word0 = word0.with_config(4);
            return Ok(StreamEntry { word0, word1, word2, ..StreamEntry::default() });
        };
        let StageTwoFormat::Arm(format) = config.format else {
            return Err(ObjectError::NotSupported);
        };
        let vtcr = format.vtcr();
        let word2 = word2
            .with_input_size(vtcr.t0sz)
            .with_start_level(vtcr.sl0)
            .with_granule(vtcr.tg0)
            .with_output_size(vtcr.ps)
            .with_aarch64(true)
            .with_record(true);
        let mut entry =
            StreamEntry { word0: word0.with_config(6), word1, word2, ..StreamEntry::default() };
        entry.word3.set_root_frame(stage_two.walker().root().0 >> 4);
        Ok(entry)
    }
}

impl Program {
    /// Whether it has requests translated by a guest's stage 1.
    fn is_translating(&self) -> bool {
        let Self::Whole(DeviceContext::Smmuv3(StreamContext { translation, .. })) = self else {
            return false;
        };
        matches!(translation, StreamTranslation::StageOne(_))
    }
}

/// A guest's PASID table as the engine walks it.
fn delegated(table: &VtdPasidTable, caps: &TableCaps) -> PasidTable {
    PasidTable {
        directory: Gpa(table.directory.0),
        pasid_bits: table.pasid_bits,
        rid_pasid: RID_PASID,
        rid_privileged: false,
        pasid_enable: true,
        ats: true,
        page_requests: false,
        fault_disable: false,
        caps: *caps,
    }
}
