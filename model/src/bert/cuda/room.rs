//! Memory that is used again by the next forward.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DriverError, PinnedHostSlice};

use super::driver;

/// Buffers end at a multiple of this many rows, as the largest tiles do.
const ROWS: usize = 128;
/// Runs that are under way at once, so that the card works while the host reads and writes.
pub(super) const UNDER_WAY: usize = 4;

/// What is used again by the next forward.
#[derive(Debug, Default)]
pub(super) struct Room {
    pub(super) buffers: Option<Buffers>,
    /// One for each run under way.
    pub(super) staged: [Option<Staged>; UNDER_WAY],
}

/// Memory of the card for a run; runs follow each other on one stream, so they share it.
#[derive(Debug)]
pub(super) struct Buffers {
    /// Tokens that they are for.
    tokens: usize,
    pub(super) x: CudaSlice<u8>,
    pub(super) y: CudaSlice<u8>,
    pub(super) qkv: CudaSlice<u8>,
    pub(super) context: CudaSlice<u8>,
    pub(super) inner: CudaSlice<u8>,
    pub(super) table: CudaSlice<i32>,
    pub(super) out: CudaSlice<f32>,
}

/// Memory of the host that the card copies from and to.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) table: PinnedHostSlice<i32>,
    pub(super) out: PinnedHostSlice<f32>,
}

/// Numbers of a token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Widths {
    pub(super) width: usize,
    /// Between the two wide products.
    pub(super) inner: usize,
}

impl Buffers {
    /// Buffers for so many tokens, numbers in tables and numbers that come out; those that are there
    /// if they are large enough.
    pub(super) fn fit<'a>(
        there: &'a mut Option<Self>,
        stream: &Arc<CudaStream>,
        Widths { width, inner }: Widths,
        [mut tokens, mut ints, mut numbers]: [usize; 3],
    ) -> Result<&'a mut Self, DriverError> {
        let is_small =
            |it: &mut Self| it.tokens < tokens || it.table.len() < ints || it.out.len() < numbers;
        if let Some(old) = there.take_if(is_small) {
            tokens = tokens.max(old.tokens);
            (ints, numbers) = (ints.max(old.table.len()), numbers.max(old.out.len()));
        }
        if let Some(there) = there {
            return Ok(there);
        }
        // Not for every size a new one.
        let tokens = tokens.next_power_of_two().max(ROWS);
        let halves = |columns: usize| stream.alloc_zeros::<u8>(2 * tokens * columns);
        Ok(there.insert(Self {
            tokens,
            x: halves(width)?,
            y: halves(width)?,
            qkv: halves(3 * width)?,
            context: halves(width)?,
            inner: halves(inner)?,
            table: stream.alloc_zeros(ints.next_power_of_two())?,
            out: stream.alloc_zeros(numbers.next_power_of_two())?,
        }))
    }
}

impl Staged {
    /// The same of the host. Nothing is under way in what is there.
    pub(super) fn fit<'a>(
        there: &'a mut Option<Self>,
        context: &Arc<CudaContext>,
        [mut ints, mut numbers]: [usize; 2],
    ) -> Result<&'a mut Self, DriverError> {
        let is_small = |it: &mut Self| it.table.len() < ints || it.out.len() < numbers;
        if let Some(old) = there.take_if(is_small) {
            (ints, numbers) = (ints.max(old.table.len()), numbers.max(old.out.len()));
        }
        if let Some(there) = there {
            return Ok(there);
        }
        Ok(there.insert(Self {
            table: driver::pinned(context, ints.next_power_of_two())?,
            out: driver::pinned(context, numbers.next_power_of_two())?,
        }))
    }
}
