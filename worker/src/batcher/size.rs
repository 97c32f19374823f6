//! How much of the device jobs and batches take.

use ebb_model::Layout;

/// How much of the device a job takes, or a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Rows of the batch: texts, windows.
    pub rows: usize,
    /// The length of the longest row.
    pub length: usize,
    /// The lengths of all rows together.
    pub tokens: usize,
    /// How the rows lie on the device.
    pub layout: Layout,
}

impl Size {
    /// One row of one token.
    pub const ONE: Self = Self { rows: 1, length: 1, tokens: 1, layout: Layout::Padded };

    /// Rows of these lengths, side by side.
    #[must_use]
    pub fn of(lengths: impl IntoIterator<Item = usize>) -> Self {
        let none = Self { rows: 0, length: 0, tokens: 0, layout: Layout::Padded };
        let row = |length| Self { rows: 1, length, tokens: length, layout: Layout::Padded };
        lengths.into_iter().map(row).fold(none, Self::and)
    }

    /// The same rows in this layout.
    #[must_use]
    pub fn laid(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// What the device works through, in tokens.
    #[must_use]
    pub fn cost(self) -> usize {
        match self.layout {
            Layout::Padded => self.rectangle(),
            Layout::Packed | Layout::Alike => self.tokens,
        }
    }

    /// By what rows are compared: what unlike lengths add to it counts as padding.
    pub(super) fn span(self) -> usize {
        match self.layout {
            Layout::Padded | Layout::Alike => self.rectangle(),
            Layout::Packed => self.tokens,
        }
    }

    /// How much of its span may be padding beside so much that is not, where a batch costs `overhead`
    /// before its first row.
    ///
    /// Half of what is saved where padding takes the device's time, since the others wait for it. An
    /// eighth of the rest even so: of rows that were never together nobody knows what it would save.
    pub(super) fn spare(self, overhead: usize, real: usize) -> usize {
        match self.layout {
            Layout::Padded => (overhead / 2).max(real / 8),
            Layout::Packed | Layout::Alike => overhead.max(real / 4),
        }
    }

    fn rectangle(self) -> usize {
        self.rows.saturating_mul(self.length)
    }

    /// The share of it that is padding.
    #[must_use]
    pub fn padding(self) -> f64 {
        1.0 - self.tokens as f64 / self.cost().max(1) as f64
    }

    /// Both in one batch, in the layout of the first.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            rows: self.rows.saturating_add(other.rows),
            length: self.length.max(other.length),
            tokens: self.tokens.saturating_add(other.tokens),
            layout: self.layout,
        }
    }

    /// Rows of about this length pad each other little: lengths within a factor of about 1.4.
    pub(super) fn bucket(self) -> u32 {
        let length = u32::try_from(self.length.max(1)).unwrap_or(u32::MAX);
        let octave = length.ilog2();
        let upper_half = length > (1u32 << octave) + (1u32 << octave) / 2;
        2 * octave + u32::from(upper_half)
    }
}
