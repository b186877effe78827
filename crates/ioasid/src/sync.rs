//! The one place that decides whose atomics, lock and cell the crate runs on: loom's when it is
//! being explored, a spinning lock otherwise (which gives its processor away when there is an
//! operating system to give it to).

#[cfg(loom)]
pub(crate) use loom::{
    cell::UnsafeCell,
    sync::atomic::{fence, AtomicPtr, AtomicU32, AtomicU64, Ordering},
};

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{fence, AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// A lock whose holder never waits for anything but other locks of this crate, and runs nothing
/// of the caller's: it is held for a few stores, so waiting for it is spinning.
///
/// Unlike the standard library's, giving it back costs a plain store. On the path of an
/// allocation that is a third of the time.
#[derive(Debug)]
pub(crate) struct Mutex<T>(Inner<T>);

#[cfg(loom)]
type Inner<T> = loom::sync::Mutex<T>;
#[cfg(not(loom))]
type Inner<T> = spin::mutex::SpinMutex<T, Relax>;

/// What to do while somebody else has the lock.
#[cfg(all(not(loom), feature = "std"))]
type Relax = spin::Yield;
#[cfg(all(not(loom), not(feature = "std")))]
type Relax = spin::Spin;

#[cfg(loom)]
pub(crate) type MutexGuard<'m, T> = loom::sync::MutexGuard<'m, T>;
#[cfg(not(loom))]
pub(crate) type MutexGuard<'m, T> = spin::mutex::SpinMutexGuard<'m, T, Relax>;

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Inner::new(value))
    }

    #[cfg(loom)]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    #[cfg(not(loom))]
    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock()
    }
}

/// A cell with the interface of loom's, so that loom sees every access.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(core::cell::UnsafeCell::new(value))
    }

    pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        f(self.0.get())
    }

    pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}
