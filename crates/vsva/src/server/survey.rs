//! The server and its guests as `vsva inspect` shows them.

use std::collections::BTreeMap;
use std::time::Duration;

use iommu::pasid::{GrantState, PasidEntry as Entry, VmPasids};
use iommu::{DomainId, OutstandingGroup, Pasid};

use super::config::Commands;
use super::counters::microseconds;
use super::{GuestPlace, Server};
use crate::inspect::snapshot::{
    End, Guest, Inspections, Numbering, PageGroup, PasidEntry, PasidTable, Snapshot, Space,
    StageTwo, State,
};
use crate::inspect::wire::{MAX_HOLDERS, MAX_LISTED, MAX_PAGE_GROUPS};

impl Server {
    /// The host, and these of its guests. Waits for nothing that a guest does.
    pub fn snapshot<'a>(&self, places: impl IntoIterator<Item = &'a GuestPlace>) -> Snapshot {
        let places: Vec<_> = places.into_iter().collect();
        let report = self.pasids();
        let share = MAX_LISTED / places.len().max(1);
        let of =
            |place: &GuestPlace| report.vms.iter().find(|vm| vm.name == place.name() && !vm.closed);
        let guests = places.iter().map(|place| guest(place, of(place), share)).collect();
        Snapshot {
            server: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: milliseconds(self.started.elapsed()),
            inspections: Inspections::default(),
            space: Space {
                capacity: report.capacity,
                reserved: report.promised,
                live: report.live,
                parked: report.parked,
            },
            guests,
        }
    }
}

fn guest(place: &GuestPlace, vm: Option<&VmPasids>, share: usize) -> Guest {
    let config = place.config();
    let usage = vm.map(|vm| vm.usage).unwrap_or_default();
    let granted = vm.map(|vm| vm.entries.as_slice()).unwrap_or_default();
    // A guest with virtual commands that uses others is refused, so that none of them is cached; in
    // a table of the host's there are no others.
    let own = match (config.commands, config.pasid_table) {
        (Commands::Off, super::PasidTable::Guest) => place.cached_pasids(),
        _ => BTreeMap::new(),
    };
    let bound = granted.iter().filter(|entry| is_bound(entry)).count();
    let own =
        own.into_iter().filter(|(pasid, _)| granted.iter().all(|entry| entry.guest.0 != *pasid));
    let all = granted.iter().map(entry).chain(own.map(own_entry));
    let mut pasids: Vec<_> = all.collect();
    let left_out = pasids.len().saturating_sub(share);
    pasids.truncate(share);
    let outstanding = place.outstanding_page_requests();
    Guest {
        name: place.name().to_owned(),
        connected: place.is_connected(),
        lives: place.lives(),
        quota: config.quota,
        numbering: match config.numbering {
            iommu::Numbering::Identity => Numbering::Identity,
            iommu::Numbering::Private => Numbering::Private,
        },
        vcmd: config.commands.layout().map(|_| config.commands.to_string()),
        pasid_table: match config.pasid_table {
            super::PasidTable::Guest => PasidTable::Guest,
            super::PasidTable::Host => PasidTable::Host,
        },
        stage_two: match config.stage_two {
            super::StageTwo::None => StageTwo::None,
            super::StageTwo::Identity => StageTwo::Identity,
            super::StageTwo::Shuffled => StageTwo::Shuffled,
        },
        live: usage.live,
        parked: usage.parked,
        bound: u32::try_from(bound).unwrap_or(u32::MAX),
        last_end: place.last_end().map(|end| End {
            pasids: end.reclaimed.pasids,
            reclaim_us: microseconds(end.reclaimed.took),
            took_us: microseconds(end.took),
        }),
        pasids,
        pasids_left_out: left_out as u64,
        page_groups: outstanding.iter().take(MAX_PAGE_GROUPS).map(page_group).collect(),
        page_groups_left_out: outstanding.len().saturating_sub(MAX_PAGE_GROUPS) as u64,
        counters: place
            .counters()
            .into_iter()
            .map(|(name, count)| (name.to_owned(), count))
            .collect(),
    }
}

fn page_group(group: &OutstandingGroup) -> PageGroup {
    PageGroup {
        device: group.requester.to_string(),
        pasid: group.pasid.map(Pasid::get),
        group: group.group.get(),
        age_ms: group.age.map(milliseconds),
    }
}

/// Who holds a PASID that is bound in a table of the host's.
const BINDER: &str = "iommu";

/// Whether a granted PASID is bound in a table of the host's.
pub(super) fn is_bound(entry: &Entry) -> bool {
    entry.holders.iter().any(|holder| holder == BINDER)
}

fn entry(entry: &Entry) -> PasidEntry {
    PasidEntry {
        guest: entry.guest.0.get(),
        host: Some(entry.host.0.get()),
        state: match entry.state {
            GrantState::Live => State::Live,
            GrantState::Parked => State::Parked,
        },
        bound: is_bound(entry),
        age_ms: entry.age.map(milliseconds),
        domain: entry.domain.map(|domain| domain.0),
        holders: entry.holders.iter().take(MAX_HOLDERS).cloned().collect(),
    }
}

fn own_entry((pasid, domain): (Pasid, DomainId)) -> PasidEntry {
    PasidEntry {
        guest: pasid.get(),
        host: None,
        state: State::Own,
        bound: false,
        age_ms: None,
        domain: Some(domain.0),
        holders: Vec::new(),
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
