//! An NVIDIA GPU: whether all that it needs is here, asked before burn touches it.
//!
//! cubecl ends the process where the driver is missing, and panics at the first kernel where the
//! compiler or its headers are. So each is looked for first, and all that is missing is said at once.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use cubecl::config::cache::CacheConfig;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
use cudarc::driver::{CudaContext, result};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use tracing::info;

use super::{DeviceChoice, DeviceError, Dtype, Opened};

/// The oldest driver, as CUDA numbers it: that of `CUDARC_CUDA_VERSION` in `.cargo/config.toml`.
const OLDEST_DRIVER: i32 = 12080;
/// The first compute capability with units for products of f16, and of bf16.
const FAST_F16: (i32, i32) = (7, 0);
const FAST_BF16: (i32, i32) = (8, 0);

const DRIVER: [&str; 2] = ["libcuda.so", "libcuda.so.1"];
const COMPILER: [&str; 2] = ["libnvrtc.so", "libnvrtc.so.12"];

/// Headers that kernels include, and what carries each: a Debian package and a wheel.
const HEADERS: [(&str, &str, &str); 6] = [
    ("cuda_runtime.h", "cuda-cudart-dev-12-8", "nvidia-cuda-runtime-cu12"),
    ("cuda_fp16.h", "cuda-cudart-dev-12-8", "nvidia-cuda-runtime-cu12"),
    ("cuda_bf16.h", "cuda-cudart-dev-12-8", "nvidia-cuda-runtime-cu12"),
    ("mma.h", "cuda-cudart-dev-12-8", "nvidia-cuda-runtime-cu12"),
    ("crt/mma.h", "cuda-crt-12-8", "nvidia-cuda-nvcc-cu12"),
    ("cuda/barrier", "cuda-cccl-12-8", "nvidia-cuda-cccl-cu12"),
];

/// The GPU with this number, once all has been found that every model needs.
pub(super) fn open(ordinal: u16, dtype: Option<Dtype>) -> Result<Opened, DeviceError> {
    let choice = DeviceChoice::Cuda(ordinal, dtype).to_string();
    let missing: Vec<String> = [driver(), compiler()].into_iter().filter_map(Result::err).collect();
    if !missing.is_empty() {
        return Err(DeviceError::Missing { device: choice, missing });
    }
    let card = Card::ask(ordinal, &choice)
        .map_err(|why| DeviceError::Missing { device: choice.clone(), missing: vec![why] })?;
    let is_asked = dtype.is_some();
    let dtype = suited(card.capability, dtype, &choice)?;
    let Card { name, capability, memory, processors, .. } = &card;
    let capability = format!("{}.{}", capability.0, capability.1);
    info!(device = %choice, name, %capability, memory, processors, "the GPU is there");
    Ok(Opened {
        device: Device::cuda(usize::from(ordinal)),
        dtype,
        is_asked,
        launches: true,
        is_tuned: true,
        name: name.clone(),
        card: Some(Arc::new(card)),
    })
}

/// Keeps compiled and tuned kernels in this directory; to be called once, before a model is loaded.
///
/// They are found there again by the same build on the same kind of GPU. A directory that cannot be
/// written costs the time to compile and tune again, not the start.
///
/// # Errors
/// When it was called before.
pub fn keep_kernels(dir: &Path) -> Result<(), DeviceError> {
    let mut config = CubeClRuntimeConfig::default();
    config.compilation.cache = true;
    config.environment.path = CacheConfig::Directory(dir.to_owned());
    // Environment variables of cubecl's own still rule, for whoever examines it.
    let config = config.override_from_env();
    CubeClRuntimeConfig::try_set(config).then_some(()).ok_or(DeviceError::Kept)
}

/// Where kernels are kept, if they are.
pub(crate) fn kept_kernels() -> Option<PathBuf> {
    let config = CubeClRuntimeConfig::get();
    match &config.environment.path {
        CacheConfig::Directory(dir) if config.compilation.cache => Some(dir.clone()),
        _ => None,
    }
}

/// What a GPU says of itself, with its context, which is made once.
#[derive(Debug)]
pub(crate) struct Card {
    /// With its number.
    pub(crate) name: String,
    pub(crate) capability: (i32, i32),
    memory: usize,
    /// Each runs blocks of its own.
    pub(crate) processors: usize,
    pub(crate) context: Arc<CudaContext>,
}

impl Card {
    /// Asks the driver; to be called once it was found.
    fn ask(ordinal: u16, choice: &str) -> Result<Self, String> {
        let failed = |what: &str, error: &dyn std::fmt::Debug| {
            format!("{what}: {error:?}; see what nvidia-smi says of this machine")
        };
        result::init().map_err(|error| failed("the driver does not start", &error))?;
        let n_cards = result::device::get_count();
        let n_cards = n_cards.map_err(|error| failed("the driver counts no GPUs", &error))?;
        if i32::from(ordinal) >= n_cards {
            return Err(format!(
                "there are {n_cards} GPUs here, counted from 0; a container sees those that it \
                 asks for, and of them those in CUDA_VISIBLE_DEVICES"
            ));
        }
        let context = CudaContext::new(usize::from(ordinal));
        let context = context.map_err(|error| failed("the GPU does not open", &error))?;
        let asked = |error| failed("the GPU does not answer", &error);
        let processors = context.attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
        Ok(Self {
            name: format!("{choice} ({})", context.name().map_err(asked)?),
            capability: context.compute_capability().map_err(asked)?,
            memory: context.total_mem().map_err(asked)?,
            processors: processors.map_err(asked)?.cast_unsigned() as usize,
            context,
        })
    }

    /// Starts burn on it, once the headers were found that its kernels include.
    pub(crate) fn start_burn(&self, device: &Device) -> Result<(), DeviceError> {
        let failed = |why| DeviceError::Missing { device: self.name.clone(), missing: vec![why] };
        headers(toolkit().as_deref()).map_err(failed)?;
        let started = device.sync();
        started.map_err(|error| failed(format!("burn does not start on it: {error}")))
    }

    /// Whether it computes with this type.
    pub(super) fn check(&self, dtype: Dtype) -> Result<(), DeviceError> {
        suited(self.capability, Some(dtype), &self.name).map(drop)
    }
}

/// The type of numbers for a card of this capability.
fn suited(
    capability: (i32, i32),
    asked: Option<Dtype>,
    device: &str,
) -> Result<Dtype, DeviceError> {
    let refused = |dtype, remedy| DeviceError::Dtype { dtype, device: device.into(), remedy };
    let fast_f16 = capability >= FAST_F16;
    match asked {
        None => Ok(if fast_f16 { Dtype::F16 } else { Dtype::F32 }),
        Some(Dtype::F16) if !fast_f16 => {
            Err(refused(Dtype::F16, "it needs compute capability 7.0; use f32"))
        }
        Some(Dtype::Bf16) if capability < FAST_BF16 => {
            let remedy = match fast_f16 {
                true => "it needs compute capability 8.0; use f16 or f32",
                false => "it needs compute capability 8.0; use f32",
            };
            Err(refused(Dtype::Bf16, remedy))
        }
        Some(dtype) => Ok(dtype),
    }
}

/// Whether the driver's library is there, and new enough as far as it can be asked.
fn driver() -> Result<(), String> {
    if !DRIVER.iter().any(|name| is_library(name)) {
        return Err("there is no NVIDIA driver here (libcuda.so.1): on a node install R570 or \
                    newer; in a container ask for nvidia.com/gpu, and have the container toolkit \
                    on the node"
            .to_owned());
    }
    // The part of the driver that counts and measures need not be in a container.
    let version = Nvml::init().and_then(|nvml| nvml.sys_cuda_driver_version());
    match version {
        Ok(version) if version < OLDEST_DRIVER => {
            let (major, minor) = (version / 1000, version % 1000 / 10);
            Err(format!("the driver knows CUDA {major}.{minor}; 12.8 is the oldest (R570)"))
        }
        _ => Ok(()),
    }
}

/// Whether the compiler of kernels is there.
fn compiler() -> Result<(), String> {
    if COMPILER.iter().any(|name| is_library(name)) {
        return Ok(());
    }
    Err("there is no NVRTC of CUDA 12 here (libnvrtc.so.12): install cuda-nvrtc-12-8, or the wheel \
         nvidia-cuda-nvrtc-cu12 with its lib folder in LD_LIBRARY_PATH"
        .to_owned())
}

/// Whether the loader finds a library.
///
/// NVML's wrapper loads what it is told to before it looks for NVML in it: what is no NVML is
/// refused, but only what cannot be loaded is a failure of the loader.
fn is_library(name: &str) -> bool {
    let opened = Nvml::builder().lib_path(OsStr::new(name)).init();
    !matches!(opened, Err(NvmlError::LibloadingError(_)))
}

/// Where cubecl looks for a toolkit.
fn toolkit() -> Option<PathBuf> {
    cubecl::cuda::install::cuda_path()
}

/// Whether the headers are there that kernels include.
fn headers(toolkit: Option<&Path>) -> Result<(), String> {
    let remedy = "install the package, or unpack the wheel and set CUDA_PATH to the folder that \
                  holds include";
    let Some(toolkit) = toolkit else {
        return Err(format!(
            "there are no CUDA headers here: CUDA_PATH is not set, and there is no /usr/local/cuda; \
             cuda-cudart-dev-12-8, cuda-crt-12-8 and cuda-cccl-12-8 carry them, or the wheels \
             nvidia-cuda-runtime-cu12, nvidia-cuda-nvcc-cu12 and nvidia-cuda-cccl-cu12; {remedy}"
        ));
    };
    let include = toolkit.join("include");
    let is_there = |header: &str| {
        include.join(header).is_file() || include.join("cccl").join(header).is_file()
    };
    let absent = HEADERS.iter().find(|(header, _, _)| !is_there(header));
    let Some((header, package, wheel)) = absent else { return Ok(()) };
    let include = include.display();
    Err(format!("{include} lacks {header} (in {package}, or the wheel {wheel}); {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_header_is_named_with_what_carries_it() {
        let error = headers(None).expect_err("no toolkit");
        assert!(
            error.contains("CUDA_PATH") && error.contains("nvidia-cuda-runtime-cu12"),
            "{error}"
        );
        let dir = tempfile::tempdir().expect("a directory");
        let mut seen = Vec::new();
        while let Err(error) = headers(Some(dir.path())) {
            let (header, _, wheel) = HEADERS[seen.len()];
            assert!(error.contains(header) && error.contains(wheel), "{error}");
            // The last lies where newer toolkits have it.
            let folder = if header.starts_with("cuda/") { "include/cccl" } else { "include" };
            let path = dir.path().join(folder).join(header);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, "").expect("a file");
            seen.push(header);
        }
        assert_eq!(seen.len(), HEADERS.len());
    }

    #[test]
    fn a_library_that_is_no_nvml_is_a_library() {
        assert!(is_library("libc.so.6"));
        assert!(!is_library("libno-such-library.so.1"));
    }

    #[test]
    fn the_type_of_numbers_follows_the_card() {
        let of = |capability, asked| suited(capability, asked, "cuda:0").ok();
        assert_eq!(of((6, 1), None), Some(Dtype::F32));
        assert_eq!(of((7, 5), None), Some(Dtype::F16));
        assert_eq!(of((9, 0), None), Some(Dtype::F16));
        assert_eq!(of((9, 0), Some(Dtype::Bf16)), Some(Dtype::Bf16));
        assert_eq!(of((7, 5), Some(Dtype::Bf16)), None);
        assert_eq!(of((6, 1), Some(Dtype::F16)), None);
        assert_eq!(of((6, 1), Some(Dtype::F32)), Some(Dtype::F32));
        // A remedy is something that works there.
        for (capability, works) in [((6, 1), "use f32"), ((7, 5), "use f16 or f32")] {
            let error = suited(capability, Some(Dtype::Bf16), "cuda:0").expect_err("too old");
            assert!(error.to_string().ends_with(&format!("; {works}")), "{error}");
        }
    }
}
