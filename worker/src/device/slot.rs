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
    /// Those that have begun; leads to `Gone`.
    Draining,
    /// None: nobody is there to run them.
    Gone,
}

/// The batches before the device: one that has not begun, for the batcher sends none while one
/// waits, and one for each lane that runs jobs again.
#[derive(Debug, Default)]
pub(super) struct Slot {
    waiting: Mutex<VecDeque<Command>>,
    // Both change only while the lock is held: a batch has begun, or it was taken back.
    door: Board<Door>,
    load: Board<Load>,
}

impl Slot {
    /// Puts a batch in, or drops it where the door is closed to it.
    pub(super) fn put(&self, command: Command) {
        let mut waiting = lock(&self.waiting);
        if self.door.get().lets_in(&command) {
            waiting.push_back(command);
            self.load.update(|load| load.queued = waiting.len());
        }
    }

    /// The batch that begins now.
    pub(super) fn begin(&self) -> Option<Command> {
        let mut waiting = lock(&self.waiting);
        let command = waiting.pop_front()?;
        let Command { size, lane, .. } = command;
        let running = Running { since: Instant::now(), size, lane, is_loading: false };
        self.load.update(|load| *load = Load { queued: waiting.len(), running: Some(running) });
        Some(command)
    }

    /// Says whether the model of the batch that has begun is being loaded: its time counts anew.
    pub(super) fn loading(&self, is_loading: bool) {
        let since = Instant::now();
        self.load.update(|load| {
            let running = load.running.iter_mut();
            running.for_each(|running| *running = Running { since, is_loading, ..*running });
        });
    }

    /// Closes the door, unless it is closed to more already, and drops what it would not let in:
    /// who waits for these batches is told when this returns.
    pub(super) fn close(&self, door: Door) {
        let mut waiting = lock(&self.waiting);
        if door <= self.door.get() {
            return;
        }
        waiting.retain(|command| door.lets_in(command));
        self.load.update(|load| load.queued = waiting.len());
        self.door.set(door);
    }

    /// Opens the door again after a wedge.
    pub(super) fn reopen(&self) {
        let _waiting = lock(&self.waiting);
        if self.door.get() == Door::Wedged {
            self.door.set(Door::Open);
        }
    }

    pub(super) fn door(&self) -> &Board<Door> {
        &self.door
    }

    pub(super) fn load(&self) -> &Board<Load> {
        &self.load
    }
}

impl Door {
    fn lets_in(self, command: &Command) -> bool {
        match self {
            Self::Open => true,
            Self::Wedged | Self::Draining => command.begun == Begun::Yes,
            Self::Gone => false,
        }
    }
}
