//! What the start of a generator decides and tells: how long its texts may be, and what its tokenizer
//! has that it does not know.

use std::path::Path;

use ebb_model::causal::{self, Tokenizer};
use ebb_model::{DeviceChoice, LoadError};
use tracing::{info, warn};

use crate::room;

/// The memory of a generator's keys and values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) bytes: u64,
    /// Tokens that a text and its answer may have in it.
    pub(crate) n_tokens: usize,
}

/// What is given, or what is usual.
///
/// # Errors
/// When it is too little: how much it takes.
pub(crate) fn room_for(
    settings: &causal::Settings,
    device: DeviceChoice,
    given: Option<u64>,
) -> Result<Room, LoadError> {
    let bytes = given.unwrap_or_else(|| {
        let read = |path: &Path| std::fs::read_to_string(path).ok();
        let memory = if device.keeps_kernels() { None } else { room::memory(read) };
        room::usual(causal::bytes(settings, device, settings.context()), memory)
    });
    Ok(Room { bytes, n_tokens: causal::positions(settings, device, bytes)? })
}

/// Says how long a text may be: what a worker refuses or answers shortly should surprise nobody.
pub(crate) fn tell_room(model: &str, settings: &causal::Settings, Room { bytes, n_tokens }: Room) {
    let of_model = settings.context();
    if n_tokens < of_model {
        warn!(
            model,
            kv_memory = bytes,
            tokens = n_tokens,
            tokens_of_model = of_model,
            "the memory of keys and values is for shorter texts than the model takes; give it more \
             with --kv-memory"
        );
    } else {
        info!(model, kv_memory = bytes, tokens = n_tokens, "a text and its answer have room");
    }
}

/// Says which tokens of its tokenizer a model does not know: some have one to fill rows, which no text
/// of a job has.
pub(crate) fn tell_unknown(dir: &Path, tokenizer: &Tokenizer, settings: &causal::Settings) {
    let unknown = tokenizer.unknown(settings);
    if !unknown.is_empty() {
        warn!(dir = %dir.display(), tokens = unknown.join(" "), "the model does not know \
            tokens of its tokenizer.json; jobs whose texts have them are refused");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_without_room_is_refused_with_what_it_needs() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/data/tiny-llama");
        let settings = causal::Settings::read(&dir).unwrap();
        let error = room_for(&settings, DeviceChoice::Cpu, Some(1)).unwrap_err().to_string();
        let (before, least) = error.rsplit_once("use at least ").unwrap();
        assert!(before.starts_with("--kv-memory is 1; this model needs more"), "{error}");
        let least: u64 = least.strip_suffix(" bytes").unwrap().parse().unwrap();
        let room = room_for(&settings, DeviceChoice::Cpu, Some(least)).unwrap();
        assert!((1..settings.context()).contains(&room.n_tokens), "{room:?}");
        let usual = room_for(&settings, DeviceChoice::Cpu, None).unwrap();
        assert_eq!(usual.n_tokens, settings.context());
    }
}
