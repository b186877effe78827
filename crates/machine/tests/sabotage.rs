//! Each deliberate defect of the rooms below turns the verdict of a scenario that is there to
//! notice it.

mod common;

use common::scenarios;
use common::Drive::{self, Inline, Threads};
use common::{Setup, Verdict};
use dsa::model::sabotage as accelerator;
use iommu::sabotage as engine;
use vtd::model::PasidTableMode;

/// A defect of one of the rooms.
#[derive(Clone, Copy, Debug)]
enum Defect {
    Engine(engine::Sabotage),
    Accelerator(accelerator::Sabotage),
}

use accelerator::Sabotage::{
    BlockTheQueue, CorruptCopy, ForgeablePasid, ForgetCompletion, HastyAbort, IgnoreInvalidAnswer,
    LoseBlocked,
};
use engine::Sabotage::{
    AnswerTwice, DropInFlight, ForgetGroup, ForgetOwner, IgnoreGrants, KeepOnClose, LeakCache,
    NoAccessedDirty, SkipDeviceTlbInvalidation, SkipIotlbInvalidation, SkipStageTwo, WrongPasid,
};
use Defect::{Accelerator, Engine};

type Scenario = fn(Setup) -> Verdict;

const CASES: [(Defect, &str, Scenario, Drive); 21] = [
    (Engine(SkipIotlbInvalidation), "remap", scenarios::remap, Inline),
    (Engine(SkipIotlbInvalidation), "unmap", |setup| scenarios::unmap_under_copy(setup, 5), Inline),
    (
        Engine(SkipIotlbInvalidation),
        "unmap, threads",
        |setup| scenarios::unmap_under_copy(setup, 20),
        Threads,
    ),
    (Engine(SkipDeviceTlbInvalidation), "remap", scenarios::remap, Inline),
    (Engine(AnswerTwice), "first touch", scenarios::first_touch, Inline),
    (Engine(ForgetGroup), "death", scenarios::death, Inline),
    (Accelerator(LoseBlocked), "first touch", scenarios::first_touch, Inline),
    (Accelerator(IgnoreInvalidAnswer), "refused page", scenarios::refused_page, Inline),
    (Accelerator(BlockTheQueue), "unbind", scenarios::unbind, Inline),
    (Engine(NoAccessedDirty), "accessed_dirty", scenarios::accessed_dirty, Inline),
    (Engine(WrongPasid), "isolation", scenarios::isolation, Inline),
    (Engine(DropInFlight), "access in flight", scenarios::unmap_under_access, Inline),
    (Engine(KeepOnClose), "vm_death", scenarios::vm_death_under_copy, Inline),
    (Engine(IgnoreGrants), "stranger's number", scenarios::strangers_number, Inline),
    (Engine(ForgetOwner), "stranger's number", scenarios::strangers_number, Inline),
    (Engine(LeakCache), "rebind", scenarios::rebind, Inline),
    (Accelerator(CorruptCopy), "copies", scenarios::copies, Inline),
    (Accelerator(ForgetCompletion), "copies", scenarios::copies, Inline),
    (Accelerator(ForgeablePasid), "forged_pasid", scenarios::forged_pasid, Inline),
    (Accelerator(ForgeablePasid), "unbound_pasid", scenarios::unbound_pasid, Inline),
    (Accelerator(HastyAbort), "reset", scenarios::reset_under_copy, Inline),
];

/// How often a scenario may fail to notice: a race takes its time to go wrong, and longer on a machine that is busy.
const ATTEMPTS: usize = 200;

fn set(defect: Option<Defect>) {
    engine::set(None);
    accelerator::set(None);
    match defect {
        None => {}
        Some(Engine(defect)) => engine::set(Some(defect)),
        Some(Accelerator(defect)) => accelerator::set(Some(defect)),
    }
}

/// One test, since a defect is on for the whole process.
#[test]
fn each_defect_is_noticed() {
    for owned in [Setup::guest_owned, Setup::host_owned] {
        for (defect, name, scenario, drive) in CASES {
            let setup = owned(drive);
            // A PASID of the host is found by the grants: there is nothing to ignore.
            if matches!(defect, Engine(IgnoreGrants)) && setup.tables == PasidTableMode::Host {
                continue;
            }
            set(None);
            assert_eq!(scenario(setup), Ok(()), "{name} without a defect, {setup:?}");
            set(Some(defect));
            let noticed = (0..ATTEMPTS).find_map(|_| scenario(setup).err());
            assert!(noticed.is_some(), "{name} does not notice {defect:?}, {setup:?}");
        }
        let setup = owned(Inline).over_stage_two();
        set(None);
        assert_eq!(scenarios::copies(setup), Ok(()), "copies without a defect, {setup:?}");
        set(Some(Engine(SkipStageTwo)));
        assert!(scenarios::copies(setup).is_err(), "copies do not notice a skipped stage 2");
    }
    set(None);
}
