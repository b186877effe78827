//! Groups: devices that can only be in one container together.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};

use iommu::Host;
use pci::RequesterId;
use spin::mutex::SpinMutex;

use super::device::Device;
use super::{Dispatcher, Inner, Shared};
use crate::argument::{copy_out, copy_question};
use crate::spec::flags::*;
use crate::spec::GroupStatus;
use crate::{Errno, File, Handle, Refusal, Reply, Request};

/// Groups of a dispatcher at most.
pub const MAX_GROUPS: usize = 1024;
/// Devices of a group at most.
pub const MAX_GROUP_DEVICES: usize = 64;

/// A device of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupDevice {
    /// How a client asks for it.
    pub name: String,
    /// Who it is on the bus of the VM.
    pub requester: RequesterId,
}

/// The groups there are.
#[derive(Debug, Default)]
pub(super) struct Groups(SpinMutex<BTreeMap<u32, Entry>>);

#[derive(Debug)]
struct Entry {
    devices: Arc<[GroupDevice]>,
    open: bool,
}

impl<H: Host> Dispatcher<H> {
    /// Makes devices available as a group. It is for whoever runs the host end; no call does so.
    ///
    /// # Errors
    ///
    /// [`Refusal::Group`] if there is a group with this number; [`Refusal::TooMany`] beyond
    /// [`MAX_GROUPS`] or [`MAX_GROUP_DEVICES`].
    pub fn add_group(&self, number: u32, devices: Vec<GroupDevice>) -> Result<(), Refusal> {
        if devices.len() > MAX_GROUP_DEVICES {
            return Err(Refusal::TooMany { limit: MAX_GROUP_DEVICES });
        }
        let mut groups = self.shared.groups.0.lock();
        if groups.contains_key(&number) {
            return Err(Refusal::Group { number });
        }
        if groups.len() >= MAX_GROUPS {
            return Err(Refusal::TooMany { limit: MAX_GROUPS });
        }
        groups.insert(number, Entry { devices: devices.into(), open: false });
        Ok(())
    }

    /// Opens a group, which is open once at a time.
    ///
    /// # Errors
    ///
    /// [`Refusal::Group`] if there is none; [`Refusal::InUse`] if it is open, or devices of it are.
    pub fn open_group(&self, number: u32) -> Result<Group<H>, Refusal> {
        let mut groups = self.shared.groups.0.lock();
        let entry = groups.get_mut(&number).ok_or(Refusal::Group { number })?;
        if entry.open {
            return Err(Refusal::InUse);
        }
        entry.open = true;
        Ok(Group(Arc::new(Members {
            shared: self.shared.clone(),
            number,
            devices: entry.devices.clone(),
            place: SpinMutex::new(Place::Nowhere),
            open: AtomicUsize::new(0),
        })))
    }
}

/// An open group. While it is open, or a device of it, its devices stay in their container.
pub struct Group<H: Host>(Arc<Members<H>>);

/// What a group's file and its devices' files have in common.
pub(super) struct Members<H: Host> {
    shared: Arc<Shared<H>>,
    number: u32,
    devices: Arc<[GroupDevice]>,
    place: SpinMutex<Place<H>>,
    /// Files of devices.
    pub(super) open: AtomicUsize,
}

/// Where a group is. It is not locked while a container is asked to take or to let go of it.
enum Place<H: Host> {
    Nowhere,
    /// A call has it go somewhere.
    Moving,
    In(Arc<Inner<H>>),
}

impl<H: Host> Place<H> {
    fn container(&self) -> Result<&Arc<Inner<H>>, Refusal> {
        match self {
            Self::In(container) => Ok(container),
            Self::Nowhere | Self::Moving => Err(Refusal::NoContainer),
        }
    }
}

impl<H: Host> Drop for Members<H> {
    fn drop(&mut self) {
        if let Ok(container) = self.place.get_mut().container() {
            container.leave(self.number);
        }
        if let Some(entry) = self.shared.groups.0.lock().get_mut(&self.number) {
            entry.open = false;
        }
    }
}

impl<H: Host> fmt::Debug for Group<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("number", &self.0.number)
            .field("devices", &self.0.devices)
            .finish_non_exhaustive()
    }
}

impl<H: Host + 'static> Group<H> {
    /// Carries out one call.
    ///
    /// # Errors
    ///
    /// See [`Refusal`]. Nothing has changed then.
    pub fn call(
        &self,
        number: u32,
        argument: &mut [u8],
        handle: Option<Handle>,
    ) -> Result<Reply, Refusal> {
        self.0.shared.counted(|| self.dispatch(number, argument, handle))
    }

    fn dispatch(
        &self,
        number: u32,
        argument: &mut [u8],
        handle: Option<Handle>,
    ) -> Result<Reply, Refusal> {
        let request = Request::of(number, self.0.shared.revision);
        match (request, handle) {
            (Some(Request::GroupSetContainer), Some(Handle::Container(container))) => {
                let container = container.downcast().map_err(|_| Refusal::NoHandle)?;
                self.set_container(container)
            }
            (Some(Request::GroupSetContainer), _) => Err(Refusal::NoHandle),
            (
                Some(
                    Request::GroupGetStatus
                    | Request::GroupUnsetContainer
                    | Request::GroupGetDeviceFd,
                ),
                Some(_),
            ) => Err(Refusal::UnwantedHandle),
            (Some(Request::GroupGetStatus), None) => self.get_status(argument),
            (Some(Request::GroupUnsetContainer), None) => self.unset_container(),
            (Some(Request::GroupGetDeviceFd), None) => self.get_device(argument),
            _ => Err(Refusal::UnknownRequest { number }),
        }
    }

    fn get_status(&self, argument: &mut [u8]) -> Result<Reply, Refusal> {
        let mut status: GroupStatus = copy_question(argument)?;
        let set = self.0.place.lock().container().is_ok();
        status.flags = GROUP_VIABLE | if set { GROUP_CONTAINER_SET } else { 0 };
        copy_out(&status, argument);
        Ok(Reply::default())
    }

    fn set_container(&self, container: Arc<Inner<H>>) -> Result<Reply, Refusal> {
        let Members { shared, number, devices, place, .. } = &*self.0;
        // One of another dispatcher, which has groups of its own.
        if !Arc::ptr_eq(shared, &container.shared) {
            return Err(Refusal::NoHandle);
        }
        {
            let mut place = place.lock();
            if !matches!(*place, Place::Nowhere) {
                return Err(Refusal::ContainerSet);
            }
            *place = Place::Moving;
        }
        let joined =
            container.join(*number, devices.iter().map(|device| device.requester).collect());
        *place.lock() = match &joined {
            Ok(()) => Place::In(container),
            Err(_) => Place::Nowhere,
        };
        joined.map(|()| Reply::default())
    }

    fn unset_container(&self) -> Result<Reply, Refusal> {
        let container = {
            let mut place = self.0.place.lock();
            let container = place.container()?.clone();
            if self.0.open.load(Ordering::Acquire) > 0 {
                return Err(Refusal::InUse);
            }
            *place = Place::Moving;
            container
        };
        container.leave(self.0.number);
        *self.0.place.lock() = Place::Nowhere;
        Ok(Reply::default())
    }

    fn get_device(&self, argument: &[u8]) -> Result<Reply, Refusal> {
        // A string, which ends with a zero.
        let name =
            argument.split(|&byte| byte == 0).next().filter(|name| name.len() < argument.len());
        let truncated =
            crate::ArgumentError::Truncated { given: argument.len(), claimed: argument.len() + 1 };
        let name = name.ok_or(truncated)?;
        // Held, so that the container is not unset meanwhile.
        let place = self.0.place.lock();
        let container = place.container()?;
        let mut devices = self.0.devices.iter();
        let device = devices.find(|device| device.name.as_bytes() == name);
        let requester = device.ok_or(Refusal::NoSuchName)?.requester;
        let open = container.open(requester)?;
        let file = Arc::new(Device::new(self.0.clone(), container.clone(), open));
        Ok(Reply { file: Some(file), ..Reply::default() })
    }
}

impl<H: Host> Members<H> {
    pub(super) fn shared(&self) -> &Shared<H> {
        &self.shared
    }
}

impl<H: Host + 'static> File for Group<H> {
    fn ioctl(
        &self,
        number: u32,
        argument: &mut [u8],
        handle: Option<Handle>,
    ) -> Result<Reply, Errno> {
        self.call(number, argument, handle).map_err(|refusal| refusal.errno())
    }
}
