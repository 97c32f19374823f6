//! From a text to a label for each of its tokens.

use std::path::Path;

use super::body::Body;
use super::linear::Linear;
use super::pool::Pick;
use super::task::softmax;
use super::{Piece, Pieces, Settings, Source, Task, Tokens};
use crate::{DeviceChoice, FirstRuns, InferError, ItemError, Layout, LoadError, Model, Opened};

/// A token of a text with its label.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tag {
    /// The label's place among the model's.
    pub label: usize,
    /// The label's share of the softmax.
    pub score: f32,
    /// Where the token begins in the text, in characters.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
    /// The word it belongs to.
    pub word: Option<u32>,
}

/// What a tagger found of one text.
#[derive(Debug, Clone, PartialEq)]
pub struct Tagged {
    /// The text's own tokens in order, without the special ones.
    pub tags: Vec<Tag>,
    /// Tokens the text was cut to.
    pub tokens: usize,
    /// Whether an end of the text was cut off.
    pub is_cut: bool,
}

/// A classifier of tokens on its device.
#[derive(Debug)]
pub struct Tagger {
    settings: Settings,
    body: Body,
    head: Linear,
}

impl Tagger {
    /// Reads the weights of a model directory; its texts are cut by
    /// [`super::Tokenizer::tokenize_pieces`].
    pub fn load(dir: &Path, device: DeviceChoice) -> Result<Self, LoadError> {
        Self::on(Source::open(dir)?, &device.start()?)
    }

    /// The same, once both are opened.
    pub fn on(source: Source, device: &Opened) -> Result<Self, LoadError> {
        let Source { settings, reader } = source;
        let config = settings.config.clone();
        let output = config.family.output(Task::Tagging);
        let head = reader.linear(output, config.hidden, settings.labels().len())?;
        let body = Body::load(config, &reader, device)?;
        Ok(Self { settings, body, head })
    }

    /// Runs a few fixed texts, so that the first job does not pay for what happens once, and no job
    /// gets what a broken device makes.
    ///
    /// # Errors
    /// When the device does not run them, when their numbers are not finite, or when those of a text
    /// are others alone than beside others.
    pub fn warm_up(&mut self) -> Result<(), InferError> {
        let piece = Piece { start: 0, end: 0, word: None, is_special: false };
        let cut = |tokens: Tokens| {
            let pieces = vec![piece; tokens.len()];
            vec![Pieces { tokens, pieces }]
        };
        let texts = self.body.probe_texts(self.settings.max_tokens);
        let jobs: Vec<_> = texts.into_iter().map(cut).collect();
        let numbers = |found: &Vec<Tagged>| {
            found.iter().flat_map(|one| &one.tags).map(|tag| tag.score).collect()
        };
        self.body.probe().run(self, &jobs, numbers)
    }

    fn tag(&self, row: &[f32], piece: Piece) -> Result<Tag, ItemError> {
        let logits = self.head.apply(row);
        super::finite(&logits)?;
        let scores = softmax(&logits);
        let places = 0..scores.len();
        // The first among equals.
        let best = places.rev().max_by(|one, other| scores[*one].total_cmp(&scores[*other]));
        let label = best.unwrap_or_default();
        let Piece { start, end, word, .. } = piece;
        Ok(Tag { label, score: scores[label], start, end, word })
    }
}

impl Model for Tagger {
    /// The texts of one job.
    type Input = Vec<Pieces>;
    /// What was found of its texts, in their order.
    type Output = Vec<Tagged>;

    fn layout(&self) -> Layout {
        self.body.layout()
    }

    fn tell_first_runs(&mut self, first_runs: FirstRuns) {
        self.body.tell_first_runs(first_runs);
    }

    fn infer(
        &mut self,
        batch: &[Vec<Pieces>],
    ) -> Result<Vec<Result<Vec<Tagged>, ItemError>>, InferError> {
        let rows_of = |rows: &[f32], text: &Pieces| {
            let rows = rows.chunks_exact(self.settings.hidden()).zip(&text.pieces);
            let own = rows.filter(|(_, piece)| !piece.is_special);
            let tags = own.map(|(row, piece)| self.tag(row, *piece)).collect::<Result<_, _>>()?;
            Ok(Tagged { tags, tokens: text.tokens.len(), is_cut: text.tokens.is_cut() })
        };
        self.body.infer(batch, |text| &text.tokens, Pick::Tokens, rows_of)
    }
}
