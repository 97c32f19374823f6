//! The kernels of a model: what they are compiled with, and where each is found.

use std::sync::Arc;

use cudarc::driver::{CudaModule, DriverError};

use super::driver::Kernel;
use super::tiles::{Size, Tiles};
use crate::Dtype;
use crate::bert::config::{Activation, Config};

/// The compute capability with products by warp groups.
const HOPPER: (i32, i32) = (9, 0);
/// Numbers of a block that widens them.
pub(super) const PAIRS_OF_BLOCK: usize = 256;

pub(super) fn is_hopper(capability: (i32, i32)) -> bool {
    capability == HOPPER
}

/// What is launched, by its name in the source.
#[derive(Debug)]
pub(super) struct Kernels {
    pub(super) embed: Kernel,
    pub(super) norm: Kernel,
    pub(super) attend_short: Kernel,
    pub(super) attend_long: Kernel,
    pub(super) pool: Kernel,
    pub(super) widen: Kernel,
    /// By size, then alone, with an activation, with rows added.
    pub(super) products: [[Kernel; 3]; 3],
}

impl Kernels {
    pub(super) fn find(module: &Arc<CudaModule>, hopper: bool) -> Result<Self, DriverError> {
        let find = |name: &str, threads| Kernel::find(module, name, threads, 0);
        let product = |what: &str, size: Size| {
            let tiles: Tiles = size.tiles(hopper);
            let name = format!("{what}_{}", size.name());
            Kernel::find(module, &name, tiles.threads() as u32, tiles.shared() as u32)
        };
        let of_size = |size| {
            Ok([product("plain", size)?, product("activated", size)?, product("added", size)?])
        };
        let [large, small, tiny] = Size::ALL;
        Ok(Self {
            embed: find("embed_rows", 128)?,
            norm: find("norm_rows", 128)?,
            attend_short: find("attend_short", 32)?,
            attend_long: find("attend_long", 128)?,
            pool: find("pool_texts", 256)?,
            widen: find("widen_rows", PAIRS_OF_BLOCK as u32)?,
            products: [of_size(large)?, of_size(small)?, of_size(tiny)?],
        })
    }
}

/// What the kernels are compiled with.
pub(super) fn options(config: &Config, dtype: Dtype, capability: (i32, i32)) -> Vec<String> {
    let hopper = is_hopper(capability);
    let activation = match config.activation {
        Activation::Gelu => 0,
        Activation::GeluTanh => 1,
        Activation::Relu => 2,
    };
    // Products by warp groups are a feature of this one architecture.
    let (major, minor) = capability;
    let only = if hopper { "a" } else { "" };
    let mut options = vec![
        format!("--gpu-architecture=sm_{major}{minor}{only}"),
        "--std=c++17".to_owned(),
        format!("-DWIDTH={}", config.hidden),
        format!("-DHEADS={}", config.heads),
        format!("-DACTIVATION={activation}"),
        format!("-DBF16={}", u8::from(dtype == Dtype::Bf16)),
        format!("-DHOPPER={}", u8::from(hopper)),
    ];
    options.extend(Size::ALL.into_iter().flat_map(|size| size.tiles(hopper).define(size)));
    options
}
