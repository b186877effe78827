//! Fault reasons (7.1.3, table 30), as a fault recording register holds them.

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $condition:literal;)*) => {
        /// A fault reason.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u8)]
        pub enum FaultCode {
            $($(#[$doc])* $name = $code,)*
        }

        impl FaultCode {
            /// Every reason of this enumeration.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The specification's name of the condition.
            pub const fn condition(self) -> &'static str {
                match self { $(Self::$name => $condition,)* }
            }

            /// The number in the record.
            pub const fn code(self) -> u8 {
                self as u8
            }
        }
    };
}

codes! {
    /// Legacy: the root entry is not present.
    LegacyRootNotPresent = 0x01, "LRT.2";
    /// Legacy: the context entry is not present.
    LegacyContextNotPresent = 0x02, "LCT.2";
    /// Legacy: the context entry is programmed wrongly.
    LegacyContextInvalid = 0x03, "LCT.4";
    /// Legacy: the address is too wide.
    LegacyAddressWidth = 0x04, "LGN.1";
    /// Legacy: no write permission.
    LegacyWrite = 0x05, "LGN.2";
    /// Legacy: no read permission.
    LegacyRead = 0x06, "LGN.3";
    /// Legacy: a second-stage entry could not be read.
    LegacyTableAccess = 0x07, "LSS.1";
    /// Legacy: the root entry could not be read.
    LegacyRootAccess = 0x08, "LRT.1";
    /// Legacy: the context entry could not be read.
    LegacyContextAccess = 0x09, "LCT.1";
    /// Legacy: a reserved bit in the root entry.
    LegacyRootReserved = 0x0a, "LRT.3";
    /// Legacy: a reserved bit in the context entry.
    LegacyContextReserved = 0x0b, "LCT.3";
    /// Legacy: a reserved bit in a second-stage entry.
    LegacyTableReserved = 0x0c, "LSS.2";
    /// Legacy: the context entry blocks translation requests.
    LegacyTranslationBlocked = 0x0d, "LCT.5";
    /// Legacy: the output address is in the interrupt range.
    LegacyInterruptAddress = 0x0e, "LGN.4";
    /// The root table address register is programmed wrongly.
    RootPointer = 0x30, "RTA.1";
    /// A request with PASID in legacy mode.
    PasidInLegacyMode = 0x31, "RTA.2";
    /// A page request in legacy mode.
    PageRequestInLegacyMode = 0x32, "RTA.3";
    /// The root entry could not be read.
    RootAccess = 0x38, "SRT.1";
    /// The root entry is not present.
    RootNotPresent = 0x39, "SRT.2";
    /// A reserved bit in the root entry.
    RootReserved = 0x3a, "SRT.3";
    /// The context entry could not be read.
    ContextAccess = 0x40, "SCT.1";
    /// The context entry is not present.
    ContextNotPresent = 0x41, "SCT.2";
    /// A reserved bit in the context entry.
    ContextReserved = 0x42, "SCT.3";
    /// The context entry is programmed wrongly.
    ContextInvalid = 0x43, "SCT.4";
    /// A translation request, and DTE is clear.
    TranslationDisabled = 0x44, "SCT.5";
    /// A request with PASID, and PASIDE is clear.
    PasidDisabled = 0x45, "SCT.6";
    /// The PASID is beyond PDTS.
    PasidRange = 0x46, "SCT.7";
    /// A page request, and PRE is clear.
    PageRequestsDisabled = 0x47, "SCT.8";
    /// The PASID directory entry could not be read.
    DirectoryAccess = 0x50, "SPD.1";
    /// The PASID directory entry is not present.
    DirectoryNotPresent = 0x51, "SPD.2";
    /// A reserved bit in the PASID directory entry.
    DirectoryReserved = 0x52, "SPD.3";
    /// The PASID table entry could not be read.
    PasidEntryAccess = 0x58, "SPT.1";
    /// The PASID table entry is not present.
    PasidEntryNotPresent = 0x59, "SPT.2";
    /// A reserved bit in the PASID table entry.
    PasidEntryReserved = 0x5a, "SPT.3";
    /// The PASID table entry is programmed wrongly.
    PasidEntryInvalid = 0x5b, "SPT.4";
    /// A privileged request, and SRE is clear.
    SupervisorDisabled = 0x5d, "SPT.6";
    /// A first-stage entry below the root could not be read.
    FirstStageAccess = 0x70, "SFS.1";
    /// A first-stage entry is not present.
    FirstStageNotPresent = 0x71, "SFS.2";
    /// A reserved bit in a first-stage entry.
    FirstStageReserved = 0x72, "SFS.3";
    /// A first-stage root entry could not be read.
    FirstStageRootAccess = 0x73, "SFS.4";
    /// Nested: the address in a first-stage entry is too wide for the second stage.
    NestedAddressWidth = 0x74, "SFS.5";
    /// Nested: no second-stage write permission for an update of a first-stage entry.
    NestedTableWrite = 0x77, "SFS.8";
    /// A second-stage entry below the root could not be read.
    SecondStageAccess = 0x78, "SSS.1";
    /// A second-stage entry grants nothing.
    SecondStageNotPresent = 0x79, "SSS.2";
    /// A reserved bit in a second-stage entry.
    SecondStageReserved = 0x7a, "SSS.3";
    /// A second-stage root entry could not be read.
    SecondStageRootAccess = 0x7b, "SSS.4";
    /// Accessed or dirty of a second-stage entry could not be set.
    SecondStageUpdate = 0x7d, "SSS.6";
    /// The address is not canonical.
    NonCanonical = 0x80, "SGN.1";
    /// A user's request to a supervisor's page.
    Privilege = 0x81, "SGN.2";
    /// A host address is too wide.
    HostAddressWidth = 0x83, "SGN.4";
    /// The address is too wide for the second stage.
    AddressWidth = 0x84, "SGN.5";
    /// No write permission.
    Write = 0x85, "SGN.6";
    /// No read permission.
    Read = 0x86, "SGN.7";
    /// The output address is in the interrupt range.
    InterruptAddress = 0x87, "SGN.8";
    /// Accessed or dirty of a first-stage entry could not be set.
    FirstStageUpdate = 0x91, "SFS.10";
}
