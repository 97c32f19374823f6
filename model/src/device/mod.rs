//! The name of a device, as it stands in a flag.

use std::fmt;
use std::str::FromStr;

/// The device a model runs on; always named, never guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum DeviceChoice {
    /// The processor: `cpu`.
    #[default]
    Cpu,
}

/// A device that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No such device.
    #[error("unknown device {0:?}; use cpu")]
    Unknown(String),
    /// A device this binary was built without.
    #[error("device {0:?} is not in this build; use cpu")]
    NotBuilt(String),
    /// The threads run already.
    #[error("the number of threads is set once, before a model is loaded")]
    Running,
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let (kind, index) = match name.split_once(':') {
            Some((kind, index)) => (kind, Some(index)),
            None => (name, None),
        };
        match (kind, index) {
            ("cpu", None) => Ok(Self::Cpu),
            ("cuda", None) => Err(DeviceError::NotBuilt(name.to_owned())),
            ("cuda", Some(index)) if index.parse::<u16>().is_ok() => {
                Err(DeviceError::NotBuilt(name.to_owned()))
            }
            _ => Err(DeviceError::Unknown(name.to_owned())),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
        }
    }
}

/// Limits the processor to `n` threads; to be called once, before a model is loaded.
#[cfg(feature = "cpu")]
pub fn use_threads(n: std::num::NonZeroUsize) -> Result<(), DeviceError> {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(n.get());
    threads.build_global().map_err(|_| DeviceError::Running)
}

impl DeviceChoice {
    /// The burn device of this name.
    #[cfg(feature = "cpu")]
    pub(crate) fn open(self) -> burn::tensor::Device {
        match self {
            Self::Cpu => burn::tensor::Device::flex(),
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
            ("cuda", "not in this build; use cpu"),
            ("cuda:1", "not in this build; use cpu"),
            ("cuda:x", "unknown device \"cuda:x\"; use cpu"),
            ("", "unknown device \"\"; use cpu"),
            ("CPU", "unknown device \"CPU\"; use cpu"),
            ("cpu:0", "unknown device \"cpu:0\"; use cpu"),
        ] {
            let error = name.parse::<DeviceChoice>().expect_err(name).to_string();
            assert!(error.contains(says), "{name}: {error}");
        }
    }
}
