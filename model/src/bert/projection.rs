//! `Dense` of sentence-transformers: a layer behind the pooling of an encoder.

use std::path::{Path, PathBuf};

#[cfg(feature = "cpu")]
use super::linear::Linear;
#[cfg(feature = "cpu")]
use crate::ItemError;
use crate::LoadError;
#[cfg(feature = "cpu")]
use crate::checkpoint::Checkpoint;
use crate::json::Fields;

/// Numbers of a vector at most, before and behind it.
const MOST: usize = 1 << 20;

/// What the folder of such a layer says of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Projection {
    folder: PathBuf,
    from: usize,
    to: usize,
    has_bias: bool,
    activation: Activation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activation {
    Tanh,
    Identity,
}

impl Projection {
    /// Reads the small file of its folder; it takes vectors of `width` numbers.
    pub(crate) fn read(folder: PathBuf, width: usize) -> Result<Self, LoadError> {
        let fields = Fields::read(&folder.join("config.json"))?;
        let size = |name| fields.required_size(&[name], 1..=MOST);
        let (from, to) = (size("in_features")?, size("out_features")?);
        if from != width {
            let remedy = format!("what comes before has {width} numbers; take both of one model");
            return Err(fields.wrong("in_features", from, &remedy));
        }
        let activation = match fields.text(&["activation_function"])? {
            None => Activation::Tanh,
            // Where the class lies differs between versions of torch.
            Some(name) => match (name.starts_with("torch."), name.rsplit('.').next()) {
                (true, Some("Tanh")) => Activation::Tanh,
                (true, Some("Identity")) => Activation::Identity,
                _ => {
                    let remedy = "known are torch's Tanh and Identity";
                    return Err(fields.wrong("activation_function", name, remedy));
                }
            },
        };
        if fields.flag("use_residual")? {
            return Err(fields.wrong("use_residual", true, "it must be false or left out"));
        }
        for name in ["module_input_name", "module_output_name"] {
            let other = fields.text(&[name])?.filter(|of| *of != "sentence_embedding");
            if let Some(other) = other {
                let remedy = "it must be sentence_embedding, the vector of a text";
                return Err(fields.wrong(name, other, remedy));
            }
        }
        let has_bias = fields.choice("bias")?.unwrap_or(true);
        Ok(Self { folder, from, to, has_bias, activation })
    }

    /// Numbers of the vector that it makes.
    pub(crate) fn width(&self) -> usize {
        self.to
    }

    /// Where its weights are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Reads its weights.
    #[cfg(feature = "cpu")]
    pub(crate) fn load(&self) -> Result<Projected, LoadError> {
        let weights = Checkpoint::open(&self.folder)?;
        let stored = weights.read("linear.weight", &[self.to, self.from])?;
        let bias = match self.has_bias {
            true => weights.read("linear.bias", &[self.to])?,
            false => vec![0.0; self.to],
        };
        Ok(Projected { linear: Linear::new(&stored, bias), activation: self.activation })
    }
}

/// The layer with its weights.
#[cfg(feature = "cpu")]
#[derive(Debug)]
pub(crate) struct Projected {
    linear: Linear,
    activation: Activation,
}

#[cfg(feature = "cpu")]
impl Projected {
    /// # Errors
    /// When a number is not finite before the activation: behind a tanh it would be.
    pub(crate) fn apply(&self, vector: &[f32]) -> Result<Vec<f32>, ItemError> {
        let mut made = self.linear.apply(vector);
        super::finite(&made)?;
        if self.activation == Activation::Tanh {
            made.iter_mut().for_each(|x| *x = x.tanh());
        }
        Ok(made)
    }
}
