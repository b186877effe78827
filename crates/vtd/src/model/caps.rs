//! What a unit can do: one checked value that everything else is derived from.

use core::time::Duration;

use iommu::{Pasid, TableCaps};

use crate::spec::{
    Capability, ExtendedCapability, VcmdLayout, VirtualCommandCapability, FAULT_RECORDS,
    FAULT_RECORD_OFFSET, IOTLB_OFFSET,
};

/// How long a device has to answer an invalidation of its device TLB, unless the options say
/// otherwise: what PCI Express gives it (address translation services, invalidation time-out).
pub const INVALIDATION_TIMEOUT: Duration = Duration::from_secs(60);

/// Who owns the PASID tables that translate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum PasidTableMode {
    /// The guest: the host walks the guest's own tables, from the root table on.
    #[default]
    Guest,
    /// The host, as hardware in scalable mode wants it: what the guest's tables ask for is bound
    /// in the host's, PASID by PASID, when the guest says that an entry changed.
    Host,
}

/// What a unit is asked to offer. Starts from [`Options::default`], or from
/// [`Options::host_owned`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Width of a physical address of the guest in bits (the DMAR table's host address width),
    /// 32 to 57.
    pub address_bits: u8,
    /// CM: the guest invalidates also when it makes an entry present. The engine never caches
    /// one that is not, so this is for the guest's sake: with it, a host that shadows the
    /// guest's tables sees every change.
    pub caching_mode: bool,
    /// DT: device TLBs (ATS).
    pub device_tlb: bool,
    /// PT: pass-through.
    pub pass_through: bool,
    /// Second-stage widths as SAGAW has them: bit 1 is 39 bits, bit 2 is 48, bit 3 is 57.
    pub second_stage_widths: u8,
    /// 1 GiB pages beside 2 MiB pages in second-stage tables.
    pub second_stage_1g: bool,
    /// SMTS: scalable mode.
    pub scalable_mode: bool,
    /// PASID: number of PASID bits, 1 to 20; `None` for no requests with PASID.
    pub pasid_bits: Option<u8>,
    /// FSTS: first-stage translation.
    pub first_stage: bool,
    /// FS1GP: 1 GiB pages in first-stage tables.
    pub first_stage_1g: bool,
    /// FS5LP: 5-level first-stage tables.
    pub first_stage_5_level: bool,
    /// SSTS: second-stage translation in scalable mode.
    pub second_stage: bool,
    /// SSADS: accessed and dirty bits in second-stage tables.
    pub second_stage_accessed_dirty: bool,
    /// NEST: nested translation.
    pub nested: bool,
    /// RPS: the RID_PASID field of context entries.
    pub rid_pasid: bool,
    /// PRS and PDS: page requests, and waits that see to it that those before are in their queue.
    pub page_requests: bool,
    /// Whether page requests and their answers carry private data, as revisions 3.0 to 3.x have
    /// it; the bits that say so are reserved since.
    pub private_data: bool,
    /// How long a device may take to answer an invalidation of its device TLB before the queue
    /// stops with a time-out error (ITE), on the clock of [`Model::tick`](super::Model::tick).
    pub invalidation_timeout: Duration,
    /// VCS and VCCAP.PAS: the guest takes its PASIDs from the host by virtual commands, whose
    /// registers have this layout. Guests look for them only where CM is set.
    pub virtual_commands: Option<VcmdLayout>,
    /// Whose PASID tables translate. With the host's, the guest has to say when it makes an entry
    /// present (CM), and is offered neither second-stage nor nested translation: a PASID of its
    /// own has one stage to give, the other is its host's.
    pub pasid_table: PasidTableMode,
}

impl Options {
    /// What a Linux guest needs for shared virtual addressing where the host owns the PASID tables.
    pub fn host_owned() -> Self {
        Self {
            pasid_table: PasidTableMode::Host,
            second_stage: false,
            nested: false,
            ..Self::default()
        }
    }
}

impl Default for Options {
    /// Everything that a Linux guest needs for shared virtual addressing.
    fn default() -> Self {
        Self {
            address_bits: 48,
            caching_mode: true,
            device_tlb: true,
            pass_through: true,
            second_stage_widths: 0b0110,
            second_stage_1g: true,
            scalable_mode: true,
            pasid_bits: Some(Pasid::BITS as u8),
            first_stage: true,
            first_stage_1g: true,
            first_stage_5_level: false,
            second_stage: true,
            second_stage_accessed_dirty: false,
            nested: true,
            rid_pasid: true,
            page_requests: true,
            private_data: false,
            invalidation_timeout: INVALIDATION_TIMEOUT,
            virtual_commands: None,
            pasid_table: PasidTableMode::Guest,
        }
    }
}

/// Why options do not go together. The caller's mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CapsError {
    /// The address width is out of range.
    #[error("address width {0} is not within 32 to 57 bits")]
    AddressBits(u8),
    /// No second-stage width, or one that does not exist.
    #[error("second-stage widths {0:#b} are not a set of bits 1 to 3")]
    SecondStageWidths(u8),
    /// No second-stage table is wide enough for a guest physical address.
    #[error("second-stage widths {widths:#b} do not cover {address_bits} address bits")]
    SecondStageTooNarrow {
        /// The widths.
        widths: u8,
        /// The address width.
        address_bits: u8,
    },
    /// The number of PASID bits is out of range.
    #[error("PASID width {0} is not within 1 to 20 bits")]
    PasidBits(u8),
    /// `feature` needs `needs`.
    #[error("{feature} needs {needs}")]
    Needs {
        /// What was asked for.
        feature: &'static str,
        /// What it needs.
        needs: &'static str,
    },
    /// `feature` cannot be had with PASID tables that the host owns.
    #[error("{0} cannot be offered where the host owns the PASID tables")]
    GuestTablesOnly(&'static str),
}

/// The capabilities of a unit: valid by construction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caps {
    options: Options,
}

impl Caps {
    /// Checks that the options go together as 11.4.2 and 11.4.3 ask.
    ///
    /// # Errors
    ///
    /// See [`CapsError`].
    pub fn new(options: Options) -> Result<Self, CapsError> {
        if !(32..=57).contains(&options.address_bits) {
            return Err(CapsError::AddressBits(options.address_bits));
        }
        let widths = options.second_stage_widths;
        if widths == 0 || widths & !0b1110 != 0 {
            return Err(CapsError::SecondStageWidths(widths));
        }
        let caps = Self { options };
        if caps.widest_second_stage() < options.address_bits {
            let address_bits = options.address_bits;
            return Err(CapsError::SecondStageTooNarrow { widths, address_bits });
        }
        if let Some(bits) = options.pasid_bits.filter(|bits| !(1..=20).contains(bits)) {
            return Err(CapsError::PasidBits(bits));
        }
        caps.check_relations()?;
        Ok(caps)
    }

    fn check_relations(&self) -> Result<(), CapsError> {
        let Options { scalable_mode, first_stage, second_stage, .. } = self.options;
        let Options { pasid_bits, nested, rid_pasid, .. } = self.options;
        let Options { first_stage_1g, first_stage_5_level, .. } = self.options;
        let accessed_dirty = self.options.second_stage_accessed_dirty;
        let Options { device_tlb, page_requests, private_data, .. } = self.options;
        let virtual_commands = self.options.virtual_commands.is_some();
        let host = self.host_owned();
        let host_owned = "a PASID table of the host";
        let rules = [
            (pasid_bits.is_some(), "PASID", scalable_mode, "SMTS"),
            (first_stage, "FSTS", scalable_mode, "SMTS"),
            (second_stage, "SSTS", scalable_mode, "SMTS"),
            (rid_pasid, "RPS", scalable_mode, "SMTS"),
            (first_stage_1g, "FS1GP", first_stage, "FSTS"),
            (first_stage_5_level, "FS5LP", first_stage, "FSTS"),
            (nested, "NEST", first_stage, "FSTS"),
            (nested, "NEST", second_stage, "SSTS"),
            (accessed_dirty, "SSADS", second_stage, "SSTS"),
            (page_requests, "PRS", scalable_mode, "SMTS"),
            (page_requests, "PRS", device_tlb, "DT"),
            (private_data, "PDP", page_requests, "PRS"),
            (virtual_commands, "VCS", pasid_bits.is_some(), "PASID"),
            (virtual_commands, "VCS", self.options.caching_mode, "CM"),
            (host, host_owned, scalable_mode, "SMTS"),
            (host, host_owned, first_stage, "FSTS"),
            (host, host_owned, self.options.caching_mode, "CM"),
        ];
        for (asked, feature, met, needs) in rules {
            if asked && !met {
                return Err(CapsError::Needs { feature, needs });
            }
        }
        match [(second_stage, "SSTS"), (nested, "NEST")].into_iter().find(|(asked, _)| *asked) {
            Some((_, feature)) if host => Err(CapsError::GuestTablesOnly(feature)),
            _ => Ok(()),
        }
    }

    /// Whether the guest's PASID tables are not what translates.
    pub(super) fn host_owned(&self) -> bool {
        self.options.pasid_table == PasidTableMode::Host
    }

    /// What was asked for.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Largest second-stage address width in bits.
    fn widest_second_stage(&self) -> u8 {
        let top = 7 - self.options.second_stage_widths.leading_zeros().min(7) as u8;
        30 + 9 * top
    }

    /// The encoding of the largest second-stage width in a context entry (AW).
    pub(super) fn widest_encoding(&self) -> u8 {
        (self.widest_second_stage() - 30) / 9
    }

    /// CAP_REG (11.4.2).
    pub fn capability(&self) -> Capability {
        let options = &self.options;
        Capability::new()
            .with_domains(6) // 16 bits
            .with_caching_mode(options.caching_mode)
            .with_second_stage_widths(options.second_stage_widths)
            .with_max_guest_width(options.address_bits - 1)
            .with_fault_record_offset(FAULT_RECORD_OFFSET / 16)
            .with_second_stage_large(self.second_stage_large())
            .with_page_selective(true)
            .with_fault_records(FAULT_RECORDS as u8 - 1)
            .with_max_address_mask(18) // 1 GiB
            .with_drain_writes(true)
            .with_drain_reads(true)
            .with_first_stage_1g(options.first_stage_1g)
            .with_first_stage_5_level(options.first_stage_5_level)
            .with_root_pointer_invalidates(true)
    }

    /// ECAP_REG (11.4.3).
    pub fn extended(&self) -> ExtendedCapability {
        let options = &self.options;
        ExtendedCapability::new()
            .with_coherent(true)
            .with_queued_invalidation(true)
            .with_device_tlb(options.device_tlb)
            .with_pass_through(options.pass_through)
            .with_iotlb_offset(IOTLB_OFFSET / 16)
            .with_nested(options.nested)
            .with_page_requests(options.page_requests)
            .with_page_request_drain(options.page_requests)
            .with_pasid_size(options.pasid_bits.map_or(0, |bits| bits - 1))
            .with_pasid(options.pasid_bits.is_some())
            .with_scalable_mode(options.scalable_mode)
            .with_second_stage_accessed_dirty(options.second_stage_accessed_dirty)
            .with_second_stage(options.second_stage)
            .with_first_stage(options.first_stage)
            .with_page_walk_snoop(options.scalable_mode)
            .with_rid_pasid(options.rid_pasid)
            .with_virtual_commands(options.virtual_commands.is_some())
    }

    /// VCCAP_REG (10.4.43 of revision 3.0, 10.4.46 of revision 3.3).
    pub fn virtual_commands(&self) -> VirtualCommandCapability {
        VirtualCommandCapability::new().with_pasid(self.options.virtual_commands.is_some())
    }

    fn second_stage_large(&self) -> u8 {
        1 | u8::from(self.options.second_stage_1g) << 1
    }

    /// What the engine may find in PASID-table entries and page tables.
    pub fn tables(&self) -> TableCaps {
        let options = &self.options;
        TableCaps {
            address_bits: options.address_bits,
            first_stage: options.first_stage,
            second_stage: options.second_stage,
            nested: options.nested,
            pass_through: options.pass_through,
            first_stage_5_level: options.first_stage_5_level,
            first_stage_1g: options.first_stage_1g,
            second_stage_levels: options.second_stage_widths,
            second_stage_large: self.second_stage_large(),
            second_stage_accessed_dirty: options.second_stage_accessed_dirty,
            supervisor: false,
            page_walk_snoop: options.scalable_mode,
        }
    }
}
