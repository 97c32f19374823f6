//! The models that requests may name, and the queues that they lead to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ebb_queue::{Queue, QueueUrl};
use tokio::sync::Semaphore;

use crate::keys::Key;
use crate::refusal::Refusal;

/// A model, as clients name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelPlan {
    /// What it is called.
    pub name: String,
    /// What else it is called.
    pub aliases: Vec<String>,
    /// Where its jobs go.
    pub url: QueueUrl,
    /// Where their results are, when not there.
    pub results: Option<QueueUrl>,
    /// What its jobs have as `ebb-model`.
    pub serves: Option<String>,
    /// How long a request waits that says nothing itself.
    pub timeout: Duration,
    /// Requests that may wait for it at once.
    pub max_in_flight: Option<u32>,
}

/// A model, and its queue once that is open.
pub struct Model {
    pub(crate) plan: ModelPlan,
    /// Held by the one request that reads a dead letter.
    pub(crate) reading_dead: Semaphore,
    /// Whether no other model of this gateway has its queue, and its jobs no model of their own.
    pub(crate) is_alone: bool,
    queue: OnceLock<Queue>,
    /// Whether its broker has said when it was asked last that the gateway may not use the queue.
    is_refused: AtomicBool,
}

#[cfg(test)]
impl Model {
    /// One as the tests of the parts want it.
    pub(crate) fn of_tests(name: &str, serves: Option<&str>) -> Self {
        Self::new(ModelPlan {
            name: name.to_owned(),
            aliases: Vec::new(),
            url: QueueUrl::sqlite("none.db"),
            results: None,
            serves: serves.map(str::to_owned),
            timeout: Duration::from_secs(60),
            max_in_flight: None,
        })
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl Model {
    /// A model whose queue is not open yet, and which shares that with no other.
    #[must_use]
    pub fn new(plan: ModelPlan) -> Self {
        let is_alone = plan.serves.is_none();
        Self {
            plan,
            is_alone,
            reading_dead: Semaphore::new(1),
            queue: OnceLock::new(),
            is_refused: AtomicBool::new(false),
        }
    }

    /// Its queue has been opened.
    pub fn open(&self, queue: Queue) {
        self.queue.get_or_init(|| queue);
    }

    /// Its queue has not been opened: its broker refuses, or does not answer.
    pub(crate) fn refused(&self, is_refused: bool) {
        self.is_refused.store(is_refused, Ordering::Relaxed);
    }

    /// Its queue, where that is open.
    pub(crate) fn opened(&self) -> Option<&Queue> {
        self.queue.get()
    }

    /// Its queue, for a request.
    pub(crate) fn queue(&self) -> Result<&Queue, Refusal> {
        self.opened().ok_or_else(|| {
            let is_refused = self.is_refused.load(Ordering::Relaxed);
            if is_refused { Refusal::broker_refuses() } else { Refusal::not_yet(&self.plan.name) }
        })
    }

    /// The name of its queue.
    pub(crate) fn queue_name(&self) -> &str {
        &self.plan.url.queue
    }
}

/// All models.
#[derive(Debug, Clone, Default)]
pub struct Models {
    all: Vec<Arc<Model>>,
    /// By each of its names.
    by_name: BTreeMap<String, usize>,
}

impl FromIterator<Model> for Models {
    fn from_iter<I: IntoIterator<Item = Model>>(models: I) -> Self {
        let mut all: Vec<Model> = models.into_iter().collect();
        let mut n_models: BTreeMap<String, usize> = BTreeMap::new();
        for model in &all {
            *n_models.entry(model.queue_name().to_owned()).or_default() += 1;
        }
        for model in &mut all {
            // Where it is another broker's queue, its keys are no more than longer.
            model.is_alone &= n_models.get(model.queue_name()) == Some(&1);
        }
        let all: Vec<_> = all.into_iter().map(Arc::new).collect();
        let names = all.iter().enumerate().flat_map(|(nth, model)| {
            let aliases = model.plan.aliases.iter();
            aliases.chain([&model.plan.name]).map(move |name| (name.clone(), nth))
        });
        let by_name = names.collect();
        Self { all, by_name }
    }
}

impl Models {
    /// The model of this name, if the owner of the key may use it.
    pub(crate) fn find(&self, asked: &str, key: Option<&Key>) -> Result<&Arc<Model>, Refusal> {
        let found = self.by_name.get(asked).map(|nth| &self.all[*nth]);
        let found = found.filter(|model| is_allowed(model, key));
        found.ok_or_else(|| {
            let names: Vec<_> = self.names(key).map(|(name, _)| name).collect();
            Refusal::unknown_model(asked, &names)
        })
    }

    /// The models whose queue is called so: several where they share it, or are on several brokers.
    pub(crate) fn on_queue<'a>(
        &'a self,
        queue: &'a str,
        key: Option<&'a Key>,
    ) -> impl Iterator<Item = &'a Arc<Model>> {
        self.allowed(key).filter(move |model| model.queue_name() == queue)
    }

    /// Whether there is a model of this name, aliases left out.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.all.iter().any(|model| model.plan.name == name)
    }

    /// The names that the owner of the key may say, with their models.
    pub(crate) fn names<'a>(
        &'a self,
        key: Option<&'a Key>,
    ) -> impl Iterator<Item = (&'a str, &'a Arc<Model>)> {
        let named = self.by_name.iter().map(|(name, nth)| (name.as_str(), &self.all[*nth]));
        named.filter(move |(_, model)| is_allowed(model, key))
    }

    /// The models that the owner of the key may use.
    pub(crate) fn allowed<'a>(
        &'a self,
        key: Option<&'a Key>,
    ) -> impl Iterator<Item = &'a Arc<Model>> {
        self.all.iter().filter(move |model| is_allowed(model, key))
    }

    /// All of them.
    pub(crate) fn all(&self) -> &[Arc<Model>] {
        &self.all
    }
}

fn is_allowed(model: &Model, key: Option<&Key>) -> bool {
    key.is_none_or(|key| key.allows(&model.plan.name))
}
