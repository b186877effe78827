//! Whose PASID tables, and over which second stage: a guest's devices work the same way in all combinations.

mod peer;

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use dsa::spec::Status;
use iommu::StageTwoOwner;
use mem::{Gpa, Policy, Range};
use peer::*;
use vsva::inspect::snapshot;
use vsva::server::{GuestConfig, GuestPlace, HostCalls, PasidTable, Server, StageTwo};

const TABLES: [PasidTable; 2] = [PasidTable::Guest, PasidTable::Host];
const STAGES: [StageTwo; 3] = [StageTwo::None, StageTwo::Identity, StageTwo::Shuffled];

/// Where the copies come from, go to and leave their records.
const FROM: u64 = 16 << 20;
const TO: u64 = 32 << 20;
const RECORD: u64 = 0x2000;

struct World {
    server: Server,
    place: GuestPlace,
    dir: tempfile::TempDir,
    ram: File,
    data: Vec<u8>,
}

impl World {
    fn new(pasid_table: PasidTable, stage_two: StageTwo, calls: HostCalls) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (server, _) = server_calling(calls, Policy::SealedOnly);
        let server = server.shuffled_by(0x5eed);
        let config = GuestConfig { pasid_table, stage_two, ..GuestConfig::USUAL };
        let place = server.add_guest(dir.path(), "guest", config).unwrap();
        let ram = ram("stages", true);
        let data: Vec<u8> = (0..COPY).map(|byte| (byte >> 12) as u8 ^ byte as u8 ^ 0x5a).collect();
        ram.write_all_at(&data, FROM).unwrap();
        Self { server, place, dir, ram, data }
    }

    /// Copies anew; gives the status and the bytes that it says are done.
    fn copy(&self, accelerator: &mut Accelerator) -> (Result<Status, u8>, usize) {
        self.ram.write_all_at(&[0; 32], RECORD).unwrap();
        self.ram.write_all_at(&vec![0; COPY as usize], TO).unwrap();
        accelerator.copy(FROM, TO, RECORD);
        let record = completed(&self.ram, RECORD);
        let status = record.status.status();
        (status.map_err(|_| record.status.into_bits()), record.bytes_completed as usize)
    }

    fn copied(&self) -> Vec<u8> {
        let mut copied = vec![0; COPY as usize];
        self.ram.read_exact_at(&mut copied, TO).unwrap();
        copied
    }
}

#[test]
fn dma_without_translation_arrives_in_every_combination() {
    for table in TABLES {
        for stage in STAGES {
            for calls in [HostCalls::Direct, HostCalls::Bytes] {
                let what = format!("{table}'s table, stage 2: {stage}, called: {calls}");
                let world = World::new(table, stage, calls);
                let mut accelerator = Accelerator::new(&world.place, &world.ram);
                assert_eq!(world.copy(&mut accelerator), (Ok(Status::Success), 0), "{what}");
                assert!(world.copied() == world.data, "{what}");
                let counters = world.place.vm_counters();
                assert_eq!(counters.stage_two_walks > 0, stage != StageTwo::None, "{what}");
                assert_eq!(counters.stage_two_faults, 0, "{what}");
                drop(accelerator);
                eventually("the guest's end", || !world.place.is_connected());
                assert_eq!(world.place.memory(), (0, 0), "{what}");
                assert_eq!(world.place.vm_counters().iotlb_entries, 0, "{what}");
                assert!(world.dir.path().exists());
            }
        }
    }
}

#[test]
fn a_page_out_of_the_second_stage_is_out_of_reach_until_it_is_back() {
    const MISSING: usize = 3;
    for table in TABLES {
        for stage in [StageTwo::Identity, StageTwo::Shuffled] {
            let world = World::new(table, stage, HostCalls::Direct);
            let mut accelerator = Accelerator::new(&world.place, &world.ram);
            assert_eq!(world.copy(&mut accelerator), (Ok(Status::Success), 0));
            let vm = world.place.vm().host_vm().unwrap();
            let start = FROM + 4096 * MISSING as u64;
            let page = Range { start: Gpa(start), last: Gpa(start + 4095) };
            let settle = |ticket| {
                use iommu::Vm as _;
                eventually("the end of accesses", || vm.is_complete(ticket));
            };
            settle(vm.clear_stage_two(page).unwrap());
            let (status, done) = world.copy(&mut accelerator);
            assert_eq!(status, Ok(Status::ReadError), "{table}, {stage}");
            assert!(done <= 4096 * MISSING, "{done}");
            assert!(world.copied()[4096 * MISSING..].iter().all(|byte| *byte == 0));
            assert!(world.place.vm_counters().stage_two_faults > 0);
            let faults = vm.stage_two_faults();
            let stop = faults.last().unwrap().stage_two.unwrap();
            assert_eq!((stop.owner, stop.table), (StageTwoOwner::Host, false));
            assert_eq!(stop.gpa.0 / 4096, start / 4096);
            settle(vm.restore_stage_two(page).unwrap());
            assert_eq!(world.copy(&mut accelerator), (Ok(Status::Success), 0));
            assert!(world.copied() == world.data);
        }
    }
}

#[test]
fn a_view_says_whose_table_and_which_second_stage() {
    let world = World::new(PasidTable::Host, StageTwo::Shuffled, HostCalls::Direct);
    let guest = world.server.snapshot([&world.place]).guests.remove(0);
    assert_eq!(guest.pasid_table, snapshot::PasidTable::Host);
    assert_eq!(guest.stage_two, snapshot::StageTwo::Shuffled);
    assert_eq!(guest.bound, 0);
}
