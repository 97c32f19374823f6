//! What is known of texts that were read, for those that begin alike: a tree of blocks of tokens.
//!
//! A block is found by its tokens and by the block before it, which stands for all tokens before. Both
//! are compared themselves, never by a hash alone: what another text has read is of use only to the
//! same text.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// The place of a block in the tree. None has one that another had before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place(u64);

impl Place {
    /// Before the first token.
    pub(super) const START: Self = Self(0);
}

/// Blocks that were read, each behind the one before it.
#[derive(Debug)]
pub(super) struct Prefixes<B> {
    nodes: HashMap<Place, Node<B>>,
    places: HashMap<(Place, Box<[u32]>), Place>,
    /// Places that were given so far, and how often blocks were looked at.
    n_places: u64,
    n_looks: u64,
}

#[derive(Debug)]
struct Node<B> {
    block: B,
    before: Place,
    tokens: Box<[u32]>,
    n_behind: usize,
    /// The number of the last look at it.
    seen: u64,
}

impl<B> Default for Prefixes<B> {
    fn default() -> Self {
        Self { nodes: HashMap::new(), places: HashMap::new(), n_places: 0, n_looks: 0 }
    }
}

impl<B> Prefixes<B> {
    /// The block that has these tokens behind that place.
    pub(super) fn next(&mut self, before: Place, tokens: &[u32]) -> Option<(Place, &B)> {
        let place = *self.places.get(&(before, tokens.into()))?;
        self.n_looks += 1;
        let node = self.nodes.get_mut(&place)?;
        node.seen = self.n_looks;
        Some((place, &node.block))
    }

    /// Puts a block behind that place, where there is none yet that has these tokens. `None` where
    /// the one before is there no more.
    pub(super) fn put(&mut self, before: Place, tokens: &[u32], block: B) -> Option<Place> {
        if before != Place::START {
            self.nodes.get_mut(&before)?.n_behind += 1;
        }
        self.n_places += 1;
        self.n_looks += 1;
        let (place, tokens) = (Place(self.n_places), Box::<[u32]>::from(tokens));
        self.places.insert((before, tokens.clone()), place);
        self.nodes.insert(place, Node { block, before, tokens, n_behind: 0, seen: self.n_looks });
        Some(place)
    }

    /// Forgets those that were not looked at for longest, so that at most so many are left that nobody
    /// else has. Whoever has a block has all before it as well.
    pub(super) fn shrink(&mut self, most: usize, has_another: impl Fn(&B) -> bool) {
        // Most of the time there is room, and nothing to count.
        if self.nodes.len() <= most {
            return;
        }
        let is_idle = |node: &Node<B>| !has_another(&node.block);
        let n_idle = self.nodes.values().filter(|node| is_idle(node)).count();
        // The last of a text goes first: what is behind one that is gone is found no more.
        let ends = self.nodes.iter().filter(|(_, node)| node.n_behind == 0 && is_idle(node));
        let mut ends: BinaryHeap<_> =
            ends.map(|(place, node)| Reverse((node.seen, *place))).collect();
        for _ in most..n_idle {
            let Some(Reverse((_, place))) = ends.pop() else { break };
            let Some(before) = self.remove(place) else { continue };
            if let Some(node) = self.nodes.get(&before).filter(|node| node.n_behind == 0)
                && is_idle(node)
            {
                ends.push(Reverse((node.seen, before)));
            }
        }
    }

    /// Forgets a text up to this place, its first block too: so nothing that is behind any of them is
    /// found from the beginning.
    pub(super) fn forget_text(&mut self, mut place: Place) {
        while let Some(before) = self.remove(place) {
            place = before;
        }
    }

    /// Takes one out, and says which was before it.
    fn remove(&mut self, place: Place) -> Option<Place> {
        let Node { before, tokens, .. } = self.nodes.remove(&place)?;
        self.places.remove(&(before, tokens));
        if let Some(node) = self.nodes.get_mut(&before) {
            node.n_behind -= 1;
        }
        Some(before)
    }

    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        self.nodes.clear();
        self.places.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;

    fn has_another<T>(block: &Rc<T>) -> bool {
        Rc::strong_count(block) > 1
    }

    /// Puts in a text of blocks of one token, as far as it is new, and says what it holds.
    fn read(prefixes: &mut Prefixes<Rc<Vec<u32>>>, text: &[u32]) -> Vec<Rc<Vec<u32>>> {
        let mut place = Place::START;
        let mut held = Vec::new();
        for n in 1..=text.len() {
            let block = &text[n - 1..n];
            if let Some((next, found)) = prefixes.next(place, block) {
                held.push(Rc::clone(found));
                place = next;
                continue;
            }
            held.push(Rc::new(text[..n].to_vec()));
            place = prefixes.put(place, block, Rc::clone(&held[n - 1])).expect("it is held");
        }
        held
    }

    #[test]
    fn what_was_not_looked_at_for_longest_goes_first_from_its_end_on() {
        let mut prefixes = Prefixes::default();
        drop(read(&mut prefixes, &[1, 2, 3]));
        drop(read(&mut prefixes, &[1, 4]));
        let held = read(&mut prefixes, &[5, 6]);
        drop(read(&mut prefixes, &[1, 2]));
        let known = |prefixes: &Prefixes<_>, text: &[u32]| {
            let mut place = Place::START;
            let found = text.iter().take_while(|token| {
                let next = prefixes.places.get(&(place, Box::from([**token])));
                next.is_some_and(|next| {
                    place = *next;
                    true
                })
            });
            found.count()
        };
        prefixes.shrink(3, has_another);
        let texts: [&[u32]; 3] = [&[1, 2, 3], &[1, 4], &[5, 6]];
        assert_eq!(texts.map(|text| known(&prefixes, text)), [2, 2, 2]);
        prefixes.shrink(2, has_another);
        assert_eq!(texts.map(|text| known(&prefixes, text)), [2, 1, 2]);
        prefixes.shrink(0, has_another);
        assert_eq!(texts.map(|text| known(&prefixes, text)), [0, 0, 2]);
        drop(held);
        prefixes.shrink(0, has_another);
        assert!(prefixes.nodes.is_empty() && prefixes.places.is_empty());
    }

    #[test]
    fn nothing_is_put_behind_what_is_gone() {
        let mut prefixes = Prefixes::default();
        let place = prefixes.put(Place::START, &[1], Rc::new(())).unwrap();
        prefixes.shrink(0, has_another);
        assert_eq!(prefixes.put(place, &[2], Rc::new(())), None);
        let again = prefixes.put(Place::START, &[1], Rc::new(())).unwrap();
        assert_ne!(again, place);
        prefixes.clear();
        assert_eq!(prefixes.put(again, &[2], Rc::new(())), None);
    }

    #[test]
    fn a_text_that_is_forgotten_is_found_no_more_nor_is_what_began_alike() {
        let mut prefixes = Prefixes::default();
        let other = read(&mut prefixes, &[1, 2, 3]);
        drop(read(&mut prefixes, &[5, 6]));
        let mut place = Place::START;
        for token in [1, 2] {
            place = prefixes.next(place, &[token]).unwrap().0;
        }
        prefixes.forget_text(place);
        assert!(prefixes.next(Place::START, &[1]).is_none());
        assert_eq!(prefixes.put(place, &[4], Rc::default()), None);
        // What stood behind it takes no memory once nobody has it.
        drop(other);
        prefixes.shrink(2, has_another);
        assert_eq!(prefixes.nodes.len(), 2);
        assert!(prefixes.next(Place::START, &[5]).is_some());
        let again = read(&mut prefixes, &[1, 2, 3]);
        assert_eq!(*again[2], [1, 2, 3]);
    }

    proptest! {
        #[test]
        fn a_text_finds_what_was_read_of_it_and_no_more_is_left_than_there_is_room_for(
            texts in prop::collection::vec((prop::collection::vec(0u32..3, 0..6), 0usize..3, 0usize..12), 0..20),
        ) {
            let mut prefixes = Prefixes::default();
            let mut held = Vec::new();
            for (text, n_dropped, most) in texts {
                let blocks = read(&mut prefixes, &text);
                for (n, block) in blocks.iter().enumerate() {
                    prop_assert_eq!(&block[..], &text[..=n]);
                }
                held.push(blocks);
                held.drain(..n_dropped.min(held.len()));
                prefixes.shrink(most, has_another);
                let n_idle = prefixes.nodes.values().filter(|node| !has_another(&node.block)).count();
                prop_assert!(n_idle <= most);
                // Whoever is there is found, and all that is held is there.
                prop_assert_eq!(prefixes.places.len(), prefixes.nodes.len());
                for node in prefixes.nodes.values() {
                    prop_assert!(node.before == Place::START || prefixes.nodes.contains_key(&node.before));
                }
                for blocks in held.clone() {
                    let text = blocks.last().map_or(&[][..], |block| &block[..]);
                    for (block, found) in blocks.iter().zip(read(&mut prefixes, text)) {
                        prop_assert!(Rc::ptr_eq(block, &found));
                    }
                }
            }
        }
    }
}
