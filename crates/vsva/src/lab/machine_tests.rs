//! Machines whose QEMU is a shell script.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::*;
use crate::assets::{Kernel, Qemu};

/// A QEMU that does `script`, and a kernel for it.
fn assets(dir: &Path, script: &str) -> (Qemu, Kernel) {
    let program = dir.join("qemu");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let kernel = Kernel {
        image: PathBuf::from("/nonexistent/vmlinuz"),
        release: "0".to_owned(),
        description: String::new(),
        modules: Vec::new(),
        on_demand: Vec::new(),
    };
    (Qemu::believed(&program), kernel)
}

/// What becomes of a machine whose QEMU does `script`, and where its private directory was.
fn start(script: &str, stop: &Stop) -> (Result<Machine, GuestError>, PathBuf) {
    let scripts = tempfile::tempdir().unwrap();
    let place = Place { dir: PrivateDir::new().unwrap(), logs: None };
    let dir = place.dir.path().to_owned();
    let (qemu, kernel) = assets(scripts.path(), script);
    (Machine::start(&qemu, &kernel, b"init", &Devices::default(), place, stop), dir)
}

#[test]
fn a_qemu_that_ends_at_once_is_quoted() {
    let (outcome, dir) = start("echo no such device >&2; exit 1", &Stop::default());
    let error = outcome.unwrap_err().to_string();
    assert_eq!(error, "QEMU ended (exit status: 1), saying:\nno such device");
    assert!(!dir.exists());
}

#[test]
fn a_stop_ends_the_wait_for_qemu_and_leaves_nothing() {
    let stop = Stop::default();
    stop.raise();
    let (outcome, dir) = start("exec sleep 60", &stop);
    assert!(outcome.unwrap_err().is_stop());
    assert!(!dir.exists());
}

#[test]
fn logs_are_kept_where_the_user_wants_them() {
    let kept = tempfile::tempdir().unwrap();
    let logs = Some((kept.path().join("deep/logs"), "guest-1".to_owned()));
    let place = Place { dir: PrivateDir::new().unwrap(), logs };
    let scripts = tempfile::tempdir().unwrap();
    let (qemu, kernel) = assets(scripts.path(), "echo gone >&2; exit 3");
    let outcome = Machine::start(&qemu, &kernel, b"", &Devices::default(), place, &Stop::default());
    assert!(matches!(outcome, Err(GuestError::Ended { .. })));
    let log = kept.path().join("deep/logs/guest-1.qemu.log");
    assert_eq!(fs::read_to_string(log).unwrap(), "gone\n");
}

#[test]
fn the_end_of_a_console_is_bounded_and_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    let mut text = "x".repeat(3 * CONSOLE_END as usize);
    text.push_str("\nlast\x1b[2J\r\n");
    fs::write(&path, text).unwrap();
    let end = end_of(&path);
    assert!(end.len() as u64 <= CONSOLE_END);
    assert!(end.ends_with("\nlast[2J\n"));
    assert_eq!(end_of(&dir.path().join("nothing")), "");
}
