//! Where keys and values lie on a device that burn runs: one table a layer, in which the sequences have
//! blocks of rows.

use std::cell::RefCell;
use std::rc::Rc;

use burn::tensor::{DType, Device, IndexingUpdateOp, Int, Tensor};

/// Tokens of a block: what a sequence takes too much, and the steps in which lengths grow.
pub(super) const BLOCK: usize = 32;

/// The block that no sequence has: what only fills a shape is written there and read from there.
const NOBODYS: usize = 0;

/// How tables are made and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tables {
    /// As large as they will be at once, and each number is written by a thread of its own. For a GPU,
    /// whose memory should be taken before jobs come, and without the copies that growing makes.
    Whole,
    /// As they are needed, row by row. For a processor, on which burn copies the table otherwise.
    Growing,
}

/// The tables of all layers, a row for each token. They do not shrink.
///
/// They take `(bound / bytes of a block + 1) * bytes of a block`, where a block's bytes are [`BLOCK`]
/// times the width of a row, the bytes of a number and the layers: all of what sequences may have, and
/// [`NOBODYS`].
#[derive(Debug)]
pub(super) struct Pool {
    device: Device,
    dtype: DType,
    /// Of a row: all keys of a token, then all its values.
    width: usize,
    kind: Tables,
    /// Taken out while it is written, so that it is written in place.
    tables: Vec<Option<Tensor<2>>>,
    n_blocks: usize,
    /// Blocks of sequences that it should not grow beyond by itself.
    most_blocks: Option<usize>,
    free: Free,
}

/// Blocks that nobody has.
type Free = Rc<RefCell<Vec<usize>>>;

/// The blocks of a sequence.
#[derive(Debug)]
pub(crate) struct Cache {
    blocks: Vec<usize>,
    pub(super) n_read: usize,
    free: Free,
}

impl Pool {
    pub(super) fn new(
        device: Device,
        dtype: DType,
        width: usize,
        n_layers: usize,
        kind: Tables,
    ) -> Self {
        let tables = vec![None; n_layers];
        let free = Free::default();
        Self { device, dtype, width, kind, tables, n_blocks: 0, most_blocks: None, free }
    }

    /// Bytes of so many tokens in all layers.
    pub(super) fn bytes(&self, n_tokens: usize) -> u64 {
        bytes(n_tokens, self.width, self.dtype, self.tables.len())
    }

    /// How much will be asked for at most, as far as is known.
    pub(super) fn bound(&mut self, bytes: u64) {
        self.most_blocks = usize::try_from(bytes / self.bytes(BLOCK).max(1)).ok();
    }

    pub(super) fn cache(&self) -> Cache {
        Cache { blocks: Vec::new(), n_read: 0, free: Rc::clone(&self.free) }
    }

    /// A cache of nobody's that has read so many tokens, with room for more: what is read of them is of
    /// no use, and it takes no room of others. For a pass that is run for its shape.
    pub(super) fn hollow(&mut self, n_read: usize, n_more: usize) -> Cache {
        if self.n_blocks == 0 {
            self.grow(0);
        }
        let blocks = vec![NOBODYS; (n_read + n_more).div_ceil(BLOCK)];
        // They go back to nobody.
        Cache { blocks, n_read, free: Free::default() }
    }

    /// Gives a cache room for so many tokens in all.
    pub(super) fn reserve(&mut self, cache: &mut Cache, n_tokens: usize) {
        let n_more = n_tokens.div_ceil(BLOCK).saturating_sub(cache.blocks.len());
        let n_missing = n_more.saturating_sub(self.free.borrow().len());
        if n_missing > 0 {
            self.grow(n_missing);
        }
        let mut free = self.free.borrow_mut();
        let rest = free.len() - n_more;
        cache.blocks.extend(free.drain(rest..));
    }

    /// To all that will be asked for; or by half of what is there, so that the copies are few, and not
    /// beyond that; or by what is missing where that is more.
    fn grow(&mut self, n_missing: usize) {
        // Nobody's comes first.
        let n_first = usize::from(self.n_blocks == 0);
        let n_had = self.n_blocks.saturating_sub(1);
        let left = self.most_blocks.map(|most| most.saturating_sub(n_had));
        let n_more = match (self.kind, left) {
            (Tables::Whole, Some(left)) => left,
            _ => (self.n_blocks / 2).min(left.unwrap_or(usize::MAX)),
        };
        let n_more = n_more.max(n_missing) + n_first;
        for table in &mut self.tables {
            let zeros = |n_blocks: usize| {
                Tensor::zeros([n_blocks * BLOCK, self.width], (&self.device, self.dtype))
            };
            *table = Some(match table.take() {
                Some(table) => Tensor::cat(vec![table, zeros(n_more)], 0),
                None => zeros(self.n_blocks + n_more),
            });
        }
        self.free.borrow_mut().extend(self.n_blocks + n_first..self.n_blocks + n_more);
        self.n_blocks += n_more;
    }

    /// Begins anew without any table: after an error some may be lost or of another size. Caches from
    /// before are of no more use, and give their blocks back to nobody.
    pub(super) fn reset(&mut self) {
        self.tables.fill(None);
        self.n_blocks = 0;
        self.free = Free::default();
    }

    /// Writes rows of a layer, in place: only this holds the table, also while operations are recorded
    /// before they run, and burn's kernels write into a tensor that nobody else holds.
    ///
    /// `select_assign` has a thread for each column, which goes through the rows one after the other;
    /// `scatter_nd` has one for each number, but copies the table on the processor (burn 0.22.1). Rows
    /// of [`NOBODYS`] may be written more than once, in any order.
    pub(super) fn write(&mut self, layer: usize, at: Tensor<1, Int>, rows: Tensor<2>) {
        // An error may have lost it; what was in it is of no use then.
        let lost = || {
            let shape = [self.n_blocks * BLOCK, self.width];
            Tensor::zeros(shape, (&self.device, self.dtype))
        };
        let table = self.tables[layer].take().unwrap_or_else(lost);
        let update = IndexingUpdateOp::Assign;
        self.tables[layer] = Some(match self.kind {
            Tables::Whole => table.scatter_nd(at.reshape([-1, 1]), rows, update),
            Tables::Growing => table.select_assign(0, at, rows, update),
        });
    }

    /// Reads rows of a layer that were written.
    pub(super) fn read(&self, layer: usize, at: Tensor<1, Int>) -> Tensor<2> {
        let table = self.tables[layer].as_ref().expect("it was written in this very pass");
        table.clone().select(0, at)
    }
}

/// Bytes of so many tokens in all layers, each in a row of this width and type.
pub(super) fn bytes(n_tokens: usize, width: usize, dtype: DType, n_layers: usize) -> u64 {
    let numbers = n_tokens.next_multiple_of(BLOCK) as u64 * width as u64;
    numbers * dtype.size() as u64 * n_layers as u64
}

impl Cache {
    /// The row of the tables in which a token lies.
    pub(super) fn row(&self, place: usize) -> i32 {
        (self.blocks[place / BLOCK] * BLOCK + place % BLOCK) as i32
    }

    /// The blocks of the first so many tokens, and then the first of them, up to so many in all.
    pub(super) fn blocks(&self, n_tokens: usize, n_blocks: usize) -> impl Iterator<Item = i32> {
        let own = &self.blocks[..n_tokens.div_ceil(BLOCK)];
        let fill = std::iter::repeat(self.blocks[0]);
        own.iter().copied().chain(fill).take(n_blocks).map(|block| block as i32)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.free.borrow_mut().append(&mut self.blocks);
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;

    fn of(kind: Tables) -> Pool {
        Pool::new(Device::flex(), DType::F32, 2, 3, kind)
    }

    fn pool() -> Pool {
        of(Tables::Growing)
    }

    fn indices(rows: &[i32]) -> Tensor<1, Int> {
        let rows = TensorData::new(rows.to_vec(), [rows.len()]);
        Tensor::from_data(rows, (&Device::flex(), DType::I32))
    }

    #[test]
    fn no_two_caches_share_a_row_and_dropped_ones_are_used_again() {
        let mut pool = pool();
        let mut caches: Vec<Cache> = (0..4).map(|_| pool.cache()).collect();
        for n_tokens in [1, 32, 33, 70] {
            for cache in &mut caches {
                pool.reserve(cache, n_tokens);
            }
            let rows = caches.iter().flat_map(|cache| (0..n_tokens).map(|n| cache.row(n)));
            let mut rows: Vec<i32> = rows.collect();
            rows.sort_unstable();
            rows.dedup();
            assert_eq!(rows.len(), 4 * n_tokens);
        }
        let n_blocks = pool.n_blocks;
        caches.truncate(2);
        let mut next = pool.cache();
        pool.reserve(&mut next, 6 * BLOCK);
        assert_eq!(pool.n_blocks, n_blocks);
    }

    #[test]
    fn what_was_written_is_kept_whatever_else_is_written_and_however_tables_grow() {
        for kind in [Tables::Growing, Tables::Whole] {
            let mut pool = of(kind);
            let mut cache = pool.cache();
            pool.reserve(&mut cache, 1);
            let place = indices(&[cache.row(0)]);
            pool.write(1, place.clone(), Tensor::from_data([[3.0, 4.0]], &pool.device));
            pool.reserve(&mut cache, 5 * BLOCK);
            let two = indices(&[cache.row(40), 0, 0]);
            let rows = Tensor::from_data([[5.0, 6.0], [7.0, 8.0], [9.0, 9.0]], &pool.device);
            pool.write(1, two, rows);
            let both = indices(&[cache.row(0), cache.row(40)]);
            let found = pool.read(1, both).into_data().try_into_vec::<f32>().unwrap();
            assert_eq!(found, [3.0, 4.0, 5.0, 6.0], "{kind:?}");
        }
    }

    #[test]
    fn nobodys_block_is_in_no_cache_but_hollow_ones() {
        let mut pool = pool();
        let hollow = pool.hollow(40, 30);
        assert_eq!((hollow.n_read, hollow.row(39)), (40, 7));
        drop(hollow);
        let mut cache = pool.cache();
        pool.reserve(&mut cache, 9 * BLOCK);
        assert!(!cache.blocks.contains(&NOBODYS));
        let blocks: Vec<i32> = cache.blocks(2 * BLOCK + 1, 5).collect();
        let own: Vec<i32> = cache.blocks.iter().map(|block| *block as i32).collect();
        assert_eq!(blocks, [own[0], own[1], own[2], own[0], own[0]]);
    }

    #[test]
    fn after_an_error_tables_are_made_anew_and_old_caches_give_nothing_back() {
        let mut pool = pool();
        let mut old = pool.cache();
        pool.reserve(&mut old, 3 * BLOCK);
        pool.tables[1] = None;
        // One that is lost is made as large as the others.
        pool.reserve(&mut old, 6 * BLOCK);
        let heights = pool.tables.iter().map(|table| table.as_ref().unwrap().dims()[0]);
        assert_eq!(heights.collect::<Vec<_>>(), [pool.n_blocks * BLOCK; 3]);
        pool.tables[1] = None;
        pool.reset();
        let mut cache = pool.cache();
        pool.reserve(&mut cache, 2 * BLOCK);
        drop(old);
        let mut next = pool.cache();
        pool.reserve(&mut next, 2 * BLOCK);
        let rows = |cache: &Cache| cache.blocks.clone();
        assert_eq!(pool.n_blocks, 5);
        assert!(rows(&cache).iter().all(|block| !rows(&next).contains(block)));
        assert!(pool.tables.iter().all(|table| table.as_ref().unwrap().dims()[0] == 5 * BLOCK));
    }

    #[test]
    fn tables_take_what_they_are_bound_to_and_a_block_more() {
        let of_block = (BLOCK * 2 * 4 * 3) as u64;
        let is = |n| pool().bytes(n) / of_block;
        assert_eq!([0, 1, BLOCK, BLOCK + 1].map(is), [0, 1, 1, 2]);
        for (kind, at_first) in [(Tables::Growing, 1), (Tables::Whole, 5)] {
            let mut pool = of(kind);
            pool.bound(5 * of_block + of_block / 2);
            let mut cache = pool.cache();
            let taken = |pool: &Pool| -> u64 {
                let tables = pool.tables.iter().flatten();
                tables.map(|table| 4 * table.shape().num_elements() as u64).sum()
            };
            for (n_blocks, expected) in [(1, at_first), (4, at_first.max(4)), (5, 5)] {
                pool.reserve(&mut cache, n_blocks * BLOCK);
                assert_eq!(taken(&pool), (expected + 1) * of_block, "{kind:?}");
            }
        }
    }
}
