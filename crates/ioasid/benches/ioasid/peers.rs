//! The peers' pairs.

use std::hint::black_box;

use crate::measure::{in_turn, Effort, Random, Round};

/// Nanoseconds of each peer, by name.
pub(crate) struct Pairs {
    pub(crate) hot: Vec<(&'static str, f64)>,
    pub(crate) random: Vec<(&'static str, f64)>,
}

/// What a peer does: put one in, and take it out by its key.
trait Peer {
    fn put(&self, data: u64) -> usize;
    fn remove(&self, key: usize);
}

impl Peer for sharded_slab::Slab<u64> {
    fn put(&self, data: u64) -> usize {
        self.insert(data).expect("the slab has room")
    }
    fn remove(&self, key: usize) {
        sharded_slab::Slab::remove(self, key);
    }
}

impl Peer for parking_lot::RwLock<slab::Slab<u64>> {
    fn put(&self, data: u64) -> usize {
        self.write().insert(data)
    }
    fn remove(&self, key: usize) {
        self.write().remove(key);
    }
}

fn hot(peer: &dyn Peer) -> Round<'_> {
    Box::new(move |ops| {
        for op in 0..ops {
            peer.remove(black_box(peer.put(op)));
        }
        ops
    })
}

fn random(peer: &dyn Peer, mut keys: Vec<usize>) -> Round<'_> {
    let mut random = Random::new(3);
    Box::new(move |ops| {
        for op in 0..ops {
            let at = random.below(keys.len());
            let key = &mut keys[at];
            peer.remove(*key);
            *key = peer.put(op);
        }
        ops
    })
}

/// Pairs of the peers that give out numbers themselves, with `live` of them out.
pub(crate) fn pairs(live: usize, effort: Effort) -> Pairs {
    let peers: [(&str, Box<dyn Peer>); 2] = [
        ("sharded-slab", Box::new(sharded_slab::Slab::new())),
        ("RwLock<slab>", Box::new(parking_lot::RwLock::new(slab::Slab::new()))),
    ];
    let mut pairs = Pairs { hot: Vec::new(), random: Vec::new() };
    for (name, peer) in &peers {
        let keys = (0..live as u64).map(|data| peer.put(data)).collect();
        pairs.hot.push((name, in_turn(effort, &mut [hot(&**peer)])[0]));
        pairs.random.push((name, in_turn(effort, &mut [random(&**peer, keys)])[0]));
    }
    pairs
}
