//! The server as the lab uses it: guests by number, injections and samples.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guest_protocol::sync;
use iommu::pasid::{GrantState, VmPasids};
use iommu::{Numbering, Pasid};
use mem::Policy;

use super::resources::{guest_mappings, Resources};
use super::stage_two::Watched;
use super::survey::is_bound;
use super::{sabotage, shared_queue, CannotInject, GuestConfig, GuestPlace, Injection, Server};
use crate::inspect::snapshot::OF_NOW;
use crate::lab::{
    Check, EncodedCalls, GuestDevices, GuestId, LabServer, PasidRecord, PasidSpace, ServerError,
    ServerOptions, AFTER_KILL,
};

/// Growth of the process's own memory between two samples that is no leak, in KiB: allocators
/// keep a few pages here and there. A leak of one cache line an iteration would be more.
const RESIDENT_SLACK_KIB: u64 = 64;

/// The check that does not hold if nothing can be said about growth.
const SAMPLED: &str = "resources are sampled";

/// Starts a server for the lab, broken in the named way if a sabotage is given.
///
/// # Errors
/// [`ServerError::UnknownSabotage`].
pub fn start(options: ServerOptions<'_>) -> Result<Box<dyn LabServer>, ServerError> {
    let ServerOptions { sabotage: broken, calls, seed, injections } = options;
    sabotage::apply(broken).map_err(|known| ServerError::UnknownSabotage {
        given: broken.unwrap_or_default().to_owned(),
        known,
    })?;
    let lines = Arc::new(|line: &str| eprintln!("{line}"));
    Ok(Box::new(Lab {
        server: Server::calling(calls, Policy::SealedOnly, lines).shuffled_by(seed),
        injections: injections.to_vec(),
        guests: BTreeMap::new(),
        next: 0,
    }))
}

struct Lab {
    server: Server,
    /// What goes wrong for every guest.
    injections: Vec<Injection>,
    guests: BTreeMap<GuestId, Guest>,
    next: u32,
}

struct Guest {
    place: Place,
    /// The PASIDs that were in queues before an injection.
    injected: BTreeMap<u64, Pasid>,
    /// Requests with a PASID that was not granted, as last seen.
    ungranted: u64,
    /// The first sample of a scenario that must not grow.
    steady: Option<Steady>,
    /// Its second stage, as last seen.
    watched: Watched,
}

/// A guest's place, or what was counted in it.
enum Place {
    Open(Box<GuestPlace>),
    Closed(Vec<(&'static str, u64)>),
}

#[derive(Clone, Copy)]
struct Steady {
    resources: Resources,
    iotlb_entries: u64,
    pasid_entries: u64,
    /// Entries in a table of the host's.
    bound: u64,
    domains: u64,
    devices: u64,
    vms: usize,
}

impl LabServer for Lab {
    fn add_guest(
        &mut self,
        dir: &Path,
        mut config: GuestConfig,
    ) -> Result<GuestDevices, ServerError> {
        let guest = GuestId(self.next);
        config.quota += u32::from(sabotage::has_generous_quota());
        if sabotage::has_shared_numbers() {
            config.numbering = Numbering::Identity;
        }
        let place = self.server.add_guest(dir, &name(guest), config).map_err(other)?;
        self.next += 1;
        for injection in &self.injections {
            place.inject(*injection).map_err(cannot)?;
        }
        let devices = place.devices().clone();
        let place = Place::Open(Box::new(place));
        let record = Guest {
            place,
            injected: BTreeMap::new(),
            ungranted: 0,
            steady: None,
            watched: Watched::default(),
        };
        self.guests.insert(guest, record);
        Ok(GuestDevices { guest, devices })
    }

    fn wait_gone(&mut self, guest: GuestId, limit: Duration) -> Result<Duration, ServerError> {
        let start = Instant::now();
        let held = |what: String| ServerError::StillHeld { what, after: start.elapsed() };
        let record = self.guests.get_mut(&guest).ok_or(ServerError::UnknownGuest(guest))?;
        let Place::Open(place) = &record.place else { return Ok(Duration::ZERO) };
        let took = place.wait_ended(limit).map_err(|left| held(format!("{left} connections")))?;
        let (claims, segments) = place.memory();
        let cached = place.vm_counters();
        if claims > 0 || segments > 0 {
            return Err(held(format!("{claims} memory reports, {segments} pieces of memory")));
        }
        if cached.iotlb_entries > 0 || cached.pasid_entries > 0 {
            return Err(held(format!(
                "{} translations and {} PASID entries",
                cached.iotlb_entries, cached.pasid_entries
            )));
        }
        let counters = place.counters();
        let mut waiting =
            counters.iter().filter(|(name, count)| OF_NOW.contains(name) && *count > 0);
        if let Some((name, count)) = waiting.next() {
            return Err(held(format!("{count} {name}")));
        }
        if let Place::Open(place) = std::mem::replace(&mut record.place, Place::Closed(counters)) {
            place.close();
        }
        let open = self.guests.values().filter(|guest| matches!(guest.place, Place::Open(_)));
        let open = open.count();
        if self.server.vms() != open {
            return Err(held(format!("{} VMs for {open} guests", self.server.vms())));
        }
        if let Some(vm) = self.vm_pasids(guest) {
            return Err(held(format!("{} PASIDs, and their quota", vm.entries.len())));
        }
        let mappings = guest_mappings().map_err(other)?;
        if open == 0 && mappings > 0 {
            return Err(held(format!("{mappings} mappings of guest memory")));
        }
        Ok(took)
    }

    fn counters(&self, guest: GuestId) -> Vec<(&'static str, u64)> {
        match self.guests.get(&guest).map(|guest| &guest.place) {
            Some(Place::Open(place)) => place.counters(),
            Some(Place::Closed(counters)) => counters.clone(),
            None => Vec::new(),
        }
    }

    fn pasids(&self, guest: GuestId) -> Result<PasidRecord, ServerError> {
        let vm = self.vm_pasids(guest).ok_or(ServerError::UnknownGuest(guest))?;
        let of = |state: GrantState| {
            let entries = vm.entries.iter().filter(move |entry| entry.state == state);
            entries.map(|entry| entry.guest.0.get()).collect()
        };
        let live = || vm.entries.iter().filter(|entry| entry.state == GrantState::Live);
        let mut hosts: Vec<_> = live().map(|entry| entry.host.0.get()).collect();
        hosts.sort_unstable();
        let bound = live().filter(|entry| is_bound(entry)).map(|entry| entry.guest.0.get());
        let bound = bound.collect();
        Ok(PasidRecord { live: of(GrantState::Live), parked: of(GrantState::Parked), hosts, bound })
    }

    fn space(&self) -> PasidSpace {
        let report = self.server.pasids();
        PasidSpace {
            capacity: report.capacity,
            reserved: report.promised,
            live: report.live,
            parked: report.parked,
            guests: report.vms.len(),
        }
    }

    fn encoded_calls(&self) -> Option<EncodedCalls> {
        let counts = self.server.encoded_calls()?;
        Some(EncodedCalls { calls: counts.calls, open: counts.containers })
    }

    fn inject(&mut self, guest: GuestId, injection: Injection) -> Result<(), ServerError> {
        self.open_place(guest)?.inject(injection).map_err(cannot)
    }

    fn clear_injections(&mut self, guest: GuestId) -> Result<(), ServerError> {
        self.open_place(guest)?.clear_injections();
        Ok(())
    }

    fn sync(&mut self, guest: GuestId, point: &str, values: &BTreeMap<String, u64>) -> Vec<Check> {
        let value = |name: &str| values.get(name).copied();
        let vms = self.server.vms();
        let Some(record) = self.guests.get_mut(&guest) else {
            return vec![check(point, Err(format!("no guest {}", guest.0)))];
        };
        match point {
            sync::INJECT_UNBOUND_PASID => {
                let (wq, pasid) = (value("wq"), value("pasid"));
                vec![check("a PASID nobody bound is put into a queue", record.inject(wq, pasid))]
            }
            sync::INJECT_RESTORE => record.restore(value("wq")),
            sync::SHARED_PORTAL => shared_queue::checks(),
            sync::PASID_USED => vec![record.pasid_used(value("pasid"), value("granted"))],
            sync::STAGE_TWO_WALKED
            | sync::STAGE_TWO_CLEAR
            | sync::STAGE_TWO_FAULT
            | sync::STAGE_TWO_RESTORE => vec![record.stage_two(point, values)],
            sync::SAMPLE => record.sample(vms),
            sync::STEADY => record.steady(vms, value("iteration").unwrap_or(0)),
            sync::STORM | AFTER_KILL => Vec::new(),
            unknown => vec![check(unknown, Err("the server knows no such point".to_owned()))],
        }
    }
}

impl Lab {
    /// The place of a guest that has not ended.
    fn open_place(&self, guest: GuestId) -> Result<&GuestPlace, ServerError> {
        match self.guests.get(&guest).map(|guest| &guest.place) {
            Some(Place::Open(place)) => Ok(place),
            Some(Place::Closed(_)) | None => Err(ServerError::UnknownGuest(guest)),
        }
    }

    /// What the host has on record of a guest's PASIDs, as long as it has anything.
    fn vm_pasids(&self, guest: GuestId) -> Option<VmPasids> {
        let name = name(guest);
        self.server.pasids().vms.into_iter().find(|vm| vm.name == name)
    }
}

/// The guest's name on the host.
fn name(guest: GuestId) -> String {
    format!("guest{}", guest.0)
}

impl Guest {
    fn place(&self) -> Result<&GuestPlace, String> {
        match &self.place {
            Place::Open(place) => Ok(place),
            Place::Closed(_) => Err("the guest has ended".to_owned()),
        }
    }

    fn inject(&mut self, wq: Option<u64>, pasid: Option<u64>) -> Result<String, String> {
        let wq = wq.ok_or("no queue was named")?;
        let pasid = pasid
            .and_then(|pasid| Pasid::new(u32::try_from(pasid).ok()?))
            .ok_or("no PASID was named")?;
        let index = usize::try_from(wq).map_err(|_| "no such queue")?;
        let before =
            self.place()?.accelerator().inject_wq_pasid(index, pasid).ok_or("no such queue")?;
        self.injected.insert(wq, before);
        Ok(format!("queue {wq}: {before} replaced by {pasid}"))
    }

    /// Puts the PASID back, and looks at what the accelerator made of the one that was there.
    fn restore(&mut self, wq: Option<u64>) -> Vec<Check> {
        let restored = wq
            .and_then(|wq| Some((wq, self.injected.remove(&wq)?)))
            .ok_or_else(|| "nothing was injected there".to_owned())
            .and_then(|(wq, before)| {
                self.inject(Some(wq), Some(before.get().into()))?;
                self.injected.remove(&wq);
                Ok(format!("queue {wq}: {before} again"))
            });
        let refused = self.place().and_then(|place| {
            let software_errors = place.accelerator().counters().software_errors;
            match software_errors {
                0 => Err("SWERROR reported nothing".to_owned()),
                count => Ok(format!("{count} software errors, no record to write them to")),
            }
        });
        vec![
            check("the queue's own PASID is put back", restored),
            check("the accelerator reports the refused PASID in SWERROR", refused),
        ]
    }

    /// Whether requests were counted as ungranted since the last look if and only if they were.
    fn pasid_used(&mut self, pasid: Option<u64>, granted: Option<u64>) -> Check {
        let what = "requests with PASIDs not granted are counted, no others";
        let counted = self.place().map(|place| place.vm_counters().ungranted);
        let (Ok(now), Some(pasid), Some(granted)) = (counted, pasid, granted) else {
            return check(what, Err("no guest, no PASID or no word of whose it is".to_owned()));
        };
        let grown = now - std::mem::replace(&mut self.ungranted, now);
        let whose = if granted == 1 { "granted" } else { "not granted" };
        let detail = format!("PASID {pasid:#x}, {whose}: {grown} requests counted as ungranted");
        check(what, if (grown == 0) == (granted == 1) { Ok(detail) } else { Err(detail) })
    }

    /// Does what is asked for with the host's second stage below the guest.
    fn stage_two(&mut self, point: &str, values: &BTreeMap<String, u64>) -> Check {
        let what = match point {
            sync::STAGE_TWO_WALKED => "the copies went through the host's second stage",
            sync::STAGE_TWO_CLEAR => "a page is taken out of the second stage",
            sync::STAGE_TWO_FAULT => "the host's record has who missed the page",
            _ => "the page is put back, and nothing else was missed",
        };
        let outcome = match &self.place {
            Place::Open(place) => self.watched.at(place, point, values),
            Place::Closed(_) => Err("the guest has ended".to_owned()),
        };
        check(what, outcome)
    }

    /// What the server holds now.
    fn held(&self, vms: usize) -> Result<Steady, String> {
        let place = self.place()?;
        let vm = place.vm_counters();
        Ok(Steady {
            resources: Resources::sample().map_err(|error| error.to_string())?,
            iotlb_entries: vm.iotlb_entries,
            pasid_entries: vm.pasid_entries,
            bound: place.bound(),
            domains: place.cached_domains() as u64,
            devices: vm.devices,
            vms,
        })
    }

    /// Keeps what the server holds, for [`Self::steady`].
    fn sample(&mut self, vms: usize) -> Vec<Check> {
        match self.held(vms) {
            Ok(now) => {
                self.steady = Some(now);
                Vec::new()
            }
            Err(error) => vec![check(SAMPLED, Err(error))],
        }
    }

    /// Compares what the server holds with the sample.
    fn steady(&mut self, vms: usize, iteration: u64) -> Vec<Check> {
        let before = self.steady.take().ok_or_else(|| "nothing to compare with".to_owned());
        let (before, now) = match before.and_then(|before| Ok((before, self.held(vms)?))) {
            Ok(both) => both,
            Err(error) => return vec![check(SAMPLED, Err(error))],
        };
        let same = |what: &str, before: u64, now: u64, slack: u64| {
            let detail = format!("{before} then, {now} at iteration {iteration}");
            let held = now <= before.saturating_add(slack);
            check(what, if held { Ok(detail) } else { Err(detail) })
        };
        let (was, is) = (before.resources, now.resources);
        vec![
            same(
                "memory of the server, KiB",
                was.resident_kib,
                is.resident_kib,
                RESIDENT_SLACK_KIB,
            ),
            same("open descriptors", was.descriptors, is.descriptors, 0),
            same("threads", was.threads, is.threads, 0),
            same("cached translations", before.iotlb_entries, now.iotlb_entries, 0),
            same("cached PASID entries", before.pasid_entries, now.pasid_entries, 0),
            same("entries bound by the host", before.bound, now.bound, 0),
            same("domains with something cached", before.domains, now.domains, 0),
            same(
                "devices and VMs",
                before.devices + before.vms as u64,
                now.devices + now.vms as u64,
                0,
            ),
        ]
    }
}

fn cannot(CannotInject(injection): CannotInject) -> ServerError {
    ServerError::CannotInject(injection)
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> ServerError {
    ServerError::Other(Box::new(error))
}

fn check(what: &str, outcome: Result<String, String>) -> Check {
    let ok = outcome.is_ok();
    Check { check: what.to_owned(), ok, detail: outcome.unwrap_or_else(|error| error) }
}
