//! What each operation does, byte by byte and bit by bit: no windows, no chunks, no tables.

use dsa::spec::*;

/// Memory by byte: some pages, of which some are not there.
pub struct Memory {
    pub base: u64,
    pub bytes: Vec<u8>,
    /// Bit n: page n is a hole.
    pub holes: u32,
}

/// How an operation ended, as far as a page of memory can tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    pub status: Status,
    pub write: bool,
    pub result: u8,
    pub bytes_completed: u32,
    /// Page of the fault.
    pub page: u64,
    pub tail: [u8; 16],
}

impl End {
    fn ok(result: u8) -> Self {
        Self::new(Status::Success, result, 0)
    }

    fn new(status: Status, result: u8, bytes_completed: u32) -> Self {
        Self { status, write: false, result, bytes_completed, page: 0, tail: [0; 16] }
    }

    fn tail(mut self, at: usize, bytes: &[u8]) -> Self {
        self.tail[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// The same of a record.
    pub fn of(record: &CompletionRecord) -> Self {
        Self {
            status: record.status.status().unwrap(),
            write: record.status.write(),
            result: record.result,
            bytes_completed: record.bytes_completed,
            page: record.fault_address.0 >> 12,
            tail: record.tail,
        }
    }
}

struct Fault {
    at: u64,
    write: bool,
}

impl Fault {
    fn end(&self, result: u8, done: u32) -> End {
        let end = End::new(Status::PageFault, result, done);
        End { write: self.write, page: self.at >> 12, ..end }
    }
}

impl Memory {
    /// The place of the byte at `at`, if it is there.
    fn place(&self, at: u64) -> Option<usize> {
        let offset = at.checked_sub(self.base)? as usize;
        (offset < self.bytes.len() && self.holes >> (offset >> 12) & 1 == 0).then_some(offset)
    }

    /// Changes a byte, if it is there; gives what it is then.
    pub fn change(&mut self, at: u64, change: impl FnOnce(u8) -> u8) -> Option<u8> {
        let place = self.place(at)?;
        self.bytes[place] = change(self.bytes[place]);
        Some(self.bytes[place])
    }

    fn get(&self, at: u64) -> Result<u8, Fault> {
        Ok(self.bytes[self.place(at).ok_or(Fault { at, write: false })?])
    }

    fn put(&mut self, at: u64, value: u8) -> Result<(), Fault> {
        self.change(at, |_| value).map(drop).ok_or(Fault { at, write: true })
    }

    fn take<const N: usize>(&self, at: u64) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = self.get(at + i as u64)?;
        }
        Ok(bytes)
    }

    pub fn run(&mut self, operation: Operation, flags: Flags) -> End {
        match operation {
            Operation::MemoryMove { source, destination, size } => {
                self.memory_move(source.0, destination.0, size)
            }
            Operation::Fill { pattern, destination, size } => {
                for i in 0..size {
                    let byte = pattern.to_le_bytes()[i as usize % 8];
                    if let Err(fault) = self.put(destination.0 + u64::from(i), byte) {
                        return fault.end(0, i / 8 * 8);
                    }
                }
                End::ok(0)
            }
            Operation::Compare { source1, source2, size, expected } => {
                self.compare(size, flags, expected, |memory, i| {
                    Ok((memory.get(source1.0 + i)?, memory.get(source2.0 + i)?))
                })
            }
            Operation::ComparePattern { source, pattern, size, expected } => {
                self.compare(size, flags, expected, |memory, i| {
                    Ok((memory.get(source.0 + i)?, pattern.to_le_bytes()[i as usize % 8]))
                })
            }
            Operation::CreateDelta {
                source1,
                source2,
                size,
                delta,
                max_delta_size,
                expected_mask,
            } => {
                let mask = flags.contains(Flags::CHECK_RESULT).then_some(expected_mask);
                self.create(source1.0, source2.0, size, delta.0, max_delta_size, mask)
            }
            Operation::ApplyDelta { delta, destination, size, delta_size } => {
                self.apply(delta.0, destination.0, size, delta_size)
            }
            Operation::Dualcast { source, destination1, destination2, size } => {
                for i in 0..u64::from(size) {
                    let one = |memory: &mut Self| {
                        let byte = memory.get(source.0 + i)?;
                        let to = [destination1.0 + i, destination2.0 + i];
                        for at in to {
                            memory.place(at).ok_or(Fault { at, write: true })?;
                        }
                        to.into_iter().try_for_each(|at| memory.put(at, byte))
                    };
                    if let Err(fault) = one(self) {
                        return fault.end(0, i as u32);
                    }
                }
                End::ok(0)
            }
            Operation::Crc { source, size, seed, seed_address } => {
                self.crc(source.0, None, size, seed, seed_address.0, flags)
            }
            Operation::CopyCrc { source, destination, size, seed, seed_address } => {
                self.crc(source.0, Some(destination.0), size, seed, seed_address.0, flags)
            }
            Operation::CacheFlush { destination, size } => {
                for i in 0..size {
                    if let Err(fault) = self.get(destination.0 + u64::from(i)) {
                        return fault.end(0, i);
                    }
                }
                End::ok(0)
            }
            Operation::Noop | Operation::Drain { .. } => End::ok(0),
            Operation::Batch { .. } => unreachable!("batches have tests of their own"),
            _ => self.dif(operation),
        }
    }

    fn memory_move(&mut self, source: u64, destination: u64, size: u32) -> End {
        let size = u64::from(size);
        let backward = destination > source && destination < source + size;
        let mut done = 0;
        while done < size {
            let i = if backward { size - 1 - done } else { done };
            let one = self.get(source + i).and_then(|byte| self.put(destination + i, byte));
            if let Err(fault) = one {
                return fault.end(backward.into(), done as u32);
            }
            done += 1;
        }
        End::ok(0)
    }

    fn compare(
        &self,
        size: u32,
        flags: Flags,
        expected: u8,
        pair: impl Fn(&Self, u64) -> Result<(u8, u8), Fault>,
    ) -> End {
        let checked = flags.contains(Flags::CHECK_RESULT);
        let status = |result: u8| match checked && result != expected & 1 {
            true => Status::FalsePredicate,
            false => Status::Success,
        };
        for i in 0..size {
            match pair(self, i.into()) {
                Err(fault) => return fault.end(0, i),
                Ok((a, b)) if a != b => return End::new(status(1), 1, i),
                Ok(_) => {}
            }
        }
        End::new(status(0), 0, 0)
    }

    fn create(
        &mut self,
        before: u64,
        after: u64,
        size: u32,
        delta: u64,
        room: u32,
        mask: Option<u8>,
    ) -> End {
        let status = |result: u8| match mask {
            Some(mask) if mask & 1 << result == 0 => Status::FalsePredicate,
            _ => Status::Success,
        };
        let mut written = 0u32;
        for i in (0..size).step_by(8) {
            let one = |memory: &mut Self, written: u32| -> Result<Option<bool>, Fault> {
                let old: [u8; 8] = memory.take(before + u64::from(i))?;
                let new: [u8; 8] = memory.take(after + u64::from(i))?;
                if old == new {
                    return Ok(Some(false));
                }
                if written + 10 > room {
                    return Ok(None);
                }
                let index = ((i / 8) as u16).to_le_bytes();
                for (k, byte) in index.into_iter().chain(new).enumerate() {
                    memory.put(delta + u64::from(written) + k as u64, byte)?;
                }
                Ok(Some(true))
            };
            match one(self, written) {
                Ok(Some(true)) => written += 10,
                Ok(Some(false)) => {}
                Ok(None) => return End::new(status(2), 2, i).tail(0, &written.to_le_bytes()),
                Err(fault) => {
                    return fault.end((written != 0).into(), i).tail(0, &written.to_le_bytes())
                }
            }
        }
        let result = u8::from(written != 0);
        End::new(status(result), result, 0).tail(0, &written.to_le_bytes())
    }

    fn apply(&mut self, delta: u64, destination: u64, size: u32, delta_size: u32) -> End {
        let mut last = None;
        for done in (0..delta_size).step_by(10) {
            let entry: [u8; 10] = match self.take(delta + u64::from(done)) {
                Ok(entry) => entry,
                Err(fault) => return fault.end(0, done),
            };
            let index = u16::from_le_bytes([entry[0], entry[1]]);
            if last.is_some_and(|last| index <= last) {
                return End::new(Status::DeltaOffsetOrder, 0, done);
            }
            if u32::from(index) * 8 >= size {
                return End::new(Status::DeltaOffsetRange, 0, done);
            }
            for (k, &byte) in entry[2..].iter().enumerate() {
                let at = destination + u64::from(index) * 8 + k as u64;
                if let Err(fault) = self.put(at, byte) {
                    return fault.end(0, done);
                }
            }
            last = Some(index);
        }
        End::ok(0)
    }

    fn crc(
        &mut self,
        source: u64,
        destination: Option<u64>,
        size: u32,
        seed: u32,
        seed_address: u64,
        flags: Flags,
    ) -> End {
        let seed = match flags.contains(Flags::CRC_READ_SEED) {
            false => seed,
            true => match self.take(seed_address) {
                Ok(bytes) => u32::from_le_bytes(bytes),
                Err(fault) => return fault.end(0, 0),
            },
        };
        let raw = flags.contains(Flags::CRC_BYPASS_INVERSION);
        let mut register = if raw { seed } else { (seed ^ u32::MAX).reverse_bits() };
        let mut end = End::ok(0);
        for i in 0..size {
            let byte = match self.get(source + u64::from(i)) {
                Ok(byte) => byte,
                Err(fault) => {
                    end = fault.end(0, i);
                    break;
                }
            };
            if let Some(Err(fault)) = destination.map(|to| self.put(to + u64::from(i), byte)) {
                end = fault.end(0, i);
                break;
            }
            let plain = flags.contains(Flags::CRC_BYPASS_REFLECTION);
            let byte = if plain { byte } else { byte.reverse_bits() };
            register ^= u32::from(byte) << 24;
            for _ in 0..8 {
                let carry = register >> 31 != 0;
                register = register << 1 ^ if carry { 0x1edc_6f41 } else { 0 };
            }
        }
        let crc = if raw { register } else { register.reverse_bits() ^ u32::MAX };
        end.tail(0, &crc.to_le_bytes())
    }

    fn dif(&mut self, operation: Operation) -> End {
        let (source, to, size, flags) = match operation {
            Operation::DifCheck { source, size, flags, .. } => (source, None, size, flags),
            Operation::DifInsert { source, destination, size, flags, .. }
            | Operation::DifStrip { source, destination, size, flags, .. }
            | Operation::DifUpdate { source, destination, size, flags, .. } => {
                (source, Some(destination.0), size, flags)
            }
            _ => unreachable!("not DIF"),
        };
        let mut check = match operation {
            Operation::DifCheck { source_flags, source_tags, .. }
            | Operation::DifStrip { source_flags, source_tags, .. }
            | Operation::DifUpdate { source_flags, source_tags, .. } => {
                Some((source_flags.into_bits(), source_tags))
            }
            _ => None,
        };
        let mut make = match operation {
            Operation::DifInsert { destination_flags, destination_tags, .. }
            | Operation::DifUpdate { destination_flags, destination_tags, .. } => {
                Some((destination_flags.into_bits(), destination_tags))
            }
            _ => None,
        };
        let data = [512, 520, 4096, 4104][(flags.into_bits() & 3) as usize];
        let unit = data + if check.is_some() { 8 } else { 0 };
        let (mut done, mut written) = (0, 0);
        let mut end = End::ok(0);
        while done < u64::from(size) {
            match self.block(source.0 + done, to.map(|to| to + written), data, flags, check, make) {
                Ok(0) => {}
                Ok(wrong) => {
                    end = End::new(Status::DifError, wrong, done as u32);
                    break;
                }
                Err(fault) => {
                    end = fault.end(0, done as u32);
                    break;
                }
            }
            done += unit;
            written += data + if make.is_some() { 8 } else { 0 };
            for (flags, tags) in [&mut check, &mut make].into_iter().flatten() {
                tags.app = tags.app.wrapping_add(u16::from(*flags & 0x10 != 0));
                tags.reference = tags.reference.wrapping_add(u32::from(*flags & 0x80 == 0));
            }
        }
        if let Some((_, tags)) = check {
            end = end.tail(0, &tags.to_bytes());
        }
        if let Some((_, tags)) = make {
            end = end.tail(8, &tags.to_bytes());
        }
        end
    }

    /// Gives the DIF status of one block.
    fn block(
        &mut self,
        source: u64,
        to: Option<u64>,
        data: u64,
        flags: DifFlags,
        check: Option<(u8, DifTags)>,
        make: Option<(u8, DifTags)>,
    ) -> Result<u8, Fault> {
        let block: Vec<u8> = (0..data).map(|i| self.get(source + i)).collect::<Result<_, _>>()?;
        let mut guard = if flags.into_bits() & 4 != 0 { 0xffffu16 } else { 0 };
        for &byte in &block {
            guard ^= u16::from(byte) << 8;
            for _ in 0..8 {
                let carry = guard >> 15 != 0;
                guard = guard << 1 ^ if carry { 0x8bb7 } else { 0 };
            }
        }
        if flags.into_bits() & 8 != 0 {
            guard = !guard;
        }
        let mut old = (0, 0, 0);
        if let Some((flags, tags)) = check {
            let bytes: [u8; 8] = self.take(source + data)?;
            let app = u16::from_be_bytes([bytes[2], bytes[3]]);
            let reference = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            old = (u16::from_be_bytes([bytes[0], bytes[1]]), app, reference);
            let all = bytes == [0xff; 8];
            let skip = all && flags & 2 != 0
                || app == 0xffff && flags & 4 != 0
                || app == 0xffff && reference == u32::MAX && flags & 8 != 0;
            if all && flags & 1 != 0 {
                return Ok(8);
            }
            if !skip {
                let mut wrong = 0;
                wrong |= u8::from(flags & 0x20 == 0 && old.0 != guard);
                wrong |= u8::from((app ^ tags.app) & !tags.app_mask != 0) << 1;
                wrong |= u8::from(flags & 0x40 == 0 && reference != tags.reference) << 2;
                if wrong != 0 {
                    return Ok(wrong);
                }
            }
        }
        let Some(to) = to else { return Ok(0) };
        let mut output = block;
        if let Some((flags, tags)) = make {
            let guard = if flags & 0x20 != 0 { old.0 } else { guard };
            let app = if flags & 8 != 0 { old.1 } else { tags.app & !tags.app_mask };
            let reference = if flags & 0x40 != 0 { old.2 } else { tags.reference };
            output.extend(guard.to_be_bytes());
            output.extend(app.to_be_bytes());
            output.extend(reference.to_be_bytes());
        }
        output.into_iter().enumerate().try_for_each(|(i, byte)| self.put(to + i as u64, byte))?;
        Ok(0)
    }
}
