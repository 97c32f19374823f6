//! Splits the jobs of one queue over others by weight, such as those of two versions of a model.
//!
//! Producers publish to the intake with any client; a split takes each job from there and publishes
//! it to the queue that its key and the [`Weights`] choose. Who waits for the answer at the intake
//! is led on to where the job went.

mod config;
mod file;
mod leases;
mod metrics;
mod place;
mod reload;
mod retention;
mod run;
mod splitter;
mod weights;

pub use config::SplitArgs;
pub use metrics::Metrics;
pub use place::{Place, keeps_records, place};
pub use run::run;
pub use splitter::WhenFull;
pub use weights::{By, Share, Weights, WeightsError};
