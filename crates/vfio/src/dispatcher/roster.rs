//! The devices of a container's groups: what is known of them without having the container's turn.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use iommu::{AttachError, Channel, Endpoint, Fault, Hardware};
use pci::RequesterId;

use super::device::Open;
use super::posted::Kind;
use crate::Refusal;

/// A device of a group in the container.
#[derive(Debug, Default)]
struct Member {
    group: u32,
    /// Since the container has its kind of IOMMU.
    endpoint: Option<Arc<Endpoint>>,
    /// What its files have in common, and how many are open.
    open: Weak<Open>,
    files: usize,
}

/// The devices of a container's groups. Locked for a few steps at a time, in which nobody is asked
/// but the host for a channel.
#[derive(Debug, Default)]
pub(super) struct Roster {
    pub(super) kind: Option<Kind>,
    /// The IOMMU of the first domain.
    pub(super) hardware: Option<Hardware>,
    devices: BTreeMap<RequesterId, Member>,
    undeliverable: u64,
}

impl Roster {
    /// Adds the devices of a group.
    pub(super) fn add(&mut self, group: u32, devices: &[RequesterId]) -> Result<(), Refusal> {
        let member = || Member { group, ..Member::default() };
        if let Some(&device) = devices.iter().find(|device| self.devices.contains_key(*device)) {
            return Err(AttachError::Duplicate(device).into());
        }
        self.devices.extend(devices.iter().map(|device| (*device, member())));
        Ok(())
    }

    /// Takes a device out. Dropped, its end of the host goes, so with no lock held.
    pub(super) fn remove(&mut self, device: RequesterId) -> Option<Arc<Endpoint>> {
        self.devices.remove(&device)?.endpoint
    }

    /// Notes a device's end of the host; gives the old one.
    pub(super) fn set_endpoint(
        &mut self,
        device: RequesterId,
        endpoint: Option<Arc<Endpoint>>,
    ) -> Option<Arc<Endpoint>> {
        match self.devices.get_mut(&device) {
            Some(member) => core::mem::replace(&mut member.endpoint, endpoint),
            None => endpoint,
        }
    }

    /// How many groups there are.
    pub(super) fn groups(&self) -> usize {
        let mut groups: Vec<_> = self.devices.values().map(|member| member.group).collect();
        groups.sort_unstable();
        groups.dedup();
        groups.len()
    }

    /// Notes that one more file of a device is open; gives what its files have in common, and
    /// whether that is new.
    pub(super) fn open(&mut self, device: RequesterId) -> Result<(Arc<Open>, bool), Refusal> {
        self.kind.ok_or(Refusal::NoContainer)?;
        let member = self.devices.get_mut(&device).ok_or(Refusal::NoSuchName)?;
        let (open, is_new) = match member.open.upgrade() {
            Some(open) => (open, false),
            None => (Arc::new(Open::new(device)?), true),
        };
        member.open = Arc::downgrade(&open);
        member.files += 1;
        Ok((open, is_new))
    }

    /// Notes that a file of a device is not open any more; whether it was the last.
    pub(super) fn close(&mut self, device: RequesterId) -> bool {
        let Some(member) = self.devices.get_mut(&device) else { return false };
        member.files = member.files.saturating_sub(1);
        if member.files == 0 {
            // Who opens it next has rings of its own.
            member.open = Weak::new();
        }
        member.files == 0
    }

    /// A channel of a device, for its DMA.
    pub(super) fn channel(&self, device: RequesterId) -> Option<Channel> {
        self.devices.get(&device)?.endpoint.as_ref().map(|endpoint| endpoint.channel())
    }

    /// A device's end of the host, as long as it is in the container.
    pub(super) fn endpoint(&self, device: RequesterId) -> Weak<Endpoint> {
        let endpoint = self.devices.get(&device).and_then(|member| member.endpoint.as_ref());
        endpoint.map_or(Weak::new(), Arc::downgrade)
    }

    /// What is open.
    pub(super) fn all_open(&self) -> impl Iterator<Item = Arc<Open>> + '_ {
        self.devices.values().filter_map(|member| member.open.upgrade())
    }

    /// Puts a fault into its device's ring.
    pub(super) fn deliver(&mut self, fault: Fault) {
        let member = self.devices.get(&fault.requester);
        match member.and_then(|member| member.open.upgrade()) {
            Some(open) => open.report(fault),
            None => self.undeliverable = self.undeliverable.saturating_add(1),
        }
    }

    /// How many faults came for a device that nobody has open.
    pub(super) fn undeliverable(&self) -> u64 {
        self.undeliverable
    }
}
