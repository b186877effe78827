//! The same memory with and without a stage 2 of the host's under it.

use alloc::sync::Arc;

use mem::HostAddr;

use super::*;
use crate::stage_two::{Editor, HostTables};
use crate::{Layout, SecondStageLevels, StageTwoConfig, StageTwoFormat};

/// A shuffled stage 2 that maps just the memory.
fn stage_two(memory: &Counting, seed: u64) -> Editor {
    let format = StageTwoFormat::Vtd { levels: SecondStageLevels::Four };
    let config = StageTwoConfig { format, layout: Layout::Shuffled { seed } };
    let tables = Arc::new(HostTables::new());
    let mut editor = Editor::new(HostStageTwo::new(&config, &tables).unwrap());
    drop(editor.set_memory(memory.map.clone()));
    editor
}

/// Whether that is what is said of a table where no memory is.
fn unreachable(reason: FaultReason) -> bool {
    matches!(
        reason,
        FaultReason::PasidDirectoryAccess
            | FaultReason::PasidEntryAccess
            | FaultReason::TableAccess { .. }
            | FaultReason::AccessedDirty { .. }
    )
}

/// What is the same, or tells of the same.
fn agree(
    plain: &Result<Target, Refusal>,
    over: &Result<Target, Refusal>,
    stage_two: &HostStageTwo,
) -> Result<(), TestCaseError> {
    match (plain, over) {
        (Ok(plain), Ok(over)) => {
            let gpa = stage_two.guest_at(HostAddr(over.output.0));
            prop_assert_eq!(gpa, Some(Gpa(plain.output.0)));
            prop_assert!(over.len_minus_one <= plain.len_minus_one);
            prop_assert_eq!(over.fault_disable, plain.fault_disable);
        }
        (Ok(plain), Err(over)) => {
            prop_assert!(plain.output.0 >= MEMORY, "{over:?}");
            let stop = over.stage_two.unwrap();
            prop_assert_eq!((stop.gpa, stop.table), (Gpa(plain.output.0), false));
            prop_assert!(over.is_hosts());
        }
        (Err(plain), Err(over)) if over.is_hosts() => {
            let stop = over.stage_two.unwrap();
            prop_assert!(unreachable(plain.reason) && stop.table && stop.gpa.0 >= MEMORY);
            prop_assert_eq!(over.fault_disable, plain.fault_disable);
        }
        (Err(_), _) => prop_assert_eq!(plain, over),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn garbage_means_the_same_over_a_stage_two(
        words in prop::collection::vec(entry(), 0x2000),
        entries in prop::collection::vec(pasid_entry(), 64),
        requests in prop::collection::vec(
            (prop::option::of(0..1u32 << 12), any::<bool>(), any::<u64>(), 0..65u32, any::<bool>()),
            64,
        ),
        seed in any::<u64>(),
    ) {
        let memories = [(); 2].map(|()| {
            let memory = Counting::new(words.iter().copied());
            for at in 0..64 {
                memory.map.store_u64(Gpa(at * 8), 0x1001).unwrap();
            }
            for (at, word) in (0x1000..).step_by(8).zip(entries.iter().flatten()) {
                memory.map.store_u64(Gpa(at), *word).unwrap();
            }
            memory
        });
        let editor = stage_two(&memories[1], seed);
        let two = editor.stage_two();
        for (pasid, privileged, address, shift, write) in requests {
            let access = if write { Access::Write } else { Access::Read };
            let address = address.checked_shr(shift).unwrap_or(0);
            let context = match shift % 4 {
                0 => DeviceContext::PassThrough { domain: DomainId(1), ats: false, fault_disable: false },
                _ => DeviceContext::PasidTable(pasid_table(0)),
            };
            let space = space(pasid, privileged);
            let (plain, _) = translate(&memories[0], context, space, address, access);
            let (over, accesses) =
                translate_over(&memories[1], Some(two), context, space, address, access);
            prop_assert!(accesses <= MAX_TABLE_ACCESSES, "{accesses}");
            agree(&plain, &over, two)?;
        }
        // Marks were made in the same places.
        for at in (0..MEMORY).step_by(8) {
            let [plain, over] = [0, 1].map(|of: usize| memories[of].map.load_u64(Gpa(at)));
            prop_assert_eq!(plain, over, "at {:#x}", at);
        }
    }
}
