//! What NVIDIA's driver tells of the GPUs of this machine, as metrics; nothing where there is none.
//!
//! A thread of its own asks: a driver that hangs must stop neither a job nor a scrape.

use std::ffi::OsStr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use prometheus::core::Collector;
use prometheus::{GaugeVec, Opts, Registry};
use tracing::{debug, info, warn};

/// As the driver names it. The name without a version comes with development packages, and is in
/// few containers.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// From one sample to the next.
const PERIOD: Duration = Duration::from_secs(5);

/// Samples until it is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    // The thread ends when this is gone; it is not joined, since the driver may have it.
    _stop: SyncSender<()>,
}

/// What one GPU says; `None` is what it does not tell, as a part of one (MIG) its utilisation.
#[derive(Debug)]
struct Sample {
    index: u32,
    /// Bytes.
    used: Option<f64>,
    total: Option<f64>,
    /// Share of the driver's last sampling period in which a kernel ran.
    utilization: Option<f64>,
}

#[derive(Debug)]
pub(crate) struct Gauges {
    used: GaugeVec,
    total: GaugeVec,
    utilization: GaugeVec,
}

/// Shows the GPUs in this registry, as soon as the driver is found; without one it ends at once.
pub(crate) fn watch(registry: Registry) -> Option<Watch> {
    watch_with(LIBRARY.as_ref(), registry, PERIOD)
}

fn watch_with(library: &'static OsStr, registry: Registry, period: Duration) -> Option<Watch> {
    let (stop, stopped) = sync_channel(0);
    let ask = move || ask(library, &registry, period, &stopped);
    match std::thread::Builder::new().name("gpu-metrics".to_owned()).spawn(ask) {
        Ok(_) => Some(Watch { _stop: stop }),
        Err(error) => {
            warn!(%error, "no thread for the metrics of GPUs");
            None
        }
    }
}

fn ask(library: &OsStr, registry: &Registry, period: Duration, stopped: &Receiver<()>) {
    let nvml = match Nvml::builder().lib_path(library).init() {
        Ok(nvml) => nvml,
        Err(error) => return debug!(%error, "no NVIDIA driver: no GPU in the metrics"),
    };
    let gauges = match Gauges::registered(registry) {
        Ok(gauges) => gauges,
        Err(error) => return warn!(%error, "no GPU in the metrics"),
    };
    let n_gpus = told(nvml.device_count()).unwrap_or(0);
    info!(n_gpus, "the driver tells of GPUs");
    loop {
        for index in 0..n_gpus {
            gauges.show(&sample(&nvml, index));
        }
        if stopped.recv_timeout(period) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

fn sample(nvml: &Nvml, index: u32) -> Sample {
    let device = told(nvml.device_by_index(index));
    let memory = device.as_ref().and_then(|device| told(device.memory_info()));
    let rates = device.as_ref().and_then(|device| told(device.utilization_rates()));
    Sample {
        index,
        used: memory.as_ref().map(|memory| memory.used as f64),
        total: memory.as_ref().map(|memory| memory.total as f64),
        utilization: rates.map(|rates| f64::from(rates.gpu) / 100.0),
    }
}

fn told<T>(answer: Result<T, NvmlError>) -> Option<T> {
    answer.inspect_err(|error| debug!(%error, "the driver does not tell")).ok()
}

impl Gauges {
    pub(crate) fn registered(registry: &Registry) -> prometheus::Result<Self> {
        let used = Opts::new("worker_gpu_memory_used_bytes", "Memory in use, by any process.");
        let total = Opts::new("worker_gpu_memory_total_bytes", "Memory of the GPU.");
        let utilization =
            Opts::new("worker_gpu_utilization_ratio", "Share of time in which a kernel ran.");
        let gauges = Self {
            used: GaugeVec::new(used, &["gpu"])?,
            total: GaugeVec::new(total, &["gpu"])?,
            utilization: GaugeVec::new(utilization, &["gpu"])?,
        };
        gauges.collectors().into_iter().try_for_each(|one| registry.register(one))?;
        Ok(gauges)
    }

    pub(crate) fn collectors(&self) -> [Box<dyn Collector>; 3] {
        [&self.used, &self.total, &self.utilization].map(|one| Box::new(one.clone()) as _)
    }

    fn show(&self, sample: &Sample) {
        let gpu = sample.index.to_string();
        put(&self.used, &gpu, sample.used);
        put(&self.total, &gpu, sample.total);
        put(&self.utilization, &gpu, sample.utilization);
    }
}

/// What is not told any more is shown no more.
fn put(gauges: &GaugeVec, gpu: &str, value: Option<f64>) {
    match value {
        Some(value) => gauges.with_label_values(&[gpu]).set(value),
        // It may never have been there.
        None => drop(gauges.remove_label_values(&[gpu])),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A driver of two GPUs: one tells everything, one is a part of a GPU.
    const DRIVER: &str = r"
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_t;
typedef struct { unsigned gpu, memory; } rates_t;
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (char *)0 + 1 + index;
    return 0;
}
int nvmlDeviceGetMemoryInfo_v2(void *device, memory_t *memory) {
    memory->used = 3ULL << 30;
    memory->total = 80ULL << 30;
    return 0;
}
int nvmlDeviceGetUtilizationRates(void *device, rates_t *rates) {
    rates->gpu = 75;
    return device == (char *)0 + 1 ? 0 : 3;
}
";

    fn shown(registry: &Registry) -> Vec<(String, String, f64)> {
        let mut shown = Vec::new();
        for family in registry.gather() {
            for metric in family.get_metric() {
                let gpu = metric.get_label()[0].value().to_owned();
                shown.push((family.name().to_owned(), gpu, metric.get_gauge().get_value()));
            }
        }
        shown
    }

    fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
        let end = std::time::Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(std::time::Instant::now() < end, "not within 30 s");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_driver_that_comes_with_the_machine_is_found_and_asked() {
        let folder = tempfile::tempdir().unwrap();
        let (source, library) = (folder.path().join("nvml.c"), folder.path().join("nvml.so"));
        std::fs::write(&source, DRIVER).unwrap();
        // Rust links with it, so it is here.
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-w", "-o"]);
        assert!(cc.arg(&library).arg(&source).status().unwrap().success());
        let registry = Registry::new();
        let library = Box::leak(library.into_os_string().into_boxed_os_str());
        let watch = watch_with(library, registry.clone(), Duration::from_millis(1));
        let all = until(|| Some(shown(&registry)).filter(|all| all.len() == 5));
        let gib = f64::from(1 << 30);
        let row = |name: &str, gpu: &str, value| (format!("worker_gpu_{name}"), gpu.into(), value);
        assert_eq!(
            all,
            [
                row("memory_total_bytes", "0", 80.0 * gib),
                row("memory_total_bytes", "1", 80.0 * gib),
                row("memory_used_bytes", "0", 3.0 * gib),
                row("memory_used_bytes", "1", 3.0 * gib),
                row("utilization_ratio", "0", 0.75),
            ]
        );
        drop(watch);
    }

    #[test]
    fn without_a_driver_there_is_no_metric_and_what_is_not_told_any_more_is_gone() {
        let registry = Registry::new();
        let (_stop, stopped) = sync_channel(0);
        // Ends by itself.
        ask(OsStr::new("libno-such-driver.so.1"), &registry, PERIOD, &stopped);
        assert!(registry.gather().is_empty());

        let gauges = Gauges::registered(&registry).unwrap();
        let sample = Sample { index: 0, used: None, total: None, utilization: Some(0.5) };
        gauges.show(&sample);
        assert_eq!(shown(&registry), [("worker_gpu_utilization_ratio".into(), "0".into(), 0.5)]);
        gauges.show(&Sample { utilization: None, ..sample });
        assert_eq!(shown(&registry), []);
    }
}
