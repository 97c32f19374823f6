//! Shapes, refusals and streams, as a client sees them.

mod bodies;
mod bounded;
mod properties;
mod refusals;
mod streams;
mod whole;

use ebb_queue::FailureKind;
use serde_json::{Value, json};

use super::*;

const BOUNDS: Bounds = Bounds { max_inputs: 16, max_body: 1 << 20 };
const ROUTES: [Route; 6] = [
    Route::Embeddings,
    Route::Embed,
    Route::ChatCompletions,
    Route::Completions,
    Route::Rerank,
    Route::Classify,
];

fn asked(route: Route, body: &Value) -> Result<Asked, Refused> {
    read(route, body.to_string().as_bytes(), &BOUNDS)
}

fn about() -> About {
    About { id: "tide-1".into(), created: 1_750_000_000, model: "tiny".into() }
}

fn parsed(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| String::from_utf8_lossy(bytes).into())
}

fn completed(body: &Value) -> Ended {
    Ended::Completed(body.to_string().into())
}

fn failed(kind: FailureKind, reason: &str) -> Ended {
    Ended::Failed(Failure::new(kind, reason))
}

/// What a request becomes, in the order in which people read it.
fn jobs(route: Route, body: &Value) -> Vec<Value> {
    asked(route, body).unwrap().bodies.iter().map(|body| parsed(body)).collect()
}
