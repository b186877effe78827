//! Against a client that others wrote: the crate `vfio_user`, as Cloud Hypervisor uses it.

mod common;

use std::os::fd::AsRawFd;

use common::*;
use rustix::fs::{memfd_create, MemfdFlags};
use vfio_user::{Disconnect, UnmapRange};
use vfio_user_client::Client;

/// `VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER`
const BIND: u32 = 4 | 32;
const CONFIG: u32 = 7;
const MSIX: u32 = 2;

#[test]
fn an_independent_client_is_served() {
    let rig = Rig::new();
    let mut client = Client::new(rig.server.path()).unwrap();

    let bar = client.region(0).unwrap();
    assert_eq!((bar.size, bar.flags), (BAR0_SIZE, 3));
    assert!(bar.file_offset.is_none() && bar.sparse_areas.is_empty());
    assert_eq!(client.region(CONFIG).unwrap().size, 4096);
    assert!(client.region(8).is_some() && client.region(9).is_none());

    let mut ids = [0; 4];
    client.region_read(CONFIG, 0, &mut ids).unwrap();
    assert_eq!(ids, [0x36, 0x1b, 0xfe, 0x00]);
    client.region_write(0, 0x40, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    let mut data = [0; 8];
    client.region_read(0, 0x40, &mut data).unwrap();
    assert_eq!(data, [1, 2, 3, 4, 5, 6, 7, 8]);

    let file = memfd_create("ram", MemfdFlags::CLOEXEC).unwrap();
    client.dma_map(0x1000, 0x8000_0000, 0x20_0000, file.as_raw_fd()).unwrap();
    client.dma_unmap(0x8000_0000, 0x20_0000).unwrap();
    {
        let log = rig.platform.log.lock().unwrap();
        let [map] = &log.maps[..] else { panic!("{:?}", log.maps) };
        assert!(map.fd.is_some() && map.offset == 0x1000 && map.readable && map.writable);
        assert_eq!(log.unmaps, [UnmapRange::Range(map.range)]);
    }

    let irqs = client.get_irq_info(MSIX).unwrap();
    assert_eq!((irqs.count, irqs.flags & 1), (u32::from(VECTORS), 1));
    let events = [event(), event()];
    client.set_irqs(MSIX, BIND, 7, 2, &events.each_ref().map(AsRawFd::as_raw_fd)).unwrap();
    client.region_write(0, DOORBELL, &[8]).unwrap();
    assert_eq!(events.each_ref().map(signals), [0, 1]);

    client.reset().unwrap();
    client.region_read(0, 0x40, &mut data).unwrap();
    assert_eq!(data, [0; 8]);

    client.shutdown().unwrap();
    assert_eq!(rig.platform.end(1), Disconnect::ClosedByClient);
    let counters = rig.server.counters();
    assert_eq!((counters.all_errors(), counters.failed_requests), (0, 0));
    assert_eq!((counters.dma_maps, counters.dma_unmaps, counters.resets), (1, 1, 1));
}
