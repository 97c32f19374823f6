//! The one thread that owns the device and the model, and the way to it.
//!
//! A slot for one batch lies before it, so that the next batch is there when one ends.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use ebb_model::{InferError, InferErrorKind, ItemError, Model};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::batcher::Size;
use crate::board::Board;

/// Device errors in a row after which the device is given up.
const PATIENCE: u32 = 3;

/// Why a model could not be built.
pub type BuildError = Box<dyn std::error::Error + Send + Sync>;

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

    /// All of them.
    #[must_use]
    pub fn into_vec(self) -> Vec<(String, f64)> {
        self.0
    }
}

/// The way to a device and its model. Dropped, the thread ends after its batch.
pub struct Device<I, O> {
    commands: mpsc::Sender<Command<I, O>>,
    shared: Arc<Shared>,
    // Holds the task of an inline device, which ends with this.
    _inline: JoinSet<()>,
}

impl<I, O> std::fmt::Debug for Device<I, O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Device").field(&self.shared).finish()
    }
}

/// Where a device is in its life.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum State {
    /// Building its model; leads to `Ready` and `Lost`.
    Loading,
    /// Taking batches, with the phases of its cold start; leads to `Lost`.
    Ready(Vec<(String, f64)>),
    /// Gone, and why.
    Lost(String),
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
}

/// What became of a batch; the inputs come back.
#[derive(Debug)]
pub(crate) struct Answer<I, O> {
    /// The batch.
    pub inputs: Vec<I>,
    /// What came out; `None` when it was not begun: the device is draining, or has no model.
    pub ran: Option<Ran<O>>,
}

/// A batch that ran.
#[derive(Debug)]
pub(crate) struct Ran<O> {
    /// One result per input, or the failure of the whole batch.
    pub results: Results<O>,
    /// How long it took.
    pub took: Duration,
}

/// One result per input, or the failure of the whole batch.
pub(crate) type Results<O> = Result<Vec<Result<O, ItemError>>, InferError>;

/// Whether jobs of a batch have been run before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begun {
    /// They have not: a draining device hands them back.
    No,
    /// They have, in a batch that failed: the device finishes what it began.
    Yes,
}

struct Command<I, O> {
    inputs: Vec<I>,
    size: Size,
    begun: Begun,
    reply: oneshot::Sender<Answer<I, O>>,
}

#[derive(Debug)]
struct Shared {
    load: Board<Load>,
    state: Board<State>,
    draining: CancellationToken,
}

impl<I: Send + 'static, O: Send + 'static> Device<I, O> {
    /// Starts the thread, which builds the model and then runs batches.
    ///
    /// `build` is called again after a panic or a device error, for a model as good as new.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn thread<M, B>(build: B) -> std::io::Result<Self>
    where
        M: Model<Input = I, Output = O>,
        B: FnMut(&mut Phases) -> Result<M, BuildError> + Send + 'static,
    {
        let (device, mut commands) = Self::new();
        let shared = Arc::clone(&device.shared);
        std::thread::Builder::new().name("device".into()).spawn(move || {
            let mut owner = Owner::new(build, shared);
            owner.load();
            while let Some(command) = owner.is_fit().then(|| commands.blocking_recv()).flatten() {
                match owner.shared.begin(&command) {
                    Wanted::Yes => owner.run(command),
                    Wanted::No => owner.skip(command),
                }
            }
        })?;
        Ok(device)
    }

    /// A model that runs in a tokio task and takes the time that it is told to, for simulations:
    /// with a paused clock a thread would make them irreproducible. Spawns the task.
    pub fn inline<M>(model: M, time: impl Fn(&[I]) -> Duration + Send + 'static) -> Self
    where
        M: Model<Input = I, Output = O> + Clone + Send,
    {
        let (mut device, mut commands) = Self::new();
        let build = move |_: &mut Phases| Ok(model.clone());
        let mut owner = Owner::new(build, Arc::clone(&device.shared));
        device._inline.spawn(async move {
            owner.load();
            while owner.is_fit() {
                let Some(command) = commands.recv().await else { break };
                if owner.shared.begin(&command) == Wanted::Yes {
                    tokio::time::sleep(time(&command.inputs)).await;
                    owner.run(command);
                } else {
                    owner.skip(command);
                }
            }
        });
        device
    }

    fn new() -> (Self, mpsc::Receiver<Command<I, O>>) {
        let (sender, receiver) = mpsc::channel(1);
        let shared = Arc::new(Shared {
            load: Board::default(),
            state: Board::new(State::Loading),
            draining: CancellationToken::new(),
        });
        (Self { commands: sender, shared, _inline: JoinSet::new() }, receiver)
    }

    /// Waits for the model; the phases of the cold start, or why there is none.
    ///
    /// # Errors
    /// When the model could not be built.
    pub async fn ready(&self) -> Result<Vec<(String, f64)>, String> {
        match self.shared.state.until(|state| *state != State::Loading).await {
            State::Ready(phases) => Ok(phases),
            State::Lost(why) => Err(why),
            State::Loading => unreachable!("it waited for another state"),
        }
    }

    /// Sends a batch, waiting for the slot before the device.
    ///
    /// The receiver ends without an answer when the device is lost before the batch began.
    pub(crate) async fn submit(
        &self,
        inputs: Vec<I>,
        size: Size,
        begun: Begun,
    ) -> oneshot::Receiver<Answer<I, O>> {
        let (reply, answer) = oneshot::channel();
        self.shared.load.update(|load| load.queued += 1);
        let command = Command { inputs, size, begun, reply };
        if self.commands.send(command).await.is_err() {
            self.shared.load.update(|load| load.queued -= 1);
        }
        answer
    }

    /// From now on only batches that have begun are run.
    pub(crate) fn drain(&self) {
        self.shared.draining.cancel();
    }

    /// What it has to do.
    pub(crate) fn load(&self) -> &Board<Load> {
        &self.shared.load
    }

    /// Where it is in its life.
    pub(crate) fn state(&self) -> &Board<State> {
        &self.shared.state
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

impl Shared {
    /// Takes a batch from the slot.
    fn begin<I, O>(&self, command: &Command<I, O>) -> Wanted {
        let is_wanted = command.begun == Begun::Yes || !self.draining.is_cancelled();
        let running = Running { since: Instant::now(), size: command.size };
        let running = is_wanted.then_some(running);
        self.load.update(|load| *load = Load { queued: load.queued - 1, running });
        if is_wanted { Wanted::Yes } else { Wanted::No }
    }

    fn end(&self) -> Duration {
        let ended = self.load.update(|load| load.running.take());
        ended.map_or(Duration::ZERO, |running| running.since.elapsed())
    }
}

/// The model, and how to make another one.
struct Owner<M, B> {
    build: B,
    model: Option<M>,
    // Device errors since the last success.
    n_errors: u32,
    shared: Arc<Shared>,
}

impl<M, B> Owner<M, B>
where
    M: Model,
    B: FnMut(&mut Phases) -> Result<M, BuildError>,
{
    fn new(build: B, shared: Arc<Shared>) -> Self {
        Self { build, model: None, n_errors: 0, shared }
    }

    /// Whether there is any sense in another batch.
    fn is_fit(&self) -> bool {
        matches!(self.shared.state.get(), State::Ready(_))
    }

    fn load(&mut self) {
        let mut phases = Phases::default();
        let built = catch_unwind(AssertUnwindSafe(|| (self.build)(&mut phases)));
        let built = built.map_err(|panic| format!("panic: {}", words(&*panic)));
        match built.and_then(|built| built.map_err(|error| with_causes(&*error))) {
            Ok(model) => {
                let phases = phases.into_vec();
                info!(?phases, "model is ready");
                self.model = Some(model);
                self.shared.state.set(State::Ready(phases));
            }
            Err(why) => self.lose(why),
        }
    }

    fn lose(&mut self, why: String) {
        error!(%why, "the device is lost");
        self.model = None;
        self.shared.state.set(State::Lost(why));
    }

    fn run(&mut self, command: Command<M::Input, M::Output>) {
        if self.model.is_none() {
            self.load();
        }
        // Without a model the batch is as good as never begun.
        let results = self.infer(&command.inputs);
        let took = self.shared.end();
        Self::answer(command, results.map(|results| Ran { results, took }));
    }

    fn skip(&self, command: Command<M::Input, M::Output>) {
        Self::answer(command, None);
    }

    fn answer(command: Command<M::Input, M::Output>, ran: Option<Ran<M::Output>>) {
        let Command { inputs, reply, .. } = command;
        if reply.send(Answer { inputs, ran }).is_err() {
            debug!("nobody waits for this batch any more");
        }
    }

    fn infer(&mut self, inputs: &[M::Input]) -> Option<Results<M::Output>> {
        let model = self.model.as_mut()?;
        let results = catch_unwind(AssertUnwindSafe(|| model.infer(inputs)));
        let results = results.unwrap_or_else(|panic| {
            let why = words(&*panic);
            warn!(%why, "the model panicked; it is loaded again");
            self.model = None;
            Err(InferError::Batch(format!("panic: {why}")))
        });
        match results {
            Ok(results) if results.len() != inputs.len() => {
                let (n, wanted) = (results.len(), inputs.len());
                Some(Err(InferError::Batch(format!("{n} results for {wanted} inputs"))))
            }
            Ok(results) => {
                self.n_errors = 0;
                Some(Ok(results))
            }
            Err(error) => {
                if error.kind() == InferErrorKind::Device {
                    self.fail(&error);
                }
                Some(Err(error))
            }
        }
    }

    /// The device failed: another try with a new model, but not for ever.
    fn fail(&mut self, error: &InferError) {
        warn!(%error, "the model is loaded again");
        self.model = None;
        self.n_errors += 1;
        if self.n_errors >= PATIENCE {
            self.lose(format!("{error} ({PATIENCE} times in a row)"));
        }
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

#[cfg(test)]
mod tests {
    use ebb_model::echo::{Echo, EchoInput};

    use super::*;

    fn input(json: &str) -> EchoInput {
        serde_json::from_str(json).unwrap()
    }

    fn echo() -> Device<EchoInput, String> {
        Device::thread(|phases| Ok(phases.time("weights", Echo::new))).unwrap()
    }

    async fn run(device: &Device<EchoInput, String>, json: &str) -> Option<Ran<String>> {
        device.submit(vec![input(json)], Size::ONE, Begun::No).await.await.unwrap().ran
    }

    #[tokio::test]
    async fn a_batch_goes_in_and_comes_back_with_its_results() {
        let device = echo();
        assert_eq!(device.ready().await.unwrap()[0].0, "weights");
        let batch = vec![EchoInput::new("a"), EchoInput::new("b")];
        let answer = device.submit(batch, Size::ONE, Begun::No).await.await.unwrap();
        assert_eq!(answer.inputs.len(), 2);
        let results = answer.ran.unwrap().results.unwrap();
        assert_eq!(results, [Ok("a".to_owned()), Ok("b".to_owned())]);
        assert_eq!(device.load().get(), Load::default());
    }

    #[tokio::test]
    async fn a_panic_is_a_failed_batch_and_a_model_as_good_as_new() {
        let device = Device::thread(|_| Ok(Echo::new())).unwrap();
        let ran = run(&device, r#"{"input": "", "panic": true}"#).await.unwrap();
        let error = ran.results.unwrap_err();
        assert_eq!(error.kind(), InferErrorKind::Batch);
        assert!(error.to_string().contains("an item asked for a panic"), "{error}");
        let ran = run(&device, r#"{"input": "a"}"#).await.unwrap();
        assert_eq!(ran.results.unwrap(), [Ok("a".to_owned())]);
    }

    #[tokio::test]
    async fn a_model_that_cannot_be_built_says_why() {
        let device =
            Device::<EchoInput, String>::thread::<Echo, _>(|_| Err("no weights here".into()));
        assert_eq!(device.unwrap().ready().await, Err("no weights here".to_owned()));
        let device = Device::<EchoInput, String>::thread::<Echo, _>(|_| panic!("bad weights"));
        assert_eq!(device.unwrap().ready().await, Err("panic: bad weights".to_owned()));
    }

    #[tokio::test]
    async fn a_device_that_keeps_failing_is_given_up() {
        let device = echo();
        for _ in 0..PATIENCE {
            let ran = run(&device, r#"{"input": "", "lose_device": true}"#).await.unwrap();
            assert_eq!(ran.results.unwrap_err().kind(), InferErrorKind::Device);
        }
        assert!(device.ready().await.unwrap_err().contains("3 times in a row"));
        let answer = device.submit(vec![input(r#"{"input": ""}"#)], Size::ONE, Begun::No).await;
        assert!(answer.await.is_err(), "nobody is there");
    }

    #[tokio::test]
    async fn a_batch_before_a_model_that_cannot_be_built_again_was_never_begun() {
        let mut models = vec![Echo::new()];
        let device = Device::thread(move |_| models.pop().ok_or_else(|| "no more".into())).unwrap();
        assert!(run(&device, r#"{"input": "", "panic": true}"#).await.is_some());
        assert!(run(&device, r#"{"input": "a"}"#).await.is_none());
        assert_eq!(device.ready().await, Err("no more".to_owned()));
    }

    #[tokio::test]
    async fn a_draining_device_finishes_only_what_it_began() {
        let device = echo();
        device.ready().await.unwrap();
        device.drain();
        assert!(run(&device, r#"{"input": "a"}"#).await.is_none());
        let batch = vec![EchoInput::new("a")];
        let answer = device.submit(batch, Size::ONE, Begun::Yes).await.await.unwrap();
        assert!(answer.ran.is_some());
    }
}
