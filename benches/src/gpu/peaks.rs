//! How fast a GPU could multiply at most, by its name.

use ebb_model::Dtype;

/// Dense products of 16-bit numbers with sums in f32, in units of 10^12 operations a second: the data
/// sheets of NVIDIA for each card, without the factor for sparse matrices. The first part of a name
/// that fits counts.
const PEAKS: [(&str, f64); 14] = [
    ("B200", 2250.0),
    ("H200", 989.4),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.5),
    ("H100", 989.4),
    ("GH200", 989.4),
    ("A100", 311.9),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("L40S", 362.1),
    ("L40", 181.1),
    ("L4", 121.0),
    ("V100", 125.0),
    ("T4", 65.0),
];

/// The peak of the GPU in these words; `None` where it is not known.
pub(super) fn of(device: &str, dtype: Dtype) -> Option<f64> {
    let (_, peak) = PEAKS.iter().find(|(name, _)| device.contains(name))?;
    // Before Ampere there is nothing for bf16, and products of f32 have no peak that is theirs
    // alone: they may run as TF32.
    let has_bf16 = !device.contains("V100") && !device.contains("T4");
    match dtype {
        Dtype::F16 => Some(*peak),
        Dtype::Bf16 => has_bf16.then_some(*peak),
        Dtype::F32 => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_found_by_its_name() {
        for (name, dtype, peak) in [
            ("cuda:0 (NVIDIA H100 80GB HBM3) in f16", Dtype::F16, Some(989.4)),
            ("cuda:0 (NVIDIA H100 PCIe) in bf16", Dtype::Bf16, Some(756.0)),
            ("cuda:1 (NVIDIA L4) in f16", Dtype::F16, Some(121.0)),
            ("cuda:0 (Tesla T4) in bf16", Dtype::Bf16, None),
            ("cuda:0 (NVIDIA A100-SXM4-40GB) in f32", Dtype::F32, None),
            ("cpu in f32", Dtype::F32, None),
        ] {
            assert_eq!(of(name, dtype), peak, "{name}");
        }
    }
}
