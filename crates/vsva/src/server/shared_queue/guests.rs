//! Two guests with one shared queue.
//!
//! The device is the host's: its work queue is enabled once, and what guests submit to it carries
//! the host's PASIDs, which their processors have put there
//! ([`iommu::pasid::translation`]). So it names the host's PASIDs in its accesses, and the IOMMU
//! finds whose each is ([`iommu::Endpoint::shared_by`]). `serve` gives each guest a device of its
//! own; this is shown in process.

use dsa::model::{Device, Engine, Ran, Submission};
use dsa::spec::{offset, Cmd, CmdStatus, CommandCode, Descriptor, Flags, Portal, Status};
use iommu::pasid::translation::{DeferrableWrite, Enqueued};
use iommu::{GuestPasid, Host as _, HostPasid, Pasid, SoftwareHost, Vm as _, VmConfig};
use pci::{Function as _, RequesterId};

use super::guest::{text, Guest, BYTES};
use super::{enable, REGISTERS};
use crate::lab::Check;

/// What the guests copy.
const WORDS: [u8; 2] = [0xa1, 0xb2];
/// What the device is to the host, and to each guest.
const OWN: u16 = 0x6a00;
const IN_GUEST: u16 = 0x0080;
/// Runs of an engine after which it has nothing left to do.
const RUNS: usize = 1 << 10;
/// Steps of a run.
const STEPS: usize = 16;

/// A shared queue of two guests.
struct Rig {
    host: SoftwareHost,
    device: Device,
    engine: Engine,
    guests: [Guest; 2],
}

pub(super) fn checks() -> Vec<Check> {
    let run = |what: &str, scene: fn(&mut Rig) -> Result<String, String>| {
        let outcome = Rig::new().and_then(|mut rig| scene(&mut rig));
        super::check(what, outcome)
    };
    vec![
        run("two guests with one PASID copy in their own memory", own_memory),
        run("a PASID without a translation is refused to the submitter", untranslatable),
        run("after an unbind submissions are refused and a drain leaves nothing", unbound),
        run("a guest that waits for a page holds up no other", page_request),
    ]
}

impl Rig {
    fn new() -> Result<Self, String> {
        let host = SoftwareHost::new();
        let own = host.create_vm(VmConfig::named("host")).map_err(text)?;
        let in_guest = RequesterId::from_bits(IN_GUEST);
        let (one, first) = Guest::new(&host, "one", in_guest, WORDS[0])?;
        let (other, second) = Guest::new(&host, "other", in_guest, WORDS[1])?;
        let endpoint = own.attach(RequesterId::from_bits(OWN)).map_err(text)?;
        let endpoint = endpoint.shared_by(vec![first, second]).map_err(text)?;
        let device = enable(endpoint)?;
        let engine = device.engine(0).ok_or("the engine is taken")?;
        Ok(Self { host, device, engine, guests: [one, other] })
    }

    /// A copy of a guest's; what its processor sees.
    fn submit(&mut self, guest: usize, record: u64, flags: Flags) -> Result<Enqueued, String> {
        let pasid = self.guests[guest].pasid;
        self.submit_as(guest, pasid, record, flags)
    }

    fn submit_as(
        &mut self,
        guest: usize,
        pasid: GuestPasid,
        record: u64,
        flags: Flags,
    ) -> Result<Enqueued, String> {
        let device = self.device.clone();
        let write =
            |command: &[u8; Descriptor::SIZE]| match device.submit(0, Portal::UNLIMITED, command) {
                Submission::Accepted => DeferrableWrite::Accepted,
                Submission::Retry => DeferrableWrite::Retry,
            };
        self.guests[guest].enqcmd(pasid, record, flags, write)
    }

    /// Runs the engine until it has nothing to do.
    fn settle(&mut self) -> Result<(), String> {
        let idle = (0..RUNS).any(|_| self.engine.run(STEPS) == Ran::Idle);
        expect(idle, || "the engine never becomes idle".into())
    }

    /// Whether everything of a PASID of the host's is drained: once the engine has run.
    fn drain(&mut self, host: HostPasid) -> Result<(), String> {
        let command = Cmd::new().with_code(CommandCode::DrainPasid as u8);
        let command = command.with_operand(host.0.get()).into_bits();
        self.device.bar_write(REGISTERS, offset::CMD.into(), &command.to_le_bytes());
        self.settle()?;
        let mut status = [0; 4];
        self.device.bar_read(REGISTERS, offset::CMDSTATUS.into(), &mut status);
        let status = CmdStatus::from_bits(u32::from_le_bytes(status));
        expect(status.into_bits() == 0, || format!("drain: {status:?}"))
    }

    /// Whether a guest's copy succeeded and its target has what it copied.
    fn copied(&self, guest: usize, record: u64) -> Result<(), String> {
        let status = self.guests[guest].record(record)?;
        let right = self.guests[guest].target()? == [WORDS[guest]; BYTES];
        expect(status == Some(Status::Success) && right, || {
            format!("guest {guest}: {status:?}, content {}", if right { "right" } else { "wrong" })
        })
    }

    fn host_pasid(&self, guest: usize) -> Result<HostPasid, String> {
        self.guests[guest].host_pasid().ok_or_else(|| format!("guest {guest} is not bound"))
    }
}

fn expect(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds {
        Ok(())
    } else {
        Err(otherwise())
    }
}

fn own_memory(rig: &mut Rig) -> Result<String, String> {
    let pasids = [rig.guests[0].pasid, rig.guests[1].pasid];
    let hosts = [rig.host_pasid(0)?, rig.host_pasid(1)?];
    expect(pasids[0] == pasids[1] && hosts[0] != hosts[1], || {
        format!("the guests' {pasids:?}, the host's {hosts:?}")
    })?;
    for guest in [0, 1] {
        let answer = rig.submit(guest, 0, Flags::empty())?;
        expect(answer == Enqueued::Accepted, || format!("guest {guest}: {answer:?}"))?;
    }
    let untouched =
        |rig: &Rig, guest: usize| Ok::<_, String>(rig.guests[guest].target()? == [0; BYTES]);
    expect(untouched(rig, 0)? && untouched(rig, 1)?, || "copied before the engine ran".into())?;
    rig.settle()?;
    rig.copied(0, 0)?;
    rig.copied(1, 0)?;
    Ok(format!("both PASID {}, on the host {} and {}", pasids[0], hosts[0], hosts[1]))
}

fn untranslatable(rig: &mut Rig) -> Result<String, String> {
    let unbound = GuestPasid(Pasid::from_field(rig.guests[0].pasid.0.get() + 1));
    // The number that the host has for the other guest's is no better.
    let others = GuestPasid(rig.host_pasid(1)?.0);
    let before = rig.device.counters().accepted;
    for pasid in [unbound, others] {
        let answer = rig.submit_as(0, pasid, 0, Flags::empty())?;
        expect(answer == Enqueued::Untranslatable && answer.zero_flag(), || {
            format!("{pasid}: {answer:?}")
        })?;
    }
    let seen = rig.device.counters().accepted - before;
    expect(seen == 0, || format!("the device has seen {seen}"))?;
    Ok(format!("{unbound} and {others}: ZF=1, and the device has seen nothing"))
}

fn unbound(rig: &mut Rig) -> Result<String, String> {
    let host = rig.host_pasid(0)?;
    // One of each waits in the queue.
    for guest in [0, 1] {
        let answer = rig.submit(guest, 0, Flags::empty())?;
        expect(answer == Enqueued::Accepted, || format!("guest {guest}: {answer:?}"))?;
    }
    let ticket = rig.guests[0].unbind()?;
    let answer = rig.submit(0, 1, Flags::empty())?;
    expect(answer == Enqueued::Untranslatable, || format!("after the unbind: {answer:?}"))?;
    rig.drain(host)?;
    expect(rig.guests[0].is_complete(ticket), || "the unbind is not complete".into())?;
    // What was in the queue reached neither its memory nor anybody else's.
    expect(rig.guests[0].target()? == [0; BYTES], || "it copied after the unbind".into())?;
    rig.copied(1, 0)?;
    let report = rig.host.pasid_report();
    let held: usize = report
        .vms
        .iter()
        .flat_map(|vm| &vm.entries)
        .map(|entry| entry.holders.iter().filter(|holder| *holder == "cpu").count())
        .sum();
    expect(held == 1, || format!("{held} PASIDs are held for processors, not the other's one"))?;
    // Bound again, everything works again.
    rig.guests[0].bind()?;
    let answer = rig.submit(0, 2, Flags::empty())?;
    rig.settle()?;
    rig.copied(0, 2).map_err(|error| format!("bound again: {answer:?}, {error}"))?;
    Ok("one was queued before: it touched nothing; bound again, a copy succeeds".to_owned())
}

fn page_request(rig: &mut Rig) -> Result<String, String> {
    rig.guests[0].unmap_target()?;
    let answer = rig.submit(0, 0, Flags::BLOCK_ON_FAULT)?;
    rig.settle()?;
    expect(rig.guests[0].record(0)?.is_none(), || format!("it does not wait: {answer:?}"))?;
    let answer = rig.submit(1, 0, Flags::BLOCK_ON_FAULT)?;
    rig.settle()?;
    rig.copied(1, 0).map_err(|error| format!("the other guest's: {answer:?}, {error}"))?;
    expect(!rig.guests[1].resolve()?, || "the other guest was asked".into())?;
    expect(rig.guests[0].resolve()?, || "nobody was asked for the page".into())?;
    rig.settle()?;
    rig.copied(0, 0)?;
    rig.guests[0].clear_target()?;
    Ok("asked under its own number, answered, and then copied".to_owned())
}
