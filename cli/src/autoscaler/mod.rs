//! KEDA and the HorizontalPodAutoscaler, without a cluster.
//!
//! The arithmetic stands in [`object`] and what it is made of, [`keda`], [`fallback`], [`hpa`] and
//! [`behavior`], and for a ScaledJob in [`scaledjob`]; they know neither a clock nor a network. The
//! [`driver`] asks the scaler over gRPC exactly as KEDA does, and tells how many workers are wanted.
//! Time is a span since any fixed moment: `ebb-bench simulate` drives the same parts in virtual
//! time.

pub mod behavior;
pub mod driver;
pub mod fallback;
pub mod hpa;
pub mod keda;
pub mod object;
pub mod scaledjob;
