//! Golden encodings of both layouts, typed from the revisions that laid them down.

use proptest::prelude::*;

use super::*;
use VcmdLayout::{Revision30, Revision33};

fn pasid(number: u32) -> Pasid {
    Pasid::new(number).unwrap()
}

#[test]
fn registers_lie_where_each_revision_has_them() {
    let offsets = |layout: VcmdLayout| {
        (layout.capability_offset(), layout.command_offset(), layout.response_offset())
    };
    assert_eq!(offsets(Revision30), (0xe00, 0xe10, 0xe20));
    assert_eq!(offsets(Revision33), (0xe30, 0xe00, 0xe10));
    for layout in VcmdLayout::ALL {
        for register in layout.registers() {
            let expected = match register.id {
                RegisterId::VirtualCommandCapability => layout.capability_offset(),
                RegisterId::VirtualCommand => layout.command_offset(),
                RegisterId::VirtualCommandResponse => layout.response_offset(),
                other => panic!("{other:?}"),
            };
            assert_eq!(register.offset, expected, "{layout:?} {}", register.name);
        }
    }
    assert_eq!(VirtualCommandCapability::new().with_pasid(true).into_bits(), 1);
}

#[test]
fn commands_encode_as_each_revision_has_them() {
    let free = VirtualCommand::FreePasid(pasid(0xabcde));
    let golden = [
        (Revision30, VirtualCommand::AllocatePasid, 0x01),
        (Revision33, VirtualCommand::AllocatePasid, 0x01),
        (Revision30, free, 0x0abc_de02),
        (Revision33, free, 0x000a_bcde_0002),
        (Revision30, VirtualCommand::FreePasid(Pasid::MAX), 0x0fff_ff02),
        (Revision33, VirtualCommand::FreePasid(Pasid::MAX), 0x000f_ffff_0002),
        (Revision30, VirtualCommand::FreePasid(pasid(0)), 0x02),
    ];
    for (layout, command, bits) in golden {
        assert_eq!(layout.encode_command(command), bits, "{layout:?} {command:?}");
        assert_eq!(layout.decode_command(bits), Ok(command), "{layout:?} {bits:#x}");
    }
}

#[test]
fn what_is_no_command_is_refused_with_its_reason() {
    for layout in VcmdLayout::ALL {
        for opcode in (0..=u8::MAX).filter(|opcode| ![1, 2].contains(opcode)) {
            let refused = layout.decode_command(u64::from(opcode));
            assert_eq!(refused, Err(VirtualCommandError::Undefined(opcode)));
        }
        // The operand of an allocation does not count.
        assert_eq!(layout.decode_command(!0xff | 1), Ok(VirtualCommand::AllocatePasid));
    }
    // One bit more than a PASID has.
    let operand = Err(VirtualCommandError::Operand(0x10_0005));
    assert_eq!(Revision30.decode_command(0x1000_0502), operand);
    assert_eq!(Revision33.decode_command(0x0010_0005_0002), operand);
    let all = Revision33.decode_command(!0xff | 2);
    assert_eq!(all, Err(VirtualCommandError::Operand((1 << 48) - 1)));
    assert_eq!(VirtualCommandError::Operand(1 << 20).status(), VirtualStatus::InvalidPasid);
    assert_eq!(VirtualCommandError::Undefined(9).status(), VirtualStatus::UndefinedCommand);
}

#[test]
fn responses_encode_as_each_revision_has_them() {
    use VirtualStatus::{InvalidPasid, NoPasidAvailable, Success, UndefinedCommand};
    let golden = [
        (Revision30, Success, Some(pasid(0xabcde)), 0x0abc_de00),
        (Revision33, Success, Some(pasid(0xabcde)), 0x000a_bcde_0000),
        (Revision30, Success, None, 0),
        (Revision33, Success, None, 0),
        (Revision30, NoPasidAvailable, None, 0x04),
        (Revision33, NoPasidAvailable, None, 0x20),
        (Revision30, InvalidPasid, None, 0x04),
        (Revision33, InvalidPasid, None, 0x20),
        (Revision30, UndefinedCommand, None, 0x02),
        (Revision33, UndefinedCommand, None, 0x02),
    ];
    for (layout, status, result, bits) in golden {
        assert_eq!(layout.encode_response(status, result), bits, "{layout:?} {status:?}");
        let response = layout.decode_response(bits);
        assert!(!response.in_progress);
        assert_eq!(response.result, result.map_or(0, |pasid| pasid.get().into()));
        assert_eq!(response.status, layout.status_code(status));
    }
    for layout in VcmdLayout::ALL {
        assert_eq!(layout.encode_in_progress(), 1);
        assert!(layout.decode_response(1).in_progress);
    }
}

#[test]
fn status_codes_mean_what_their_command_says() {
    use VirtualOpcode::{AllocatePasid, FreePasid};
    for (layout, failure) in [(Revision30, 2), (Revision33, 16)] {
        for code in 0..=u8::MAX {
            let (allocate, free) = match code {
                0 => (Some(VirtualStatus::Success), Some(VirtualStatus::Success)),
                1 => {
                    let undefined = Some(VirtualStatus::UndefinedCommand);
                    (undefined, undefined)
                }
                _ if code == failure => {
                    (Some(VirtualStatus::NoPasidAvailable), Some(VirtualStatus::InvalidPasid))
                }
                _ => (None, None),
            };
            assert_eq!(layout.status(code, AllocatePasid), allocate, "{layout:?} {code}");
            assert_eq!(layout.status(code, FreePasid), free, "{layout:?} {code}");
        }
    }
}

proptest! {
    #[test]
    fn any_bits_are_a_command_that_encodes_to_its_meaning_or_a_reason(
        bits: u64, opcode in 0u64..4, sparse: bool,
    ) {
        let keep = if sparse { 0xf_ffff_ffff } else { u64::MAX };
        let bits = bits & keep & !0xff | opcode;
        for layout in VcmdLayout::ALL {
            if let Ok(command) = layout.decode_command(bits) {
                prop_assert_eq!(layout.decode_command(layout.encode_command(command)), Ok(command));
            }
            let response = layout.decode_response(bits);
            prop_assert_eq!(response.in_progress, bits & 1 == 1);
        }
    }
}
