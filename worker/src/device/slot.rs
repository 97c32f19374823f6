//! Where batches wait for the device. They can be taken back from here until they begin.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::time::Instant;

use super::{Begun, Command, Load, Running};
use crate::board::Board;
use crate::shared::lock;

/// Which batches are let in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Door {
    /// All of them; leads to all others.
    #[default]
    Open,
    /// Those that have begun, while the device is wedged; leads to all others.
    Wedged,
    /// Those that have begun and wait for no model; leads to `Leaving` and `Gone`.
    Draining,
    /// Of these only what runs again after a failure: there is no time for another turn, or the device
    /// is wedged while it drains; leads to `Gone`, and to `Draining` when only a wedge is over.
    Leaving,
    /// None: nobody is there to run them.
    Gone,
}

/// Why the door is not open. A wedge comes and goes; the rest stays.
#[derive(Debug, Default)]
struct Closed {
    is_wedged: bool,
    /// The furthest of the others.
    for_good: Door,
}

/// What the device is to do next.
#[derive(Debug)]
pub(super) enum Next {
    /// To run this batch, which begins now.
    Run(Command),
    /// To load the model on this seat: the batch that wants it stays where it can be taken back.
    Load(usize),
}

/// The batches before the device: one that has not begun, for the batcher sends none while one
/// waits, and one for each lane that runs jobs again.
#[derive(Debug, Default)]
pub(super) struct Slot {
    waiting: Mutex<VecDeque<Command>>,
    // Both change only while the lock is held: a batch has begun, or it was taken back.
    closed: Mutex<Closed>,
    door: Board<Door>,
    load: Board<Load>,
}

impl Slot {
    /// Puts a batch in, or drops it where the door is closed to it.
    pub(super) fn put(&self, command: Command) {
        let mut waiting = lock(&self.waiting);
        if self.door.get().lets_in(&command, self.load.get()) {
            waiting.push_back(command);
            self.load.update(|load| load.queued = waiting.len());
        }
    }

    /// What is to be done for the first batch, if there is one.
    pub(super) fn next(&self, has_model: impl Fn(usize) -> bool) -> Option<Next> {
        let mut waiting = lock(&self.waiting);
        if matches!(self.door.get(), Door::Draining | Door::Leaving) {
            // Other workers have their model by the time that it would be here.
            waiting.retain(|command| has_model(command.seat));
            self.load.update(|load| load.queued = waiting.len());
        }
        let seat = waiting.front()?.seat;
        let now = Instant::now();
        if !has_model(seat) {
            self.load.update(|load| load.loading = Some(now));
            return Some(Next::Load(seat));
        }
        let command = waiting.pop_front()?;
        let Command { size, lane, .. } = command;
        let running = Some(Running { since: now, size, lane, is_first: false });
        let queued = waiting.len();
        self.load.update(|load| *load = Load { queued, running, loading: None });
        Some(Next::Run(command))
    }

    /// A model was loaded, or cannot be.
    pub(super) fn loaded(&self) {
        self.load.update(|load| load.loading = None);
    }

    /// Closes the door, unless it is closed to more already, and drops what it would not let in:
    /// who waits for these batches is told when this returns.
    pub(super) fn close(&self, door: Door) {
        self.set(|closed| match door {
            Door::Wedged => closed.is_wedged = true,
            door => closed.for_good = closed.for_good.max(door),
        });
    }

    /// Opens the door again after a wedge, as far as nothing else closes it.
    pub(super) fn reopen(&self) {
        self.set(|closed| closed.is_wedged = false);
    }

    fn set(&self, change: impl FnOnce(&mut Closed)) {
        let mut waiting = lock(&self.waiting);
        let door = {
            let mut closed = lock(&self.closed);
            change(&mut closed);
            closed.door()
        };
        if door == self.door.get() {
            return;
        }
        let load = self.load.get();
        waiting.retain(|command| door.lets_in(command, load));
        self.load.update(|load| load.queued = waiting.len());
        self.door.set(door);
    }

    pub(super) fn door(&self) -> &Board<Door> {
        &self.door
    }

    pub(super) fn load(&self) -> &Board<Load> {
        &self.load
    }
}

impl Closed {
    /// The door that is closed to whomever one of the causes closes it to. Who goes on is finished by a
    /// device that drains; one that is wedged may never come to it, and there is no other time to give
    /// it back.
    fn door(&self) -> Door {
        match (self.is_wedged, self.for_good) {
            (true, Door::Open) => Door::Wedged,
            (true, Door::Draining) => Door::Leaving,
            (_, for_good) => for_good,
        }
    }
}

impl Door {
    fn lets_in(self, command: &Command, load: Load) -> bool {
        match self {
            Self::Open => true,
            Self::Wedged => command.begun == Begun::Yes,
            Self::Draining => command.begun != Begun::No && load.loading.is_none(),
            Self::Leaving => command.begun == Begun::Yes && load.loading.is_none(),
            Self::Gone => false,
        }
    }
}
