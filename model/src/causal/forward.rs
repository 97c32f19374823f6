//! The seam between what a generator does with logits and how they are computed.

use rayon::prelude::*;

use super::sampler;
use crate::InferError;

/// The layers of a decoder on one kind of device.
pub(crate) trait Forward {
    /// The keys and values of one sequence in all layers. Dropping it gives its memory back.
    type Cache;

    /// A cache of a sequence of which nothing was read.
    fn cache(&mut self) -> Self::Cache;

    /// Bytes that a cache of so many tokens takes, never fewer for more tokens.
    fn cache_bytes(&self, n_tokens: usize) -> u64;

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
    ) -> Result<Vec<Option<u32>>, InferError> {
        let n_wanted = feeds.iter().filter(|feed| feed.wants).count();
        let logits = self.forward(feeds)?;
        let vocabulary = logits.len().checked_div(n_wanted).unwrap_or(1).max(1);
        Ok(logits.par_chunks(vocabulary).map(sampler::likeliest_sound).collect())
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
