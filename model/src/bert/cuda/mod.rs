//! The transformer by kernels of our own, for NVIDIA cards from compute capability 8.0 on and numbers
//! of 16 bits: texts lie end to end, nothing is padded, and no shape is compiled or tuned for.
//!
//! All kernels are compiled in one go when a model is loaded, for its width and heads. Products add
//! their bias, activation or residual before they write. Burn's operations (`graph.rs`) serve all
//! other cards, types and widths.

mod batch;
#[cfg(feature = "cuda")]
mod code;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda")]
mod forward;
#[cfg(feature = "cuda")]
mod room;
mod tiles;
#[cfg(feature = "cuda")]
mod upload;

#[cfg(feature = "cuda")]
pub(crate) use forward::Cuda;
