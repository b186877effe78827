//! A guest's stream-table entry over the host's stage 2.

use super::{StreamEntry, StreamEntryError, StreamWord0, StreamWord1};
use crate::SmmuCaps;

/// `Config` of an entry.
const CONFIG_ABORT: u8 = 0;
const CONFIG_BYPASS: u8 = 4;
const CONFIG_STAGE_ONE: u8 = 5;
const CONFIG_NESTED: u8 = 7;

/// What the host programs for a guest's entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NestedEntry {
    /// The entry, without address translation services.
    pub entry: StreamEntry,
    /// Whether the guest wants address translation services: the host's EATS, once they are
    /// enabled at the device.
    pub ats: bool,
}

/// Why a guest's entry is refused. The guest's mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NestedError {
    /// A bit that is not the guest's to set.
    #[error("word {word} of the stream-table entry has bits that a guest must not set")]
    NotSettable {
        /// Which of its 64-bit words.
        word: u8,
    },
    /// Config is none of abort, bypass and stage 1.
    #[error("Config {got} is not a guest's")]
    Config {
        /// The field.
        got: u8,
    },
    /// EATS is neither 0 nor 1.
    #[error("EATS {got} is not a guest's")]
    Ats {
        /// The field.
        got: u8,
    },
    /// What came out cannot be used.
    #[error(transparent)]
    Entry(#[from] StreamEntryError),
}

/// Puts the first two words of a guest's entry over the host's stage 2: `stage_two` is the
/// entry that the host would program for stage 2 alone.
///
/// An entry that is not valid becomes one that aborts.
///
/// # Errors
///
/// See [`NestedError`].
pub fn nested_entry(
    guest: [u64; 2],
    stage_two: &StreamEntry,
    caps: &SmmuCaps,
) -> Result<NestedEntry, NestedError> {
    let (word0, word1) = (StreamWord0::from_bits(guest[0]), StreamWord1::from_bits(guest[1]));
    let abort = StreamEntry { word0: StreamWord0::new().with_valid(true), ..Default::default() };
    if !word0.valid() {
        return Ok(NestedEntry { entry: abort, ats: false });
    }
    check_settable(word0, word1)?;
    let ats = match word1.ats() {
        0 => false,
        1 => caps.ats,
        got => return Err(NestedError::Ats { got }),
    };
    match word0.config() {
        CONFIG_ABORT => Ok(NestedEntry { entry: abort, ats: false }),
        CONFIG_BYPASS => Ok(NestedEntry { entry: *stage_two, ats: false }),
        CONFIG_STAGE_ONE => {
            let entry = over(word0, word1, stage_two);
            // Its stage 2 is the host's own.
            entry.decode_over_host(caps)?;
            Ok(NestedEntry { entry, ats })
        }
        got => Err(NestedError::Config { got }),
    }
}

/// Whether only those fields are set that a guest may: V, Config, S1Fmt, S1ContextPtr and S1CDMax;
/// S1DSS, S1CIR, S1COR, S1CSH, S1STALLD and EATS.
fn check_settable(word0: StreamWord0, word1: StreamWord1) -> Result<(), NestedError> {
    let allowed0 = StreamWord0::new()
        .with_valid(true)
        .with_config(word0.config())
        .with_descriptor_format(word0.descriptor_format())
        .with_descriptor_frame(word0.descriptor_frame())
        .with_descriptor_bits(word0.descriptor_bits());
    let allowed1 = stage_one_part(word1).with_ats(word1.ats());
    if word0 != allowed0 {
        return Err(NestedError::NotSettable { word: 0 });
    }
    if word1 != allowed1 {
        return Err(NestedError::NotSettable { word: 1 });
    }
    Ok(())
}

/// The guest's fields of word 1, without EATS.
fn stage_one_part(word: StreamWord1) -> StreamWord1 {
    StreamWord1::new()
        .with_default_substream(word.default_substream())
        .with_inner_cacheability(word.inner_cacheability())
        .with_outer_cacheability(word.outer_cacheability())
        .with_shareability(word.shareability())
        .with_stall_disable(word.stall_disable())
}

/// Stage 1 of the guest's words over `stage_two`, with events merged so that a guest cannot flood
/// the host's queue.
fn over(word0: StreamWord0, word1: StreamWord1, stage_two: &StreamEntry) -> StreamEntry {
    let word1 =
        StreamWord1::from_bits(stage_two.word1.into_bits() | stage_one_part(word1).into_bits());
    StreamEntry {
        word0: word0.with_config(CONFIG_NESTED),
        word1: word1.with_ats(0).with_merge_events(true),
        ..*stage_two
    }
}
