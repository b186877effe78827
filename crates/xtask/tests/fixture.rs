//! The program on a small workspace with an upward arrow: it must fail, and print the arrow.

use std::path::Path;
use std::process::Command;

fn xtask(check: &str, root: &Path) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["--root".as_ref(), root.as_os_str(), check.as_ref()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text.into_owned())
}

#[test]
fn an_upward_arrow_fails_and_is_printed() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/upward");
    let (code, output) = xtask("layers", &fixture);
    assert_eq!(code, Some(1), "{output}");
    let arrow = "error: layers: iommu -> machine: points upward, from layer 2 to layer 4";
    assert!(output.contains(arrow), "{output}");
    assert!(output.contains("layers: FAILED (2 crates, 1 arrows)"), "{output}");
}

#[test]
fn a_folder_without_a_workspace_is_an_error_of_its_own() {
    let (code, output) = xtask("layers", &std::env::temp_dir());
    assert_eq!(code, Some(2), "{output}");
}
