//! The same calls on the host in software: what DMA sees of them.

use iommu::nesting::{
    replace_pasid_table, set_pasid_table, unset_pasid_table, Bindings, CacheInvalidate, Caches,
    Change, Domain, GpasidBind, Granularity, NestingError, PasidTableConfig, PasidTableFormat,
    PasidTableInfo, Scope, TableMode, TableModel,
};
use iommu::{
    AddressSpace, Channel, DomainId, Endpoint, HwptFlags, HwptParent, HwptRequest, Layout,
    Numbering, ObjectError, SecondStageLevels, SoftwareHost, SoftwareVm, StageTwoConfig,
    StageTwoFormat, Vm, VmConfig, VtdStageOne, VtdStageOneFlags,
};
use mem::{Gpa, GuestMemory, Iova};

use super::common::{
    dma, first_stage, pass_through, wait, with, without, Guest, Op, PRESENT, USER, WRITABLE,
};
use super::{guest, only, ONE, TWO};

const VA: u64 = 0x1_2345_6000;
const PAGE: u64 = 0x10_0000;

struct Machine {
    guest: Guest,
    devices: [(Endpoint, Channel); 2],
}

impl Machine {
    /// One whose guest's memory lies as the guest sees it, and one where it is all over the host's.
    fn both(numbering: Numbering) -> [Self; 2] {
        let format = StageTwoFormat::Vtd { levels: SecondStageLevels::Four };
        let shuffled = StageTwoConfig { format, layout: Layout::Shuffled { seed: 5 } };
        [None, Some(shuffled)].map(|stage_two| {
            Self::new(VmConfig { numbering, stage_two, ..VmConfig::named("nested") })
        })
    }

    fn new(config: VmConfig) -> Self {
        let guest = Guest::with(&SoftwareHost::new(), config);
        let devices = [ONE, TWO].map(|device| {
            let endpoint = guest.vm.attach(device).unwrap();
            let channel = endpoint.channel();
            (endpoint, channel)
        });
        Self { guest, devices }
    }

    fn vm(&self) -> SoftwareVm {
        self.guest.vm.clone()
    }

    fn domain(&self, devices: &[pci::RequesterId]) -> Domain<SoftwareVm> {
        let mut domain = Domain::new(self.vm());
        for device in devices {
            domain.add_device(*device).unwrap();
        }
        domain
    }

    /// A first stage that maps [`VA`] to the page of that number, which holds the number.
    fn root(&mut self, number: u64) -> Gpa {
        let page = PAGE + number * 0x1000;
        self.guest.memory.store_u64(Gpa(page), number).unwrap();
        let root = self.guest.table();
        self.guest.set_first(root, VA, 1, page | PRESENT | WRITABLE | USER);
        root
    }

    fn read(&self, device: usize, space: AddressSpace, at: u64) -> Option<u64> {
        dma(&self.devices[device].1, space, at, Op::Read).ok()
    }

    /// What a device reads at [`VA`] with a PASID.
    fn at_va(&self, device: usize, number: u32) -> Option<u64> {
        self.read(device, with(number), VA)
    }

    /// The number in the page of that number, as a device reads it without PASID and without
    /// stage 1.
    fn flat(&self, device: usize, number: u64) -> Option<u64> {
        self.read(device, without(), PAGE + number * 0x1000)
    }

    fn wait(&self, ticket: Option<iommu::Ticket>) {
        if let Some(ticket) = ticket {
            wait(&self.guest.vm, ticket);
        }
    }

    /// Everything is given back, and the books balance.
    fn end(self) {
        let Self { guest, devices } = self;
        drop(devices);
        wait(&guest.vm, guest.vm.close());
        let host = guest.host.clone();
        drop(guest);
        host.check_books().unwrap();
        assert_eq!((host.pasid_report().live, host.pasid_report().parked), (0, 0));
    }
}

fn bind(root: Gpa, number: u32) -> GpasidBind {
    let flags = VtdStageOneFlags::empty();
    GpasidBind { root, address_width: 48, flags, guest: guest(number) }
}

fn stage_one(root: Gpa) -> VtdStageOne {
    bind(root, 1).stage_one()
}

#[test]
fn a_bound_pasid_is_translated_until_it_is_unbound() {
    for mut machine in Machine::both(Numbering::Private) {
        let mut domain = machine.domain(&[ONE, TWO]);
        let (five, six) = (machine.root(5), machine.root(6));
        for number in [5, 6] {
            machine.vm().alloc_pasid(only(number)).unwrap();
        }
        domain.bind_gpasid_for_all(&bind(five, 5)).unwrap();
        domain.bind_gpasid(TWO, &bind(six, 6)).unwrap();
        assert_eq!([machine.at_va(0, 5), machine.at_va(1, 5)], [Some(5); 2]);
        assert_eq!([machine.at_va(0, 6), machine.at_va(1, 6)], [None, Some(6)]);
        assert_eq!(machine.flat(0, 5), Some(5));

        // The guest maps another page there, and says so.
        machine.guest.set_first(five, VA, 1, (PAGE + 0x6000) | PRESENT | WRITABLE | USER);
        assert_eq!(machine.at_va(0, 5), Some(5), "it is cached");
        let (pasid, address) = (Some(guest(5)), Iova(VA));
        let granularity = Granularity::Address {
            pasid,
            archid: None,
            leaf: true,
            address,
            granule: 0x1000,
            count: 1,
        };
        let what = CacheInvalidate { caches: Caches::IOTLB, granularity };
        machine.wait(domain.cache_invalidate(ONE, &what).ok());
        assert_eq!(machine.at_va(0, 5), Some(6));

        machine.wait(domain.unbind_gpasid(TWO, guest(5)).unwrap());
        assert_eq!([machine.at_va(0, 5), machine.at_va(1, 5)], [Some(6), None]);
        assert_eq!(machine.at_va(1, 6), Some(6));
        machine.wait(domain.close().unwrap());
        assert_eq!([machine.at_va(0, 5), machine.at_va(1, 6)], [None; 2]);
        assert_eq!(machine.vm().pasid_usage().live, 2, "unbinding does not free");
        assert!(domain.reap());
        machine.end();
    }
}

/// A configuration that delegates the guest's own table.
fn delegated(machine: &Machine, config: TableMode) -> PasidTableConfig {
    let base = machine.guest.directory;
    PasidTableConfig { format: PasidTableFormat::Vtd, config, pasid_bits: 10, base }
}

#[test]
fn every_configuration_does_to_dma_what_it_says() {
    for mut machine in Machine::both(Numbering::Identity) {
        let five = machine.root(5);
        machine.guest.set_pasid(5, first_stage(five, DomainId(1)));
        machine.guest.set_pasid(0, pass_through(DomainId(2)));
        let mut domains = [machine.domain(&[ONE]), machine.domain(&[TWO])];
        // What both devices see without PASID, and with.
        let see = |machine: &Machine| {
            let seen = [0, 1].map(|device| (machine.flat(device, 5), machine.at_va(device, 5)));
            assert_eq!(seen[0], seen[1]);
            seen[0]
        };
        assert_eq!(see(&machine), (Some(5), None), "default");
        let translate = delegated(&machine, TableMode::Translate);
        machine.wait(set_pasid_table(&mut domains, &translate).unwrap());
        assert_eq!(see(&machine), (Some(5), Some(5)), "translate");
        let again = set_pasid_table(&mut domains, &translate);
        assert_eq!(again, Err(NestingError::Translating));
        machine.wait(replace_pasid_table(&mut domains, &translate).unwrap());
        assert_eq!(see(&machine), (Some(5), Some(5)), "replaced");
        machine
            .wait(set_pasid_table(&mut domains, &delegated(&machine, TableMode::Abort)).unwrap());
        assert_eq!(see(&machine), (None, None), "abort");
        machine
            .wait(set_pasid_table(&mut domains, &delegated(&machine, TableMode::Bypass)).unwrap());
        assert_eq!(see(&machine), (Some(5), None), "bypass");
        machine.wait(set_pasid_table(&mut domains, &translate).unwrap());
        machine.wait(unset_pasid_table(&mut domains).unwrap());
        assert_eq!(see(&machine), (Some(5), None), "detached");
        for domain in &mut domains {
            machine.wait(domain.close().unwrap());
            assert!(domain.reap());
        }
        machine.end();
    }
}

#[test]
fn the_table_of_2017_is_one_devices() {
    for mut machine in Machine::both(Numbering::Identity) {
        let five = machine.root(5);
        machine.guest.set_pasid(5, first_stage(five, DomainId(1)));
        let mut domain = machine.domain(&[ONE, TWO]);
        let ptr = machine.guest.directory;
        let info = PasidTableInfo { model: TableModel::Vtd, ptr, size: 128 };
        machine.wait(domain.bind_pasid_table(ONE, &info).unwrap());
        assert_eq!([machine.at_va(0, 5), machine.at_va(1, 5)], [Some(5), None]);
        assert_eq!(machine.flat(1, 5), Some(5));
        machine.wait(domain.unbind_pasid_table(ONE).unwrap());
        assert_eq!((machine.at_va(0, 5), machine.flat(0, 5)), (None, Some(5)));
        machine.end();
    }
}

fn bindings(machine: &Machine) -> Bindings<SoftwareVm> {
    let vm = machine.vm();
    let parent = HwptParent::Ioas(vm.ioas().unwrap());
    let flags = HwptFlags::NEST_PARENT | HwptFlags::PASID;
    let request = HwptRequest { device: ONE, parent, flags, data: None, fault: None };
    let parent = vm.alloc_hwpt(&request).unwrap();
    Bindings::numbered_by_guest(vm, parent)
}

#[test]
fn bindings_follow_what_the_guest_wants() {
    for mut machine in Machine::both(Numbering::Private) {
        let (one, two) = (machine.root(1), machine.root(2));
        let mut bindings = bindings(&machine);
        let place = Some(guest(700));
        assert_eq!(bindings.set(ONE, place, Some(stage_one(one))), Ok(Change::Bound));
        assert_eq!(machine.at_va(0, 700), Some(1));
        let change = bindings.set(ONE, place, Some(stage_one(two))).unwrap();
        machine.wait(change.ticket());
        assert_eq!(machine.at_va(0, 700), Some(2));
        let change = bindings.set(ONE, place, None).unwrap();
        machine.wait(change.ticket());
        assert_eq!(machine.at_va(0, 700), None);
        machine.end();
    }
}

#[test]
fn a_pasid_is_bound_again_while_a_dma_is_in_flight() {
    for mut machine in Machine::both(Numbering::Private) {
        let (one, two) = (machine.root(1), machine.root(2));
        let mut bindings = bindings(&machine);
        let place = Some(guest(5));
        let _ = bindings.set(ONE, place, Some(stage_one(one))).unwrap();
        let in_flight = machine.devices[0].1.enter();
        let change = bindings.set(ONE, place, None).unwrap();
        assert!(!machine.vm().is_complete(change.ticket().unwrap()));
        // Had it been given back, it would be parked now.
        assert_eq!(bindings.set(ONE, place, Some(stage_one(two))), Ok(Change::Bound));
        drop(in_flight);
        assert_eq!(machine.at_va(0, 5), Some(2));
        machine.end();
    }
}

#[test]
fn what_the_vms_reset_undid_is_noticed() {
    for mut machine in Machine::both(Numbering::Private) {
        let one = machine.root(1);
        let mut bindings = bindings(&machine);
        for device in [ONE, TWO] {
            let _ = bindings.set(device, Some(guest(5)), Some(stage_one(one))).unwrap();
        }
        machine.wait(Some(machine.vm().release_pasids()));
        assert_eq!(machine.at_va(0, 5), None);
        machine.wait(bindings.clear(Scope::All).unwrap());
        assert!(bindings.is_empty());
        let again = bindings.set(ONE, Some(guest(5)), Some(stage_one(one)));
        assert_eq!(again, Ok(Change::Bound));
        assert_eq!(machine.at_va(0, 5), Some(1));

        machine.wait(Some(machine.vm().close()));
        assert!(bindings.clear(Scope::All).is_ok());
        let closed = bindings.set(ONE, None, Some(stage_one(one)));
        assert_eq!(closed, Err(ObjectError::Closed));
        machine.end();
    }
}

#[test]
fn a_domain_outlives_its_vm() {
    for mut machine in Machine::both(Numbering::Identity) {
        let five = machine.root(5);
        let mut domain = machine.domain(&[ONE, TWO]);
        machine.vm().alloc_pasid(only(5)).unwrap();
        domain.bind_gpasid_for_all(&bind(five, 5)).unwrap();
        machine.wait(Some(machine.vm().close()));
        let closed = NestingError::Object(ObjectError::Closed);
        assert_eq!(domain.bind_gpasid_for_all(&bind(five, 6)), Err(closed));
        machine.wait(domain.close().unwrap());
        assert!(domain.reap());
        machine.end();
    }
}
