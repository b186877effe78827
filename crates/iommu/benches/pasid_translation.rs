//! `cargo bench -p iommu --bench pasid_translation`: what a submission to a shared queue pays for
//! its PASID, against a plain array and against maps.
//!
//! `-- --check` ends with an error if a goal is missed; `-- --quick` measures next to nothing, to
//! see that it runs.

// One owner of how time is taken; not all of it is used here.
#[allow(dead_code)]
#[path = "../../ioasid/benches/ioasid/measure.rs"]
mod measure;

use std::cell::RefCell;
use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::RwLock;
use std::time::Duration;

use iommu::pasid::translation::{
    DeferrableWrite, Ia32Pasid, PasidTranslation, Patience, TranslationConfig, COMMAND_SIZE,
};
use iommu::{
    Endpoint, GuestPasid, Host, HwptFlags, HwptId, HwptParent, HwptRequest, Numbering, Pasid,
    PasidRange, SoftwareHost, SoftwareVm, Vm, VmConfig,
};
use mem::{Gpa, MemoryMap};
use pci::RequesterId;

use measure::{cycle, disturbed, in_turn, places, Effort, Random, Round, PLACES};

const POPULATIONS: [usize; 3] = [1, 1_000, 65_536];
const DEVICE: RequesterId = RequesterId::from_bits(8);
/// PASIDs that come and go under churn, besides those that stay.
const CHURNED: usize = 500;

/// A VM with `live` PASIDs bound, and others to bind.
struct Bound {
    vm: SoftwareVm,
    _endpoint: Endpoint,
    hwpt: HwptId,
    table: PasidTranslation,
    guests: Vec<GuestPasid>,
    spare: Vec<GuestPasid>,
    hosts: Vec<u32>,
}

impl Bound {
    fn new(live: usize) -> Self {
        let quota = (live + CHURNED) as u32;
        let numbering = Numbering::Private;
        let config = VmConfig { quota, numbering, ..VmConfig::named("bench") };
        let host = SoftwareHost::new();
        // Its numbers are not the VM's.
        let before = host.create_vm(VmConfig::named("before")).expect("a host");
        before.alloc_pasid(PasidRange::ALL).expect("a PASID");
        let vm = host.create_vm(config).expect("room for the quota");
        let _ = vm.set_memory(MemoryMap::anonymous(&[(Gpa(0), 4096)]).expect("a page"));
        let endpoint = vm.attach(DEVICE).expect("a device");
        let pause = std::thread::yield_now;
        let patience = Patience { looks: u64::MAX, pause, ..Patience::default() };
        let config =
            TranslationConfig { vcpus: 2, flat_bits: Pasid::BITS, patience, ..Default::default() };
        let table = vm.translate_pasids(config).expect("a table");
        let request = HwptRequest {
            device: DEVICE,
            parent: HwptParent::Ioas(vm.ioas().expect("an address space")),
            flags: HwptFlags::PASID,
            data: None,
            fault: None,
        };
        let hwpt = vm.alloc_hwpt(&request).expect("a page table");
        let alloc = |_| vm.alloc_pasid(PasidRange::ALL).expect("within the quota");
        let guests: Vec<_> = (0..live).map(alloc).collect();
        let spare = (0..CHURNED).map(alloc).collect();
        for guest in &guests {
            vm.attach_hwpt(DEVICE, Some(*guest), hwpt).expect("room in the table");
        }
        let of = |guest: &GuestPasid| table.peek(*guest).expect("it is bound").0.get();
        let hosts = guests.iter().map(of).collect();
        Self { vm, _endpoint: endpoint, hwpt, table, guests, spare, hosts }
    }

    /// Binds or unbinds one of those that are to spare.
    fn churn(&self, random: &mut Random) {
        let guest = self.spare[random.below(CHURNED)];
        if self.vm.detach_hwpt(DEVICE, Some(guest)).is_err() {
            let _ = self.vm.attach_hwpt(DEVICE, Some(guest), self.hwpt);
        }
    }
}

/// The peers: the same pairs in maps, and the limit.
struct Peers {
    plain: Vec<u32>,
    locked: RwLock<HashMap<u32, u32>>,
    papaya: papaya::HashMap<u32, u32>,
}

impl Peers {
    fn new(bound: &Bound) -> Self {
        let pairs =
            || bound.guests.iter().map(|guest| guest.0.get()).zip(bound.hosts.iter().copied());
        let len = bound.guests.iter().map(|guest| guest.0.get()).max().unwrap_or(0) as usize + 1;
        let mut plain = vec![0; len];
        pairs().for_each(|(guest, host)| plain[guest as usize] = host);
        let papaya = papaya::HashMap::new();
        for (guest, host) in pairs() {
            papaya.pin().insert(guest, host);
        }
        Self { plain, locked: RwLock::new(pairs().collect()), papaya }
    }
}

/// Whether an operation waits for the one before it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Latency,
    Throughput,
}

/// Where look-ups go.
struct Path {
    mode: Mode,
    /// For independent ones.
    places: Vec<u32>,
    /// For one after another: by the host's number, the next of the guest's.
    next: Vec<u32>,
}

impl Path {
    fn new(mode: Mode, bound: &Bound) -> Self {
        let guest = |at: usize| bound.guests[at].0.get();
        let places = places(bound.guests.len()).into_iter().map(|at| guest(at as usize)).collect();
        let most = bound.hosts.iter().max().copied().unwrap_or(0) as usize;
        let mut next = vec![0; most + 1];
        for (at, to) in cycle(bound.guests.len()).into_iter().enumerate() {
            next[bound.hosts[at] as usize] = guest(to as usize);
        }
        Self { mode, places, next }
    }

    fn round<'a>(&'a self, mut find: impl FnMut(u32) -> u32 + 'a) -> Round<'a> {
        let mut at = self.places[0];
        match self.mode {
            Mode::Latency => Box::new(move |ops| {
                for _ in 0..ops {
                    at = self.next[find(at) as usize];
                }
                at.into()
            }),
            Mode::Throughput => Box::new(move |ops| {
                let sums = (0..ops as usize).map(|op| u64::from(find(self.places[op % PLACES])));
                sums.fold(0, u64::wrapping_add)
            }),
        }
    }
}

fn guest(number: u32) -> GuestPasid {
    GuestPasid(Pasid::from_field(number))
}

/// A look-up alone, as the page-request path or an inspector does one.
fn look_ups<'a>(
    bound: &'a Bound,
    peers: &'a Peers,
    path: &'a Path,
) -> Vec<(&'static str, Round<'a>)> {
    let of = |host: Option<iommu::HostPasid>| host.expect("it is bound").0.get();
    let pinned = peers.papaya.pin();
    vec![
        ("array (limit)", path.round(|at| peers.plain[at as usize])),
        ("flat", path.round(move |at| of(bound.table.peek(guest(at))))),
        ("two levels", path.round(move |at| of(bound.table.walk(guest(at))))),
        ("papaya", path.round(move |at| *pinned.get(&at).expect("it is there"))),
        ("RwLock<HashMap>", path.round(|at| peers.locked.read().expect("no panic")[&at])),
    ]
}

/// A look-up that an unbind waits for.
fn submissions<'a>(
    bound: &'a Bound,
    peers: &'a Peers,
    path: &'a Path,
) -> Vec<(&'static str, Round<'a>)> {
    let vcpus = [0, 1].map(|_| RefCell::new(bound.table.vcpu().expect("a processor")));
    let [marked, whole] = vcpus;
    let command = [0u8; COMMAND_SIZE];
    vec![
        (
            "marked",
            path.round(move |at| {
                let host = marked.borrow_mut().translated(guest(at), |host| host.0.get());
                host.expect("it is bound")
            }),
        ),
        (
            "ENQCMD",
            path.round(move |at| {
                let (mut host, pasid) = (0, Ia32Pasid::of(guest(at)));
                let _ = whole.borrow_mut().enqcmd(pasid, &command, |written| {
                    let [a, b, c, d, ..] = *written;
                    host = u32::from_le_bytes([a, b, c, d]);
                    DeferrableWrite::Accepted
                });
                host
            }),
        ),
        (
            "RwLock<HashMap> held",
            path.round(|at| {
                let held = peers.locked.read().expect("no panic");
                std::hint::black_box(held[&at])
            }),
        ),
    ]
}

type Row = (&'static str, f64);

/// The least of each, by name; with another thread at work if `disturb` is set.
fn measure(effort: Effort, subjects: Vec<(&'static str, Round<'_>)>) -> Vec<Row> {
    let (names, mut rounds): (Vec<_>, Vec<_>) = subjects.into_iter().unzip();
    names.into_iter().zip(in_turn(effort, &mut rounds)).collect()
}

/// The same look-ups while another thread binds and unbinds, or inserts and removes.
fn churn(effort: Effort, bound: &Bound, peers: &Peers) -> Vec<Row> {
    let path = Path::new(Mode::Throughput, bound);
    let mut random = Random::new(7);
    let ours = disturbed(
        || bound.churn(&mut random),
        || {
            let mut rows = measure(effort, look_ups(bound, peers, &path));
            rows.extend(measure(effort, submissions(bound, peers, &path)));
            rows
        },
    );
    let mut random = Random::new(7);
    let theirs = disturbed(
        || {
            let key = 1 << 24 | random.below(CHURNED) as u32;
            if peers.papaya.pin().remove(&key).is_none() {
                peers.papaya.pin().insert(key, 0);
            }
            let mut locked = peers.locked.write().expect("no panic");
            if locked.remove(&key).is_none() {
                locked.insert(key, 0);
            }
        },
        || {
            let mut rows = measure(effort, look_ups(bound, peers, &path));
            rows.extend(measure(effort, submissions(bound, peers, &path)));
            rows
        },
    );
    let mine = ["flat", "two levels", "marked", "ENQCMD"];
    let own = ours.into_iter().filter(|(name, _)| mine.contains(name));
    own.chain(theirs.into_iter().filter(|(name, _)| !mine.contains(name))).collect()
}

fn of(rows: &[Row], name: &str) -> f64 {
    rows.iter().find(|(row, _)| *row == name).map_or(f64::NAN, |(_, ns)| *ns)
}

/// What is to be reached, as a multiple of something of the same run.
const GOALS: [(&str, &str, f64); 4] = [
    ("flat", "array (limit)", 2.5),
    ("flat", "two levels", 1.25),
    ("two levels", "papaya", 1.0),
    ("flat", "RwLock<HashMap>", 0.5),
];

/// Prints the rows; how many goals are missed.
fn print(what: &str, live: usize, rows: &[Row], goals: bool) -> usize {
    let limit = of(rows, "array (limit)");
    println!("{what}, {live} live");
    for (name, ns) in rows {
        println!("  {name:<22} {ns:>8.2} ns {:>8.2} of the limit", ns / limit);
    }
    let missed = GOALS.iter().filter(|(row, than, most)| {
        let times = of(rows, row) / of(rows, than);
        let missed = goals && times > *most;
        if missed {
            println!("  MISSED: {row} is {times:.2} of {than}, at most {most}");
        }
        missed
    });
    missed.count()
}

fn main() -> ExitCode {
    // Cargo adds arguments of its own; what is not known is ignored.
    let has = |wanted: &[&str]| std::env::args().any(|argument| wanted.contains(&&*argument));
    let (check, quick) = (has(&["--check"]), has(&["--quick", "--test"]));
    let effort = if quick {
        Effort { round: Duration::from_micros(50), rounds: 1, warm: 0 }
    } else {
        Effort { round: Duration::from_millis(1), rounds: 40, warm: 0 }
    };
    let populations = if quick { &POPULATIONS[..2] } else { &POPULATIONS[..] };
    let mut missed = 0;
    for &live in populations {
        let bound = Bound::new(live);
        let peers = Peers::new(&bound);
        let warm = if quick { 0 } else { live as u64 };
        let effort = Effort { warm, ..effort };
        for (mode, name) in
            [(Mode::Latency, "one after another"), (Mode::Throughput, "independent")]
        {
            let path = Path::new(mode, &bound);
            let mut rows = measure(effort, look_ups(&bound, &peers, &path));
            rows.extend(measure(effort, submissions(&bound, &peers, &path)));
            missed += print(name, live, &rows, true);
        }
        print("independent, under churn", live, &churn(effort, &bound, &peers), false);
    }
    if check && missed > 0 && !quick {
        eprintln!("{missed} goals missed");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
