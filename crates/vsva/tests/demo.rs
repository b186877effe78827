//! The demo: what it prints, how long it takes, and that it notices a host that is broken. Alone in its
//! program: a sabotage is the whole process's.

use std::process::Command;
use std::time::Duration;

use iommu::sabotage::{self, Sabotage};
use serde_json::Value;
use vsva::demo::{self, Report};
use vsva::term::Screen;

/// What the issue allows for.
const LIMIT: Duration = Duration::from_secs(2);

fn demo(arguments: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vsva"));
    let output = command.arg("demo").args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[test]
fn it_prints_each_hop_and_ends_with_its_verdict() {
    let (ok, out, err) = demo(&[]);
    assert!(ok, "{out}{err}");
    assert_eq!(err, "");
    let expected = [
        // Bare metal: nothing between the consumer and the ID space.
        "route      the host's own ID space\n         consumer   has 0x1",
        // The registers of either layout, and the virtqueue.
        "route      VT-d virtual commands -> VMM -> host",
        "VCMD  at 0xe10 <- 0x1      allocate",
        "VCMD  at 0xe00 <- 0x1      allocate",
        "virtqueue  e0000000 01000000 ffff0f00 00000000  allocate",
        "Vm         the model asks: alloc_pasid(0x1..=0xfffff)",
        // Refusals in each interface's own words.
        "ID space   no: all 4 PASIDs of the VM's quota are out\n         register   VCRSP at 0xe20 -> 0x4",
        "ID space   no: all 4 PASIDs of the VM's quota are out\n         register   VCRSP at 0xe10 -> 0x20",
        "virtqueue  00000000 08000000  insufficient resources",
        "virtqueue  06000000  entry not found",
    ];
    for text in expected {
        assert!(out.contains(text), "{text:?} is not in\n{out}");
    }
    assert!(!out.contains("FAIL"), "{out}");
    let verdict = out.lines().last().unwrap();
    assert!(verdict.starts_with("all ") && verdict.contains(" checks hold, in "), "{verdict}");
}

#[test]
fn json_is_the_last_line_and_lines_for_people_go_elsewhere() {
    let (ok, out, err) = demo(&["--json"]);
    assert!(ok, "{out}{err}");
    assert_eq!(out.lines().count(), 1);
    assert!(err.contains("checks hold"));
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["ok"], true);
    assert_eq!(json["environments"].as_array().unwrap().len(), 5);
    let routes = [
        ("bare metal", ["consumer", "route", "consumer"].as_slice()),
        ("full virtualization", &["consumer", "route", "consumer"]),
        ("VT-d 3.0 commands", COMMANDS),
        ("VT-d 3.3 commands", COMMANDS),
        (
            "virtio-iommu",
            &["consumer", "route", "virtqueue", "Vm", "ID space", "virtqueue", "consumer"],
        ),
    ];
    for (environment, route) in routes {
        let by = format!("{environment}: a consumer asks for a PASID");
        let requests = json["requests"].as_array().unwrap();
        let request = requests.iter().find(|request| request["by"] == by.as_str()).unwrap();
        let hops = request["hops"].as_array().unwrap();
        let places: Vec<&str> = hops.iter().map(|hop| hop["place"].as_str().unwrap()).collect();
        assert_eq!(places, route, "{environment}");
    }
}

const COMMANDS: &[&str] = &[
    "consumer", "route", "register", "register", "register", "Vm", "ID space", "register",
    "consumer",
];

fn failed(report: &Report) -> Vec<&str> {
    let failed = report.records.iter().filter(|record| !record.ok);
    failed.map(|record| record.scenario.as_str()).collect()
}

#[test]
fn a_broken_host_is_noticed_in_the_scene_that_is_about_it() {
    let whole = demo::run(&Screen::none());
    assert!(whole.ok(), "{:?}", failed(&whole));
    assert!(whole.took < LIMIT, "{:?}", whole.took);
    let cases = [
        (Sabotage::WrongPasid, "private"),
        (Sabotage::IgnoreGrants, "ungranted"),
        (Sabotage::DropInFlight, "death"),
        (Sabotage::ReusePasid, "death"),
        (Sabotage::KeepOnClose, "books"),
    ];
    for (defect, scene) in cases {
        sabotage::set(Some(defect));
        let report = demo::run(&Screen::none());
        sabotage::set(None);
        assert!(!report.ok(), "{defect:?} is not noticed");
        assert!(failed(&report).contains(&scene), "{defect:?}: {:?}", failed(&report));
    }
    assert!(demo::run(&Screen::none()).ok());
}
