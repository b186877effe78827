//! Whatever the bytes, nothing panics, and what is refused changes nothing.

use super::*;

/// A good argument of each request, to be spoilt.
fn good(request: Request, revision: Revision) -> Vec<u8> {
    let own = revision == Revision::Own;
    match request {
        Request::MapDma => map(0x8000, 0x1000).as_bytes().to_vec(),
        Request::UnmapDma => bytes(&UnmapDma { argsz: 24, flags: 0, iova: 0, size: 0x1000 }),
        Request::CacheInvalidate => {
            let what = Invalidation::DeviceTlb {
                requester: DEVICE,
                range: mem::Range { start: mem::Iova(0), last: mem::Iova(0xfff) },
            };
            let encoded = invalidation::encode(what);
            let argsz = 64;
            if own {
                bytes(&encoded)
            } else {
                bytes(&CacheInvalidate { argsz, flags: 0, info: encoded.info })
            }
        }
        Request::PasidRequest => {
            let mut bytes = vec![0; if own { 48 } else { 16 }];
            bytes[0] = bytes.len() as u8;
            bytes[4] = 1;
            bytes[12] = 9;
            bytes
        }
        Request::CreateVm => bytes(&create(1)),
        Request::CloseVm | Request::InFlight => bytes(&ticketed(0)),
        Request::UpdateMemory => bytes(&ticketed(UPDATE_BEGIN)),
        Request::SetContexts | Request::SetFaultEvent => {
            bytes(&SetHandle { argsz: 8, flags: HANDLE_UNSET })
        }
        Request::Completion => bytes(&Completion { argsz: 24, ..Completion::new_zeroed() }),
        Request::ReadFault => bytes(&ReadFault { argsz: 96, ..ReadFault::new_zeroed() }),
        Request::AttachDevice => bytes(&AttachDevice { argsz: 16, ..AttachDevice::new_zeroed() }),
        Request::GetCounters => {
            bytes(&CountersArgument { argsz: 128, ..CountersArgument::new_zeroed() })
        }
        Request::GetApiVersion => Vec::new(),
        Request::CheckExtension | Request::SetIommu => bytes(&TYPE1_NESTING),
        Request::IommuGetInfo => object(200, &[], 200),
        Request::SetPasidTable => {
            let mut bytes = object(40, &[PASID_TABLE_SET], 8);
            bytes.extend(match revision {
                Revision::PasidTableV11 => object(1, &[1, 0x1000, 0, 0x204, 0, 1, 0], 32),
                Revision::PasidTableV13 => object(40, &[1, 1, 0, 0x1000, 0, 0x104, 1], 40),
                _ => object(32, &[1, 0x1000, 0, 1, 0x104, 1, 0], 32),
            });
            bytes
        }
        Request::SetMsiBinding => object(32, &[MSI_BIND, 0x1000, 0, 0x2000, 0, 0x1000, 0], 32),
        Request::NestingOp => {
            let mut bytes = object(80, &[NESTING_BIND], 8);
            bytes.extend(match revision {
                Revision::PasidRequest53 => object(1, &[1, 0, 0, 0x1000, 0, 5, 0, 0, 0, 48], 72),
                _ => object(72, &[1, 1, 48, 0, 0, 0x1000, 0, 5], 72),
            });
            bytes
        }
        Request::GroupGetStatus => object(8, &[], 8),
        Request::GroupSetContainer | Request::GroupUnsetContainer => Vec::new(),
        Request::GroupGetDeviceFd => b"0000:00:10.0\0".to_vec(),
        Request::DeviceGetInfo => object(24, &[], 24),
        Request::DeviceGetRegionInfo => object(200, &[0, PCI_REGIONS], 200),
        Request::DeviceGetIrqInfo => object(64, &[0, PCI_INTERRUPTS], 64),
        Request::DeviceSetIrqs => object(24, &[36, PCI_INTERRUPTS, 0, 1, u32::MAX], 24),
        Request::AttachIommufdPt => object(16, &[1, 1, 5], 16),
        Request::DetachIommufdPt => object(12, &[1, 5], 12),
        Request::Destroy => object(8, &[1], 24),
        Request::IoasAlloc => object(12, &[0], 32),
        Request::HwptAlloc => {
            let address = size_of::<HwptAlloc>() as u32;
            let mut bytes = object(72, &[0, 0x80, 1, 0, 0, 1, 24, address], 72);
            bytes.resize(72 + 24, 0);
            bytes
        }
        Request::GetHwInfo => {
            let mut bytes = object(56, &[0, 0x80, 40, 56], 56);
            bytes.resize(56 + 40, 0);
            bytes
        }
        Request::HwptInvalidate => {
            let mut bytes = object(56, &[1, 56, 0, 0, 24, 2], 56);
            bytes.resize(56 + 48, 0);
            bytes[56 + 8] = 1;
            bytes[56 + 32] = 1;
            bytes
        }
        Request::FaultQueueAlloc => object(16, &[0], 32),
        Request::ViommuAlloc => object(40, &[0, VIOMMU_ARM_SMMUV3, 0x80, 1], 56),
        Request::VdeviceAlloc => object(24, &[1, 0x80], 40),
        Request::VeventqAlloc => object(32, &[0, 1, VEVENTQ_ARM_SMMUV3, 16], 48),
        Request::AttachPageTable => object(48, &[0, 1, 0, 0x80], 48),
        Request::DetachPageTable => object(40, &[0, 0, 0x80], 40),
        Request::ReadEvent => object(136, &[1], 136),
        Request::ReadPageRequest => object(80, &[], 80),
        Request::RespondPageRequest => object(40, &[0, 24, 1, 1, 5, 6, 0, 0x80], 40),
        Request::ReadPageFault => object(88, &[0, 1], 88),
        Request::RespondPageFault => object(40, &[0, 1, 0, 7, 1], 40),
        Request::Unanswered => object(32, &[], 32),
        Request::GiveUpAnswers => object(16, &[0, u32::MAX], 16),
        Request::GetPageRequestCounters => object(104, &[], 104),
        Request::Tick => object(40, &[0, 5, 0, 0, 0, 999_999_999], 40),
    }
}

/// A structure of `len` bytes that says it has `size`, and begins with these words.
fn object(size: u32, words: &[u32], len: usize) -> Vec<u8> {
    let words = core::iter::once(&size).chain(words);
    let mut bytes: Vec<u8> = words.flat_map(|word| word.to_ne_bytes()).collect();
    bytes.resize(len, 0);
    bytes
}

/// Whether a request is for an object of the VM.
fn is_object(request: Request) -> bool {
    matches!(
        request,
        Request::Destroy
            | Request::IoasAlloc
            | Request::HwptAlloc
            | Request::GetHwInfo
            | Request::HwptInvalidate
            | Request::FaultQueueAlloc
            | Request::ViommuAlloc
            | Request::VdeviceAlloc
            | Request::VeventqAlloc
            | Request::AttachPageTable
            | Request::DetachPageTable
            | Request::ReadEvent
            | Request::ReadPageFault
            | Request::RespondPageFault
    )
}

/// Whether a request is for a container with groups.
fn is_nesting(request: Request) -> bool {
    use Request as R;
    matches!(request, R::SetIommu | R::SetPasidTable | R::SetMsiBinding | R::NestingOp)
}

/// Whether a request is for a group or a device.
fn is_elsewhere(request: Request) -> bool {
    matches!(
        request,
        Request::GroupGetStatus
            | Request::GroupSetContainer
            | Request::GroupUnsetContainer
            | Request::GroupGetDeviceFd
            | Request::DeviceGetInfo
            | Request::DeviceGetRegionInfo
            | Request::DeviceGetIrqInfo
            | Request::DeviceSetIrqs
            | Request::AttachIommufdPt
            | Request::DetachIommufdPt
    )
}

fn bytes(value: &(impl IntoBytes + Immutable)) -> Vec<u8> {
    value.as_bytes().to_vec()
}

#[derive(Debug, Clone)]
enum Stimulus {
    Random { number: u32, bytes: Vec<u8> },
    Spoilt { request: usize, spoil: Vec<(usize, u8)>, keep: usize },
}

fn stimuli() -> impl Strategy<Value = Vec<(Stimulus, u8)>> {
    let number = prop_oneof![0x3b60..0x3be0u32, any::<u32>()];
    let random = (number, prop::collection::vec(any::<u8>(), 0..140))
        .prop_map(|(number, bytes)| Stimulus::Random { number, bytes });
    let byte = prop_oneof![Just(0u8), Just(1), Just(0xff), any::<u8>()];
    let spoil = prop::collection::vec((0..140usize, byte), 0..4);
    let keep = prop_oneof![3 => Just(usize::MAX), 1 => 0..140usize];
    let spoilt = (0..Request::all().count(), spoil, keep)
        .prop_map(|(request, spoil, keep)| Stimulus::Spoilt { request, spoil, keep });
    prop::collection::vec((prop_oneof![1 => random, 4 => spoilt], 0..4u8), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Whatever the bytes, nothing panics, and what is refused changes nothing.
    #[test]
    fn hostile_bytes(revision in 0..Revision::ALL.len(), stimuli in stimuli()) {
        let revision = Revision::ALL[revision];
        let rig = Rig::with(revision, 3);
        rig.call_with(Request::MapDma, &mut map(0, 0x1000), memory()).unwrap();
        for (stimulus, handle) in stimuli {
            let (number, mut argument) = match stimulus {
                Stimulus::Random { number, bytes } => (number, bytes),
                Stimulus::Spoilt { request, spoil, keep } => {
                    let request = Request::all().nth(request).unwrap();
                    let mut argument = good(request, revision);
                    for (at, byte) in spoil {
                        let at = at.checked_rem(argument.len()).unwrap_or(0);
                        argument.get_mut(at).into_iter().for_each(|old| *old = byte);
                    }
                    argument.truncate(keep);
                    (request.number(revision).unwrap_or(0x3bff), argument)
                }
            };
            let handle = match handle {
                0 => memory(),
                1 => bell(),
                _ => None,
            };
            let before = state(&rig);
            if rig.container.call(number, &mut argument, handle).is_err() {
                prop_assert_eq!(state(&rig), before);
            }
        }
    }
}

#[test]
fn good_arguments_are_good() {
    for revision in Revision::ALL {
        for request in Request::all() {
            let Some(number) = request.number(revision) else { continue };
            let rig = Rig::without_vm(revision);
            if request != Request::CreateVm {
                rig.call(Request::CreateVm, &mut create(1)).unwrap();
            }
            let handle = if request == Request::MapDma { memory() } else { None };
            let result = rig.container.call(number, &mut good(request, revision), handle);
            let posted = request == Request::CacheInvalidate && revision != Revision::Own;
            match result {
                // Of which the posted structure does not say the device.
                Err(_) if posted => (),
                // That the VM has none of that is not the bytes' fault.
                Err(Refusal::Object(_)) if is_object(request) => (),
                // Nor that nothing was asked.
                Err(Refusal::PageResponse(PageResponseError::NotOutstanding { .. }))
                    if request == Request::RespondPageRequest => {}
                // Nor that there are no groups, or that it is for their files.
                Err(Refusal::NoGroup | Refusal::NotNesting) if is_nesting(request) => (),
                Err(Refusal::UnknownRequest { .. }) if is_elsewhere(request) => (),
                result => assert!(result.is_ok(), "{request:?} {result:?}"),
            }
        }
    }
}
