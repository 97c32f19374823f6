//! Many promises at once on a broker where time passes for real: they sleep, and do little else.
//!
//! The test harness runs as many tests as there are cores. So the first test of a broker starts
//! all that are wanted, and each test waits for its own.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};

use crate::PROMISES;
use crate::fixture::Promise;

/// How many run at once.
const N_THREADS: usize = 16;

type Run = fn(&'static str, Promise);
type Outcome = Result<(), Box<dyn Any + Send>>;

/// The promises of one broker.
pub struct Pool {
    broker: &'static str,
    run: Run,
    started: OnceLock<HashMap<&'static str, Mutex<Receiver<Outcome>>>>,
}

impl Pool {
    pub const fn new(broker: &'static str, run: Run) -> Self {
        Self { broker, run, started: OnceLock::new() }
    }

    /// Runs the promise, or waits for it where it runs already; panics as it does.
    pub fn run(&'static self, test: &'static str, promise: Promise) {
        let Some(started) = self.started.get_or_init(|| self.start()).get(test) else {
            return (self.run)(test, promise);
        };
        match started.lock().unwrap().recv().unwrap() {
            Ok(()) => {}
            Err(panic) => resume_unwind(panic),
        }
    }

    fn start(&'static self) -> HashMap<&'static str, Mutex<Receiver<Outcome>>> {
        let mut outcomes = HashMap::new();
        let mut wanted = Vec::new();
        for (test, promise) in PROMISES.iter().filter(|(test, _)| self.is_wanted(test)) {
            let (tell, hear) = sync_channel(1);
            outcomes.insert(*test, Mutex::new(hear));
            wanted.push((*test, *promise, tell));
        }
        let (next, wanted) = (Arc::new(AtomicUsize::new(0)), Arc::new(wanted));
        for _ in 0..N_THREADS.min(wanted.len()) {
            let (next, wanted) = (next.clone(), wanted.clone());
            std::thread::spawn(move || {
                while let Some((test, promise, tell)) =
                    wanted.get(next.fetch_add(1, Ordering::SeqCst))
                {
                    let outcome = catch_unwind(AssertUnwindSafe(|| (self.run)(test, *promise)));
                    if outcome.is_err() {
                        eprintln!("that was {}::{test}", self.broker);
                    }
                    tell.send(outcome).unwrap_or_default();
                }
            });
        }
        outcomes
    }

    /// As the harness reads its arguments, more or less: a test that is not started here is run
    /// when its turn comes, and one that is started in vain costs some time.
    fn is_wanted(&self, test: &str) -> bool {
        let name = format!("{}::{test}", self.broker);
        let arguments: Vec<_> = std::env::args().skip(1).collect();
        let one_by_one = arguments.iter().any(|text| text.starts_with("--test-threads"))
            || std::env::var_os("RUST_TEST_THREADS").is_some();
        let mut filters = arguments.iter().filter(|text| !text.starts_with('-')).peekable();
        let is_asked = filters.peek().is_none() || filters.any(|text| name.contains(&**text));
        is_asked && !one_by_one
    }
}
