//! The one thread that owns the device and its models, and the ways to them.
//!
//! A slot lies before it, so that the next batch is there when one ends.

mod owner;
mod slot;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ebb_model::{InferError, ItemError, Layout, Model};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::batcher::Size;
use crate::board::Board;
use owner::{Owner, Seat, Seated};
pub(crate) use slot::Door;
use slot::{Next, Slot};

/// Why a model could not be built.
pub type BuildError = Box<dyn std::error::Error + Send + Sync>;

/// What goes into a model, or comes out of it, on its way: each model knows its own type.
pub(crate) type Cargo = Box<dyn Any + Send>;

/// The phases of a cold start and their seconds, in order.
#[derive(Debug, Clone, Default)]
pub struct Phases(Vec<(String, f64)>);

impl Phases {
    /// Adds a phase that was timed elsewhere.
    pub fn add(&mut self, name: &str, took: Duration) {
        self.0.push((name.to_owned(), took.as_secs_f64()));
    }

    /// Runs one phase and times it.
    pub fn time<T>(&mut self, name: &str, phase: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = phase();
        self.add(name, start.elapsed());
        result
    }

    /// Adds the phases of one model among several, by its name.
    pub(crate) fn extend(&mut self, more: Self, model: Option<&str>) {
        let named = |(phase, seconds): (String, f64)| match model {
            Some(model) => (format!("{model} {phase}"), seconds),
            None => (phase, seconds),
        };
        self.0.extend(more.0.into_iter().map(named));
    }

    /// All of them.
    #[must_use]
    pub fn into_vec(self) -> Vec<(String, f64)> {
        self.0
    }
}

/// The way to one model on a device. When all are dropped, the thread ends after its batch.
pub struct Device<I, O> {
    pub(crate) way: DeviceWay,
    takes: PhantomData<fn(I) -> O>,
}

impl<I, O> std::fmt::Debug for Device<I, O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Device").field(&self.way).finish()
    }
}

impl<I, O> Clone for Device<I, O> {
    fn clone(&self) -> Self {
        Self { way: self.way.clone(), takes: PhantomData }
    }
}

/// The way to a model whose types are known to its codec alone.
#[derive(Debug, Clone)]
pub(crate) struct DeviceWay {
    seat: usize,
    calls: mpsc::Sender<()>,
    shared: Arc<Shared>,
    // Holds the task of an inline device, which ends with this.
    _inline: Arc<JoinSet<()>>,
}

/// Where a device is in its life.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum State {
    /// Building its models; leads to `Ready` and `Lost`.
    Loading,
    /// Taking batches; leads to `Lost`.
    Ready(Ready),
    /// Gone, and why.
    Lost(String),
}

/// What is known of a device that takes batches.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ready {
    /// The phases of its cold start and their seconds, in order.
    pub(crate) phases: Vec<(String, f64)>,
    /// How its models lay their batches out, by seat.
    layouts: Vec<Layout>,
}

/// What a device has to do at this moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Load {
    /// Batches on their way to it.
    pub queued: usize,
    /// The batch that runs.
    pub running: Option<Running>,
    /// Since when a model is loaded again, for a batch that waits for it.
    pub loading: Option<Instant>,
}

/// A batch that runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Running {
    /// Since when.
    pub since: Instant,
    /// How large it is.
    pub size: Size,
    /// The lane that it came from.
    pub lane: usize,
    /// Whether some of it is of a shape that was not run before: its kernels are compiled and tuned.
    pub is_first: bool,
}

/// What became of a batch that ran; the inputs come back.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its number: how many batches the device had begun with it.
    pub batch: u64,
    /// The batch.
    pub inputs: Vec<Cargo>,
    /// One result per input, or the failure of the whole batch.
    pub results: Results,
    /// How long it took.
    pub took: Duration,
    /// Whether that holds the tuning of kernels, which no batch after it will take.
    pub is_first: bool,
}

/// One result per input, or the failure of the whole batch.
pub(crate) type Results = Result<Vec<Result<Cargo, ItemError>>, InferError>;

/// Whether jobs of a batch have been run before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begun {
    /// They have not: a device that drains or is wedged hands them back.
    No,
    /// Some have, and are between two turns: a device that drains goes on with them, one that is
    /// wedged hands them back.
    Between,
    /// They have, in a batch that failed: the device finishes what it began, if it has the model.
    Yes,
}

#[derive(Debug)]
struct Command {
    seat: usize,
    lane: usize,
    inputs: Vec<Cargo>,
    size: Size,
    begun: Begun,
    reply: oneshot::Sender<Answer>,
}

#[derive(Debug)]
struct Shared {
    slot: Slot,
    state: Board<State>,
    /// The batch after which a model could not be loaded again.
    lost_to: OnceLock<u64>,
}

/// The models that one device is to own.
pub struct DeviceBuilder {
    // A model is built on the device's thread and never leaves it, so its place is made there.
    seats: Vec<Box<dyn FnOnce() -> Box<dyn Seat> + Send>>,
    // A call says that there is something in the slot; one that was not heard yet says it for all.
    calls: (mpsc::Sender<()>, mpsc::Receiver<()>),
    shared: Arc<Shared>,
}

impl std::fmt::Debug for DeviceBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceBuilder").field("n_seats", &self.seats.len()).finish_non_exhaustive()
    }
}

impl Default for DeviceBuilder {
    fn default() -> Self {
        let (slot, state) = (Slot::default(), Board::new(State::Loading));
        let shared = Arc::new(Shared { slot, state, lost_to: OnceLock::new() });
        Self { seats: Vec::new(), calls: mpsc::channel(1), shared }
    }
}

impl DeviceBuilder {
    /// Adds a model, and returns the way to it.
    ///
    /// `build` runs on the device's thread, and again after a panic or a device error, for a model
    /// as good as new.
    pub fn add<M, B>(&mut self, build: B) -> Device<M::Input, M::Output>
    where
        M: Model,
        B: FnMut(&mut Phases) -> Result<M, BuildError> + Send + 'static,
    {
        self.seats.push(Box::new(|| Box::new(Seated::new(build))));
        self.way(self.seats.len() - 1)
    }

    fn way<I, O>(&self, seat: usize) -> Device<I, O> {
        let (calls, shared) = (self.calls.0.clone(), Arc::clone(&self.shared));
        let way = DeviceWay { seat, calls, shared, _inline: Arc::default() };
        Device { way, takes: PhantomData }
    }

    /// Starts the thread, which builds the models in their order and then runs batches.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(self) -> std::io::Result<()> {
        let Self { seats, calls: (_, mut calls), shared } = self;
        std::thread::Builder::new().name("device".into()).spawn(move || {
            let mut owner = Owner::new(seats.into_iter().map(|seat| seat()).collect(), shared);
            owner.load();
            while owner.is_fit() {
                match owner.next() {
                    Some(Next::Run(command)) => owner.run(command),
                    Some(Next::Load(seat)) => owner.load_again(seat),
                    None if calls.blocking_recv().is_some() => {}
                    None => break,
                }
            }
        })?;
        Ok(())
    }
}

impl<I: Send + 'static, O: Send + 'static> Device<I, O> {
    /// Starts a thread with this one model on it, see [`DeviceBuilder`].
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn thread<M, B>(build: B) -> std::io::Result<Self>
    where
        M: Model<Input = I, Output = O>,
        B: FnMut(&mut Phases) -> Result<M, BuildError> + Send + 'static,
    {
        let mut builder = DeviceBuilder::default();
        let device = builder.add(build);
        builder.start()?;
        Ok(device)
    }

    /// A model that runs in a tokio task and takes the time that it is told to, for simulations:
    /// with a paused clock a thread would make them irreproducible. Spawns the task.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn inline<M>(model: M, time: impl Fn(&[I]) -> Duration + Send + 'static) -> Self
    where
        I: Clone,
        M: Model<Input = I, Output = O> + Clone + Send,
    {
        let builder = DeviceBuilder::default();
        let mut device = builder.way(0);
        let DeviceBuilder { calls: (_, mut calls), shared, .. } = builder;
        let seat = Seated::new(move |_: &mut Phases| Ok(model.clone()));
        let seat: Box<dyn Seat + Send> = Box::new(seat);
        let mut owner = Owner::new(vec![seat], shared);
        let mut inline = JoinSet::new();
        inline.spawn(async move {
            owner.load();
            while owner.is_fit() {
                let command = match owner.next() {
                    Some(Next::Run(command)) => command,
                    Some(Next::Load(seat)) => {
                        owner.load_again(seat);
                        continue;
                    }
                    None if calls.recv().await.is_some() => continue,
                    None => break,
                };
                let inputs = command.inputs.iter();
                let inputs = inputs.map(|input| input.downcast_ref::<I>().expect(SAME).clone());
                let took = time(&inputs.collect::<Vec<I>>());
                tokio::time::sleep(took).await;
                owner.run(command);
            }
        });
        device.way._inline = Arc::new(inline);
        device
    }
}

/// Why a cast cannot fail.
const SAME: &str = "a way is made for the types of its model";

impl DeviceWay {
    /// Waits for the models; the phases of the cold start, or why there is none.
    pub(crate) async fn ready(&self) -> Result<Vec<(String, f64)>, String> {
        match self.shared.state.until(|state| *state != State::Loading).await {
            State::Ready(ready) => Ok(ready.phases),
            State::Lost(why) => Err(why),
            State::Loading => unreachable!("it waited for another state"),
        }
    }

    /// How the model lays its batches out, once there is one.
    pub(crate) fn layout(&self) -> Layout {
        let layout = |state: &State| match state {
            State::Ready(ready) => ready.layouts.get(self.seat).copied(),
            State::Loading | State::Lost(_) => None,
        };
        self.shared.state.read(layout).unwrap_or_default()
    }

    /// Sends a batch. The receiver ends without an answer when the batch is never begun: the device
    /// drains, is wedged, or is lost.
    pub(crate) fn submit(
        &self,
        lane: usize,
        inputs: Vec<Cargo>,
        size: Size,
        begun: Begun,
    ) -> oneshot::Receiver<Answer> {
        let (reply, answer) = oneshot::channel();
        self.shared.slot.put(Command { seat: self.seat, lane, inputs, size, begun, reply });
        // Where there is no room for a call the device has yet to hear another one.
        self.calls.try_send(()).ok();
        answer
    }

    /// Closes the door to batches from now on, and ends at once without an answer those that wait.
    pub(crate) fn close(&self, door: Door) {
        self.shared.slot.close(door);
    }

    /// The device makes progress again.
    pub(crate) fn admit(&self) {
        self.shared.slot.reopen();
    }

    /// Which batches it takes. When this shows that it takes fewer, the others have been told.
    pub(crate) fn door(&self) -> &Board<Door> {
        self.shared.slot.door()
    }

    /// What the device has to do.
    pub(crate) fn load(&self) -> &Board<Load> {
        self.shared.slot.load()
    }

    /// Where the device is in its life.
    pub(crate) fn state(&self) -> &Board<State> {
        &self.shared.state
    }

    /// The batch that cost the device a model which could not be loaded again, if it was lost by that.
    pub(crate) fn lost_to(&self) -> Option<u64> {
        self.shared.lost_to.get().copied()
    }

    /// Whether both lead to the same device.
    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Command {
    fn answer(self, batch: u64, results: Results, (took, is_first): (Duration, bool)) {
        let Self { inputs, reply, .. } = self;
        if reply.send(Answer { batch, inputs, results, took, is_first }).is_err() {
            tracing::debug!("nobody waits for this batch any more");
        }
    }
}

impl Shared {
    /// Ends the batch that runs: how long it took, and whether kernels were tuned for it.
    fn end(&self) -> (Duration, bool) {
        let ended = self.slot.load().update(|load| load.running.take());
        ended.map(|it| (it.since.elapsed(), it.is_first)).unwrap_or_default()
    }
}
