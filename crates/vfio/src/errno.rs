//! The one number with which a call fails.

use core::fmt;

/// An error number of the system interface, positive. A client may get any of them, from a host
/// end that is not ours; this crate's gives those that have a name here.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub u16);

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Self = Self($number);)*

            /// Its name, if this crate has one for it.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    /// Someone who has a say refused.
    EPERM = 1;
    /// There is no such thing.
    ENOENT = 2;
    /// The argument is longer than what is known, and asks for something there.
    E2BIG = 7;
    /// A handle is missing.
    EBADF = 9;
    /// No memory for it.
    ENOMEM = 12;
    /// It is not the caller's.
    EACCES = 13;
    /// The argument is not as long as it says.
    EFAULT = 14;
    /// Not now.
    EBUSY = 16;
    /// It exists already.
    EEXIST = 17;
    /// There is no VM, or none any more.
    ENODEV = 19;
    /// A value that is not allowed.
    EINVAL = 22;
    /// No such request.
    ENOTTY = 25;
    /// No room, or no number is available.
    ENOSPC = 28;
    /// A file that has no positions, or a length that is no multiple of what it is made of.
    ESPIPE = 29;
    /// A known wish that this host does not grant.
    EOPNOTSUPP = 95;
    /// A quota is used up.
    EDQUOT = 122;
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "error {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({self})")
    }
}

impl core::error::Error for Errno {}
