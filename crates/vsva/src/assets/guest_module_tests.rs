use std::process::Stdio;

use super::*;
use crate::stop::Stop;
use crate::term::Screen;

const RELEASE: &str = "6.1.0-50-amd64";

fn executable(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Unpacked packages with one program, and a loader that says how it is called.
fn unpacked() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let headers = root.path().join("usr/src").join(format!("linux-headers-{RELEASE}"));
    fs::create_dir_all(&headers).unwrap();
    fs::write(headers.join("Makefile"), "include /usr/src/linux-headers-6.1-common/Makefile\n")
        .unwrap();
    let kbuild = root.path().join("usr/lib/linux-kbuild-6.1");
    executable(&kbuild.join("scripts/basic/fixdep"), "\x7fELF and so on");
    executable(&kbuild.join("scripts/Lindent"), "#!/bin/sh\n");
    executable(
        &root.path().join(LIBRARIES[0]).join(LOADER),
        "#!/bin/sh\nshift 3\nprintf '%s|' \"$@\"\n",
    );
    root
}

#[test]
fn the_headers_find_each_other_where_they_are_unpacked() {
    let root = unpacked();
    let headers = prepare(root.path(), RELEASE).unwrap();
    let text = fs::read_to_string(headers.join("Makefile")).unwrap();
    assert_eq!(text, "include ../linux-headers-6.1-common/Makefile\n");
    assert!(matches!(prepare(root.path(), "6.1.0-51-amd64"), Err(Cause::File { .. })));
}

#[test]
fn programs_run_through_the_unpacked_loader_and_scripts_as_they_are() {
    let root = unpacked();
    prepare(root.path(), RELEASE).unwrap();
    let kbuild = root.path().join("usr/lib/linux-kbuild-6.1");
    let said = Command::new("scripts/basic/fixdep")
        .current_dir(&kbuild)
        .args(["a b", "c"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert_eq!(said, "scripts/basic/fixdep|scripts/basic/fixdep.elf|a b|c|");
    assert_eq!(fs::read_to_string(kbuild.join("scripts/Lindent")).unwrap(), "#!/bin/sh\n");
}

/// What becomes of a build in headers whose Makefile says `rules`.
fn build_with(rules: &str) -> Result<Module, Cause> {
    let (headers, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(headers.path().join("Makefile"), rules).unwrap();
    let step = Step { screen: &Screen::none(), stop: &Stop::default() };
    build(headers.path(), RELEASE, scratch.path(), &step)
}

#[test]
fn a_build_that_fails_is_quoted() {
    let error = build_with("modules:\n\t@echo no such option >&2; exit 1\n").unwrap_err();
    assert!(matches!(&error, Cause::Build { said, .. } if said.contains("no such option")));
}

#[test]
fn make_gets_the_sources_and_nothing_of_the_callers_environment() {
    let rules = "modules:\n\t@test -f $(M)/Kbuild && test -f $(M)/vsva_pasids.c\n\
                 \t@test -z \"$$CARGO_MANIFEST_DIR\" && echo $(CC) > $(M)/vsva_pasids.ko\n";
    // It came as far as the module, which is none.
    let error = build_with(rules).unwrap_err();
    assert!(matches!(error, Cause::BadModule { .. }), "{error}");
}

#[test]
fn paths_that_kbuild_or_a_shell_would_split_are_refused() {
    for good in ["/srv/a-b/.cache/vsva", "/tmp/x_1,2+3@4~", "/srv/jürgen"] {
        assert!(is_buildable(good), "{good}");
    }
    for bad in ["/a b", "/a:b", "/a'b", "/a$b", "/a\nb", "/a#b", "/a\\b"] {
        assert!(!is_buildable(bad), "{bad}");
    }
    let base = tempfile::tempdir().unwrap();
    let headers = base.path().join("a b");
    fs::create_dir(&headers).unwrap();
    let step = Step { screen: &Screen::none(), stop: &Stop::default() };
    let error = build(&headers, RELEASE, base.path(), &step).unwrap_err();
    assert!(matches!(error, Cause::BuildPlace { .. }), "{error}");
}
