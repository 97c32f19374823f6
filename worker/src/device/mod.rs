//! The one thread that owns the device and its models, and the ways to them.
//!
//! A slot for one batch lies before it, so that the next batch is there when one ends.

mod owner;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use ebb_model::{InferError, ItemError, Layout, Model};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::batcher::Size;
use crate::board::Board;
use owner::{Owner, Seat, Seated};

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
    commands: mpsc::Sender<Command>,
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
}

/// What became of a batch; the inputs come back.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The batch.
    pub inputs: Vec<Cargo>,
    /// What came out; `None` when it was not begun: the device is draining, or has no model.
    pub ran: Option<Ran>,
}

/// A batch that ran.
#[derive(Debug)]
pub(crate) struct Ran {
    /// One result per input, or the failure of the whole batch.
    pub results: Results,
    /// How long it took.
    pub took: Duration,
}

/// One result per input, or the failure of the whole batch.
pub(crate) type Results = Result<Vec<Result<Cargo, ItemError>>, InferError>;

/// Whether jobs of a batch have been run before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begun {
    /// They have not: a draining device hands them back.
    No,
    /// They have, in a batch that failed: the device finishes what it began.
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
    load: Board<Load>,
    state: Board<State>,
    draining: CancellationToken,
}

/// The models that one device is to own.
pub struct DeviceBuilder {
    // A model is built on the device's thread and never leaves it, so its place is made there.
    seats: Vec<Box<dyn FnOnce() -> Box<dyn Seat> + Send>>,
    commands: (mpsc::Sender<Command>, mpsc::Receiver<Command>),
    shared: Arc<Shared>,
}

impl std::fmt::Debug for DeviceBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceBuilder").field("n_seats", &self.seats.len()).finish_non_exhaustive()
    }
}

impl Default for DeviceBuilder {
    fn default() -> Self {
        let shared = Shared {
            load: Board::default(),
            state: Board::new(State::Loading),
            draining: CancellationToken::new(),
        };
        Self { seats: Vec::new(), commands: mpsc::channel(1), shared: Arc::new(shared) }
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
        let (commands, shared) = (self.commands.0.clone(), Arc::clone(&self.shared));
        let way = DeviceWay { seat, commands, shared, _inline: Arc::default() };
        Device { way, takes: PhantomData }
    }

    /// Starts the thread, which builds the models in their order and then runs batches.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(self) -> std::io::Result<()> {
        let Self { seats, commands: (_, mut commands), shared } = self;
        std::thread::Builder::new().name("device".into()).spawn(move || {
            let mut owner = Owner::new(seats.into_iter().map(|seat| seat()).collect(), shared);
            owner.load();
            while let Some(command) = owner.is_fit().then(|| commands.blocking_recv()).flatten() {
                match owner.begin(&command) {
                    Wanted::Yes => owner.run(command),
                    Wanted::No => command.skip(),
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
        let DeviceBuilder { commands: (_, mut commands), shared, .. } = builder;
        let seat = Seated::new(move |_: &mut Phases| Ok(model.clone()));
        let seat: Box<dyn Seat + Send> = Box::new(seat);
        let mut owner = Owner::new(vec![seat], shared);
        let mut inline = JoinSet::new();
        inline.spawn(async move {
            owner.load();
            while owner.is_fit() {
                let Some(command) = commands.recv().await else { break };
                if owner.begin(&command) == Wanted::Yes {
                    let inputs = command.inputs.iter();
                    let inputs = inputs.map(|input| input.downcast_ref::<I>().expect(SAME).clone());
                    let took = time(&inputs.collect::<Vec<I>>());
                    tokio::time::sleep(took).await;
                    owner.run(command);
                } else {
                    command.skip();
                }
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

    /// Sends a batch, waiting for the slot before the device; the answer has a future of its own.
    ///
    /// The receiver ends without an answer when the device is lost before the batch began.
    pub(crate) fn submit(
        &self,
        lane: usize,
        inputs: Vec<Cargo>,
        size: Size,
        begun: Begun,
    ) -> BoxFuture<'_, oneshot::Receiver<Answer>> {
        let (reply, answer) = oneshot::channel();
        let command = Command { seat: self.seat, lane, inputs, size, begun, reply };
        let sent = async {
            self.shared.load.update(|load| load.queued += 1);
            if self.commands.send(command).await.is_err() {
                self.shared.load.update(|load| load.queued -= 1);
            }
        };
        Box::pin(sent.map(|()| answer))
    }

    /// From now on only batches that have begun are run.
    pub(crate) fn drain(&self) {
        self.shared.draining.cancel();
    }

    /// What the device has to do.
    pub(crate) fn load(&self) -> &Board<Load> {
        &self.shared.load
    }

    /// Where the device is in its life.
    pub(crate) fn state(&self) -> &Board<State> {
        &self.shared.state
    }

    /// Whether both lead to the same device.
    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

/// Whether a batch is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// It is.
    Yes,
    /// It has not begun, and the device is draining.
    No,
}

impl Command {
    fn skip(self) {
        self.answer(None);
    }

    fn answer(self, ran: Option<Ran>) {
        let Self { inputs, reply, .. } = self;
        if reply.send(Answer { inputs, ran }).is_err() {
            tracing::debug!("nobody waits for this batch any more");
        }
    }
}

impl Shared {
    /// Takes a batch from the slot.
    fn begin(&self, command: &Command) -> Wanted {
        let is_wanted = command.begun == Begun::Yes || !self.draining.is_cancelled();
        let running = Running { since: Instant::now(), size: command.size, lane: command.lane };
        let running = is_wanted.then_some(running);
        self.load.update(|load| *load = Load { queued: load.queued - 1, running });
        if is_wanted { Wanted::Yes } else { Wanted::No }
    }

    fn end(&self) -> Duration {
        let ended = self.load.update(|load| load.running.take());
        ended.map_or(Duration::ZERO, |running| running.since.elapsed())
    }
}
