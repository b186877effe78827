//! Translation of a request by an SMMUv3's stream-table entry and context descriptors (IHI 0070,
//! chapter 3).

mod descriptor;

use mem::{Gpa, GuestMemory, Iova};

use pgtable::{ArmRegime, Format, SelectError};

use super::walk::{self, Table};
use super::{half_of, Engine, Refusal, Request, Stop, Target};
use crate::cache::{without_top_byte, Cached, DescriptorState, Tag};
use crate::format::vtd::exceeds;
use crate::sabotage::{self, Sabotage};
use crate::{
    DefaultSubstream, DescriptorTable, DomainId, FaultReason, Pasid, SmmuStageTwo, Stage,
    StreamContext, StreamTranslation,
};

/// What translates a request in stage 1.
enum Substream {
    /// Nothing.
    Bypass,
    /// A context descriptor; and whether the request named it.
    Of(Pasid, bool),
}

/// Which faults of translation are recorded; faults of configuration always are.
#[derive(Clone, Copy)]
struct Record {
    /// Of stage 1 (CD.R).
    one: bool,
    /// Of stage 2 (S2R).
    two: bool,
}

impl<M: GuestMemory> Engine<'_, M> {
    /// Translates `request` as `stream` says.
    pub(super) fn by_stream(
        &mut self,
        request: &Request,
        stream: &StreamContext,
    ) -> Result<Target, Refusal> {
        if stream.translation == StreamTranslation::Abort {
            return Err(Refusal::new(FaultReason::ContextNotPresent, true));
        }
        if request.translation_request && !stream.ats {
            return Err(recorded(FaultReason::AtsDisabled));
        }
        let (table, two) = match &stream.translation {
            StreamTranslation::Abort | StreamTranslation::Bypass => (None, None),
            StreamTranslation::StageOne(table) => (Some(table), None),
            StreamTranslation::StageTwo(two) => (None, Some(two)),
            StreamTranslation::Nested(table, two) => (Some(table), Some(two)),
        };
        match (substream(request, table).map_err(recorded)?, table, two) {
            (Substream::Of(substream, requested), Some(table), two) => {
                self.by_descriptor(request, stream, (table, two), (substream, requested))
            }
            (_, _, Some(two)) => self.by_stage_two_of(request, stream, two),
            _ => self.bypass(request, stream),
        }
    }

    fn by_descriptor(
        &mut self,
        request: &Request,
        stream: &StreamContext,
        (table, two): (&DescriptorTable, Option<&SmmuStageTwo>),
        (substream, requested): (Pasid, bool),
    ) -> Result<Target, Refusal> {
        let record = Record { one: true, two: two.is_none_or(|two| two.record) };
        let state = self
            .descriptor_state(stream, (table, two), substream, requested)
            .map_err(|stop| record.refusal(stop))?;
        let record = Record { one: state.regime.record, ..record };
        let tag = Tag::of_substream(stream.vmid, state.regime.asid, substream, requested);
        let privileged = is_privileged(request, stream.privilege);
        let cached = self
            .by_regime(request, &state, tag, privileged, two)
            .map_err(|stop| record.refusal(stop))?;
        Ok(self.target(&cached, request.address, (privileged, false)))
    }

    /// The translation by a context descriptor: from the cache, where it may be that of another
    /// substream if it is global; or walked.
    fn by_regime(
        &mut self,
        request: &Request,
        state: &DescriptorState,
        tag: Tag,
        privileged: bool,
        two: Option<&SmmuStageTwo>,
    ) -> Result<Cached, Stop> {
        let tables = &state.regime.tables;
        let (table, address) = tables.select(request.address.0).map_err(|_: SelectError| {
            let level = start_level(tables, request.address);
            FaultReason::NotPresent { stage: Stage::One, level }
        })?;
        let (key, access) = (without_top_byte(request.address), request.access);
        let global = Tag::of_global(state.vmid);
        if let Some(cached) = self.hit(&[tag, global], key, access, privileged) {
            return Ok(cached);
        }
        self.counters.walks.add(1);
        let (one, address) = (Table::new(Gpa(table.root), &table.format), Iova(address));
        let found = match two {
            None => walk::stage_one(self.memory, &one, address, access, privileged),
            Some(two) => {
                let two = (two.root, &two.format);
                walk::nested(self.memory, &one, two, address, access, privileged)
            }
        }?;
        self.fill(if found.global { global } else { tag }, key, found.cached, access)
    }

    /// A request without stage 1, through the guest's stage 2.
    fn by_stage_two_of(
        &mut self,
        request: &Request,
        stream: &StreamContext,
        two: &SmmuStageTwo,
    ) -> Result<Target, Refusal> {
        let privileged = is_privileged(request, stream.privilege);
        let cached = self
            .by_guests_stage_two(request, (stream, privileged), two)
            .map_err(|stop| Record { one: true, two: two.record }.refusal(stop))?;
        Ok(self.target(&cached, request.address, (privileged, false)))
    }

    fn by_guests_stage_two(
        &mut self,
        request: &Request,
        (stream, privileged): (&StreamContext, bool),
        two: &SmmuStageTwo,
    ) -> Result<Cached, Stop> {
        let Request { address, access, .. } = *request;
        let tag = Tag::of_device(DomainId(stream.vmid.0));
        if let Some(cached) = self.hit(&[tag], address, access, privileged) {
            return Ok(cached);
        }
        self.counters.walks.add(1);
        let found = walk::stage_two(self.memory, (two.root, &two.format), address, access)?;
        self.fill(tag, address, found, access)
    }

    /// A request whose address is a guest physical one.
    fn bypass(&mut self, request: &Request, stream: &StreamContext) -> Result<Target, Refusal> {
        let Request { address, access, .. } = *request;
        if exceeds(Gpa(address.0), stream.caps.output_bits) {
            return Err(recorded(FaultReason::AddressWidth { stage: Stage::One }));
        }
        if !self.memory.has_stage_two() {
            return self.identity(request, Tag::physical(), false, false).map_err(recorded);
        }
        let tag = Tag::of_device(DomainId(stream.vmid.0));
        let privileged = is_privileged(request, stream.privilege);
        let cached = match self.hit(&[tag], address, access, privileged) {
            Some(cached) => cached,
            None => {
                // Of the host's stage 2.
                self.counters.walks.add(1);
                self.fill(tag, address, half_of(address), access).map_err(recorded)?
            }
        };
        Ok(self.target(&cached, address, (privileged, false)))
    }
}

impl Record {
    fn refusal(self, stop: Stop) -> Refusal {
        let record = match stop.reason {
            FaultReason::NotPresent { stage, .. }
            | FaultReason::TableReserved { stage, .. }
            | FaultReason::AccessFlag { stage, .. }
            | FaultReason::Permission { stage, .. }
            | FaultReason::AddressWidth { stage } => match stage {
                Stage::One => self.one,
                Stage::Two | Stage::TwoForTable | Stage::TwoForDescriptor => self.two,
            },
            _ => true,
        };
        Refusal::new(stop, !record)
    }
}

fn recorded(stop: impl Into<Stop>) -> Refusal {
    Refusal::new(stop, false)
}

/// Which context descriptor translates `request`; `table` is the stream's, if it has stage 1.
fn substream(request: &Request, table: Option<&DescriptorTable>) -> Result<Substream, FaultReason> {
    let zero = Pasid::from_field(0);
    match (request.space.pasid, table) {
        (None, None) => Ok(Substream::Bypass),
        (Some(_), None) => Err(FaultReason::PasidDisabled),
        (None, Some(table)) if table.bits == 0 => Ok(Substream::Of(zero, false)),
        (None, Some(table)) => match table.default {
            DefaultSubstream::Terminate => Err(FaultReason::PasidRequired),
            DefaultSubstream::Bypass => Ok(Substream::Bypass),
            DefaultSubstream::Zero => Ok(Substream::Of(zero, false)),
        },
        (Some(_), Some(table)) if table.bits == 0 => Err(FaultReason::PasidDisabled),
        (Some(pasid), Some(table)) => {
            let reserved = pasid == zero && table.default == DefaultSubstream::Zero;
            let beyond = u64::from(pasid.get()) >> table.bits.min(Pasid::BITS as u8) != 0;
            if reserved || beyond {
                return Err(FaultReason::PasidRange);
            }
            if sabotage::is(Sabotage::WrongPasid) {
                return Ok(Substream::Of(Pasid::from_field(pasid.get() ^ 1), true));
            }
            Ok(Substream::Of(pasid, true))
        }
    }
}

/// Privilege as the stream has it, or as the request says, which needs a substream for that.
fn is_privileged(request: &Request, privilege: Option<bool>) -> bool {
    privilege.unwrap_or(request.space.pasid.is_some() && request.space.privileged)
}

/// The level at which the walk for `address` would have begun: of the table of its half, if there is one.
fn start_level(tables: &ArmRegime, address: Iova) -> u8 {
    let half = if address.0 >> SELECT_BIT & 1 == 1 { &tables.high } else { &tables.low };
    half.as_ref().map_or(TOP_LEVEL, |table| table.format.levels())
}

/// The bit that says in which half an address is.
const SELECT_BIT: u32 = 55;
/// Arm's level 0, where a table of 48 bits begins.
const TOP_LEVEL: u8 = 4;
