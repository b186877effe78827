//! What a program on x86-64 Linux needs when it has neither libc nor a standard library: an entry,
//! two system calls, an allocator, a panic handler, and the memory routines that compilers call.

use core::alloc::{GlobalAlloc, Layout};
use core::arch::{asm, global_asm};
use core::panic::PanicInfo;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Exit code of a panic, above that of any check.
const PANICKED: u8 = 101;

const SYS_WRITE: usize = 1;
const SYS_EXIT_GROUP: usize = 231;
const STDOUT: usize = 1;

// The kernel starts a program with an aligned stack and no return address on it.
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "and rsp, -16",
    "call {entry}",
    "ud2",
    entry = sym entry,
);

extern "C" fn entry() -> ! {
    exit(crate::run())
}

/// Writes to standard output; what cannot be written is lost.
pub(crate) fn print(text: &str) {
    // SAFETY: `write` only reads the bytes, which are valid for their length.
    unsafe { syscall(SYS_WRITE, STDOUT, text.as_ptr() as usize, text.len()) };
}

fn exit(code: u8) -> ! {
    loop {
        // SAFETY: ends the process; touches no memory.
        unsafe { syscall(SYS_EXIT_GROUP, code.into(), 0, 0) };
    }
}

/// # Safety
///
/// The call must not break what Rust assumes of memory.
unsafe fn syscall(number: usize, a: usize, b: usize, c: usize) -> usize {
    let result;
    // SAFETY: the kernel's calling convention; it clobbers rcx and r11 and nothing else.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result
}

#[panic_handler]
fn panic(_info: &PanicInfo<'_>) -> ! {
    print("canary: panicked\n");
    exit(PANICKED)
}

/// Core is compiled to unwind and names this; nothing here ever does.
#[no_mangle]
extern "C" fn rust_eh_personality() -> ! {
    exit(PANICKED)
}

/// As for `rust_eh_personality`.
#[no_mangle]
extern "C" fn _Unwind_Resume() -> ! {
    exit(PANICKED)
}

/// Enough for everything that the checks allocate, since nothing is ever freed.
const HEAP_LEN: usize = 16 << 20;

#[repr(align(4096))]
struct Heap(core::cell::UnsafeCell<[u8; HEAP_LEN]>, AtomicUsize);

// SAFETY: the bytes are reached only through pieces that `alloc` gives out once each.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap(core::cell::UnsafeCell::new([0; HEAP_LEN]), AtomicUsize::new(0));

// SAFETY: each piece lies inside the heap, is aligned, and overlaps no other: the offset only grows.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let place = |used: usize| {
            let start = used.checked_next_multiple_of(layout.align())?;
            let end = start.checked_add(layout.size())?;
            (end <= HEAP_LEN && layout.align() <= align_of::<Heap>()).then_some((start, end))
        };
        let advance = |used| place(used).map(|(_, end)| end);
        match self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, advance) {
            Ok(used) => place(used).map_or(ptr::null_mut(), |(start, _)| {
                self.0.get().cast::<u8>().wrapping_add(start)
            }),
            Err(_) => ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, _piece: *mut u8, _layout: Layout) {}
}

/// # Safety
///
/// As C's `memcpy`.
#[no_mangle]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // A string instruction, since a loop would be compiled into a call of this very function.
    // SAFETY: by the contract.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
///
/// As C's `memmove`.
#[no_mangle]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: copying upward never overwrites what is still to be read.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: by the contract; downward, with the direction flag put back.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") len => _,
            inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _,
            options(nostack));
    }
    to
}

/// # Safety
///
/// As C's `memset`.
#[no_mangle]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: by the contract.
    unsafe {
        asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte as u8,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
///
/// As C's `memcmp`.
#[no_mangle]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    for at in 0..len {
        // SAFETY: by the contract; volatile, so that the loop is not compiled into a call of this
        // very function.
        let (a, b) = unsafe { (a.add(at).read_volatile(), b.add(at).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// # Safety
///
/// As C's `bcmp`.
#[no_mangle]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: by the contract.
    unsafe { memcmp(a, b, len) }
}

/// # Safety
///
/// As C's `strlen`.
#[no_mangle]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut len = 0;
    // SAFETY: by the contract there is a zero before the end.
    while unsafe { text.add(len).read_volatile() } != 0 {
        len += 1;
    }
    len
}
