//! PyTorch in a process of its own, as `benches/gpu_peers.py` speaks.

use std::path::Path;

use serde_json::json;

pub(super) use crate::peers::Peers;
use crate::peers::Script;

/// The peers, in the order of their columns.
pub(super) const PEERS: [&str; 2] = ["eager", "compiled"];
const SCRIPT: Script = Script::python(include_str!("../../gpu_peers.py"), PEERS);

impl Peers {
    pub(super) fn start(
        python: &Path,
        folder: &Path,
        dir: &Path,
        (device, dtype): (&str, &str),
    ) -> Self {
        Self::load(
            python,
            &SCRIPT,
            folder,
            &json!({"model": dir, "device": device, "dtype": dtype}),
        )
    }
}
