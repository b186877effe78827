use mem::{Gpa, Iova};

use super::*;
use crate::{DomainId, Pasid};

fn scope(domain: u16) -> Invalidation {
    Invalidation::IotlbDomain(DomainId(domain))
}

#[test]
fn too_many_scopes_become_everything() {
    let mut batch = Batch::default();
    for domain in 0..PENDING_LIMIT as u16 {
        batch.forget(scope(domain));
    }
    assert_eq!((batch.scopes.len(), batch.everything), (PENDING_LIMIT, false));
    batch.forget(scope(1000));
    assert!(batch.scopes.is_empty() && batch.everything);
    batch.forget(scope(1001));
    assert!(batch.scopes.is_empty(), "nothing is collected any more");
    assert!(batch.scopes.capacity() <= 2 * PENDING_LIMIT);
}

#[test]
fn the_same_scope_twice_in_a_row_is_one() {
    let mut batch = Batch::default();
    batch.forget(scope(1));
    batch.forget(scope(1));
    assert_eq!(batch.scopes.len(), 1);
}

fn state() -> ChannelState {
    let memory = MemoryMap::anonymous(&[(Gpa(0), 4096)]).unwrap();
    ChannelState::new(RequesterId::from_bits(8), Some(memory), None, None, None, Arc::default())
}

fn fill(state: &mut ChannelState) {
    use crate::cache::{Allowed, Cached, Kind, Tag};
    let tag = Tag::of_pasid(DomainId(1), Pasid::new(1).unwrap(), true);
    let cached = Cached {
        base: crate::stage_two::Output(0),
        size_bits: 12,
        scope_bits: 12,
        kind: Kind::StageOne,
        allowed: Allowed::default(),
    };
    state.caches.get_mut().iotlb.insert(tag, Iova(0), cached);
}

#[test]
fn everything_empties_all_caches() {
    let mut state = state();
    fill(&mut state);
    let mut batch = Batch { everything: true, ..Batch::default() };
    drop(state.apply(&mut batch));
    assert_eq!(state.caches.get_mut().iotlb.len(), 0);
    assert!(!batch.everything, "the batch is empty again");
}

#[test]
fn a_detached_channel_keeps_nothing_and_adopts_nothing() {
    let mut state = state();
    fill(&mut state);
    let backing = Arc::downgrade(&state.memory().unwrap().segments()[0].backing);
    let mut batch = Batch::default();
    batch.detach();
    let leftover = state.apply(&mut batch);
    assert!(state.memory().is_none());
    assert!(backing.upgrade().is_some(), "freed when the leftover is");
    drop(leftover);
    assert!(backing.upgrade().is_none());
    batch.adopt_memory(MemoryMap::anonymous(&[(Gpa(0), 4096)]).unwrap());
    drop(state.apply(&mut batch));
    assert!(state.memory().is_none());
}
