//! Connections for pages that must be had at any time: whoever comes is let in, and where there are too
//! many who has been silent for longest has to go.
//!
//! A number above which newcomers are refused would do the harm itself here: it is reached by whoever holds
//! connections open and says nothing, and then no probe is answered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::talk::{Heard, Patience, Talk, accept};

/// Connections at once: more than probes, Prometheus and people have, and few files of a process.
pub(crate) const MOST: usize = 128;

/// How long they are waited for. Prometheus asks once a minute, if not more often, and keeps its connection.
const PATIENCE: Patience = Patience {
    headers: Duration::from_secs(10),
    idle: Duration::from_secs(75),
    stall: Duration::from_secs(30),
};

/// Those who are connected, in the order in which they last asked for something.
#[derive(Debug, Clone, Default)]
struct Guests(Arc<Mutex<Order>>);

#[derive(Debug, Default)]
struct Order {
    n_so_far: u64,
    /// Each is cancelled to have its guest go.
    places: BTreeMap<u64, CancellationToken>,
}

impl Order {
    /// Puts somebody behind all others.
    fn last(&mut self, leaves: CancellationToken) -> u64 {
        self.n_so_far += 1;
        self.places.insert(self.n_so_far, leaves);
        self.n_so_far
    }
}

/// One who is connected, until it is dropped.
struct Guest {
    guests: Guests,
    place: Mutex<u64>,
    leaves: CancellationToken,
}

impl Guests {
    fn enter(&self) -> Guest {
        let leaves = CancellationToken::new();
        let place = Mutex::new(self.order().last(leaves.clone()));
        Guest { guests: self.clone(), place, leaves }
    }

    /// Has the one go who has been silent for longest.
    fn dismiss(&self) {
        if let Some((_, leaves)) = self.order().places.pop_first() {
            leaves.cancel();
        }
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        // The order is whole whatever its holder was doing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest {
    /// It is heard of: now all others have been silent for longer.
    fn asks(&self) {
        let (mut place, mut order) = (self.place(), self.guests.order());
        // Who has to go is not let in again.
        if let Some(leaves) = order.places.remove(&*place) {
            *place = order.last(leaves);
        }
    }

    fn place(&self) -> MutexGuard<'_, u64> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let place = *self.place();
        self.guests.order().places.remove(&place);
    }
}

/// Answers requests until `stop` is cancelled, and then those that are there. Dropped, it cuts off whoever
/// is left.
pub(crate) async fn serve(listener: TcpListener, pages: Router, stop: CancellationToken) {
    let (room, guests) = (Arc::new(Semaphore::new(MOST)), Guests::default());
    let mut connections = JoinSet::new();
    loop {
        let connection = tokio::select! { biased;
            () = stop.cancelled() => break,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    warn!(%error, "a connection for probes and metrics was lost");
                }
                continue;
            }
            connection = accept(&listener) => connection,
        };
        if room.available_permits() == 0 {
            debug!("too many connections for probes and metrics: the silent have to go");
            guests.dismiss();
        }
        let permit = Arc::clone(&room).acquire_owned().await.expect("nobody closes the room");
        let guest = Arc::new(guests.enter());
        let heard = Arc::clone(&guest);
        let hears = Arc::new(move |what| {
            if what == Heard::Asks {
                heard.asks();
            }
        });
        let (pages, drained) = (pages.clone(), stop.clone());
        let talk = Talk { pages, patience: PATIENCE, hears, drained };
        connections.spawn(async move {
            let _permit = permit;
            tokio::select! { biased;
                () = guest.leaves.cancelled() => {}
                () = talk.with(connection) => {}
            }
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}
