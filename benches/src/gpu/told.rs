//! What came out, for people.

use serde_json::Value;

use super::Row;
use super::checked::Check;
use super::cold::Cold;
use super::peers::PEERS;
use crate::report::{Table, progress};

pub(super) fn table(rows: &[Row]) -> Table {
    let number = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
    };
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
            number(Some(row.kernels), 0),
            number(Some(row.pipeline), 0),
            number(Some(row.queue), 0),
            number(Some(row.queue_of_one), 0),
            number(row.torch_eager, 0),
            number(row.torch_compiled, 0),
            number(Some(row.tokens_per_s), 0),
            number(Some(row.tflops), 2),
            number(row.roofline_share, 3),
            number(row.kernels_per_compiled, 2),
            number(Some(row.queue_per_kernels), 2),
        ]);
    }
    table
}

/// Says the rest to a person.
pub(super) fn tell(checks: &[Check], colds: &[Cold], said: &Value) {
    for Check { model, largest_difference, tolerance } in checks {
        progress(format_args!(
            "{model}: vectors differ from the processor's in f32 by {largest_difference:.1e} at most \
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
        let said = &said[peer];
        let words = said["version"].as_str().map(str::to_owned);
        let missing = || format!("not here: {}", said["missing"].as_str().unwrap_or("no reason"));
        progress(format_args!("torch {peer}: {}", words.unwrap_or_else(missing)));
    }
}
