//! Where accesses go, by the tables alone.

use iommu::{DefaultSubstream, DescriptorForm, FaultReason, Stage};
use mem::Gpa;

use super::common::smmu::{AF, EL0, READ_ONLY, RECORD, S2_READ, S2_WRITE};
use super::{Kind, Stopped, World, DESCRIPTORS, F_PRESENT};

impl World {
    /// Where an access goes; with the fault comes whether it is recorded.
    pub(super) fn reference(
        &self,
        of: Option<u32>,
        iova: u64,
        write: bool,
        privileged: bool,
    ) -> Result<u64, (Stopped, bool)> {
        let told = |stopped| (stopped, true);
        let bypass = || {
            let gpa = match self.kind {
                Kind::Two | Kind::Nested => self.second(iova, write, Stage::Two).map_err(told)?,
                _ => iova,
            };
            self.below(gpa).map_err(told)
        };
        let refused = |reason| Err(told((reason, None)));
        match self.kind {
            // The host gives a device no device TLB in front of a guest's stage that does nothing.
            Kind::Bypass if self.ats && self.host.is_some() => {
                return refused(FaultReason::AtsDisabled);
            }
            Kind::Abort => return Err(((FaultReason::ContextNotPresent, None), false)),
            Kind::Bypass | Kind::Two if of.is_some() => return refused(FaultReason::PasidDisabled),
            Kind::Bypass | Kind::Two => return bypass(),
            Kind::One | Kind::Nested => {}
        }
        let (number, privileged) = match (of, self.default) {
            (None, DefaultSubstream::Terminate) => return refused(FaultReason::PasidRequired),
            (None, DefaultSubstream::Bypass) => return bypass(),
            (None, DefaultSubstream::Zero) => (0, false),
            (Some(0), DefaultSubstream::Zero) => return refused(FaultReason::PasidRange),
            (Some(number), _) if number > 3 => return refused(FaultReason::PasidRange),
            (Some(number), _) => (number, privileged),
        };
        let mut fetches =
            vec![(DESCRIPTORS.0 + 64 * u64::from(number), FaultReason::PasidEntryAccess)];
        if self.form != DescriptorForm::Linear {
            // All are in the first leaf.
            fetches.insert(0, (self.first_level.0, FaultReason::PasidDirectoryAccess));
        }
        for (at, reason) in fetches {
            if self.kind == Kind::Nested {
                self.second(at, false, Stage::TwoForDescriptor).map_err(told)?;
            }
            self.page(at, reason).map_err(told)?;
        }
        let word0 = self.load(DESCRIPTORS.0 + 64 * u64::from(number));
        let root = self.load(DESCRIPTORS.0 + 64 * u64::from(number) + 8);
        if word0 >> 31 & 1 == 0 {
            return refused(FaultReason::PasidEntryNotPresent);
        }
        let gpa = self
            .first(root, iova, write, privileged)
            .map_err(|(stage, stopped)| (stopped, stage != Stage::One || word0 & RECORD != 0))?;
        self.below(gpa).map_err(told)
    }

    fn first(
        &self,
        root: u64,
        iova: u64,
        write: bool,
        privileged: bool,
    ) -> Result<u64, (Stage, Stopped)> {
        let mut table = root;
        let stage = Stage::One;
        let second = |address, write, stage| match self.kind {
            Kind::Nested => self.second(address, write, stage).map_err(|stopped| (stage, stopped)),
            _ => Ok(address),
        };
        let stopped = |reason| Err((stage, (reason, None)));
        for level in (1..=4u8).rev() {
            let shift = 12 + 9 * (u64::from(level) - 1);
            let at = second(table + (iova >> shift & 0x1ff) * 8, false, Stage::TwoForTable)?;
            let entry = self.entry(at).map_err(|stopped| (Stage::TwoForTable, stopped))?;
            if entry & F_PRESENT == 0 {
                return stopped(FaultReason::NotPresent { stage, level });
            }
            table = entry & 0x0000_ffff_ffff_f000;
            if level > 1 && entry & 0b10 != 0 {
                continue;
            }
            if entry & AF == 0 {
                return stopped(FaultReason::AccessFlag { stage, level });
            }
            if !privileged && entry & EL0 == 0 {
                return stopped(FaultReason::Permission { stage, user: true });
            }
            if write && entry & READ_ONLY != 0 {
                return stopped(FaultReason::Permission { stage, user: false });
            }
            return second(table | iova & ((1 << shift) - 1), write, Stage::Two);
        }
        unreachable!()
    }

    fn second(&self, address: u64, write: bool, stage: Stage) -> Result<u64, Stopped> {
        let mut table = self.two.0;
        for level in (1..=3u8).rev() {
            let shift = 12 + 9 * (u64::from(level) - 1);
            let entry = self.entry(table + (address >> shift & 0x1ff) * 8)?;
            if entry & F_PRESENT == 0 {
                return Err((FaultReason::NotPresent { stage, level }, None));
            }
            table = entry & 0x0000_ffff_ffff_f000;
            if level > 1 {
                continue;
            }
            if entry & AF == 0 {
                return Err((FaultReason::AccessFlag { stage, level }, None));
            }
            let needed = if write { S2_WRITE } else { S2_READ };
            if entry & needed == 0 {
                return Err((FaultReason::Permission { stage, user: false }, None));
            }
        }
        Ok(table | address & 0xfff)
    }

    /// Asks the host's stage 2 for what a request reaches.
    fn below(&self, gpa: u64) -> Result<u64, Stopped> {
        self.page(gpa, FaultReason::NotPresent { stage: Stage::Two, level: 1 })?;
        Ok(gpa)
    }

    /// Loads an entry, by way of the host's stage 2.
    fn entry(&self, at: u64) -> Result<u64, Stopped> {
        self.page(at, FaultReason::NotPresent { stage: Stage::TwoForTable, level: 1 })?;
        Ok(self.load(at))
    }

    fn page(&self, gpa: u64, reason: FaultReason) -> Result<(), Stopped> {
        match self.holes.contains(&(gpa & !0xfff)) {
            true => Err((reason, Some(Gpa(gpa)))),
            false => Ok(()),
        }
    }
}
