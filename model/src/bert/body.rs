//! The transformer without a head: from the tokens of texts to their vectors, in one of three ways.
//! On the processor, and on a card that our own kernels suit, texts lie end to end and nothing is
//! padded; any other device that launches kernels gets them side by side, in few shapes.

#[cfg(feature = "cuda")]
use tracing::info;

use super::Tokens;
use super::config::Config;
#[cfg(feature = "cuda")]
use super::cuda::Cuda;
use super::graph::{self, Graph};
use super::layers::Layers;
use super::pool::Pick;
use super::shapes::{self, Shape};
use super::weights::{Embeddings, Reader};
use crate::device::{Opened, guarded};
use crate::probe::Probe;
use crate::{FirstRuns, InferError, ItemError, Layout, LoadError};

/// Tokens that the processor runs at once; more would only make the buffers larger.
const MAX_TOKENS_AT_ONCE: usize = 8192;

/// Tokens of the texts of the self-test, where each shape has kernels of its own: the first two run
/// alone as well, so that shapes of 1 x 16, 1 x 64 and 8 x 64 are there for the first jobs.
const PROBE: [usize; 8] = [8, 64, 64, 64, 64, 64, 64, 64];
/// And where all shapes have the same code.
const PROBE_PACKED: [usize; 2] = [8, 32];

/// The layers that every model of the family shares, without a head.
#[derive(Debug)]
pub(crate) struct Body {
    config: Config,
    way: Way,
    probe: Probe,
}

/// How it runs.
#[derive(Debug)]
enum Way {
    /// On the processor.
    EndToEnd(Box<(Embeddings, Layers)>),
    /// By burn's kernels.
    SideBySide(Box<Graph>),
    /// By our own.
    #[cfg(feature = "cuda")]
    Cuda(Box<Cuda>),
}

/// One result per item, or the failure of the whole batch.
pub(crate) type Results<O> = Result<Vec<Result<O, ItemError>>, InferError>;

impl Body {
    pub(crate) fn load(
        config: Config,
        reader: &Reader,
        opened: &Opened,
    ) -> Result<Self, LoadError> {
        opened.tell();
        let probe = Probe { device: opened.full_name(), tolerance: opened.tolerance() };
        #[cfg(feature = "cuda")]
        if let Some(card) = &opened.card {
            if Cuda::suits(&config, opened.dtype, card) {
                info!(kernels = "own", "what the model runs on is chosen");
                let cuda = Box::new(Cuda::load(&config, reader, opened.dtype, card)?);
                return Ok(Self { config, way: Way::Cuda(cuda), probe });
            }
            info!(
                kernels = "burn",
                "what the model runs on is chosen; shapes are tuned when they are run"
            );
            card.start_burn(&opened.device)?;
        }
        let way = if opened.launches {
            Way::SideBySide(Box::new(Graph::load(&config, reader, opened)?))
        } else {
            let embeddings = reader.embeddings(&config)?;
            Way::EndToEnd(Box::new((embeddings, Layers::load(&config, reader, &opened.device)?)))
        };
        Ok(Self { config, way, probe })
    }

    /// The device and its type of numbers, for people.
    pub(crate) fn name(&self) -> &str {
        &self.probe.device
    }

    /// How batches are to be counted.
    pub(crate) fn layout(&self) -> Layout {
        match self.way {
            Way::EndToEnd(_) => Layout::Alike,
            Way::SideBySide(_) => Layout::Padded,
            #[cfg(feature = "cuda")]
            Way::Cuda(_) => Layout::Packed,
        }
    }

    /// Who is told of batches with a shape that was not run before, where kernels are tuned.
    pub(crate) fn tell_first_runs(&mut self, first_runs: FirstRuns) {
        if let Way::SideBySide(graph) = &mut self.way {
            graph.shapes.tell(first_runs);
        }
    }

    /// Whether each shape of batches has kernels of its own, compiled and tuned when it is first run.
    pub(crate) fn has_shapes(&self) -> bool {
        match self.way {
            Way::SideBySide(_) => true,
            Way::EndToEnd(_) => false,
            #[cfg(feature = "cuda")]
            Way::Cuda(_) => false,
        }
    }

    /// The self-test of the device.
    pub(crate) fn probe(&self) -> Probe {
        self.probe.clone()
    }

    /// Its texts, for a model that takes so many tokens: fixed words from the middle of the
    /// vocabulary, where every model has some that it was trained on.
    pub(crate) fn probe_texts(&self, longest: usize) -> Vec<Tokens> {
        let lengths = if self.has_shapes() { &PROBE[..] } else { &PROBE_PACKED };
        let text = |(n, length): (usize, &usize)| {
            let first = self.config.vocabulary / 2 + n;
            let words = (first..).take((*length).min(longest));
            Tokens::from_ids(words.map(|id| (id % self.config.vocabulary) as u32).collect())
        };
        lengths.iter().enumerate().map(text).collect()
    }

    /// Runs one forward of this shape.
    pub(crate) fn warm_shape(&self, pick: Pick, shape: Shape) -> Result<(), InferError> {
        let text = Tokens::from_ids(vec![0; shape.length]);
        let texts: Vec<&Tokens> = std::iter::repeat_n(&text, shape.rows).collect();
        self.encode(&texts, pick, &mut |_, _| ())
    }

    /// Runs the jobs of a batch, each a list of texts; `head` makes a result of what `pick` leaves
    /// of the vectors of a text's tokens. A text that does not fit, or whose result is an error, fails its job alone.
    pub(crate) fn infer<T, O>(
        &self,
        batch: &[Vec<T>],
        tokens: impl Fn(&T) -> &Tokens,
        pick: Pick,
        head: impl Fn(&[f32], &T) -> Result<O, ItemError>,
    ) -> Results<Vec<O>> {
        let check = |texts: &Vec<T>| texts.iter().try_for_each(|text| self.check(tokens(text)));
        let checked: Vec<Result<(), ItemError>> = batch.iter().map(check).collect();
        let sound = batch.iter().zip(&checked).filter(|(_, checked)| checked.is_ok());
        let texts: Vec<&T> = sound.flat_map(|(texts, _)| texts).collect();
        let all: Vec<&Tokens> = texts.iter().map(|text| tokens(text)).collect();
        let mut outputs: Vec<_> = texts.iter().map(|_| None).collect();
        let mut take = |place: usize, picked: &[f32]| {
            outputs[place] = Some(head(picked, texts[place]));
        };
        self.encode(&all, pick, &mut take)?;
        let outputs: Option<Vec<Result<O, ItemError>>> = outputs.into_iter().collect();
        let missing = || InferError::Device("a text did not come back".to_owned());
        let mut outputs = outputs.ok_or_else(missing)?.into_iter();
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

    /// Gives what is picked of the last layer's vectors of each of these texts, which fit the model,
    /// with its place.
    fn encode(
        &self,
        texts: &[&Tokens],
        pick: Pick,
        take: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), InferError> {
        match &self.way {
            Way::EndToEnd(model) => {
                let mut first = 0;
                for run in cut(texts, MAX_TOKENS_AT_ONCE) {
                    let mut take = |place, picked: &[f32]| take(first + place, picked);
                    self.encode_run(run, model, pick, &mut take)?;
                    first += run.len();
                }
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Way::Cuda(cuda) => cuda.encode(texts, pick, take),
            Way::SideBySide(graph) => {
                let run = || side_by_side(graph, texts, self.config.positions, pick);
                let ran = guarded(run, || graph.free());
                graph.shapes.end(ran.is_ok());
                ran?.iter().enumerate().for_each(|(place, picked)| take(place, picked));
                Ok(())
            }
        }
    }

    /// Texts end to end.
    fn encode_run(
        &self,
        texts: &[&Tokens],
        (embeddings, layers): &(Embeddings, Layers),
        pick: Pick,
        take: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), InferError> {
        let width = self.config.hidden;
        let mut spans = Vec::with_capacity(texts.len());
        let mut rows = Vec::new();
        for text in texts {
            let start = rows.len() / width;
            embeddings.embed(text, &mut rows);
            spans.push(start..start + text.len());
        }
        let rows = layers.run(rows, &embeddings.norm, &spans, &self.config)?;
        let of_text = |span: &std::ops::Range<usize>| &rows[span.start * width..span.end * width];
        for (place, span) in spans.iter().enumerate() {
            take(place, &pick.of_rows(of_text(span), width));
        }
        Ok(())
    }

    /// Whether a text is one that [`Self::encode`] can take. Who sends a text does not choose its tokens:
    /// those that are unknown here come of a tokenizer that does not belong to the weights.
    fn check(&self, tokens: &Tokens) -> Result<(), ItemError> {
        let Config { positions, vocabulary, token_types, .. } = self.config;
        if tokens.len() == 0 || tokens.len() > positions {
            return Err(ItemError::new(format!(
                "input has {} tokens; the model takes 1 to {positions}",
                tokens.len()
            )));
        }
        if let Some(id) = tokens.ids().iter().find(|id| **id as usize >= vocabulary) {
            return Err(ItemError::of_model(format!(
                "input has token {id}; the model knows {vocabulary}, use the tokenizer beside it"
            )));
        }
        // A model without token types does not look at them.
        match tokens.types().iter().find(|of| token_types > 0 && **of as usize >= token_types) {
            Some(of) => Err(ItemError::of_model(format!(
                "input has token type {of}; the model knows {token_types}, use the tokenizer \
                 beside it"
            ))),
            None => Ok(()),
        }
    }
}

/// Texts in the shapes of kernels; all forwards are started before the first is waited for.
fn side_by_side(
    graph: &Graph,
    texts: &[&Tokens],
    longest: usize,
    pick: Pick,
) -> Result<Vec<Vec<f32>>, InferError> {
    let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
    let parts = shapes::plan(&lengths, longest);
    graph.shapes.begin(parts.iter().map(|part| [part.shape.rows, part.shape.length, 0]));
    let start = |part: &shapes::Part| {
        let own: Vec<&Tokens> = part.texts.iter().map(|place| texts[*place]).collect();
        graph.start(&own, part, pick)
    };
    let outputs: Vec<graph::Output> = parts.iter().map(start).collect();
    let mut picked = vec![Vec::new(); texts.len()];
    for (part, output) in parts.iter().zip(outputs) {
        for (place, rows) in part.texts.iter().zip(output.read()?) {
            picked[*place] = rows;
        }
    }
    Ok(picked)
}

/// Cuts a list of texts into runs of at most so many tokens, or of one text.
pub(super) fn cut<'a, 'b>(texts: &'a [&'b Tokens], most: usize) -> Vec<&'a [&'b Tokens]> {
    let mut runs = Vec::new();
    let (mut start, mut n_tokens) = (0, 0);
    for (place, text) in texts.iter().enumerate() {
        if n_tokens + text.len() > most && place > start {
            runs.push(&texts[start..place]);
            (start, n_tokens) = (place, 0);
        }
        n_tokens += text.len();
    }
    if start < texts.len() {
        runs.push(&texts[start..]);
    }
    runs
}
