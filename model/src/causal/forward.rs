//! The seam between what a generator does with logits and how they are computed.

use std::num::NonZeroUsize;

use rayon::prelude::*;

use super::sampler;
use crate::InferError;

/// The layers of a decoder on one kind of device.
pub(crate) trait Forward {
    /// The keys and values of one sequence in all layers. Dropping it gives its memory back.
    type Cache;

    /// What several caches can have in common. Dropping it gives its memory back once it is in none.
    type Block;

    /// A cache of a sequence of which nothing was read.
    fn cache(&mut self) -> Self::Cache;

    /// Bytes that a cache of so many tokens takes, never fewer for more tokens.
    fn cache_bytes(&self, n_tokens: usize) -> u64;

    /// Tokens of a block that several caches can have in common. `None` where each cache is its own:
    /// there are no blocks then, and [`Self::Block`] is a type without values.
    fn block_tokens(&self) -> Option<NonZeroUsize>;

    /// The block in which a cache has the tokens from `nth` times as many on, all of which it has
    /// read. `None` where there are no blocks.
    fn block(&self, cache: &Self::Cache, nth: usize) -> Option<Self::Block>;

    /// Gives a cache a block of another, of the same tokens behind the same ones: in place of its own,
    /// or behind all that it has read, if these are whole blocks. Every number is as if it had read
    /// them itself.
    fn put(&mut self, cache: &mut Self::Cache, nth: usize, block: &Self::Block);

    /// Whether a block is in a cache: it takes no memory beside that cache's.
    fn is_in_cache(&self, block: &Self::Block) -> bool;

    /// Reads tokens behind those that each cache has read. What one sequence holds, numbers that are
    /// not finite included, does not reach another's logits. After an error the caches are in any
    /// state and of no more use.
    ///
    /// Returns the logits behind the last token of each feed that wants them, one row of the
    /// vocabulary's size after the other, in the order of the feeds.
    fn forward(&mut self, feeds: &mut [Feed<'_, Self::Cache>]) -> Result<Vec<f32>, InferError>;

    /// The same where nothing but the likeliest token behind each feed is wanted, of equals that of the
    /// lowest number: `None` where a logit is not finite. A device from which logits take long to come
    /// finds it there; any other need not say how.
    fn likeliest(
        &mut self,
        feeds: &mut [Feed<'_, Self::Cache>],
        vocabulary: usize,
    ) -> Result<Vec<Option<u32>>, InferError> {
        let logits = self.forward(feeds)?;
        Ok(logits.par_chunks_exact(vocabulary).map(sampler::likeliest_sound).collect())
    }
}

/// What one sequence reads in one pass.
pub(crate) struct Feed<'a, C> {
    /// What it has read before.
    pub(crate) cache: &'a mut C,
    /// What it reads now, at least one token, all of them in the vocabulary.
    pub(crate) tokens: &'a [u32],
    /// Whether the logits behind the last of them are wanted.
    pub(crate) wants: bool,
}
