//! How many tokens fit in a budget of keys and values, before the weights of a model are read.

use super::graph::Graph;
use super::packed::Packed;
use super::{Settings, plan};
use crate::{DeviceChoice, Dtype, LoadError};

/// Tokens of one sequence that must fit: with fewer no job is worth its while.
const LEAST_TOKENS: usize = 128;

/// Tokens that a sequence may have on this device, its prompt counted, with so many bytes of keys and
/// values: what the model was made for, or fewer where more of one sequence do not fit. A
/// [`Generator`](super::Generator) with this budget has the same.
///
/// Where kernels are launched, `n` tokens take `n` rounded up to blocks of 32, times the width of keys
/// and values, the bytes of a number and the layers. Of a GPU for which no type of numbers was chosen
/// they have 16 bits: one that does not compute with those that suit the weights is refused. What a
/// pass needs comes on top; of keys and values that is one layer's, of the sequences in a group.
///
/// # Errors
/// Where the bytes are too few for 128 tokens, or for the model's positions if those are fewer: how
/// many it needs at least.
pub fn positions(
    settings: &Settings,
    device: DeviceChoice,
    cache_bytes: u64,
) -> Result<usize, LoadError> {
    let config = &settings.config;
    let bytes = |n_tokens| bytes(settings, device, n_tokens);
    let least = bytes(least_tokens(config.positions));
    if cache_bytes < least {
        return Err(LoadError::Room { found: cache_bytes, least });
    }
    Ok(plan::most_tokens(config.positions, cache_bytes, bytes))
}

/// Bytes of the keys and values of a sequence with so many tokens, as [`positions`] reckons.
pub fn bytes(settings: &Settings, device: DeviceChoice, n_tokens: usize) -> u64 {
    let config = &settings.config;
    match device {
        DeviceChoice::Cpu if Packed::suits() => Packed::bytes(config, n_tokens),
        DeviceChoice::Cpu => Graph::bytes(config, Dtype::F32, n_tokens),
        DeviceChoice::CpuTensors(dtype) => {
            Graph::bytes(config, dtype.unwrap_or(Dtype::F32), n_tokens)
        }
        DeviceChoice::Cuda(_, dtype) => {
            Graph::bytes(config, dtype.unwrap_or(Dtype::Bf16), n_tokens)
        }
    }
}

/// How many tokens of a sequence have to fit, of a model with so many positions.
pub(super) fn least_tokens(positions: usize) -> usize {
    positions.min(LEAST_TOKENS)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::causal::Generator;

    #[test]
    fn positions_are_those_of_the_generator_and_too_few_bytes_are_refused() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-qwen3");
        let settings = Settings::read(&dir).unwrap();
        for device in [
            DeviceChoice::Cpu,
            DeviceChoice::CpuTensors(None),
            DeviceChoice::CpuTensors(Some(Dtype::F16)),
        ] {
            let Err(LoadError::Room { least, .. }) = positions(&settings, device, 1) else {
                panic!("{device}: a byte is too few");
            };
            let error = positions(&settings, device, least - 1).unwrap_err().to_string();
            assert!(error.contains(&format!("use at least {least}")), "{error}");
            let mut generator = Generator::load(&dir, device).unwrap();
            for bytes in [least, least + least / 3, 2 * least, 1 << 40] {
                let found = positions(&settings, device, bytes).unwrap();
                assert!((LEAST_TOKENS..=settings.config.positions).contains(&found));
                generator = generator.with_cache_bytes(bytes);
                assert_eq!(generator.positions(), found, "{bytes} on {device}");
            }
            assert_eq!(generator.positions(), settings.config.positions);
            let mut narrow = generator.with_cache_bytes(least - 1);
            let error = narrow.warm_up().unwrap_err().to_string();
            assert!(error.contains("--kv-memory"), "{error}");
        }
    }
}
