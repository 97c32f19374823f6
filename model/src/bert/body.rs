//! The transformer on the processor: texts end to end, from tokens to their vectors.

use std::ops::Range;

use super::config::Config;
use super::layers::Layers;
use super::weights::{Embeddings, Reader};
use super::{Tokens, kernels};
use crate::{InferError, ItemError, LoadError};

/// Tokens run at once; more would only make the buffers larger.
const MAX_TOKENS_AT_ONCE: usize = 8192;

/// The layers that every model of the family shares, without a head.
#[derive(Debug)]
pub(crate) struct Body {
    config: Config,
    embeddings: Embeddings,
    layers: Layers,
}

/// One result per item, or the failure of the whole batch.
pub(crate) type Results<O> = Result<Vec<Result<O, ItemError>>, InferError>;

impl Body {
    pub(crate) fn load(config: Config, reader: &mut Reader) -> Result<Self, LoadError> {
        let embeddings = reader.embeddings(&config)?;
        let layers = Layers::load(&config, reader)?;
        Ok(Self { config, embeddings, layers })
    }

    /// Runs the jobs of a batch, each a list of texts; `head` makes a result of the vectors of a
    /// text's tokens. A text that does not fit, or whose result is an error, fails its job alone.
    pub(crate) fn infer<T, O>(
        &self,
        batch: &[Vec<T>],
        tokens: impl Fn(&T) -> &Tokens,
        head: impl Fn(&[f32], &T) -> Result<O, ItemError>,
    ) -> Results<Vec<O>> {
        let check = |texts: &Vec<T>| texts.iter().try_for_each(|text| self.check(tokens(text)));
        let checked: Vec<Result<(), ItemError>> = batch.iter().map(check).collect();
        let sound = batch.iter().zip(&checked).filter(|(_, checked)| checked.is_ok());
        let texts: Vec<&T> = sound.flat_map(|(texts, _)| texts).collect();
        let all: Vec<&Tokens> = texts.iter().map(|text| tokens(text)).collect();
        let mut outputs = Vec::with_capacity(texts.len());
        for part in parts(&all) {
            let (rows, spans) = self.encode(part)?;
            let width = self.config.hidden;
            for span in spans {
                let text = texts[outputs.len()];
                outputs.push(head(&rows[span.start * width..span.end * width], text));
            }
        }
        let mut outputs = outputs.into_iter();
        let mut results = Vec::with_capacity(batch.len());
        for (texts, checked) in batch.iter().zip(checked) {
            results.push(checked.and_then(|()| {
                // Taken in whole, so that one bad text does not shift those of the next job.
                let own: Vec<Result<O, ItemError>> = outputs.by_ref().take(texts.len()).collect();
                own.into_iter().collect()
            }));
        }
        Ok(results)
    }

    /// The last layer's vectors of texts that fit the model, end to end, and where each text lies.
    fn encode(&self, texts: &[&Tokens]) -> Result<(Vec<f32>, Vec<Range<usize>>), InferError> {
        let width = self.config.hidden;
        let mut spans = Vec::with_capacity(texts.len());
        let mut rows = Vec::new();
        for text in texts {
            let start = rows.len() / width;
            self.embeddings.embed(text, &mut rows);
            spans.push(start..start + text.len());
        }
        kernels::norm(&mut rows, &self.embeddings.norm);
        Ok((self.layers.run(rows, &spans, &self.config)?, spans))
    }

    /// Whether a text is one that [`Self::encode`] can take.
    fn check(&self, tokens: &Tokens) -> Result<(), ItemError> {
        let Config { positions, vocabulary, token_types, .. } = self.config;
        if tokens.len() == 0 || tokens.len() > positions {
            return Err(ItemError::new(format!(
                "input has {} tokens; the model takes 1 to {positions}",
                tokens.len()
            )));
        }
        if let Some(id) = tokens.ids().iter().find(|id| **id as usize >= vocabulary) {
            return Err(ItemError::new(format!(
                "input has token {id}; the model knows {vocabulary}, use the tokenizer beside it"
            )));
        }
        // A model without token types does not look at them.
        match tokens.types().iter().find(|of| token_types > 0 && **of as usize >= token_types) {
            Some(of) => Err(ItemError::new(format!(
                "input has token type {of}; the model knows {token_types}"
            ))),
            None => Ok(()),
        }
    }
}

/// Cuts a list of texts into runs of at most [`MAX_TOKENS_AT_ONCE`] tokens.
fn parts<'a, 'b>(texts: &'a [&'b Tokens]) -> Vec<&'a [&'b Tokens]> {
    let mut parts = Vec::new();
    let (mut start, mut n_tokens) = (0, 0);
    for (place, text) in texts.iter().enumerate() {
        if n_tokens + text.len() > MAX_TOKENS_AT_ONCE && place > start {
            parts.push(&texts[start..place]);
            (start, n_tokens) = (place, 0);
        }
        n_tokens += text.len();
    }
    if start < texts.len() {
        parts.push(&texts[start..]);
    }
    parts
}
