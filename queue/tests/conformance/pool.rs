//! Many promises at once on a broker where time passes for real: they sleep, and do little else.
//!
//! The test harness runs as many tests as there are cores. So the first test of a broker starts
//! all that are wanted, and each test waits for its own.

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, Once, OnceLock};

use crate::PROMISES;
use crate::fixture::Promise;

/// How many run at once.
const N_THREADS: usize = 16;

/// Nothing, or what a promise panicked with and where.
type Outcome = Result<(), String>;

thread_local! {
    /// Whether this thread runs a promise for a test on another, and how that panicked.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The promises of one broker.
pub struct Pool {
    broker: &'static str,
    run: fn(&'static str, Promise),
    started: OnceLock<HashMap<&'static str, Mutex<Receiver<Outcome>>>>,
}

struct Wanted {
    test: &'static str,
    promise: Promise,
    tell: SyncSender<Outcome>,
}

impl Pool {
    pub const fn new(broker: &'static str, run: fn(&'static str, Promise)) -> Self {
        Self { broker, run, started: OnceLock::new() }
    }

    /// Runs the promise, or waits for it where it runs already; panics as it does.
    pub fn run(&'static self, test: &'static str, promise: Promise) {
        let Some(started) = self.started.get_or_init(|| self.start()).get(test) else {
            return (self.run)(test, promise);
        };
        let outcome = started.lock().unwrap().recv().expect("it is told once, to its test");
        outcome.unwrap_or_else(|panic| panic!("on a thread of its own it {panic}"));
    }

    fn start(&'static self) -> HashMap<&'static str, Mutex<Receiver<Outcome>>> {
        keep_panics();
        let mut outcomes = HashMap::new();
        let mut wanted = Vec::new();
        for (test, promise) in PROMISES.iter().filter(|(test, _)| self.is_wanted(test)) {
            let (tell, hear) = sync_channel(1);
            outcomes.insert(*test, Mutex::new(hear));
            wanted.push(Wanted { test, promise: *promise, tell });
        }
        let (wanted, next) = (Arc::new(wanted), Arc::new(AtomicUsize::new(0)));
        for _ in 0..N_THREADS.min(wanted.len()) {
            let (wanted, next) = (wanted.clone(), next.clone());
            std::thread::spawn(move || {
                PANIC.set(Some(String::new()));
                while let Some(one) = wanted.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let run = AssertUnwindSafe(|| (self.run)(one.test, one.promise));
                    let words = |_| PANIC.replace(Some(String::new())).unwrap_or_default();
                    // Nobody waits for one that was started in vain.
                    one.tell.send(catch_unwind(run).map_err(words)).unwrap_or_default();
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

/// What a promise panics with is told by its own test, not by the first one of its broker.
fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let is_kept = PANIC.with_borrow_mut(|kept| {
                kept.as_mut().map(|words| *words = panic.to_string()).is_some()
            });
            if !is_kept {
                tell(panic);
            }
        }));
    });
}
