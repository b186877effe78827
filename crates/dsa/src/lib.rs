//! Intel Data Streaming Accelerator (DSA) 1.0: its layouts ([`spec`]), always there and usable
//! from a driver or a guest program.
//!
//! Section names in this crate are those of the Intel DSA architecture specification (341204).
#![no_std]

pub mod spec;
