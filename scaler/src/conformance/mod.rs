//! Whether a scaler answers as KEDA needs it: ours, or any other that speaks
//! `externalscaler.proto`.
//!
//! [`examine`] drives it as KEDA does (GetMetricSpec, GetMetrics, IsActive; both streams; all on
//! one connection) and reaches a verdict on each of the [`RULES`]. A rule that cannot be judged is
//! skipped, with the reason; so is one whose ground is another rule that is broken.

mod calls;
mod crowd;
mod end;
mod goaway;
mod keda;
mod metadata;
mod numbers;
mod report;
mod rule;
mod streams;

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use futures::future::BoxFuture;

pub use keda::{ConnectError, Papers};
pub use report::{Finding, Report, Times, Verdict};
pub use rule::{RULES, Rule};

use keda::Keda;
use report::Findings;

/// What is examined, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `HOST:PORT`, as in a trigger's `scalerAddress`.
    pub address: String,
    /// For a connection under TLS.
    pub papers: Option<Papers>,
    /// The namespace of the ScaledObject that is played.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The trigger's metadata; `scalerAddress` is added, as KEDA does.
    pub metadata: BTreeMap<String, String>,
    /// A key and a value that the scaler must refuse; without it an unknown key is tried.
    pub nonsense: Option<(String, String)>,
    /// Whether there is work, so that the scaler must be active.
    pub expect_active: bool,
    /// Streams that are opened at once on one connection.
    pub streams: usize,
    /// How long a single answer may take until it counts as none.
    pub patience: Duration,
    /// How long a steady stream is listened to.
    pub listen: Duration,
    /// How long the scaler may take to end.
    pub grace: Duration,
}

impl Default for Plan {
    /// No address and no metadata; otherwise what suits a scaler in a cluster.
    fn default() -> Self {
        Self {
            address: String::new(),
            papers: None,
            namespace: "default".to_owned(),
            name: "conformance".to_owned(),
            metadata: BTreeMap::new(),
            nonsense: None,
            expect_active: false,
            streams: 500,
            patience: Duration::from_secs(5),
            listen: Duration::from_secs(3),
            grace: Duration::from_secs(30),
        }
    }
}

/// A hand on the server, for the rules about its end.
pub trait Hand: Send + Sync {
    /// Tells it to end, as SIGTERM does.
    ///
    /// # Errors
    /// When it cannot be told.
    fn stop(&self) -> io::Result<()>;

    /// Whether it has ended.
    fn gone(&self) -> bool;
}

/// Examines the scaler at an address; with a hand on it, it is ended in the course of that.
///
/// # Errors
/// When nothing answers at the address, or the papers do not suit.
// Boxed here: an `async fn` is compiled in each crate that awaits it, with all that it awaits.
#[inline(never)]
pub fn examine<'a>(
    plan: &'a Plan,
    hand: Option<&'a dyn Hand>,
) -> BoxFuture<'a, Result<Report, ConnectError>> {
    Box::pin(async move {
        let keda = Keda::connect(plan).await?;
        let mut findings = Findings::default();
        let seen = calls::examine(&keda, plan, &mut findings).await;
        metadata::examine(&keda, plan, &seen, &mut findings).await;
        let push = streams::examine(&keda, plan, &seen, &mut findings).await;
        crowd::examine(&keda, plan, &seen, push, &mut findings).await;
        end::examine(plan, hand, push, &mut findings).await;
        Ok(Report::new(&plan.address, seen.times(), findings))
    })
}
