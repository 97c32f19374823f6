//! A value that others wait upon.
//!
//! As tokio's `watch`, but those who wait are woken in the order in which they came: `watch` draws
//! lots, and a simulation would not do the same thing twice.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// A value that others wait upon.
#[derive(Debug, Default)]
pub(crate) struct Board<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T: Clone> Board<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: Mutex::new(value), changed: Notify::new() }
    }

    /// The value now.
    pub(crate) fn get(&self) -> T {
        self.lock().clone()
    }

    /// What `look` makes of the value now.
    pub(crate) fn read<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.lock())
    }

    /// Puts another value, and returns the one before.
    pub(crate) fn set(&self, value: T) -> T {
        self.update(|old| std::mem::replace(old, value))
    }

    /// Changes the value.
    pub(crate) fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.lock());
        self.changed.notify_waiters();
        result
    }

    /// Waits for a value. Nothing is lost by dropping this.
    pub(crate) async fn until(&self, is_so: impl Fn(&T) -> bool) -> T {
        loop {
            // Before the look, so that no change falls in between.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let value = self.get();
            if is_so(&value) {
                return value;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        // A value is whole whatever its holder was doing.
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn those_who_wait_are_woken_in_their_order() {
        let board = Arc::new(Board::new(0));
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiters = Vec::new();
        for number in 0..20 {
            let (board, order) = (Arc::clone(&board), Arc::clone(&order));
            waiters.push(tokio::spawn(async move {
                board.until(|value| *value == 1).await;
                order.lock().unwrap().push(number);
            }));
        }
        tokio::task::yield_now().await;
        assert_eq!(board.set(1), 0);
        for waiter in waiters {
            waiter.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), (0..20).collect::<Vec<_>>());
        assert_eq!(board.until(|value| *value == 1).await, 1);
    }
}
