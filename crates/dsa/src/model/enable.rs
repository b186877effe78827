//! The checks of Enable Device and Enable WQ, in the order of their error codes.

use super::caps::BUFFERS_PER_ENGINE;
use super::queue::WorkQueue;
use super::state::{Group, State};
use crate::spec::{CommandError, DeviceState, WqState};

impl State {
    /// Whether the device may be enabled.
    pub(super) fn check_enable_device(&self) -> Result<(), CommandError> {
        if self.device != DeviceState::Disabled {
            return Err(CommandError::DeviceNotDisabled);
        }
        if !self.function.command().bus_master() {
            return Err(CommandError::BusMasterOff);
        }
        self.check_page_requests()?;
        let sizes: u32 = self.wqs.iter().map(|wq| u32::from(wq.config.size)).sum();
        if sizes > u32::from(self.caps.config().entries) {
            return Err(CommandError::TotalWqSize);
        }
        let has_wqs = |group: &Group| group.wqs != [0; 4];
        if self.groups.iter().any(|group| has_wqs(group) != (group.engines != 0)) {
            return Err(CommandError::GroupIncomplete);
        }
        self.check_group_wqs()?;
        self.check_group_engines()?;
        self.check_read_buffers()
    }

    fn check_page_requests(&self) -> Result<(), CommandError> {
        let enabled = self.function.pri().is_some_and(|pri| pri.enable());
        let allocation = self.function.pri_allocation().unwrap_or(0);
        let sane = (1..=super::function::PRI_CAPACITY).contains(&allocation);
        if enabled && !sane {
            return Err(CommandError::PageRequestAllocation);
        }
        Ok(())
    }

    /// Every queue with a size is in exactly one group, every other queue in none.
    fn check_group_wqs(&self) -> Result<(), CommandError> {
        let known = |wq: usize| wq < self.wqs.len();
        for wq in 0..256 {
            let groups = self.groups.iter().filter(|group| group.has_wq(wq)).count();
            let sized = known(wq) && self.wqs.get(wq).is_some_and(|wq| wq.config.size != 0);
            if groups != usize::from(sized) {
                return Err(CommandError::GroupWqs);
            }
        }
        Ok(())
    }

    /// Every engine is in one group at most, and exists.
    fn check_group_engines(&self) -> Result<(), CommandError> {
        for engine in 0..64 {
            let groups = self.groups.iter().filter(|group| group.has_engine(engine)).count();
            if groups > usize::from(engine < self.engines.len()) {
                return Err(CommandError::GroupEngines);
            }
        }
        Ok(())
    }

    fn check_read_buffers(&self) -> Result<(), CommandError> {
        let total = u32::from(self.caps.config().read_buffers);
        let active = || self.groups.iter().filter(|group| group.engines != 0);
        let reserved: u32 = active().map(|group| u32::from(group.flags.buffers_reserved())).sum();
        let Some(unreserved) = total.checked_sub(reserved) else {
            return Err(CommandError::ReadBuffers);
        };
        let mut limited_need = 0;
        for group in active() {
            let own = u32::from(group.flags.buffers_reserved());
            let need = group.engines.count_ones() * BUFFERS_PER_ENGINE;
            let allowed = u32::from(group.flags.buffers_allowed());
            if allowed < need || allowed < own || allowed > own + unreserved {
                return Err(CommandError::ReadBuffers);
            }
            if group.flags.use_global_limit() {
                limited_need += need;
            }
        }
        if limited_need > u32::from(self.gencfg.read_buffer_limit()) {
            return Err(CommandError::ReadBuffers);
        }
        Ok(())
    }

    /// The queue at `index`, if it may be enabled.
    pub(super) fn check_enable_wq(&mut self, index: u8) -> Result<&mut WorkQueue, CommandError> {
        let (gencap, wqcap) = (self.caps.gencap(), self.caps.wqcap());
        let pasid = self.function.pasid().unwrap_or_default();
        let page_requests = self.function.pri().is_some_and(|pri| pri.enable());
        let blocks = gencap.block_on_fault() && page_requests;
        let wq = self.wqs.get_mut(usize::from(index)).ok_or(CommandError::BadWq)?;
        let mode = wq.config.mode;
        let dedicated = mode.dedicated();
        let limits = wq.config.limits;
        let checks = [
            (self.device != DeviceState::Enabled, CommandError::DeviceNotEnabled),
            (wq.state() != WqState::Disabled, CommandError::WqNotDisabled),
            (wq.config.size == 0, CommandError::WqSizeZero),
            (wqcap.priority() && mode.priority() == 0, CommandError::WqPriorityZero),
            (if dedicated { !wqcap.dedicated() } else { !wqcap.shared() }, CommandError::WqMode),
            (mode.block_on_fault() && !blocks, CommandError::WqBlockOnFault),
            (
                if mode.pasid_enable() { !pasid.enable() } else { !dedicated },
                CommandError::WqPasidEnable,
            ),
            (
                limits.max_batch_shift() == 0
                    || limits.max_batch_shift() > gencap.max_batch_shift(),
                CommandError::WqMaxBatch,
            ),
            (
                limits.max_transfer_shift() > gencap.max_transfer_shift(),
                CommandError::WqMaxTransfer,
            ),
            (
                dedicated && mode.pasid_enable() && mode.privileged() && !pasid.privileged(),
                CommandError::WqPrivilege,
            ),
            (
                wq.config.occupancy_limit.interrupt_enable() && !wqcap.occupancy_interrupt(),
                CommandError::WqOccupancyInterrupt,
            ),
            (mode.ats_disable() && !wqcap.ats_disable(), CommandError::WqAtsDisable),
            (mode.prs_disable() && !wqcap.prs_disable(), CommandError::WqPrsDisable),
        ];
        match checks.iter().find(|(failed, _)| *failed) {
            Some(&(_, error)) => Err(error),
            None => Ok(wq),
        }
    }
}
