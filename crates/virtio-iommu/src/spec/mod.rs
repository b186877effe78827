//! The layouts that the specification lays down, and those of our extension; no behaviour.
//!
//! Sections are those of Virtual I/O Device (VIRTIO) 1.2. Everything is little-endian.

mod device;
mod extension;
mod request;
mod ring;

#[cfg(test)]
mod tests;

pub use device::{
    Config, Features, Status, CONFIG_SIZE, DEVICE_ID, EVENT_QUEUE, QUEUES, REQUEST_QUEUE,
};
pub use extension::{Numbers, Revision, DRAFT_FEATURES, DRAFT_REQUESTS};
pub use request::{
    Answer, DecodeError, Reply, Request, RequestStatus, RequestType, ENDPOINT_RESERVED_SIZE,
    MAX_REQUEST_SIZE, TAIL_SIZE,
};
pub use ring::{
    available, used, Descriptor, DescriptorFlags, QueueLayout, QueueLayoutError, UsedElement,
    DESCRIPTOR_SIZE, MAX_QUEUE_SIZE, USED_ELEMENT_SIZE,
};
