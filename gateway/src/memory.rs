//! How many bytes of bodies, of pieces and of answers are held at once, over all requests and by a key.
//!
//! Where there are several keys, each may hold half of what all others leave: half of all where nobody
//! else asks, a third where two want as much as there is, and so on. So whoever comes finds room beside
//! those that are there, however much these want, and nobody has to say how many keys there will be. A
//! stream that was begun may have all there is: it was let in before others came, and is not to end for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::IntGauge;

use crate::keys::Key;

/// The room there is; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Memory(Arc<Room>);

#[derive(Debug)]
struct Room {
    n_bytes: usize,
    taken: Mutex<Taken>,
    /// Shows how many bytes are taken.
    gauge: IntGauge,
}

/// Bytes that requests hold.
#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// By the names of the keys that hold any.
    keys: HashMap<String, usize>,
}

/// Why there is no room for more bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// All requests together hold too many.
    All,
    /// Those of this key do, beside what others hold.
    Key,
    /// One request alone wants more than it would get if there were no other.
    Never,
}

/// What there is for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    /// What all hold together.
    All,
    /// The share of its key as well.
    Key,
}

/// Bytes that one request holds, until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    memory: Memory,
    key: Option<Arc<Key>>,
    n_bytes: usize,
}

impl Memory {
    /// Room for so many bytes; the gauge shows how many are taken.
    pub(crate) fn new(n_bytes: usize, gauge: IntGauge) -> Self {
        Self(Arc::new(Room { n_bytes, taken: Mutex::default(), gauge }))
    }

    /// Nothing yet, of this room, for a request with this key.
    pub(crate) fn nothing(&self, key: Option<Arc<Key>>) -> Held {
        Held { memory: self.clone(), key, n_bytes: 0 }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Counts are whole whatever their holder was doing.
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Whether there is room for so many bytes more, of so many in all, and in the share of a key.
    fn check(&self, n_more: usize, n_bytes: usize, sharing: Option<&Key>) -> Result<(), Full> {
        let free = n_bytes.saturating_sub(self.all);
        if n_more > free {
            return Err(Full::All);
        }
        let Some(key) = sharing else { return Ok(()) };
        let n_own = self.keys.get(&key.name).copied().unwrap_or(0);
        let left_by_others = free + n_own;
        if n_own + n_more > left_by_others / 2 { Err(Full::Key) } else { Ok(()) }
    }

    /// Counts so many bytes in place of so many before.
    fn replace(&mut self, before: usize, now: usize, key: Option<&Key>) {
        self.all = self.all - before + now;
        let Some(key) = key else { return };
        let n_own = self.keys.entry(key.name.clone()).or_insert(0);
        *n_own = *n_own - before + now;
        if *n_own == 0 {
            self.keys.remove(&key.name);
        }
    }
}

impl Held {
    /// Holds this many bytes in all, whether it held more before or fewer.
    ///
    /// # Errors
    /// Where there is no room for more; it holds what it held.
    pub(crate) fn hold(&mut self, n_bytes: usize, bound: Bound) -> Result<(), Full> {
        let (room, key) = (&self.memory.0, self.key.as_deref());
        let sharing = key.filter(|key| bound == Bound::Key && !key.is_alone);
        let mut taken = self.memory.taken();
        if let Some(n_more) = n_bytes.checked_sub(self.n_bytes).filter(|n_more| *n_more > 0) {
            let most = if sharing.is_some() { room.n_bytes / 2 } else { room.n_bytes };
            if n_bytes > most {
                return Err(Full::Never);
            }
            taken.check(n_more, room.n_bytes, sharing)?;
        }
        taken.replace(self.n_bytes, n_bytes, key);
        // Before others count: the last who shows something is the last who has counted.
        room.gauge.set(i64::try_from(taken.all).unwrap_or(i64::MAX));
        drop(taken);
        self.n_bytes = n_bytes;
        Ok(())
    }

    /// Holds this many bytes in all, where it holds fewer.
    ///
    /// # Errors
    /// Where there is no room for them; it holds what it held.
    pub(crate) fn grow_to(&mut self, n_bytes: usize) -> Result<(), Full> {
        self.hold(self.n_bytes.max(n_bytes), Bound::Key)
    }

    /// Holds nothing any more.
    pub(crate) fn release(&mut self) {
        self.hold(0, Bound::Key).expect("there is room for less");
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, prop_assert, proptest};

    use super::*;
    use crate::keys::Keys;

    fn memory(n_bytes: usize) -> (Memory, IntGauge) {
        let gauge = IntGauge::new("g", "g").unwrap();
        (Memory::new(n_bytes, gauge.clone()), gauge)
    }

    /// A key of this name, which is not the only one.
    fn key(name: &str) -> Option<Arc<Key>> {
        // Of the text `one`.
        let digest = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed";
        let other = "0".repeat(64);
        let text = format!("[keys.{name}]\nsha256 = \"{digest}\"\n[keys.z]\nsha256 = \"{other}\"");
        Keys::parse(&text).unwrap().find("one").cloned()
    }

    #[test]
    fn there_is_room_for_so_many_bytes_until_they_are_released() {
        let (memory, gauge) = memory(1000);
        let (mut a, mut b) = (memory.nothing(None), memory.nothing(None));
        for n_bytes in [1, 400, 300] {
            a.grow_to(n_bytes).unwrap();
        }
        b.grow_to(600).unwrap();
        assert_eq!((b.grow_to(601), a.grow_to(usize::MAX)), (Err(Full::All), Err(Full::Never)));
        assert_eq!(gauge.get(), 1000);
        a.release();
        b.grow_to(1000).unwrap();
        assert_eq!(a.grow_to(1), Err(Full::All));
        b.hold(10, Bound::Key).unwrap();
        assert_eq!(gauge.get(), 10);
        a.grow_to(990).unwrap();
        drop((a, b));
        assert_eq!(gauge.get(), 0);
    }

    #[test]
    fn a_key_holds_half_of_what_others_leave() {
        let (memory, _) = memory(1200);
        let (mut a, mut also_a) = (memory.nothing(key("a")), memory.nothing(key("a")));
        let (mut b, mut c) = (memory.nothing(key("b")), memory.nothing(key("c")));
        a.grow_to(400).unwrap();
        also_a.grow_to(200).unwrap();
        assert_eq!(also_a.grow_to(201), Err(Full::Key), "half of all");
        b.grow_to(300).unwrap();
        assert_eq!(b.grow_to(301), Err(Full::Key), "half of what a leaves");
        // What a could hold while it was alone is more than it can now.
        a.release();
        assert_eq!(also_a.grow_to(451), Err(Full::Key));
        b.grow_to(400).unwrap();
        also_a.grow_to(400).unwrap();
        c.grow_to(200).unwrap();
        assert_eq!(c.grow_to(201), Err(Full::Key));
        assert_eq!((c.grow_to(401), c.grow_to(601)), (Err(Full::All), Err(Full::Never)));
        drop((a, also_a, b, c));
        assert!(memory.taken().keys.is_empty(), "nobody is remembered who holds nothing");
    }

    #[test]
    fn a_key_without_others_leaves_nothing() {
        let digest = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed";
        let keys = Keys::parse(&format!("[keys.a]\nsha256 = \"{digest}\"")).unwrap();
        let mut only = memory(1000).0.nothing(keys.find("one").cloned());
        only.grow_to(1000).unwrap();
        assert_eq!(only.grow_to(1001), Err(Full::Never));
    }

    #[test]
    fn what_was_begun_may_have_more_than_the_share_of_its_key() {
        let (memory, _) = memory(1200);
        let (mut a, mut b) = (memory.nothing(key("a")), memory.nothing(key("b")));
        a.grow_to(600).unwrap();
        b.grow_to(300).unwrap();
        assert_eq!(a.hold(601, Bound::Key), Err(Full::Never));
        a.hold(900, Bound::All).unwrap();
        assert_eq!(a.hold(901, Bound::All), Err(Full::All));
        assert_eq!(a.hold(1201, Bound::All), Err(Full::Never));
        assert_eq!(memory.nothing(key("a")).grow_to(1), Err(Full::All));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whoever_comes_finds_room_whatever_others_want(
            wants in proptest::collection::vec((0..4_usize, 0..2_000_usize), 1..60),
        ) {
            let (memory, gauge) = memory(100_000);
            let keys = ["a", "b", "c", "d"].map(key);
            let mut held: Vec<Held> = Vec::new();
            for (nth, n_bytes) in wants {
                let mut one = memory.nothing(keys[nth].clone());
                if one.grow_to(100 * n_bytes).is_ok() {
                    held.push(one);
                }
                let total: usize = held.iter().map(|held| held.n_bytes).sum();
                prop_assert!(gauge.get() == total as i64);
                // Each of four leaves half of what it finds.
                prop_assert!(memory.nothing(key("late")).grow_to(100_000 / 32).is_ok());
            }
        }
    }
}
