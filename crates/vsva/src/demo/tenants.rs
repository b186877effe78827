//! Guests that share a host, and do not always mean well.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use iommu::pasid::{CommandError, PasidReport, VmPasids};
use iommu::{
    DmaError, GuestPasid, HostPasid, Numbering, Pasid, PasidRange, PasidUsage, Vm as _, VmConfig,
};

use super::guest::{Failure, Interface, DEVICE, PARAVIRTUAL, SECRET_SIZE};
use super::Stage;
use vtd::spec::VcmdLayout;

/// What each guest here may have out.
const QUOTA: u32 = 4;

/// How long a dead guest's numbers may take to be free.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

const VT_D: Interface = Interface::VirtualCommands(VcmdLayout::Revision33);

fn config(name: &str) -> VmConfig {
    VmConfig { quota: QUOTA, ..VmConfig::named(name) }
}

/// What a device read, for people.
pub(super) fn said(read: &Result<[u8; SECRET_SIZE], DmaError>) -> String {
    match read {
        Ok(bytes) => format!("{:?}", String::from_utf8_lossy(bytes)),
        Err(error) => format!("nothing: {error}"),
    }
}

fn all_of<T: ToString>(numbers: &[T]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn outcome(result: &Result<Pasid, CommandError>) -> String {
    result.as_ref().map_or_else(|error| format!("no: {error}"), |pasid| format!("has {pasid}"))
}

fn freed(result: &Result<(), CommandError>) -> String {
    result.as_ref().map_or_else(|error| format!("no: {error}"), |()| "is rid of it".to_owned())
}

fn vm_of<'a>(report: &'a PasidReport, name: &str) -> Result<&'a VmPasids, Failure> {
    let vm = report.vms.iter().find(|vm| vm.name == name);
    vm.ok_or_else(|| format!("the host knows no {name}").into())
}

/// Every way to ask ends at the quota, each with its own word for it. What the guests have here
/// they never give back.
pub(super) fn quota(stage: &mut Stage<'_>) -> Result<(), Failure> {
    for interface in PARAVIRTUAL {
        let name = interface.name();
        let guest = stage.guest(interface, config(&format!("{name}, greedy")))?;
        let commands = guest.commands()?;
        for _ in 0..QUOTA {
            commands.alloc(PasidRange::ALL)?;
        }
        let (result, _) = stage.follow(
            "guest",
            &format!("{name}: a guest with {QUOTA} of {QUOTA} asks for one more"),
            format!("alloc({})", PasidRange::ALL),
            None,
            || commands.alloc(PasidRange::ALL),
            outcome,
        );
        let expected = PasidUsage { quota: QUOTA, live: QUOTA, parked: 0 };
        let ok = result == Err(CommandError::NoneAvailable) && guest.vm.pasid_usage() == expected;
        stage.check(&format!("{name}: over quota is an error"), ok, outcome(&result));
    }
    Ok(())
}

/// In private numbering a guest PASID is a name for some host PASID.
pub(super) fn private(stage: &mut Stage<'_>) -> Result<(), Failure> {
    let secrets = [*b"the first secret", *b"the other secret"];
    let mut guests = Vec::new();
    for interface in PARAVIRTUAL {
        let name = format!("{}, private", interface.name());
        let config = VmConfig { numbering: Numbering::Private, ..config(&name) };
        guests.push((stage.guest(interface, config)?, name));
    }
    let mut numbers = Vec::new();
    for (guest, name) in &guests {
        let commands = guest.commands()?;
        let (result, _) = stage.follow(
            "guest",
            &format!("{name}: a guest asks for a PASID"),
            format!("alloc({})", PasidRange::ALL),
            None,
            || commands.alloc(PasidRange::ALL),
            outcome,
        );
        numbers.push(result?);
    }
    let report = stage.host.pasid_report();
    let mut hosts: Vec<HostPasid> = Vec::new();
    for ((_, name), number) in guests.iter().zip(&numbers) {
        let entries = &vm_of(&report, name)?.entries;
        let entry = entries.iter().find(|entry| entry.guest == GuestPasid(*number));
        hosts.push(entry.ok_or("the host has no such PASID")?.host);
    }
    let same = numbers.windows(2).all(|pair| pair[0] == pair[1]);
    stage.check("three guests have the same number", same, all_of(&numbers));
    let mut different = hosts.clone();
    different.sort_unstable();
    different.dedup();
    let ok = different.len() == guests.len();
    stage.check("behind it are three of the host's", ok, all_of(&hosts));

    for ((guest, _), (number, secret)) in guests.iter().zip(numbers.iter().zip(secrets)) {
        guest.map(&[(*number, secret)])?;
    }
    for ((guest, name), (number, secret)) in guests.iter().zip(numbers.iter().zip(secrets)) {
        let read = guest.read(*number);
        let check = format!("the device of {name} reads its own guest");
        stage.check(&check, read == Ok(secret), said(&read));
    }
    Ok(())
}

/// Past a guest's own books, straight at the interface.
pub(super) fn forged(stage: &mut Stage<'_>) -> Result<(), Failure> {
    let victim = stage.guest(VT_D, config("victim"))?;
    let theirs = victim.commands()?.alloc(PasidRange::ALL)?;
    victim.map(&[(theirs, *b"still the victim")])?;
    for interface in PARAVIRTUAL {
        let name = interface.name();
        let forger = stage.guest(interface, config(&format!("{name}, forger")))?;
        let commands = forger.commands()?;
        let (result, _) = stage.follow(
            "guest",
            &format!("{name}: a guest frees {theirs}, which is another's"),
            format!("free({theirs})"),
            None,
            || commands.free(theirs),
            freed,
        );
        let refused = result == Err(CommandError::NotGranted);
        stage.check(&format!("{name}: a forged free is an error"), refused, freed(&result));
    }
    let read = victim.read(theirs);
    let unchanged = read == Ok(*b"still the victim") && victim.vm.pasid_usage().live == 1;
    stage.check("the victim has its PASID and uses it", unchanged, said(&read));
    victim.commands()?.free(theirs)?;
    Ok(())
}

/// In identity numbering a guest's table has an entry for whatever the guest likes. For what it was
/// not granted the host refuses to look.
pub(super) fn ungranted(stage: &mut Stage<'_>) -> Result<(), Failure> {
    let config = VmConfig { enforce_grants: true, ..config("programs what it likes") };
    let guest = stage.guest(VT_D, config)?;
    let granted = guest.commands()?.alloc(PasidRange::ALL)?;
    let never = Pasid::new(granted.get() ^ 1).filter(|pasid| pasid.get() != 0);
    let never = never.unwrap_or(Pasid::from_field(granted.get() + 2));
    guest.map(&[(granted, *b"was granted this"), (never, *b"never was grantd")])?;
    let read = guest.read(granted);
    stage.check(
        "a granted PASID works",
        read == Ok(*b"was granted this"),
        format!("{granted} reads {}", said(&read)),
    );
    let read = guest.read(never);
    let counted = guest.vm.counters().ungranted;
    let ok = matches!(read, Err(DmaError::Refused { .. })) && counted == 1;
    stage.check(
        "one that was not is refused and counted",
        ok,
        format!("{never} reads {}", said(&read)),
    );
    Ok(())
}

/// A guest goes in the middle of a DMA, with all of its numbers out.
pub(super) fn death(stage: &mut Stage<'_>) -> Result<(), Failure> {
    let dying = stage.guest(VT_D, config("dying"))?;
    for _ in 0..QUOTA {
        dying.commands()?.alloc(PasidRange::ALL)?;
    }
    let report = stage.host.pasid_report();
    let number = vm_of(&report, "dying")?.entries.first().ok_or("it has no PASID")?.guest.0;
    let heir = stage.guest(Interface::Requests, config("heir"))?;
    let exactly = PasidRange::new(number, number).ok_or("no range")?;
    let endpoint = dying.vm.attach(DEVICE)?;

    let (says, hears) = (mpsc::channel(), mpsc::channel());
    let drained = thread::scope(|scope| -> Result<Option<Duration>, Failure> {
        let (channel, begun, end) = (endpoint.channel(), says.0, hears.1);
        scope.spawn(move || {
            let access = channel.enter();
            let _ = begun.send(());
            // Until it may end; or until the other end is gone.
            let _ = end.recv();
            drop(access);
        });
        let end: mpsc::Sender<()> = hears.0;
        says.1.recv()?;
        let died = Instant::now();
        let ticket = dying.vm.close();
        let report = stage.host.pasid_report();
        let dead = vm_of(&report, "dying")?;
        let parked = dead.usage.parked;
        let held = dead.entries.iter().all(|entry| !entry.holders.is_empty());
        let holders = dead.entries.first().map(|entry| entry.holders.join(", "));
        let detail = format!("{parked} parked, held by: {}", holders.unwrap_or_default());
        let check = "while its device still works, its numbers are parked";
        stage.check(check, parked == QUOTA && held, detail);
        let early = heir.commands()?.alloc(exactly);
        let refused = early == Err(CommandError::NoneAvailable) && !dying.vm.is_complete(ticket);
        let detail = format!("{number}: {}", outcome(&early));
        stage.check("nobody is granted one of them yet", refused, detail);
        drop(end);
        while !dying.vm.is_complete(ticket) {
            if died.elapsed() > DRAIN_LIMIT {
                return Ok(None);
            }
            thread::yield_now();
        }
        Ok(Some(died.elapsed()))
    })?;
    let report = stage.host.pasid_report();
    let gone = report.vms.iter().all(|vm| vm.name != "dying");
    let detail = match drained {
        Some(took) => format!("{:.2} ms after its death", took.as_secs_f64() * 1e3),
        None => format!("not within {DRAIN_LIMIT:?}"),
    };
    stage.check(
        "when that is over, they and its quota are free",
        gone && drained.is_some(),
        detail,
    );
    let (inherited, _) = stage.follow(
        "guest",
        "heir: another guest asks for a dead one's number",
        format!("alloc({exactly})"),
        None,
        || heir.commands().map(|commands| commands.alloc(exactly)),
        |result| result.as_ref().map_or_else(ToString::to_string, outcome),
    );
    let inherited = inherited?;
    stage.check(
        "another guest may have one of them now",
        inherited == Ok(number),
        outcome(&inherited),
    );
    Ok(())
}

/// Everybody goes, whatever they still have.
pub(super) fn books(stage: &mut Stage<'_>) -> Result<(), Failure> {
    let before = stage.host.pasid_report();
    let quotas: u32 = before.vms.iter().map(|vm| vm.usage.quota).sum();
    let out: u32 = before.vms.iter().map(|vm| vm.usage.live + vm.usage.parked).sum();
    stage.check(
        "what is set aside is the sum of the quotas",
        before.promised == quotas,
        format!("{quotas} of {} PASIDs", before.capacity),
    );
    let detail = format!("{out} in {} guests", before.vms.len());
    stage.check(
        "what is out is what the guests have",
        out > 0 && before.live + before.parked == out && stage.host.check_books().is_ok(),
        detail,
    );
    let tickets: Vec<_> = stage.vms.iter().map(|vm| (vm, vm.close())).collect();
    let complete = tickets.iter().all(|(vm, ticket)| vm.is_complete(*ticket));
    let after = stage.host.pasid_report();
    let nothing = PasidReport { capacity: before.capacity, ..PasidReport::default() };
    let detail = format!(
        "{} out, {} set aside, {} of {} free",
        after.live + after.parked,
        after.promised,
        after.capacity - after.promised,
        after.capacity
    );
    stage.check(
        "when all guests are gone nothing is out or set aside",
        complete && after == nothing && stage.host.check_books().is_ok(),
        detail,
    );
    let all = stage.guest(VT_D, VmConfig { quota: after.capacity, ..VmConfig::named("all of it") });
    stage.check(
        "the whole space could be one guest's again",
        all.is_ok(),
        format!("{} PASIDs", after.capacity),
    );
    Ok(())
}
