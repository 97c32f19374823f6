//! A dense layer of a head.

/// A small dense layer, run without the device: a head sees one token of a text.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `[in, out]`, so that the inner loop runs over outputs.
    matrix: Vec<f32>,
    bias: Vec<f32>,
}

impl Linear {
    /// From a matrix that is stored as `[out, in]`.
    pub(crate) fn new(stored: &[f32], bias: Vec<f32>) -> Self {
        let from = stored.len() / bias.len();
        let column = |n: usize| stored.chunks_exact(from).map(move |row| row[n]);
        Self { matrix: (0..from).flat_map(column).collect(), bias }
    }

    pub(crate) fn apply(&self, input: &[f32]) -> Vec<f32> {
        let mut output = self.bias.clone();
        for (x, row) in input.iter().zip(self.matrix.chunks_exact(self.bias.len())) {
            output.iter_mut().zip(row).for_each(|(sum, weight)| *sum += x * weight);
        }
        output
    }
}
