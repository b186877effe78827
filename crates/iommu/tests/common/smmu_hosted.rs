//! A stream whose table entry is the host's, made of the guest's; and the guest's commands, as they
//! lie in its queue (IHI 0070, 4.3 to 4.5).

use std::cell::Cell;

use iommu::{
    DefaultSubstream, DescriptorForm, DescriptorTable, HwptFlags, HwptId, HwptParent, HwptRequest,
    SmmuInvalidation, StageOneTable, StreamTranslation, ViommuId, ViommuKind, Vm,
};

use super::{wait, Guest, DEVICE};

/// The guest's number of the device.
const SID: u64 = 0x17;

/// The guest's part of the unit, and what is attached.
pub struct HostedStream {
    viommu: ViommuId,
    attached: Cell<Option<HwptId>>,
    /// EATS.
    ats: bool,
}

impl HostedStream {
    pub fn new(guest: &Guest, ats: bool) -> Self {
        let vm = &guest.vm;
        let parent = HwptParent::Ioas(vm.ioas().unwrap());
        let flags = HwptFlags::NEST_PARENT;
        let request = HwptRequest { device: DEVICE, parent, flags, data: None, fault: None };
        let parent = vm.alloc_hwpt(&request).unwrap();
        let viommu = vm.alloc_viommu(DEVICE, parent, ViommuKind::Smmuv3).unwrap();
        vm.alloc_vdevice(viommu, DEVICE, SID).unwrap();
        Self { viommu, attached: Cell::new(None), ats }
    }

    /// Has the device translated so.
    pub fn attach(&self, guest: &Guest, translation: &StreamTranslation) {
        let vm = &guest.vm;
        let request = HwptRequest {
            device: DEVICE,
            parent: HwptParent::Viommu(self.viommu),
            flags: HwptFlags::empty(),
            data: Some(StageOneTable::Smmuv3(words(translation, self.ats))),
            fault: None,
        };
        let hwpt = vm.alloc_hwpt(&request).unwrap();
        match self.attached.replace(Some(hwpt)) {
            None => vm.attach_hwpt(DEVICE, None, hwpt).unwrap(),
            Some(old) => {
                wait(vm, vm.replace_hwpt(DEVICE, None, hwpt).unwrap());
                vm.destroy(old.into()).unwrap();
            }
        }
    }

    /// Gives the command that covers `what`, or all that it covers and more.
    pub fn forget(&self, guest: &Guest, what: SmmuInvalidation) {
        self.command(guest, command(what));
    }

    /// Forgets all that the device's own TLB holds.
    pub fn forget_device(&self, guest: &Guest) {
        // G, SSV; all addresses.
        let of_substreams = [0x40 | 1 << 9 | 1 << 11 | SID << 32, 52];
        for command in [[0x40 | SID << 32, 52], of_substreams] {
            self.command(guest, command);
        }
    }

    fn command(&self, guest: &Guest, command: [u64; 2]) {
        let ticket = guest.vm.invalidate_viommu(self.viommu, &[command]);
        assert!(guest.vm.is_complete(ticket.unwrap()), "{command:x?}");
    }
}

fn command(what: SmmuInvalidation) -> [u64; 2] {
    match what {
        // The host has the entry itself; what is the guest's is what it was found by.
        SmmuInvalidation::ConfigAll
        | SmmuInvalidation::StreamEntry { .. }
        | SmmuInvalidation::DescriptorAll { .. } => [0x06 | SID << 32, 0],
        SmmuInvalidation::Descriptor { substream, .. } => {
            [0x05 | u64::from(substream.get()) << 12 | SID << 32, 1]
        }
        SmmuInvalidation::StageOneAll(_) => [0x10, 0],
        SmmuInvalidation::StageOneAsid { asid, .. } => [0x11 | u64::from(asid.0) << 48, 0],
        SmmuInvalidation::StageOnePages { asid, pages, .. } => {
            let page = pages.range.start.0 | u64::from(pages.leaf_only);
            match asid {
                Some(asid) => [0x12 | u64::from(asid.0) << 48, page],
                None => [0x13, page],
            }
        }
        SmmuInvalidation::Guest(_)
        | SmmuInvalidation::TlbAll
        | SmmuInvalidation::StageTwoPages { .. } => [0x30, 0],
    }
}

/// The first words of the guest's stream-table entry: V, Config, S1Fmt, S1ContextPtr, S1CDMax;
/// S1DSS, EATS.
fn words(translation: &StreamTranslation, ats: bool) -> [u64; 2] {
    let ats = u64::from(ats) << 28;
    let table = match translation {
        StreamTranslation::Abort => return [1, 0],
        StreamTranslation::Bypass => return [1 | 4 << 1, ats],
        StreamTranslation::StageOne(table) => table,
        _ => panic!("stage 2 is the host's"),
    };
    let DescriptorTable { root, bits, form, default } = *table;
    let form = match form {
        DescriptorForm::Linear => 0,
        DescriptorForm::Leaves4K => 1,
        DescriptorForm::Leaves64K => 2,
    };
    let default = match default {
        DefaultSubstream::Terminate => 0,
        DefaultSubstream::Bypass => 1,
        DefaultSubstream::Zero => 2,
    };
    [1 | 5 << 1 | form << 4 | root.0 | u64::from(bits) << 59, default | ats]
}
