//! A container with groups, on a host of objects in plain maps.

use std::sync::Arc;

use iommu::{GuestPasid, Hardware, Host, HostError, Pasid, PasidRange, TableCaps, VmConfig};
use pci::RequesterId;
use vfio::{
    Container, DeviceFile, Dispatcher, Errno, File, Group, GroupDevice, Handle, Refusal, Reply,
    Request, Revision,
};

use crate::mock::{Mock, SMMU};

pub(crate) const A: RequesterId = RequesterId::from_bits(0x80);
pub(crate) const B: RequesterId = RequesterId::from_bits(0x88);
pub(crate) const C: RequesterId = RequesterId::from_bits(0x90);

pub(crate) const VTD: TableCaps =
    TableCaps { address_bits: 46, second_stage_levels: 0b110, ..TableCaps::FULL };

/// A host whose VMs have these devices.
pub(crate) struct MockHost(pub(crate) Vec<(RequesterId, Hardware)>);

impl Host for MockHost {
    type Vm = Mock;

    fn create_vm(&self, config: VmConfig) -> Result<Mock, HostError> {
        Ok(Mock::with(config, &self.0))
    }
}

pub(crate) fn smmu() -> Hardware {
    Hardware::Smmuv3(SMMU)
}

pub(crate) fn vtd() -> Hardware {
    Hardware::Vtd(VTD)
}

/// Words of four bytes, in a row.
pub(crate) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A container with its groups: each is a file, and has one number of devices.
pub(crate) struct Rig {
    pub(crate) dispatcher: Dispatcher<MockHost>,
    pub(crate) container: Container<MockHost>,
    pub(crate) groups: Vec<Group<MockHost>>,
    pub(crate) revision: Revision,
}

pub(crate) fn name(device: RequesterId) -> String {
    format!("0000:{device}")
}

impl Rig {
    /// Groups that are open and in no container.
    pub(crate) fn apart(revision: Revision, groups: &[&[(RequesterId, Hardware)]]) -> Self {
        let dispatcher = Dispatcher::new(MockHost(groups.concat()), revision);
        let mut files = Vec::new();
        for (number, devices) in (1..).zip(groups) {
            let device = |&(requester, _): &(RequesterId, Hardware)| GroupDevice {
                name: name(requester),
                requester,
            };
            dispatcher.add_group(number, devices.iter().map(device).collect()).unwrap();
            files.push(dispatcher.open_group(number).unwrap());
        }
        let container = dispatcher.open_container().unwrap();
        Self { dispatcher, container, groups: files, revision }
    }

    /// Groups in a container that is for nested translation.
    pub(crate) fn new(revision: Revision, groups: &[&[(RequesterId, Hardware)]]) -> Self {
        let rig = Self::apart(revision, groups);
        for group in &rig.groups {
            rig.join(group).unwrap();
        }
        rig.set_iommu(6).unwrap();
        rig
    }

    pub(crate) fn number(&self, request: Request) -> u32 {
        request.number(self.revision).unwrap()
    }

    pub(crate) fn join(&self, group: &Group<MockHost>) -> Result<Reply, Refusal> {
        let number = self.number(Request::GroupSetContainer);
        group.call(number, &mut [], Some(self.container.handle()))
    }

    pub(crate) fn set_iommu(&self, kind: u32) -> Result<Reply, Refusal> {
        self.call(Request::SetIommu, &mut kind.to_ne_bytes())
    }

    pub(crate) fn call(&self, request: Request, argument: &mut [u8]) -> Result<Reply, Refusal> {
        self.container.call(self.number(request), argument, None)
    }

    pub(crate) fn errno(&self, request: Request, argument: &[u8]) -> Result<u32, Errno> {
        let number = self.number(request);
        self.container.ioctl(number, &mut argument.to_vec(), None).map(|reply| reply.value)
    }

    pub(crate) fn vm(&self) -> Mock {
        self.container.host_vm().unwrap()
    }

    pub(crate) fn grant(&self, number: u32) -> GuestPasid {
        use iommu::Vm;
        let pasid = Pasid::new(number).unwrap();
        self.vm().alloc_pasid(PasidRange { first: pasid, last: pasid }).unwrap()
    }

    pub(crate) fn open(&self, group: usize, device: RequesterId) -> Arc<dyn DeviceFile> {
        self.open_named(group, &name(device)).unwrap()
    }

    pub(crate) fn open_named(
        &self,
        group: usize,
        name: &str,
    ) -> Result<Arc<dyn DeviceFile>, Refusal> {
        let mut argument = [name.as_bytes(), &[0]].concat();
        let number = self.number(Request::GroupGetDeviceFd);
        let reply = self.groups[group].call(number, &mut argument, None)?;
        Ok(reply.file.unwrap())
    }

    pub(crate) fn ask(
        &self,
        device: &Arc<dyn DeviceFile>,
        request: Request,
        argument: &mut [u8],
        handle: Option<Handle>,
    ) -> Result<Reply, Errno> {
        device.ioctl(self.number(request), argument, handle)
    }
}
