//! What can go wrong with an item, a batch, or a model's files.

use std::path::{Path, PathBuf};

/// The fault of one item, in words for whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ItemError {
    message: String,
    is_models: bool,
}

impl ItemError {
    /// An error with this message: name the field and the remedy.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_models: false }
    }

    /// Of an item that is as it should be, and that the model makes nothing of.
    pub fn of_model(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_models: true }
    }

    /// Whether it is the model's fault: whoever sent the item can change nothing about it.
    #[must_use]
    pub fn is_models(&self) -> bool {
        self.is_models
    }
}

/// A batch that failed as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InferError {
    /// Something in the batch made it fail; halves of it may succeed.
    #[error("batch failed: {0}")]
    Batch(String),
    /// The batch was too large for the device's memory; a smaller one may fit.
    #[error("out of device memory: {0}")]
    OutOfMemory(String),
    /// The device is gone or wedged; nothing will succeed here any more.
    #[error("device failed: {0}")]
    Device(String),
}

/// What to do about an [`InferError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InferErrorKind {
    /// Bisect the batch.
    Batch,
    /// Halve the batch and remember.
    OutOfMemory,
    /// Give the jobs back and start over.
    Device,
}

impl InferError {
    /// The kind to branch on.
    pub fn kind(&self) -> InferErrorKind {
        match self {
            Self::Batch(_) => InferErrorKind::Batch,
            Self::OutOfMemory(_) => InferErrorKind::OutOfMemory,
            Self::Device(_) => InferErrorKind::Device,
        }
    }
}

/// A model directory that cannot be loaded: which file, which field, what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file is missing or unreadable.
    #[error("{}: {source}{}", path.display(), hint(path))]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what its name promises.
    #[error("{}: {message}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A file is sound, but asks for something this code does not do.
    #[error("{}: {field} is {found}; {remedy}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field in it.
        field: String,
        /// What stands there.
        found: String,
        /// What would work.
        remedy: String,
    },
    /// The weights lack a tensor or have it in another shape.
    #[error("{}: tensor {tensor} {message}", path.display())]
    Tensor {
        /// The weights file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        message: String,
    },
    /// Keys and values have too little memory for a sequence that is of use.
    #[error("--kv-memory is {found}; this model needs more, use at least {least} bytes")]
    Room {
        /// How many bytes they may take.
        found: u64,
        /// The fewest that will do.
        least: u64,
    },
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] crate::DeviceError),
}

impl LoadError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn malformed(path: &Path, message: impl std::fmt::Display) -> Self {
        Self::Malformed { path: path.to_owned(), message: message.to_string() }
    }

    pub(crate) fn unsupported(
        path: &Path,
        field: &str,
        found: impl std::fmt::Display,
        remedy: &str,
    ) -> Self {
        Self::Unsupported {
            path: path.to_owned(),
            field: field.to_owned(),
            found: found.to_string(),
            remedy: remedy.to_owned(),
        }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, message: impl std::fmt::Display) -> Self {
        Self::Tensor {
            path: path.to_owned(),
            tensor: tensor.to_owned(),
            message: message.to_string(),
        }
    }
}

fn hint(path: &Path) -> &'static str {
    let name = path.file_name().and_then(|name| name.to_str());
    match name.filter(|_| !path.exists()) {
        Some("model.safetensors") => {
            "; weights are read from safetensors only, convert other formats first"
        }
        Some("tokenizer.json") => {
            "; a model of texts needs it: transformers in Python makes it of the other files, by \
             AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        }
        _ => "",
    }
}
