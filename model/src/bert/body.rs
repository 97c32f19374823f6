//! The transformer on the processor: texts end to end, matrix products by burn, kernels between.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};

use super::config::Config;
use super::weights::{Dense, Embeddings, Layer, Reader};
use super::{Tokens, kernels};
use crate::{InferError, ItemError, LoadError};

/// Tokens run at once; more would only make the buffers larger.
const MAX_TOKENS_AT_ONCE: usize = 8192;

/// The layers that every model of the family shares, without a head.
#[derive(Debug)]
pub(crate) struct Body {
    config: Config,
    embeddings: Embeddings,
    layers: Vec<Layer>,
    device: Device,
}

/// One result per item, or the failure of the whole batch.
pub(crate) type Results<O> = Result<Vec<Result<O, ItemError>>, InferError>;

impl Body {
    pub(crate) fn load(config: Config, reader: &mut Reader) -> Result<Self, LoadError> {
        let embeddings = reader.embeddings(&config)?;
        let layers = (0..config.layers).map(|n| reader.layer(n, &config));
        let layers = layers.collect::<Result<_, _>>()?;
        Ok(Self { config, embeddings, layers, device: reader.device().clone() })
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
            let (mut rows, spans) = self.encode(part)?;
            let rows = values(&mut rows)?;
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
    fn encode(&self, texts: &[&Tokens]) -> Result<(TensorData, Vec<Range<usize>>), InferError> {
        let width = self.config.hidden;
        let mut spans = Vec::with_capacity(texts.len());
        let mut rows = Vec::new();
        for text in texts {
            let start = rows.len() / width;
            self.embeddings.embed(text, &mut rows);
            spans.push(start..start + text.len());
        }
        kernels::norm(&mut rows, &self.embeddings.norm);
        let n_tokens = rows.len() / width;
        let mut rows = TensorData::new(rows, [n_tokens, width]);
        for layer in &self.layers {
            rows = self.run(layer, rows, &spans)?;
        }
        Ok((rows, spans))
    }

    fn run(
        &self,
        layer: &Layer,
        rows: TensorData,
        texts: &[Range<usize>],
    ) -> Result<TensorData, InferError> {
        let (mut rows, mut qkv) = self.product(rows, &layer.qkv)?;
        let mut context = vec![0.0; rows.num_elements()];
        kernels::attend(values(&mut qkv)?, texts, self.config.heads, &layer.qkv.bias, &mut context);
        drop(qkv);

        let context = TensorData::new(context, rows.shape().clone());
        let (_, mut attended) = self.product(context, &layer.out)?;
        let attention = values(&mut attended)?;
        kernels::add_norm(attention, &layer.out.bias, values(&mut rows)?, &layer.attention_norm);

        let (mut attended, mut inner) = self.product(attended, &layer.up)?;
        kernels::activate(values(&mut inner)?, &layer.up.bias, self.config.activation);
        let (_, mut output) = self.product(inner, &layer.down)?;
        let residual = values(&mut attended)?;
        kernels::add_norm(values(&mut output)?, &layer.down.bias, residual, &layer.output_norm);
        Ok(output)
    }

    /// `rows x dense`, without the bias, and the rows again: neither is copied.
    fn product(
        &self,
        rows: TensorData,
        dense: &Dense,
    ) -> Result<(TensorData, TensorData), InferError> {
        let failed = |error| InferError::Device(format!("matrix product: {error}"));
        let rows = Tensor::<2>::from_data(rows, &self.device);
        let product = rows.clone().matmul(dense.matrix.clone());
        let product = product.try_into_data().map_err(failed)?;
        Ok((rows.try_into_data().map_err(failed)?, product))
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

/// The numbers behind a tensor that was read back.
fn values(data: &mut TensorData) -> Result<&mut [f32], InferError> {
    data.as_mut_slice().map_err(|error| InferError::Device(format!("read back: {error}")))
}
