//! What came out, for people.

use anyhow::Result;
use serde_json::{Value, json};

use super::Row;
use super::checked::Check;
use super::cold::Cold;
use super::peers::PEERS;
use crate::peers::words;
use crate::report::{self, Table, dash, progress};

/// What was measured so far.
#[derive(Default)]
pub(super) struct Found {
    pub(super) device: String,
    pub(super) rows: Vec<Row>,
    pub(super) checks: Vec<Check>,
    pub(super) colds: Vec<Cold>,
    /// What the peers said of themselves, by their names.
    said: Value,
}

impl Found {
    /// Takes note of what the peers of a model said; their first errors stay.
    pub(super) fn heard(&mut self, said: &[Value; 2]) {
        for (peer, said) in PEERS.into_iter().zip(said) {
            let error = self.said[peer]["error"].take();
            self.said[peer] = said.clone();
            if !error.is_null() {
                self.said[peer]["error"] = error;
            }
        }
    }

    pub(super) fn print(&self, json: bool) -> Result<()> {
        let object = json!({
            "bench": "gpu",
            "device": self.device,
            "unit": "sentences/s",
            "rows": self.rows,
            "checks": self.checks,
            "cold_starts": self.colds,
            "versions": { "ebb": env!("CARGO_PKG_VERSION"), "torch": self.said },
        });
        report::print(json, &table(&self.rows), &object)?;
        tell(&self.checks, &self.colds, &self.said);
        Ok(())
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new([
        "model",
        "tokens",
        "batch",
        "kernels",
        "pipeline",
        "queue",
        "queue, 1 text",
        "torch eager",
        "torch compiled",
        "tokens/s",
        "TFLOP/s",
        "of peak",
        "kernels/compiled",
        "queue/kernels",
    ]);
    for row in rows {
        table.row([
            row.model.to_owned(),
            row.tokens.to_string(),
            row.batch.to_string(),
            dash(row.kernels, 0),
            dash(row.pipeline, 0),
            dash(row.queue, 0),
            dash(row.queue_of_one, 0),
            dash(row.torch_eager, 0),
            dash(row.torch_compiled, 0),
            dash(row.tokens_per_s, 0),
            dash(row.tflops, 2),
            dash(row.roofline_share, 3),
            dash(row.kernels_per_compiled, 2),
            dash(row.queue_per_kernels, 2),
        ]);
    }
    table
}

/// Says the rest to a person.
fn tell(checks: &[Check], colds: &[Cold], said: &Value) {
    for Check { model, against, largest_difference, tolerance } in checks {
        progress(format_args!(
            "{model}: vectors differ from {against} by {largest_difference:.1e} at most \
             ({tolerance:.0e} is allowed)"
        ));
    }
    for Cold { model, caches, phases, first_result_s } in colds {
        let phases = phases.iter().map(|(name, seconds)| format!("{name} {seconds:.2}"));
        let phases = phases.collect::<Vec<_>>().join(", ");
        progress(format_args!(
            "{model}, caches {caches}: first result after {first_result_s:.2} s ({phases})"
        ));
    }
    for peer in PEERS {
        progress(format_args!("torch {peer}: {}", words(&said[peer])));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_failed_on_one_model_is_told_of_though_it_was_well_on_the_next() {
        let mut found = Found::default();
        let well = json!({"version": "2"});
        found.heard(&[json!({"version": "2", "error": "no room"}), well.clone()]);
        found.heard(&[well.clone(), well]);
        assert_eq!(words(&found.said["eager"]), "2; failed: no room");
        assert_eq!(words(&found.said["compiled"]), "2");
    }
}
