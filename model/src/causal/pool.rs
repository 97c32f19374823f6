//! Where keys and values lie on a device that burn runs: one table a layer, in which the sequences have
//! blocks of rows.

use std::cell::RefCell;
use std::rc::Rc;

use burn::tensor::{DType, Device, IndexingUpdateOp, Int, Tensor};

/// Tokens of a block: what a sequence takes too much, and the steps in which lengths grow.
pub(super) const BLOCK: usize = 32;

/// The tables of all layers. They grow as blocks are asked for and do not shrink.
#[derive(Debug)]
pub(super) struct Pool {
    device: Device,
    dtype: DType,
    /// Of a row: all keys of a token, then all its values.
    width: usize,
    /// Taken out while it is written, so that it is written in place.
    tables: Vec<Option<Tensor<2>>>,
    n_blocks: usize,
    /// Blocks that it should not grow beyond by itself.
    most_blocks: usize,
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
    pub(super) fn new(device: Device, dtype: DType, width: usize, n_layers: usize) -> Self {
        let tables = vec![None; n_layers];
        let free = Free::default();
        Self { device, dtype, width, tables, n_blocks: 0, most_blocks: usize::MAX, free }
    }

    /// Bytes of so many tokens in all layers.
    pub(super) fn bytes(&self, n_tokens: usize) -> u64 {
        bytes(n_tokens, self.width, self.dtype, self.tables.len())
    }

    /// How much will be asked for at most, as far as is known.
    pub(super) fn bound(&mut self, bytes: u64) {
        let most = usize::try_from(bytes / self.bytes(BLOCK).max(1));
        self.most_blocks = most.unwrap_or(usize::MAX);
    }

    pub(super) fn cache(&self) -> Cache {
        Cache { blocks: Vec::new(), n_read: 0, free: Rc::clone(&self.free) }
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

    /// By half of what is there, or by what is missing: the copies are few.
    fn grow(&mut self, n_missing: usize) {
        let n_more = (self.n_blocks / 2).min(self.most_blocks.saturating_sub(self.n_blocks));
        let n_more = n_more.max(n_missing);
        for table in &mut self.tables {
            let shape = [n_more * BLOCK, self.width];
            let more = Tensor::zeros(shape, (&self.device, self.dtype));
            *table = Some(match table.take() {
                Some(table) => Tensor::cat(vec![table, more], 0),
                None => more,
            });
        }
        self.free.borrow_mut().extend(self.n_blocks..self.n_blocks + n_more);
        self.n_blocks += n_more;
    }

    /// Writes rows of a layer.
    pub(super) fn write(&mut self, layer: usize, at: Tensor<1, Int>, rows: Tensor<2>) {
        // An error may have lost it; what was in it is of no use then.
        let lost = || {
            let shape = [self.n_blocks * BLOCK, self.width];
            Tensor::zeros(shape, (&self.device, self.dtype))
        };
        let table = self.tables[layer].take().unwrap_or_else(lost);
        self.tables[layer] = Some(table.select_assign(0, at, rows, IndexingUpdateOp::Assign));
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

    fn pool() -> Pool {
        Pool::new(Device::flex(), DType::F32, 2, 3)
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
    fn growing_keeps_what_was_written() {
        let mut pool = pool();
        let mut cache = pool.cache();
        pool.reserve(&mut cache, 1);
        let row = Tensor::<2>::from_data([[3.0, 4.0]], &pool.device);
        let place = TensorData::new(vec![cache.row(0)], [1]);
        let place = Tensor::<1, Int>::from_data(place, (&pool.device, DType::I32));
        pool.write(1, place.clone(), row);
        pool.reserve(&mut cache, 5 * BLOCK);
        let found = pool.read(1, place).into_data().try_into_vec::<f32>().unwrap();
        assert_eq!(found, [3.0, 4.0]);
    }

    #[test]
    fn bytes_are_those_of_the_blocks_in_all_layers() {
        let mut pool = pool();
        let of_block = (BLOCK * 2 * 4 * 3) as u64;
        assert_eq!([0, 1, BLOCK, BLOCK + 1].map(|n| pool.bytes(n) / of_block), [0, 1, 1, 2]);
        pool.bound(5 * of_block);
        let mut cache = pool.cache();
        pool.reserve(&mut cache, 4 * BLOCK);
        pool.reserve(&mut cache, 5 * BLOCK);
        assert_eq!(pool.n_blocks, 5);
    }
}
