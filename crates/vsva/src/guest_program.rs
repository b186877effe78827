//! The program that the lab's guests run, as built by the build script.

/// Its static ELF file.
pub const IMAGE: &[u8] = include_bytes!(env!("VSVA_GUEST_INIT"));

#[cfg(test)]
mod tests {
    use object::Object as _;

    #[test]
    fn it_runs_without_a_file_system() {
        let file = object::File::parse(super::IMAGE).expect("an object file");
        assert_eq!(file.format(), object::BinaryFormat::Elf);
        assert_eq!(file.architecture(), object::Architecture::X86_64);
        assert!(file.section_by_name(".interp").is_none(), "it wants a dynamic loader");
    }
}
