//! One consumer in each environment: the same calls, and a way of their own for each.

use std::time::Instant;

use iommu::pasid::{Consumer, PasidAllocator, Route, Scope};
use iommu::{PasidRange, VmConfig};

use super::guest::{Failure, Guest, Interface, DEVICE, PARAVIRTUAL};
use super::{Environment, Stage};

/// How often an allocation and its return are timed.
const ROUNDS: u32 = 200;

/// What each guest here may have out.
const QUOTA: u32 = 8;

/// What the consumers put to their PASIDs.
const PRIVATE: &str = "queue 7";

pub(super) fn side_by_side(stage: &mut Stage<'_>) -> Result<(), Failure> {
    let host = stage.host.clone();
    let bare_metal = host.pasid_allocator();
    let live = move || host.pasid_report().live;
    environment(stage, "bare metal", &bare_metal, "the host", &live)?;

    let guest = stage.guest(Interface::Own, VmConfig { quota: 0, ..VmConfig::named("own") })?;
    own_numbers(stage, &guest)?;

    for interface in PARAVIRTUAL {
        let name = interface.name();
        let config = VmConfig { quota: QUOTA, ..VmConfig::named(name) };
        let guest = stage.guest(interface, config)?;
        environment(stage, name, &guest.allocator, "the host", &|| guest.live())?;
    }
    let table = stage.report.side_by_side(stage.screen.width());
    stage.screen.line(&table);
    Ok(())
}

/// A consumer comes, has a PASID, gives it back and goes. `live` is how many PASIDs the one who
/// hands them out has out.
fn environment(
    stage: &mut Stage<'_>,
    name: &str,
    allocator: &PasidAllocator,
    space: &str,
    live: &dyn Fn() -> u32,
) -> Result<(), Failure> {
    // Before any domain or device exists.
    let consumer = Consumer::init(allocator, Scope::Bus(DEVICE.bus()))?;
    let route = consumer.route();
    let way = match route {
        Route::BareMetal => format!("{space}'s own ID space"),
        Route::Guest { interface } => format!("{interface} -> VMM -> host"),
    };
    let (wanted, before) = (PasidRange::ALL, live());
    let asks = format!("alloc({wanted}) for {}", consumer.scope());
    let (result, hops) = stage.follow(
        "consumer",
        &format!("{name}: a consumer asks for a PASID"),
        asks,
        Some(way.clone()),
        || consumer.alloc(wanted, PRIVATE),
        |result| match result {
            Ok(pasid) => format!("has {pasid}"),
            Err(error) => format!("no: {error}"),
        },
    );
    let pasid = result?;
    let found = consumer.find(pasid);
    let mut walked = Vec::new();
    consumer
        .for_each(|pasid, private: &&str| {
            walked.push((pasid, *private));
            Ok::<(), ()>(())
        })
        .map_err(|()| "a walk stops")?;
    let ok = found.as_deref() == Some(&PRIVATE) && walked == [(pasid, PRIVATE)];
    let handed_out = live() == before + 1;
    let check = format!("{name}: the number finds what was put to it");
    stage.check(&check, ok && handed_out, format!("{pasid} -> {PRIVATE:?}"));

    // A number is nothing without its consumer.
    let stranger = Consumer::<()>::init(allocator, Scope::Device(DEVICE))?;
    let refused = stranger.free(pasid).is_err() && stranger.find(pasid).is_none();
    let (freed, _) = stage.follow(
        "consumer",
        &format!("{name}: and gives it back"),
        format!("free({pasid})"),
        None,
        || consumer.free(pasid),
        |freed| {
            freed.as_ref().map_or_else(ToString::to_string, |private| {
                format!("has {private:?} back, no PASID")
            })
        },
    );
    let gone = freed.is_ok() && consumer.find(pasid).is_none() && live() == before;
    let check = format!("{name}: only its consumer can free it, and once");
    stage.check(
        &check,
        refused && gone && consumer.free(pasid).is_err(),
        format!("{before} out as before"),
    );

    let microseconds = timed(&consumer, wanted)?;
    stage.report.environments.push(Environment {
        name: name.to_owned(),
        route: way,
        number: pasid.get(),
        space: space.to_owned(),
        hops,
        microseconds,
    });
    Ok(())
}

/// Microseconds that an allocation and its return take together.
fn timed(consumer: &Consumer<&str>, wanted: PasidRange) -> Result<f64, Failure> {
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        let pasid = consumer.alloc(wanted, PRIVATE)?;
        consumer.free(pasid)?;
    }
    Ok(begun.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS))
}

/// A guest on an IOMMU as in hardware: its numbers are its own, and mean something in its own
/// tables only.
fn own_numbers(stage: &mut Stage<'_>, guest: &Guest) -> Result<(), Failure> {
    let name = "full virtualization";
    let host = stage.host.clone();
    let before = host.pasid_report().live;
    environment(stage, name, &guest.allocator, "the guest", &|| guest.live())?;
    let consumer = Consumer::init(&guest.allocator, Scope::Device(DEVICE))?;
    let pasid = consumer.alloc(PasidRange::ALL, ())?;
    let secret = *b"full virtualiz'n";
    guest.map(&[(pasid, secret)])?;
    let read = guest.read(pasid);
    stage.check(
        "full virtualization: its device works by the guest's tables",
        read == Ok(secret),
        format!("PASID {pasid} reads {}", super::tenants::said(&read)),
    );
    let out = host.pasid_report().live;
    stage.check(
        "full virtualization: the host was never asked",
        out == before,
        format!("{out} out for it"),
    );
    Ok(())
}
