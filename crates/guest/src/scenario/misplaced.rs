//! A descriptor whose completion record cannot be written: its error, and whose it was, end up in
//! the kernel's log by way of the accelerator's software error register.

use std::time::Duration;

use dsa::spec::{CompletionRecord, Descriptor, Flags, Iova, Operation, Status, SwErrorHead};

use crate::failure::{ensure, same, Failure, Outcome};
use crate::kmsg::{self, KernelLog};
use crate::queue::Queue;
use crate::setup::QUEUE_SIZE;

/// How long nothing must happen to memory.
const QUIET: Duration = Duration::from_millis(100);
/// How long the kernel may take to log the error.
const LOGGED_WITHIN: Duration = Duration::from_secs(2);

/// Submits a no-op whose record address is not a multiple of 32. No byte may be written; the kernel
/// must log the software error register. Gives its head, and the line.
///
/// If the kernel logged nothing, earlier errors may have used up its limit. Then, and only if it
/// says so itself, an error after the window is as good.
pub(super) fn misplaced_record(queue: &mut Queue) -> Outcome<(SwErrorHead, String)> {
    let logged = match submit(queue)? {
        Ok(line) => Ok(line),
        Err(_) => {
            std::thread::sleep(kmsg::RATE_LIMIT_WINDOW);
            let mut log = KernelLog::from_now()?;
            let second = submit(queue)?;
            let suppressed = log.lines()?.iter().any(|line| kmsg::suppressed(line, "idxd"));
            second.and_then(|line| if suppressed { Ok(line) } else { Err(vec![line]) })
        }
    };
    let line = logged
        .map_err(|seen| Failure::new(format!("no software error was logged, but {seen:?}")))?;
    let head = kmsg::software_error(&line).unwrap_or_default();
    let (code, expected) = (head.code(), Status::RecordAlignment as u8);
    ensure!(code == expected, "software error {code:#x}, not {expected:#x}: {line:?}");
    Ok((head, line))
}

/// Submits the no-op. Gives the line that the kernel logged, or the lines that it logged instead.
fn submit(queue: &mut Queue) -> Outcome<Result<String, Vec<String>>> {
    let slot = queue.record(QUEUE_SIZE - 1);
    slot.fill(0);
    let misplaced = Iova(slot.address() + 8);
    let mut log = KernelLog::from_now()?;
    let descriptor =
        Descriptor::new(Operation::Noop).with_record(misplaced).with_flags(Flags::REQUEST_RECORD);
    queue.submit_raw(&descriptor);
    std::thread::sleep(QUIET);
    let record = queue.record(QUEUE_SIZE - 1).read();
    same("record memory", &record, &[0; CompletionRecord::SIZE])?;
    Ok(log.find(LOGGED_WITHIN, |line| kmsg::software_error(line).is_some())?)
}
