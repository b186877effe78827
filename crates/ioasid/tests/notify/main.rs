//! Who is told what, when, and what becomes of it when handlers refuse, sleep, panic or call back.
#![cfg(not(loom))]

mod calling_back;
mod common;
mod failing;
mod order;
mod scope;
mod threads;
