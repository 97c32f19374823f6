//! What lives on the device's thread: the models, and how to make others like them.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use ebb_model::{FirstRuns, InferError, InferErrorKind, Layout, Model};
use tracing::{error, info, warn};

use super::slot::Next;
use super::{BuildError, Cargo, Command, Door, Phases, Ready, Results, SAME, Shared, State};

/// Device errors in a row after which the device is given up.
const PATIENCE: u32 = 3;

/// The models, and what became of them.
pub(super) struct Owner<S: ?Sized> {
    seats: Vec<Box<S>>,
    /// For each seat without a model, the batch that cost it the one that was there.
    spoilers: Vec<Option<u64>>,
    /// Batches begun.
    n_begun: u64,
    // Device errors since the last success.
    n_errors: u32,
    shared: Arc<Shared>,
}

/// The place of one model.
pub(super) trait Seat {
    /// Whether there is a model on it.
    fn is_taken(&self) -> bool;

    /// How the model lays its batches out, if there is one.
    fn layout(&self) -> Option<Layout>;

    /// Builds a model, which then says whenever it runs a shape for the first time.
    fn load(&mut self, phases: &mut Phases, first_runs: FirstRuns) -> Result<(), BuildError>;

    /// Drops the model, if there is one.
    fn clear(&mut self);

    /// Runs a batch, whose inputs come back; no results where there is no model.
    fn infer(&mut self, inputs: Vec<Cargo>) -> (Vec<Cargo>, Option<Results>);
}

/// A model, and how to make another one.
pub(super) struct Seated<M, B> {
    build: B,
    model: Option<M>,
}

impl<M, B> Seated<M, B> {
    pub(super) fn new(build: B) -> Self {
        Self { build, model: None }
    }
}

impl<M, B> Seat for Seated<M, B>
where
    M: Model,
    B: FnMut(&mut Phases) -> Result<M, BuildError>,
{
    fn is_taken(&self) -> bool {
        self.model.is_some()
    }

    fn layout(&self) -> Option<Layout> {
        self.model.as_ref().map(Model::layout)
    }

    fn load(&mut self, phases: &mut Phases, first_runs: FirstRuns) -> Result<(), BuildError> {
        let model = self.model.insert((self.build)(phases)?);
        model.tell_first_runs(first_runs);
        Ok(())
    }

    fn clear(&mut self) {
        let model = self.model.take();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(model))) {
            let why = words(&*panic);
            warn!(%why, "the model panicked when it was dropped");
        }
    }

    fn infer(&mut self, inputs: Vec<Cargo>) -> (Vec<Cargo>, Option<Results>) {
        let Some(model) = &mut self.model else { return (inputs, None) };
        let inputs: Vec<M::Input> =
            inputs.into_iter().map(|input| *input.downcast().expect(SAME)).collect();
        let results = catch_unwind(AssertUnwindSafe(|| model.infer(&inputs)));
        let results = results.unwrap_or_else(|panic| {
            let why = words(&*panic);
            warn!(%why, "the model panicked; it is loaded again");
            self.clear();
            Err(InferError::Batch(format!("panic: {why}")))
        });
        let results = results.and_then(|results| match (results.len(), inputs.len()) {
            (n, wanted) if n != wanted => {
                Err(InferError::Batch(format!("{n} results for {wanted} inputs")))
            }
            _ => {
                Ok(results.into_iter().map(|one| one.map(|output| Box::new(output) as _)).collect())
            }
        });
        (inputs.into_iter().map(|input| Box::new(input) as _).collect(), Some(results))
    }
}

impl<S: Seat + ?Sized> Owner<S> {
    pub(super) fn new(seats: Vec<Box<S>>, shared: Arc<Shared>) -> Self {
        Self { spoilers: vec![None; seats.len()], seats, n_begun: 0, n_errors: 0, shared }
    }

    /// Whether there is any sense in another batch.
    pub(super) fn is_fit(&self) -> bool {
        matches!(self.shared.state.get(), State::Ready(_))
    }

    /// Builds every model that is not there.
    pub(super) fn load(&mut self) {
        let mut phases = Phases::default();
        for seat in 0..self.seats.len() {
            if let Err(why) = self.load_one(seat, &mut phases) {
                return self.lose(why);
            }
        }
        info!(%phases, "ready");
        let phases = phases.into_vec();
        let layouts = self.seats.iter().map(|seat| seat.layout().unwrap_or_default()).collect();
        self.shared.state.set(State::Ready(Ready { phases, layouts }));
    }

    fn load_one(&mut self, seat: usize, phases: &mut Phases) -> Result<(), String> {
        let (seat, first_runs) = (&mut self.seats[seat], first_runs(&self.shared));
        let built = catch_unwind(AssertUnwindSafe(|| seat.load(phases, first_runs)));
        let built = built.map_err(|panic| format!("panic: {}", words(&*panic)))?;
        built.map_err(|error| with_causes(&*error))
    }

    fn lose(&mut self, why: String) {
        error!(%why, "the device is lost");
        self.seats.iter_mut().for_each(|seat| seat.clear());
        self.shared.state.set(State::Lost(why));
    }

    /// What is to be done for the next batch.
    pub(super) fn next(&self) -> Option<Next> {
        self.shared.slot.next(|seat| self.seats[seat].is_taken())
    }

    /// Builds a model that was dropped.
    pub(super) fn load_again(&mut self, seat: usize) {
        let mut phases = Phases::default();
        match self.load_one(seat, &mut phases) {
            Ok(()) => {
                self.spoilers[seat] = None;
                info!(%phases, "a model was loaded again");
            }
            Err(why) => {
                if let Some(batch) = self.spoilers[seat] {
                    // Nothing is loaded after this.
                    self.shared.lost_to.set(batch).ok();
                }
                self.lose(why);
            }
        }
        self.shared.slot.loaded();
    }

    pub(super) fn run(&mut self, mut command: Command) {
        let inputs = std::mem::take(&mut command.inputs);
        self.n_begun += 1;
        let batch = self.n_begun;
        let (inputs, results) = self.seats[command.seat].infer(inputs);
        command.inputs = inputs;
        let ended = self.shared.end();
        let Some(results) = results else { return };
        match &results {
            Ok(_) => self.n_errors = 0,
            Err(error) if error.kind() == InferErrorKind::Device => self.fail(error),
            Err(_) => {}
        }
        for (seat, spoiler) in self.seats.iter().zip(&mut self.spoilers) {
            if !seat.is_taken() {
                spoiler.get_or_insert(batch);
            }
        }
        command.answer(batch, results, ended);
    }

    /// The device failed: another try with new models, but not for ever.
    fn fail(&mut self, error: &InferError) {
        warn!(%error, "what was on the device is loaded again");
        self.seats.iter_mut().for_each(|seat| seat.clear());
        self.n_errors += 1;
        if self.n_errors >= PATIENCE {
            self.lose(format!("{error} ({PATIENCE} times in a row)"));
        }
    }
}

/// Whom models tell of shapes that were not run before.
fn first_runs(shared: &Arc<Shared>) -> FirstRuns {
    let shared = Arc::clone(shared);
    FirstRuns::new(move || {
        shared.slot.load().update(|load| {
            if let Some(running) = &mut load.running {
                running.is_first = true;
            }
        });
    })
}

/// Also when it panics: nobody is to wait for it any more.
impl<S: ?Sized> Drop for Owner<S> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.state.set(State::Lost("its thread panicked".to_owned()));
        }
        self.shared.end();
        self.shared.slot.close(Door::Gone);
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "without words".to_owned())
}

fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// For logs: `weights 0.21 s, warm-up 1.20 s`.
impl std::fmt::Display for Phases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (nth, (phase, seconds)) in self.0.iter().enumerate() {
            write!(f, "{}{phase} {seconds:.2} s", if nth == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
