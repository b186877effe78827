//! QEMU's command line for a guest with this project's devices.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::json;

/// A PCI function of ours that a guest gets, over a vfio-user socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciSocket {
    /// The socket that its server listens on.
    pub path: PathBuf,
    /// Device and function number on the root bus, hexadecimal, as `10.0`.
    pub addr: String,
}

/// What a guest gets from the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    /// ACPI tables to add, such as the DMAR table that names the IOMMU.
    pub acpi_tables: Vec<PathBuf>,
    /// PCI functions to add.
    pub functions: Vec<PciSocket>,
}

/// The guest's processors. Two, so that the guest's kernel is one for several (they run in turn, see [`Boot::arguments`]).
pub const CPUS: u32 = 2;

/// The guest's memory in MiB.
pub const MEMORY_MIB: u32 = 1024;

/// The guest kernel's command line: console, no waiting after a panic, the IOMMU in scalable mode, and a CPU flag that
/// the accelerator's driver insists on and software emulation lacks (the driver itself never uses it here). Without the
/// timer's check, since a machine with too much to do lets so much time pass meanwhile that Linux 6.1 finds it broken.
pub const KERNEL_LINE: &str =
    "console=ttyS0 panic=-1 intel_iommu=on,sm_on setcpuid=movdir64b no_timer_check";

/// One boot of a guest.
#[derive(Clone, Copy, Debug)]
pub struct Boot<'a> {
    /// The boot image.
    pub kernel: &'a Path,
    /// The initramfs.
    pub initrd: &'a Path,
    /// The file that the guest's first serial port, its console, is written to.
    pub console: &'a Path,
    /// The listening socket that the guest's second serial port is connected to.
    pub control: &'a Path,
    /// Our devices.
    pub devices: &'a Devices,
}

impl Boot<'_> {
    /// QEMU's arguments.
    pub fn arguments(&self) -> Vec<OsString> {
        let memory = format!("memory-backend-memfd,id=ram,share=on,size={MEMORY_MIB}M");
        let mut arguments: Vec<OsString> = [
            // Nothing that a user's configuration or QEMU's defaults would add.
            "-no-user-config",
            "-nodefaults",
            "-machine",
            "q35,memory-backend=ram",
            // One thread for all processors, in turn: with a thread each, a processor now and then executes half of an
            // instruction that another is patching (Linux's static keys), and the guest dies or hangs while booting.
            "-accel",
            "tcg,thread=single",
            // 5-level paging off: the IOMMU's capability register says what first stage it walks.
            "-cpu",
            "max,la57=off",
            "-smp",
            &CPUS.to_string(),
            "-m",
            &format!("{MEMORY_MIB}M"),
            // Shared, so that the server maps the guest's memory from the same file.
            "-object",
            &memory,
            "-display",
            "none",
            "-no-reboot",
        ]
        .map(OsString::from)
        .to_vec();
        let mut pair = |option: &str, value: OsString| arguments.extend([option.into(), value]);
        pair("-chardev", with_path("file,id=console,path=", self.console, ""));
        pair("-serial", "chardev:console".into());
        pair("-chardev", with_path("socket,id=control,path=", self.control, ",server=off"));
        pair("-serial", "chardev:control".into());
        pair("-kernel", self.kernel.into());
        pair("-initrd", self.initrd.into());
        pair("-append", KERNEL_LINE.into());
        arguments.extend(self.devices.arguments());
        arguments
    }
}

impl Devices {
    /// The arguments that give these devices to any QEMU command line with shared memory.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Vec::new();
        for table in &self.acpi_tables {
            arguments.extend(["-acpitable".into(), with_path("file=", table, "")]);
        }
        for function in &self.functions {
            arguments.extend(["-device".into(), function.argument().into()]);
        }
        arguments
    }
}

impl PciSocket {
    fn argument(&self) -> String {
        let path = self.path.to_string_lossy();
        json!({
            "driver": "vfio-user-pci",
            "addr": self.addr,
            "socket": { "type": "unix", "path": path },
        })
        .to_string()
    }
}

/// An option value with a path in it; QEMU takes a doubled comma for a comma.
fn with_path(before: &str, path: &Path, after: &str) -> OsString {
    let mut value = OsString::from(before);
    value.push(path.to_string_lossy().replace(',', ",,"));
    value.push(after);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(arguments: &[OsString]) -> Vec<&str> {
        arguments.iter().map(|argument| argument.to_str().unwrap()).collect()
    }

    #[test]
    fn devices_come_with_their_tables_and_sockets() {
        let devices = Devices {
            acpi_tables: vec!["/run/a,b/dmar.aml".into()],
            functions: vec![PciSocket { path: "/run/a,b/dsa.sock".into(), addr: "10.0".into() }],
        };
        let arguments = devices.arguments();
        let device: serde_json::Value =
            serde_json::from_str(arguments[3].to_str().unwrap()).unwrap();
        assert_eq!(text(&arguments[..3]), ["-acpitable", "file=/run/a,,b/dmar.aml", "-device"]);
        assert_eq!(
            device,
            json!({"driver": "vfio-user-pci", "addr": "10.0",
                   "socket": {"type": "unix", "path": "/run/a,b/dsa.sock"}})
        );
    }

    #[test]
    fn memory_is_shared_and_the_console_comes_before_the_control_channel() {
        let devices = Devices::default();
        let boot = Boot {
            kernel: Path::new("/k"),
            initrd: Path::new("/i"),
            console: Path::new("/c"),
            control: Path::new("/s"),
            devices: &devices,
        };
        let arguments = boot.arguments();
        let arguments = text(&arguments);
        assert!(arguments.contains(&"memory-backend-memfd,id=ram,share=on,size=1024M"));
        let at = |wanted: &str| arguments.iter().position(|argument| *argument == wanted).unwrap();
        assert!(at("chardev:console") < at("chardev:control"));
        assert_eq!(arguments[at("-append") + 1], KERNEL_LINE);
    }
}
