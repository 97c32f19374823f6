//! KEDA and the HorizontalPodAutoscaler on one machine.
//!
//! The arithmetic stands in [`hpa`] and [`keda`], which know neither a clock nor a network; the
//! [`driver`] asks the scaler over gRPC exactly as KEDA does, and tells how many workers are wanted.
//! Time is a span since any fixed moment, so that a simulator can drive the pure parts as well.

pub mod driver;
pub mod hpa;
pub mod keda;
