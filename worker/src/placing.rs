//! Where a model runs: the device, its type of numbers, and where its kernels are kept.

use std::path::{Path, PathBuf};

use anyhow::Context;
use ebb_model::{DeviceChoice, Dtype};

/// What a model runs on.
#[derive(Debug, Clone, clap::Args)]
pub struct DeviceArgs {
    /// Device to run it on: cpu, cuda, or cuda:N, the Nth of the GPUs that this process sees
    #[arg(long, value_name = "DEVICE", env = "EBB_DEVICE", default_value = "cpu")]
    pub device: DeviceChoice,

    /// Numbers that its products are computed with: f32, f16 or bf16; sums are in f32 always
    /// [default: f32 on cpu, f16 on a GPU that has units for it]
    #[arg(long, value_name = "TYPE", env = "EBB_DTYPE")]
    pub dtype: Option<Dtype>,

    /// Directory that keeps a GPU's compiled and tuned kernels for the next start, such as a volume;
    /// `ebb worker warm` fills it [default: ebb/kernels in the user's cache directory]
    #[arg(long, value_name = "DIR", env = "EBB_KERNEL_CACHE")]
    pub kernel_cache: Option<PathBuf>,
}

impl DeviceArgs {
    /// The device with its type of numbers.
    ///
    /// # Errors
    /// When the device does not compute with them.
    pub fn choice(&self) -> anyhow::Result<DeviceChoice> {
        self.device.with_dtype(self.dtype).context("--dtype")
    }

    /// Says where kernels are kept, once, before a device is started; `None` where it has none.
    ///
    /// # Errors
    /// When it was said before.
    pub fn keep_kernels(&self) -> anyhow::Result<Option<PathBuf>> {
        if !self.device.keeps_kernels() {
            return Ok(None);
        }
        let own = || kept(|name| std::env::var_os(name).map(PathBuf::from));
        let Some(dir) = self.kernel_cache.clone().or_else(own) else { return Ok(None) };
        ebb_model::keep_kernels(&dir).context("--kernel-cache")?;
        Ok(Some(dir))
    }
}

/// Where kernels are kept when nobody says.
fn kept(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let named = variable("XDG_CACHE_HOME").filter(|dir| dir.is_absolute());
    let cache = named.or_else(|| Some(variable("HOME")?.join(".cache")))?;
    Some(cache.join(Path::new("ebb/kernels")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_kept_in_the_users_cache() {
        let of = |variables: &'static [(&str, &str)]| {
            kept(move |name| {
                let found = variables.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| PathBuf::from(value))
            })
        };
        let at = |path: &str| Some(PathBuf::from(path));
        assert_eq!(of(&[("HOME", "/a")]), at("/a/.cache/ebb/kernels"));
        assert_eq!(of(&[("XDG_CACHE_HOME", "/c"), ("HOME", "/h")]), at("/c/ebb/kernels"));
        assert_eq!(of(&[("XDG_CACHE_HOME", ""), ("HOME", "/h")]), at("/h/.cache/ebb/kernels"));
        assert_eq!(of(&[]), None);
    }
}
