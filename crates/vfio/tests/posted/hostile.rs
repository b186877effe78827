//! Whatever the bytes, nothing panics, and what is refused changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use iommu::{GuestPasid, PasidUsage, Vm};
use proptest::prelude::*;
use vfio::{DeviceFile, File, Handle, Request, Revision};

use crate::mock::{By, Place};
use crate::rig::*;

#[derive(PartialEq, Debug)]
struct State {
    objects: (BTreeMap<Place, By>, usize, BTreeSet<GuestPasid>),
    usage: PasidUsage,
    memory: usize,
    rings: Vec<[u8; 20]>,
}

fn state(rig: &Rig, device: &Arc<dyn DeviceFile>) -> State {
    let ring = |region: u64| {
        let mut bytes = [0; 20];
        device.read(region << 40, &mut bytes).unwrap();
        bytes
    };
    State {
        objects: rig.vm().snapshot(),
        usage: rig.vm().pasid_usage(),
        memory: rig.vm().memory().segments().len(),
        rings: vec![ring(9), ring(10)],
    }
}

/// Good arguments, to be spoilt.
fn good(revision: Revision, which: usize) -> (Request, Vec<u8>) {
    let gpasid = |op: u32| {
        let mut bytes = words(&[80, op]);
        match revision {
            Revision::PasidRequest53 => {
                bytes.extend(words(&[1, 1, 1, 0, 0x1000, 0, 5, 0, 5, 0, 48]));
            }
            _ => bytes.extend(words(&[72, 1, 1, 48, 1, 0, 0x1000, 0, 5, 0, 5])),
        }
        bytes.resize(80, 0);
        bytes
    };
    let config = |config: u32| {
        let mut bytes = words(&[40, 1]);
        match revision {
            Revision::PasidTableV11 => bytes.extend(words(&[1, 1, 0x1000, 0, config << 8 | 4])),
            Revision::PasidTableV13 => {
                bytes.extend(words(&[40, 1, 1, 0, 0x1000, 0, config << 8 | 4, 1]));
            }
            _ => bytes.extend(words(&[32, 1, 0x1000, 0, 1, config << 8 | 4, 1])),
        }
        if revision == Revision::PasidTableV11 {
            bytes.extend(words(&[0, 1]));
        }
        bytes.resize(bytes.len().max(48), 0);
        bytes
    };
    match which {
        0 => (Request::SetPasidTable, config(1)),
        1 => (Request::SetPasidTable, config(2)),
        2 => (Request::SetPasidTable, config(3)),
        3 => (Request::SetPasidTable, words(&[8, 2])),
        4 => (Request::NestingOp, gpasid(0)),
        5 => (Request::NestingOp, gpasid(1)),
        6 => (Request::SetMsiBinding, words(&[32, 1, 0x1000, 0, 0x2000, 0, 0x1000, 0])),
        7 => (Request::SetMsiBinding, words(&[32, 2, 0x1000, 0, 0, 0, 0, 0])),
        8 => (Request::CacheInvalidate, words(&[24, 0, 16, 1, 1, 0])),
        9 => (Request::IommuGetInfo, [words(&[128, 0]), vec![0; 120]].concat()),
        10 => (Request::PasidRequest, words(&[16, 1, 1, 9])),
        11 => (Request::DeviceGetRegionInfo, [words(&[128, 0, 9]), vec![0; 116]].concat()),
        12 => (Request::DeviceGetIrqInfo, [words(&[64, 0, 5]), vec![0; 52]].concat()),
        13 => (Request::DeviceSetIrqs, words(&[24, 36, 5, 0, 1, 7])),
        14 => (Request::AttachIommufdPt, words(&[16, 1, 1, 5])),
        15 => (Request::DetachIommufdPt, words(&[12, 1, 5])),
        16 => (Request::UnmapDma, words(&[24, 2, 0, 0, 0, 0])),
        _ => (Request::DeviceGetInfo, words(&[24, 0, 0, 0, 0, 0])),
    }
}

#[derive(Debug, Clone)]
enum Stimulus {
    Random { number: u32, bytes: Vec<u8>, file: u8 },
    Spoilt { which: usize, spoil: Vec<(usize, u8)>, keep: usize, handle: bool },
    Read { offset: u64, len: usize },
    Write { offset: u64, bytes: Vec<u8> },
    Map { offset: u64, len: usize },
}

fn stimuli() -> impl Strategy<Value = Vec<Stimulus>> {
    let number = prop_oneof![0x3b60..0x3bf0u32, any::<u32>()];
    let random = (number, prop::collection::vec(any::<u8>(), 0..140), 0..3u8)
        .prop_map(|(number, bytes, file)| Stimulus::Random { number, bytes, file });
    let byte = prop_oneof![Just(0u8), Just(1), Just(0xff), any::<u8>()];
    let spoil = prop::collection::vec((0..90usize, byte), 0..4);
    let keep = prop_oneof![3 => Just(usize::MAX), 1 => 0..90usize];
    let spoilt = (0..18usize, spoil, keep, any::<bool>())
        .prop_map(|(which, spoil, keep, handle)| Stimulus::Spoilt { which, spoil, keep, handle });
    let offset = (0..13u64, prop_oneof![0..40_000u64, 0..24u64, any::<u64>()])
        .prop_map(|(region, at)| region << 40 | at & 0xff_ffff_ffff);
    prop::collection::vec(
        prop_oneof![
            1 => random,
            6 => spoilt,
            1 => (offset.clone(), 0..100usize).prop_map(|(offset, len)| Stimulus::Read { offset, len }),
            1 => (offset.clone(), prop::collection::vec(0..4u8, 0..6))
                .prop_map(|(offset, bytes)| Stimulus::Write { offset, bytes }),
            1 => (offset, any::<usize>()).prop_map(|(offset, len)| Stimulus::Map { offset, len }),
        ],
        1..40,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn hostile_bytes(
        revision in 0..Revision::ALL.len(),
        is_vtd: bool,
        stimuli in stimuli(),
    ) {
        let revision = Revision::ALL[revision];
        let hardware = if is_vtd { vtd() } else { smmu() };
        let rig = Rig::new(revision, &[&[(A, hardware), (B, hardware)]]);
        rig.grant(5);
        let device = rig.open(0, A);
        for stimulus in stimuli {
            let before = state(&rig, &device);
            let failed = match stimulus {
                Stimulus::Random { number, mut bytes, file } => match file {
                    0 => rig.container.ioctl(number, &mut bytes, None).is_err(),
                    1 => device.ioctl(number, &mut bytes, None).is_err(),
                    _ => rig.groups[0].ioctl(number, &mut bytes, None).is_err(),
                },
                Stimulus::Spoilt { which, spoil, keep, handle } => {
                    let (request, mut argument) = good(revision, which);
                    for (at, byte) in spoil {
                        let len = argument.len();
                        argument[at % len] = byte;
                    }
                    argument.truncate(keep);
                    let number = request.number(revision).unwrap_or(0x3bff);
                    let handle = handle.then(|| Handle::Event(Arc::new(|| ())));
                    match which {
                        11..=15 | 17 => device.ioctl(number, &mut argument, handle).is_err(),
                        _ => rig.container.ioctl(number, &mut argument, None).is_err(),
                    }
                }
                Stimulus::Read { offset, len } => device.read(offset, &mut vec![0; len]).is_err(),
                Stimulus::Write { offset, bytes } => device.write(offset, &bytes).is_err(),
                Stimulus::Map { offset, len } => device.map(offset, len).is_err(),
            };
            // A random call may have closed the VM.
            if rig.container.host_vm().is_none() {
                return Ok(());
            }
            if failed {
                prop_assert_eq!(state(&rig, &device), before);
            }
        }
    }
}
