//! `struct iommu_gpasid_bind_data`, in each of its layouts.

use core::mem::offset_of;

use iommu::nesting::GpasidBind;
use iommu::{GuestPasid, Pasid, VtdStageOneFlags};
use mem::Gpa;

use super::{check_padding, copy_sized, copy_unsized};
use crate::spec::flags::*;
use crate::spec::{GpasidBindData, GpasidBindData53, GpasidVtd};
use crate::{ArgumentError, Refusal, Revision};

/// What the structure says: a PASID, and for a bind a first stage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Gpasid {
    data: GpasidBindData,
    /// The PASID.
    pub(crate) guest: GuestPasid,
}

/// The structure in `bytes`, as `revision` has it, as far as binding and unbinding look at it. The
/// checks come in the posted order; an offset in an error is that in Linux 5.10's structure.
///
/// The PASID is the number that `PASID_REQUEST` gave. A guest's number that differs from it belongs
/// to the numbering of the VM, and not to one binding: it is not supported.
pub(crate) fn decode_gpasid(bytes: &[u8], revision: Revision) -> Result<Gpasid, Refusal> {
    let data = if revision.is_unsized() {
        without_size(copy_unsized(bytes)?)
    } else {
        let fixed = offset_of!(GpasidBindData, vtd);
        let strict = revision == Revision::Own;
        let (data, _) = copy_sized::<GpasidBindData>(bytes, fixed, strict)?;
        check_padding(&data.padding, offset_of!(GpasidBindData, padding))?;
        data
    };
    let value = |offset| Refusal::Value { offset };
    if data.version != GPASID_VERSION {
        return Err(value(offset_of!(GpasidBindData, version)));
    }
    if data.format != GPASID_INTEL_VTD {
        return Err(value(offset_of!(GpasidBindData, format)));
    }
    if data.flags & !GPASID_VALID != 0 {
        return Err(value(offset_of!(GpasidBindData, flags)));
    }
    let pasid =
        u32::try_from(data.hpasid).ok().and_then(Pasid::new).filter(|pasid| pasid.get() > 0);
    let pasid = pasid.ok_or(value(offset_of!(GpasidBindData, hpasid)))?;
    if data.flags & GPASID_VALID != 0 && data.gpasid != data.hpasid {
        return Err(Refusal::Unsupported { offset: offset_of!(GpasidBindData, gpasid) });
    }
    Ok(Gpasid { data, guest: GuestPasid(pasid) })
}

impl Gpasid {
    /// The first stage to bind, of which all has to be there.
    pub(crate) fn bind(&self) -> Result<GpasidBind, Refusal> {
        let GpasidBindData { argsz, addr_width, gpgd, vtd, .. } = self.data;
        let needed = size_of::<GpasidBindData>();
        if (argsz as usize) < needed {
            return Err(ArgumentError::TooShort { argsz, needed }.into());
        }
        let at = |field| offset_of!(GpasidBindData, vtd) + field;
        let GpasidVtd { flags, pat: _, emt: _ } = vtd;
        let mut known = VtdStageOneFlags::empty();
        known.set(VtdStageOneFlags::SRE, flags & GPASID_VTD_SRE != 0);
        known.set(VtdStageOneFlags::EAFE, flags & GPASID_VTD_EAFE != 0);
        known.set(VtdStageOneFlags::WPE, flags & GPASID_VTD_WPE != 0);
        // Memory types are known, and no hardware has them; the error is the same.
        if flags & !(GPASID_VTD_SRE | GPASID_VTD_EAFE | GPASID_VTD_WPE) != 0 {
            return Err(Refusal::Value { offset: at(offset_of!(GpasidVtd, flags)) });
        }
        let offset = offset_of!(GpasidBindData, addr_width);
        let address_width = u8::try_from(addr_width).map_err(|_| Refusal::Value { offset })?;
        Ok(GpasidBind { root: Gpa(gpgd), address_width, flags: known, guest: self.guest })
    }
}

fn without_size(data: GpasidBindData53) -> GpasidBindData {
    let GpasidBindData53 {
        version,
        format,
        flags,
        gpgd,
        hpasid,
        gpasid,
        addr_width,
        padding: _,
        vtd,
    } = data;
    GpasidBindData {
        argsz: size_of::<GpasidBindData>() as u32,
        version,
        format,
        addr_width,
        flags,
        gpgd,
        hpasid,
        gpasid,
        padding: [0; 8],
        vtd,
    }
}
