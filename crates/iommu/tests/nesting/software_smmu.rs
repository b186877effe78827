//! A domain behind an SMMUv3 of the host in software: what DMA sees of it.

use iommu::nesting::{
    CacheInvalidate, Caches, DefaultSubstream, DescriptorForm, Domain, Granularity,
    PasidTableConfig, PasidTableFormat, TableMode,
};
use iommu::{Channel, Endpoint, Hardware, SoftwareHost, SoftwareVm, Vm, VmConfig};
use mem::{Gpa, GuestMemory, Iova};

use super::common::smmu::{asid, descriptor, PAGE, SMMU};
use super::common::{dma, wait, with, without, Guest, Op};
use super::ONE;

const VA: u64 = 0x1_2345_6000;
const DATA: u64 = 0x10_0000;

struct Machine {
    guest: Guest,
    _endpoint: Endpoint,
    channel: Channel,
    domain: Domain<SoftwareVm>,
}

impl Machine {
    fn new() -> Self {
        let host = SoftwareHost::with_hardware(Hardware::Smmuv3(SMMU));
        let guest = Guest::with(&host, VmConfig::named("smmu"));
        let endpoint = guest.vm.attach(ONE).unwrap();
        let channel = endpoint.channel();
        let mut domain = Domain::new(guest.vm.clone());
        domain.add_device(ONE).unwrap();
        Self { guest, _endpoint: endpoint, channel, domain }
    }

    /// The words of a descriptor whose stage 1 maps [`VA`] to the page of that number, which holds
    /// the number; its ASID is the number too.
    fn space(&mut self, number: u16) -> (Gpa, [u64; 8]) {
        let root = self.guest.table();
        self.map(root, number);
        (root, descriptor(root, asid(number)))
    }

    fn map(&mut self, root: Gpa, number: u16) {
        let page = DATA + u64::from(number) * 0x1000;
        self.guest.memory.store_u64(Gpa(page), number.into()).unwrap();
        self.guest.set_one(root, VA, 1, page | PAGE);
    }

    /// What is read at [`VA`] with that substream.
    fn at_va(&self, substream: u32) -> Option<u64> {
        dma(&self.channel, with(substream), VA, Op::Read).ok()
    }

    /// What is read without substream at [`VA`], and where stage 1 is bypassed.
    fn without(&self) -> (Option<u64>, Option<u64>) {
        let at = |address| dma(&self.channel, without(), address, Op::Read).ok();
        (at(VA), at(DATA + 0x5000))
    }

    fn configure(&mut self, config: &PasidTableConfig) {
        let ticket = self.domain.replace_pasid_table(config).unwrap();
        ticket.into_iter().for_each(|ticket| wait(&self.guest.vm, ticket));
    }

    fn invalidate(&self, granularity: Granularity) {
        let what = CacheInvalidate { caches: Caches::IOTLB, granularity };
        wait(&self.guest.vm, self.domain.cache_invalidate(ONE, &what).unwrap());
    }
}

fn table(base: Gpa, s1dss: DefaultSubstream) -> PasidTableConfig {
    let format = PasidTableFormat::Smmuv3 { s1fmt: DescriptorForm::Linear, s1dss };
    PasidTableConfig { format, config: TableMode::Translate, pasid_bits: 4, base }
}

#[test]
fn substreams_and_requests_without_go_where_the_configuration_says() {
    let mut machine = Machine::new();
    let base = machine.guest.table();
    for substream in [0, 5] {
        let (_, words) = machine.space(substream);
        machine.guest.set_descriptor(base, substream.into(), words);
    }
    assert_eq!((machine.at_va(5), machine.without()), (None, (None, Some(5))), "default");
    for (s1dss, expected) in [
        (DefaultSubstream::Terminate, (None, None)),
        (DefaultSubstream::Bypass, (None, Some(5))),
        (DefaultSubstream::Zero, (Some(0), None)),
    ] {
        machine.configure(&table(base, s1dss));
        assert_eq!((machine.at_va(5), machine.without()), (Some(5), expected), "{s1dss:?}");
        assert_eq!(machine.at_va(6), None);
        assert_eq!(machine.at_va(16), None, "beyond the table");
    }
    let other = |config| PasidTableConfig { config, ..table(base, DefaultSubstream::Bypass) };
    while machine.guest.vm.take_fault().is_some() {}
    machine.configure(&other(TableMode::Abort));
    assert_eq!((machine.at_va(5), machine.without()), (None, (None, None)));
    assert_eq!(machine.guest.vm.take_fault(), None, "terminated, and not recorded");
    machine.configure(&other(TableMode::Bypass));
    assert_eq!((machine.at_va(5), machine.without()), (None, (None, Some(5))));
}

#[test]
fn a_table_pointer_is_hostile() {
    let mut machine = Machine::new();
    // Within what stage 2 could translate, but no memory.
    machine.configure(&table(Gpa(0xfff_0000_0000), DefaultSubstream::Zero));
    assert_eq!((machine.at_va(5), machine.without()), (None, (None, None)));
    let ticket = machine.domain.detach_pasid_table().unwrap();
    ticket.into_iter().for_each(|ticket| wait(&machine.guest.vm, ticket));
    machine.guest.memory.store_u64(Gpa(DATA + 0x5000), 5).unwrap();
    assert_eq!(machine.without(), (None, Some(5)));
}

#[test]
fn what_is_cached_goes_by_the_guests_commands() {
    let mut machine = Machine::new();
    let base = machine.guest.table();
    let (root, words) = machine.space(5);
    machine.guest.set_descriptor(base, 5, words);
    machine.configure(&table(base, DefaultSubstream::Terminate));
    let address = |archid| Granularity::Address {
        pasid: None,
        archid,
        leaf: true,
        address: Iova(VA),
        granule: 0x1000,
        count: 1,
    };
    assert_eq!(machine.at_va(5), Some(5));
    let scopes = [
        address(Some(5)),
        address(None),
        Granularity::Pasid { pasid: None, archid: Some(5) },
        Granularity::Domain,
    ];
    for (number, scope) in (6..).zip(scopes) {
        machine.map(root, number);
        assert_eq!(machine.at_va(5), Some(u64::from(number) - 1), "it is cached");
        machine.invalidate(scope);
        assert_eq!(machine.at_va(5), Some(number.into()), "{scope:?}");
    }
}
