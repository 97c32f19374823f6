//! A stand-in for cubecl's LLVM compiler, so that the CUDA form of a program is built from crates
//! alone.
//!
//! The real one links LLVM, which its build downloads from a place that is no crate registry.
//! cubecl-cuda names its types whatever compiler it uses; with cubecl's feature `cuda-cpp` it never
//! calls them. Here are those names and nothing behind them: a compile is an error that says so.

/// The target that cubecl-cuda asks for.
pub mod nvptx {
    /// Versions of PTX.
    pub mod ptx_version {
        /// A version of PTX; none is ever made here.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct PtxVersion(core::convert::Infallible);

        impl PtxVersion {
            /// What the driver's version means to LLVM: nothing, as there is none.
            pub fn for_driver(_driver: i32) -> Option<Self> {
                None
            }
        }

        impl core::fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.0 {}
            }
        }
    }
}

/// What holds for every target.
pub mod shared {
    /// What a device may promise where LLVM compiles for it.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// The target to promise for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA's.
            Nvptx,
        }

        /// Leaves the promises as they are: nothing is compiled here.
        pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
    }
}

use cubecl_core::ir::attributes::BufferIOAttr;
use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_core::{CompilationError, Compiler};

use nvptx::ptx_version::PtxVersion;

/// What a compile answers.
const ABSENT: &str = "this program was built without LLVM: build it with cubecl's feature \
     cuda-cpp, which compiles with NVRTC, or without the entry cubecl-llvm under \
     [patch.crates-io], which downloads LLVM";

/// A target of the compiler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LlvmTarget {
    /// NVIDIA's.
    #[default]
    Nvptx,
}

/// The compiler that is not here.
#[derive(Debug, Clone, Default)]
pub struct PlironCompiler {
    /// What it would compile for.
    pub target: LlvmTarget,
}

/// What a compile would be told.
#[derive(Debug, Clone, Default)]
pub struct PlironOptions {
    /// Another vendor's architecture.
    pub arch: Option<core::convert::Infallible>,
    /// The device's architecture.
    pub sm_arch: Option<SmArch>,
    /// The version of PTX to write.
    pub ptx_version: Option<PtxVersion>,
    /// Whether scalars travel with the parameters.
    pub grid_constants: bool,
    /// More options than cubecl-cuda names, as it fills up with the default ones.
    pub more: (),
}

/// A compiled module; none is ever made here.
#[derive(Debug, Clone)]
pub struct NvptxModule {
    /// The assembly.
    pub ptx: Vec<core::ffi::c_char>,
    /// The kernel's name in it.
    pub entrypoint: String,
    /// What it was made of.
    pub ir: String,
    /// Bytes of shared memory for a launch.
    pub shared_memory_size: usize,
    /// What the kernel does with each buffer.
    pub io: Vec<BufferIOAttr>,
}

/// What a compile would give.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum PlironArtifact {
    /// A module for NVIDIA's devices.
    NvptxCode(NvptxModule),
}

impl core::fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NvptxCode(module) => f.write_str(&module.ir),
        }
    }
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(
        &mut self,
        _kernel: KernelDefinition,
        _options: &Self::CompilationOptions,
    ) -> Result<Self::Representation, CompilationError> {
        let backtrace = cubecl_core::environment::backtrace::BackTrace::capture();
        Err(CompilationError::Generic { reason: ABSENT.into(), backtrace })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}
