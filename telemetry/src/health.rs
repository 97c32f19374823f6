//! What the probes answer: gates that the parts of a process open and close.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The health of a process; clones share it.
#[derive(Clone, Default)]
pub struct Health {
    gates: Arc<Mutex<BTreeMap<&'static str, State>>>,
    details: Arc<Mutex<Vec<Detail>>>,
}

/// Lines about a part of the process.
type Detail = Arc<dyn Fn() -> String + Send + Sync>;

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health").field("gates", &self.gates).finish_non_exhaustive()
    }
}

/// Which probe a gate speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateKind {
    /// `/startupz` and `/readyz`: work that is done once, such as loading a model.
    Startup,
    /// `/readyz`: what the process needs to be of use, such as its broker.
    Ready,
    /// `/livez`: only what a restart would mend, and nothing outside the process.
    Live,
}

#[derive(Debug)]
struct State {
    kind: GateKind,
    closed: Option<String>,
}

/// One condition of health, held by the part that knows.
#[derive(Debug, Clone)]
pub struct Gate {
    name: &'static str,
    health: Health,
}

impl Health {
    /// No gates: everything is well.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a gate; closed until it is opened, except one of kind [`GateKind::Live`].
    #[must_use]
    pub fn gate(&self, name: &'static str, kind: GateKind) -> Gate {
        let closed = (kind != GateKind::Live).then(|| "not yet".to_owned());
        self.lock().insert(name, State { kind, closed });
        Gate { name, health: self.clone() }
    }

    /// Adds lines to `/readyz`, made anew for each question; they close no gate.
    pub fn describe(&self, detail: impl Fn() -> String + Send + Sync + 'static) {
        self.describers().push(Arc::new(detail));
    }

    /// What the parts of the process have to say about themselves, a line each.
    #[must_use]
    pub fn details(&self) -> String {
        // Made without the lock: who speaks may take its time.
        let details = self.describers().clone();
        details.iter().map(|detail| detail()).collect()
    }

    fn describers(&self) -> std::sync::MutexGuard<'_, Vec<Detail>> {
        self.details.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the process lives; else what is wrong, a line each.
    pub fn live(&self) -> Result<(), String> {
        self.check(|kind| kind == GateKind::Live)
    }

    /// Whether the process has started; else what is missing.
    pub fn started(&self) -> Result<(), String> {
        self.check(|kind| kind == GateKind::Startup)
    }

    /// Whether the process is of use; else what is missing.
    pub fn ready(&self) -> Result<(), String> {
        self.check(|kind| kind != GateKind::Live)
    }

    fn check(&self, counts: impl Fn(GateKind) -> bool) -> Result<(), String> {
        let gates = self.lock();
        let counted = gates.iter().filter(|(_, state)| counts(state.kind));
        let closed: Vec<String> = counted
            .filter_map(|(name, state)| Some(format!("{name}: {}", state.closed.as_ref()?)))
            .collect();
        if closed.is_empty() { Ok(()) } else { Err(closed.join("\n")) }
    }

    fn set(&self, name: &str, closed: Option<String>) {
        if let Some(state) = self.lock().get_mut(name) {
            state.closed = closed;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, State>> {
        // A map of flags is whole whatever its holder was doing.
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gate {
    /// All is well with this one.
    pub fn open(&self) {
        self.health.set(self.name, None);
    }

    /// It is not, and why.
    pub fn close(&self, why: impl Into<String>) {
        self.health.set(self.name, Some(why.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_gates_is_well() {
        let health = Health::new();
        assert_eq!((health.live(), health.started(), health.ready()), (Ok(()), Ok(()), Ok(())));
    }

    #[test]
    fn a_gate_speaks_for_its_probes_only() {
        let health = Health::new();
        let model = health.gate("model", GateKind::Startup);
        let broker = health.gate("broker", GateKind::Ready);
        let device = health.gate("device", GateKind::Live);
        assert!(health.live().is_ok() && health.started().is_err() && health.ready().is_err());

        model.open();
        assert!(health.started().is_ok());
        assert_eq!(health.ready(), Err("broker: not yet".to_owned()));

        broker.open();
        assert!(health.ready().is_ok());

        device.close("no batch has ended for 60 s");
        assert!(health.live().is_err() && health.ready().is_ok() && health.started().is_ok());
    }
}
