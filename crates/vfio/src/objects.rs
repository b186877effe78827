//! The objects' values as bytes, and back.

mod failure;
mod hardware;
mod table;

pub(crate) use failure::FailureCode;
pub(crate) use hardware::{Info, INFO_BYTES};
pub(crate) use table::{decode_table, encode_entry, encode_table, Entry, MAX_TABLE_BYTES};

#[cfg(test)]
mod tests;
