//! What models on a processor share: threads that meet awake, products with packed weights, and loops
//! compiled for the widest registers.

pub(crate) mod crew;
pub(crate) mod lanes;
pub(crate) mod tile;
