//! What is between a guest's driver and its model: registers in one case, a virtqueue in the
//! other. In this process both are calls; each tells what passes.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use iommu::Vm as _;
use mem::{Gpa, GuestMemory as _, MemError};
use virtio_iommu::spec::{
    available, Answer, Descriptor, Features, QueueLayout, RequestStatus, Status, DESCRIPTOR_SIZE,
    MAX_REQUEST_SIZE,
};
use vtd::spec::{VcmdLayout, VirtualCommand};
use zerocopy::IntoBytes as _;

use super::trace::Trace;
use super::vm::TracedVm;

/// Time since the guest began.
#[derive(Debug)]
pub(super) struct Watch(pub(super) Instant);

impl Watch {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl virtio_iommu::driver::Clock for Watch {
    fn now_ns(&self) -> u64 {
        self.now_ns()
    }
}

/// A remapping unit's registers.
pub(super) struct Unit {
    model: Mutex<vtd::model::Model<TracedVm>>,
    layout: Option<VcmdLayout>,
    trace: Trace,
    watch: Watch,
}

impl Unit {
    pub(super) fn new(
        model: vtd::model::Model<TracedVm>,
        layout: Option<VcmdLayout>,
        trace: Trace,
    ) -> Self {
        Self { model: Mutex::new(model), layout, trace, watch: Watch(Instant::now()) }
    }

    fn model(&self) -> MutexGuard<'_, vtd::model::Model<TracedVm>> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of an access to a register of the virtual commands.
    fn tell(&self, offset: u16, write: bool, value: u64) {
        let Some(layout) = self.layout else { return };
        let (name, meaning): (_, fn(VcmdLayout, u64) -> String) = match offset {
            _ if offset == layout.command_offset() => ("VCMD", command),
            _ if offset == layout.response_offset() => ("VCRSP", response),
            _ => return,
        };
        self.trace.hop("register", || {
            let arrow = if write { "<-" } else { "->" };
            format!("{name:<5} at {offset:#x} {arrow} {value:<#8x} {}", meaning(layout, value))
        });
    }
}

fn command(layout: VcmdLayout, value: u64) -> String {
    match layout.decode_command(value) {
        Ok(VirtualCommand::AllocatePasid) => "allocate".to_owned(),
        Ok(VirtualCommand::FreePasid(pasid)) => format!("free {pasid}"),
        Err(error) => error.to_string(),
    }
}

fn response(layout: VcmdLayout, value: u64) -> String {
    let response = layout.decode_response(value);
    match response.status {
        _ if response.in_progress => "in progress".to_owned(),
        0 => format!("idle, last result {:#x}", response.result),
        status => format!("idle, last status {status}"),
    }
}

impl vtd::driver::Registers for Unit {
    fn read32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.model().read(offset.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn write32(&self, offset: u16, value: u32) {
        // What is asked for is done by `pause`; nobody waits for these interrupts.
        let _ = self.model().write(offset.into(), &value.to_le_bytes());
    }

    fn read64(&self, offset: u16) -> u64 {
        let mut data = [0; 8];
        self.model().read(offset.into(), &mut data);
        let value = u64::from_le_bytes(data);
        self.tell(offset, false, value);
        value
    }

    fn write64(&self, offset: u16, value: u64) {
        self.tell(offset, true, value);
        let _ = self.model().write(offset.into(), &value.to_le_bytes());
    }
}

impl vtd::driver::Clock for Unit {
    fn now_ns(&self) -> u64 {
        self.watch.now_ns()
    }

    /// While the guest looks again, its VMM works.
    fn pause(&self) {
        let _ = self.model().poll(1);
    }
}

/// A virtio-iommu device, reached through its queue.
pub(super) struct Queue {
    model: virtio_iommu::model::Model<TracedVm>,
    vm: TracedVm,
    layout: Option<QueueLayout>,
    /// Requests made available so far.
    made: u16,
}

impl Queue {
    pub(super) fn new(model: virtio_iommu::model::Model<TracedVm>, vm: TracedVm) -> Self {
        Self { model, vm, layout: None, made: 0 }
    }

    /// The two buffers of the latest request.
    fn buffers(&self, layout: QueueLayout) -> Result<[Descriptor; 2], MemError> {
        let memory = self.vm.memory();
        let entry = available::entry(self.made, layout.size);
        let head = memory.load_u16(Gpa(layout.available.0 + entry))?;
        let at = Gpa(layout.descriptors.0 + DESCRIPTOR_SIZE * u64::from(head));
        let mut pair = [Descriptor::new(Gpa(0), 0, false, None); 2];
        memory.read(at, pair.as_mut_bytes())?;
        Ok(pair)
    }

    /// Tells of a request or its answer.
    fn tell(&self, buffer: &Descriptor) {
        self.vm.trace.hop("virtqueue", || {
            let len = (buffer.len.get() as usize).min(MAX_REQUEST_SIZE);
            let mut bytes = vec![0; len];
            if let Err(error) = self.vm.memory().read(Gpa(buffer.address.get()), &mut bytes) {
                return error.to_string();
            }
            let what = if buffer.flags().write() { answer(&bytes) } else { self.request(&bytes) };
            format!("{}  {what}", hex(&bytes))
        });
    }

    fn request(&self, bytes: &[u8]) -> String {
        let numbers = self.model.revision().map(|revision| revision.numbers());
        match (bytes.first(), numbers) {
            (Some(kind), Some(numbers)) if *kind == numbers.alloc_pasid => "allocate".to_owned(),
            (Some(kind), Some(numbers)) if *kind == numbers.free_pasid => "free".to_owned(),
            _ => "unknown".to_owned(),
        }
    }
}

fn answer(bytes: &[u8]) -> String {
    let status = Answer::decode(bytes).map(|answer| RequestStatus::from_number(answer.status));
    match status.flatten() {
        Some(status) => status.to_string(),
        None => "no status".to_owned(),
    }
}

fn hex(bytes: &[u8]) -> String {
    let words: Vec<String> = bytes
        .chunks(4)
        .map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect())
        .collect();
    words.join(" ")
}

impl virtio_iommu::driver::Transport for Queue {
    fn features(&mut self) -> Features {
        self.model.features()
    }

    fn set_driver_features(&mut self, features: Features) {
        self.model.set_driver_features(features);
    }

    fn status(&mut self) -> Status {
        self.model.status()
    }

    fn write_status(&mut self, status: Status) {
        let _ = self.model.write_status(status);
    }

    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.model.read_config(offset, data);
    }

    fn max_queue_size(&mut self, queue: u16) -> u16 {
        self.model.max_queue_size(queue)
    }

    fn set_queue(&mut self, queue: u16, layout: QueueLayout) {
        // A refusal shows when the queue is used.
        self.layout = self.model.set_queue(queue, layout).is_ok().then_some(layout);
    }

    fn notify(&mut self, queue: u16) {
        let buffers = self.layout.and_then(|layout| self.buffers(layout).ok());
        self.made = self.made.wrapping_add(1);
        if let Some([request, _]) = &buffers {
            self.tell(request);
        }
        if self.model.notify(queue).schedule {
            let _ = self.model.poll(1);
        }
        if let Some([_, answer]) = &buffers {
            self.tell(answer);
        }
    }
}
