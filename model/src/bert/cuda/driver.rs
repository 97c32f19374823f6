//! What is asked of the driver and of the compiler of kernels: all unsafe code of the project that
//! launches something.
//!
//! A kernel is a C function of pointers, so that no type says what it reads and writes. Here its
//! arguments are at least of the types that it has, and each buffer is as long as its grid.
#![allow(unsafe_code, reason = "a kernel is launched through an interface in C")]

use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, CudaView, DeviceRepr,
    DriverError, LaunchConfig, PinnedHostSlice, PushKernelArg, ValidAsZeroBits,
};
use cudarc::nvrtc::{Ptx, result, sys};
use sha2::{Digest, Sha256};
use tracing::{debug, warn};

/// A kernel and what each launch of it needs.
#[derive(Debug)]
pub(super) struct Kernel {
    function: CudaFunction,
    threads: u32,
    /// Bytes of shared memory beside what the kernel says itself.
    shared: u32,
}

/// An argument, where the kernel has one of its type.
#[derive(Debug, Clone, Copy)]
pub(super) enum Arg<'a> {
    /// Numbers of 16 bits.
    Halves(&'a CudaSlice<u8>),
    Floats(&'a CudaSlice<f32>),
    Ints(&'a CudaView<'a, i32>),
    /// A null pointer, where the kernel allows one.
    Nothing,
    Int(i32),
    Float(f32),
}

impl Kernel {
    /// Finds a kernel in compiled code.
    pub(super) fn find(
        module: &Arc<CudaModule>,
        name: &str,
        threads: u32,
        shared: u32,
    ) -> Result<Self, DriverError> {
        let function = module.load_function(name)?;
        if shared > 0 {
            let most = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, shared.cast_signed())?;
        }
        Ok(Self { function, threads, shared })
    }

    /// Starts it on so many columns and rows of blocks, after all that was started before.
    pub(super) fn launch(
        &self,
        stream: &CudaStream,
        (columns, rows): (usize, usize),
        args: &[Arg<'_>],
    ) -> Result<(), DriverError> {
        const NULL: u64 = 0;
        let mut launch = stream.launch_builder(&self.function);
        for arg in args {
            match arg {
                Arg::Halves(slice) => launch.arg(*slice),
                Arg::Floats(slice) => launch.arg(*slice),
                Arg::Ints(view) => launch.arg(*view),
                Arg::Nothing => launch.arg(&NULL),
                Arg::Int(value) => launch.arg(value),
                Arg::Float(value) => launch.arg(value),
            };
        }
        let config = LaunchConfig {
            grid_dim: (columns as u32, rows as u32, 1),
            block_dim: (self.threads, 1, 1),
            shared_mem_bytes: self.shared,
        };
        // SAFETY: the callers give each kernel of `kernels.cu` the arguments that it lists, with
        // buffers of as many rows as its grid covers. All run on one stream, in order.
        unsafe { launch.launch(config) }.map(|_| ())
    }
}

/// Memory of the host that the device copies from and to by itself.
pub(super) fn pinned<T: DeviceRepr + ValidAsZeroBits>(
    context: &Arc<CudaContext>,
    len: usize,
) -> Result<PinnedHostSlice<T>, DriverError> {
    // SAFETY: any bytes are numbers of the types that are asked for, and only those that were
    // written are read.
    unsafe { context.alloc_pinned_with_flags(len, 0) }
}

/// The source compiled for a card, from the directory where it is kept if it is there.
pub(super) fn load(
    context: &Arc<CudaContext>,
    source: &str,
    options: &[String],
    kept_in: Option<&Path>,
) -> Result<Arc<CudaModule>, String> {
    let place = kept_in.map(|dir| place(dir, source, options));
    if let Some(place) = &place
        && let Ok(code) = std::fs::read(place)
    {
        let place = place.display();
        match context.load_module(Ptx::from_binary(code)) {
            Ok(module) => {
                debug!(%place, "kernels were compiled before");
                return Ok(module);
            }
            Err(error) => warn!(%place, %error, "kept kernels do not load; compiled anew"),
        }
    }
    let code = compile(source, options)?;
    if let Some(place) = &place
        && let Err(error) = keep(place, &code)
    {
        warn!(place = %place.display(), %error, "kernels are not kept; the next start compiles too");
    }
    context.load_module(Ptx::from_binary(code)).map_err(|error| format!("kernels: {error}"))
}

/// Where code is kept: other code and other options have other places.
fn place(dir: &Path, source: &str, options: &[String]) -> PathBuf {
    let mut hash = Sha256::new();
    for text in [source, &options.join(" "), env!("CARGO_PKG_VERSION")] {
        hash.update(text);
        hash.update([0]);
    }
    let name: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    dir.join(format!("encoder-{name}.cubin"))
}

/// Writes a file that is whole or not there, whoever else writes it at the same time.
fn keep(place: &Path, code: &[u8]) -> std::io::Result<()> {
    let dir = place.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let new = place.with_extension(format!("{}.new", std::process::id()));
    std::fs::write(&new, code)?;
    std::fs::rename(new, place)
}

/// Machine code of a source, or what the compiler says against it.
fn compile(source: &str, options: &[String]) -> Result<Vec<u8>, String> {
    let text = CString::new(source).map_err(|error| format!("NVRTC: {error}"))?;
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: result::NvrtcError| format!("NVRTC does not {what}: {error:?}")
    };
    let program = result::create_program(&text, Some(c"kernels.cu")).map_err(failed("start"))?;
    // SAFETY: the program was just made and is destroyed once, after its last use; the buffer is as
    // long as the compiler says that the code is.
    unsafe {
        let compiled = result::compile_program(program, options).map_err(|error| {
            let log = result::get_program_log(program).unwrap_or_default();
            let card = options.first().map_or("", String::as_str);
            format!(
                "NVRTC does not compile for {card}; a newer one knows newer cards: {error:?} {}",
                words(&log)
            )
        });
        let code = compiled.and_then(|()| {
            let mut len = 0;
            sys::nvrtcGetCUBINSize(program, &raw mut len).result().map_err(failed("tell"))?;
            let mut code = vec![0u8; len];
            let start = code.as_mut_ptr().cast::<c_char>();
            sys::nvrtcGetCUBIN(program, start).result().map_err(failed("answer"))?;
            Ok(code)
        });
        result::destroy_program(program).map_err(failed("end"))?;
        code
    }
}

fn words(log: &[c_char]) -> String {
    let bytes: Vec<u8> = log.iter().map(|byte| byte.cast_unsigned()).collect();
    let text = CStr::from_bytes_until_nul(&bytes).unwrap_or_default();
    text.to_string_lossy().lines().take(3).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_kept_whole_under_a_name_of_all_that_it_came_from() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = ["-DWIDTH=64".to_owned()];
        let one = place(dir.path(), "a", &options);
        assert_eq!(one, place(dir.path(), "a", &options));
        assert_ne!(one, place(dir.path(), "b", &options));
        assert_ne!(one, place(dir.path(), "a", &[]));
        let below = dir.path().join("not/yet/there");
        let place = place(&below, "a", &options);
        for code in [&b"first"[..], b"second"] {
            keep(&place, code).expect("kept");
            assert_eq!(std::fs::read(&place).expect("there"), code);
        }
        assert_eq!(std::fs::read_dir(below).expect("listed").count(), 1);
    }
}
