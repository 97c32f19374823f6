//! The name of a device, as it stands in a flag, and what numbers it computes with.

#[cfg(feature = "cuda")]
mod cuda;
mod dtype;
#[cfg(feature = "cpu")]
mod failure;
#[cfg(feature = "cpu")]
pub(crate) mod sizes;
#[cfg(feature = "cpu")]
mod upload;

use std::fmt;
use std::str::FromStr;

#[cfg(feature = "cuda")]
pub use cuda::keep_kernels;
#[cfg(feature = "cuda")]
pub(crate) use cuda::{Card, kept_kernels};
pub use dtype::Dtype;
#[cfg(feature = "cpu")]
pub(crate) use failure::{failure, guarded};
#[cfg(feature = "cpu")]
pub(crate) use upload::Upload;

/// The device a model runs on; always named, never guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum DeviceChoice {
    /// The processor: `cpu`.
    #[default]
    Cpu,
    /// The processor by the operations that a GPU runs, slowly: `cpu-tensors`, for tests of them.
    CpuTensors(Option<Dtype>),
    /// An NVIDIA GPU by its place among those that the process sees: `cuda` or `cuda:N`. Without a
    /// type of numbers it is f16 where the GPU computes with them fast; of a decoder f16 or bf16, as
    /// suits its weights.
    Cuda(u16, Option<Dtype>),
}

/// A device that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No such device.
    #[error("unknown device {0:?}; use cpu, cuda or cuda:N")]
    Unknown(String),
    /// A device this binary was built without.
    #[error("device {0:?} is not in this build; use cpu, or build with --features cuda")]
    NotBuilt(String),
    /// A type of numbers that the device does not compute with.
    #[error("{dtype} on {device}: {remedy}")]
    Dtype {
        /// The type.
        dtype: Dtype,
        /// The device's name.
        device: String,
        /// What would work.
        remedy: &'static str,
    },
    /// What CUDA needs is not all here: everything that is missing, and where to get it.
    #[error("{device} cannot be used: {}", missing.join("; and "))]
    Missing {
        /// The device's name.
        device: String,
        /// One remedy each.
        missing: Vec<String>,
    },
    /// The threads run already.
    #[error("the number of threads is set once, before a model is loaded")]
    Running,
    /// Kernels are kept in another directory already.
    #[error("the directory of kernels is set once, before a model is loaded")]
    Kept,
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let (kind, index) = match name.split_once(':') {
            Some((kind, index)) => (kind, Some(index)),
            None => (name, None),
        };
        let unknown = || DeviceError::Unknown(name.to_owned());
        match (kind, index) {
            ("cpu", None) => Ok(Self::Cpu),
            ("cpu-tensors", None) => Ok(Self::CpuTensors(None)),
            ("cuda", index) => {
                let ordinal = index.map_or(Ok(0), str::parse).map_err(|_| unknown())?;
                let built = cfg!(feature = "cuda");
                built.then_some(Self::Cuda(ordinal, None)).ok_or(DeviceError::NotBuilt(name.into()))
            }
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::CpuTensors(_) => f.write_str("cpu-tensors"),
            Self::Cuda(ordinal, _) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl DeviceChoice {
    /// The same device, to compute with numbers of this type; `None` leaves it to the device.
    ///
    /// # Errors
    /// When it is known without asking the device that it cannot.
    pub fn with_dtype(self, dtype: Option<Dtype>) -> Result<Self, DeviceError> {
        match (self, dtype) {
            (Self::Cpu, Some(dtype)) if dtype != Dtype::F32 => Err(DeviceError::Dtype {
                dtype,
                device: self.to_string(),
                remedy: "processors multiply f32 faster than halves; use f32",
            }),
            (Self::Cpu, _) => Ok(Self::Cpu),
            (Self::CpuTensors(_), dtype) => Ok(Self::CpuTensors(dtype)),
            (Self::Cuda(ordinal, _), dtype) => Ok(Self::Cuda(ordinal, dtype)),
        }
    }

    /// Whether kernels are compiled and tuned for it, which a directory can keep.
    pub fn keeps_kernels(self) -> bool {
        matches!(self, Self::Cuda(..))
    }
}

/// Limits the processor to `n` threads; to be called once, before a model is loaded.
#[cfg(feature = "cpu")]
pub fn use_threads(n: std::num::NonZeroUsize) -> Result<(), DeviceError> {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(n.get());
    threads.build_global().map_err(|_| DeviceError::Running)
}

/// Would keep kernels in this directory, where a device has some.
///
/// # Errors
/// Always: this build has no such device.
#[cfg(not(feature = "cuda"))]
pub fn keep_kernels(dir: &std::path::Path) -> Result<(), DeviceError> {
    Err(DeviceError::NotBuilt(format!("cuda, for {}", dir.display())))
}

/// A device that is there, as long as this or a model on it is.
#[cfg(feature = "cpu")]
#[derive(Debug, Clone)]
pub struct Opened {
    pub(crate) device: burn::tensor::Device,
    pub(crate) dtype: Dtype,
    /// Whether somebody chose the type.
    pub(crate) is_asked: bool,
    /// Whether kernels are launched on it, for which shapes are to be few and large.
    pub(crate) launches: bool,
    /// Whether kernels are compiled and tuned for each of them.
    pub(crate) is_tuned: bool,
    /// What it is called, for people.
    pub(crate) name: String,
    #[cfg(feature = "cuda")]
    pub(crate) card: Option<std::sync::Arc<Card>>,
}

#[cfg(feature = "cpu")]
impl Opened {
    fn of_processor(dtype: Dtype, launches: bool, name: String) -> Self {
        Self {
            device: burn::tensor::Device::flex(),
            dtype,
            is_asked: true,
            launches,
            is_tuned: false,
            name,
            #[cfg(feature = "cuda")]
            card: None,
        }
    }

    /// The same, as if kernels were tuned for it: models tell of first runs then, which tests need
    /// where there is no GPU.
    #[doc(hidden)]
    #[must_use]
    pub fn as_if_tuned(self) -> Self {
        Self { is_tuned: true, ..self }
    }

    /// The same for a decoder whose weights are stored as this type: where nobody chose one, a GPU
    /// computes with 16 bits that have the range of the weights.
    ///
    /// # Errors
    /// When the GPU does not compute with them: those that it does.
    pub(crate) fn for_weights(self, stored: Dtype) -> Result<Self, DeviceError> {
        let dtype = if self.is_asked { self.dtype } else { stored.halved() };
        #[cfg(feature = "cuda")]
        if let Some(card) = &self.card {
            card.check(dtype)?;
        }
        let opened = Self { dtype, ..self };
        opened.tell();
        Ok(opened)
    }

    /// Tells the log with which numbers a model computes on a GPU.
    pub(crate) fn tell(&self) {
        if self.is_gpu() {
            tracing::info!(device = %self.name, dtype = %self.dtype, "a model computes on the GPU");
        }
    }

    /// Largest difference of two numbers that should be the same, in parts of the largest beside
    /// them, or of 1 if that is larger: what rounding may do on the way through a model.
    pub(crate) fn tolerance(&self) -> f32 {
        match self.dtype {
            Dtype::Bf16 => 3e-2,
            Dtype::F16 => 5e-3,
            // A GPU may multiply f32 as TF32, which has the precision of f16.
            Dtype::F32 if self.is_gpu() => 5e-3,
            Dtype::F32 => 1e-4,
        }
    }

    /// Whether it is more than a processor that runs what a GPU does.
    #[cfg(feature = "cuda")]
    pub(crate) fn is_gpu(&self) -> bool {
        self.card.is_some()
    }

    /// Whether it is more than a processor that runs what a GPU does.
    #[cfg(not(feature = "cuda"))]
    pub(crate) fn is_gpu(&self) -> bool {
        false
    }

    /// With the type of numbers.
    pub(crate) fn full_name(&self) -> String {
        format!("{} in {}", self.name, self.dtype)
    }
}

#[cfg(feature = "cpu")]
impl DeviceChoice {
    /// Looks for all that the device needs, and starts it where that takes time.
    ///
    /// # Errors
    /// When something is missing: all of it, with what to do.
    pub fn start(self) -> Result<Opened, DeviceError> {
        let name = self.to_string();
        match self {
            Self::Cpu => Ok(Opened::of_processor(Dtype::F32, false, name)),
            Self::CpuTensors(dtype) => {
                Ok(Opened::of_processor(dtype.unwrap_or(Dtype::F32), true, name))
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(ordinal, dtype) => cuda::open(ordinal, dtype),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(..) => Err(DeviceError::NotBuilt(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_or_refused_with_a_remedy() {
        assert_eq!("cpu".parse(), Ok(DeviceChoice::Cpu));
        assert_eq!(DeviceChoice::Cpu.to_string(), "cpu");
        for (name, says) in [
            ("cuda:x", "unknown device \"cuda:x\"; use cpu"),
            ("cuda:-1", "unknown device \"cuda:-1\"; use cpu"),
            ("", "unknown device \"\"; use cpu"),
            ("CPU", "unknown device \"CPU\"; use cpu"),
            ("cpu:0", "unknown device \"cpu:0\"; use cpu"),
        ] {
            let error = name.parse::<DeviceChoice>().expect_err(name).to_string();
            assert!(error.contains(says), "{name}: {error}");
        }
    }

    #[test]
    fn a_gpu_is_known_where_it_is_built_in() {
        for (name, ordinal) in [("cuda", 0), ("cuda:0", 0), ("cuda:7", 7)] {
            let choice = name.parse::<DeviceChoice>();
            if cfg!(feature = "cuda") {
                let choice = choice.expect(name);
                assert_eq!(choice, DeviceChoice::Cuda(ordinal, None));
                assert_eq!(choice.to_string(), format!("cuda:{ordinal}"));
            } else {
                let error = choice.expect_err(name).to_string();
                let says = "is not in this build; use cpu, or build with --features cuda";
                assert!(error.contains(says), "{error}");
            }
        }
    }

    #[test]
    fn only_a_gpu_computes_with_halves() {
        assert_eq!(DeviceChoice::Cpu.with_dtype(Some(Dtype::F32)), Ok(DeviceChoice::Cpu));
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let error = DeviceChoice::Cpu.with_dtype(Some(dtype)).expect_err("halves").to_string();
            assert!(error.contains("on cpu") && error.ends_with("use f32"), "{error}");
            let gpu = DeviceChoice::Cuda(1, None).with_dtype(Some(dtype));
            assert_eq!(gpu, Ok(DeviceChoice::Cuda(1, Some(dtype))));
        }
    }

    #[cfg(feature = "cpu")]
    #[test]
    fn a_decoder_has_the_range_of_its_weights_unless_somebody_chose_a_type() {
        for (stored, halved) in
            [(Dtype::F16, Dtype::F16), (Dtype::Bf16, Dtype::Bf16), (Dtype::F32, Dtype::Bf16)]
        {
            let asked = DeviceChoice::CpuTensors(Some(Dtype::F16)).start().expect("it is there");
            let open = Opened { is_asked: false, ..asked.clone() };
            let of = |opened: Opened| opened.for_weights(stored).map(|it| it.dtype);
            assert_eq!((of(asked), of(open)), (Ok(Dtype::F16), Ok(halved)));
        }
    }
}
