//! Connections for pages that must be had at any time: whoever comes is let in, and where there are too
//! many one has to go: first who has asked for nothing, then who has had an answer, and last who waits for one;
//! of those alike who has been so for longest.
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

/// Who have asked for nothing and are not the first to go: a probe has a moment from its connection to its
/// request, however many others keep connections that they once asked on.
const FRESH: usize = MOST / 8;

/// What a guest does, in the order in which guests have to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Does {
    /// Nothing so far.
    Nothing,
    /// It has had its answer.
    Rests,
    /// It waits for an answer.
    Waits,
}

/// What a guest does, and which of those alike it is.
type Place = (Does, u64);

/// Those who are connected, in the order in which they have to go.
#[derive(Debug, Clone, Default)]
struct Guests(Arc<Mutex<Order>>);

#[derive(Debug, Default)]
struct Order {
    n_so_far: u64,
    /// Each is cancelled to have its guest go.
    places: BTreeMap<Place, CancellationToken>,
}

impl Order {
    /// Puts somebody behind all others who do the same.
    fn put(&mut self, does: Does, leaves: CancellationToken) -> Place {
        self.n_so_far += 1;
        let place = (does, self.n_so_far);
        self.places.insert(place, leaves);
        place
    }

    /// Who has to go now.
    fn pop(&mut self) -> Option<CancellationToken> {
        let n_silent = self.places.range(..(Does::Rests, 0)).count();
        let rests = self.places.range((Does::Rests, 0)..(Does::Waits, 0)).next();
        match rests.map(|(place, _)| *place).filter(|_| n_silent <= FRESH) {
            Some(place) => self.places.remove(&place),
            None => self.places.pop_first().map(|(_, leaves)| leaves),
        }
    }
}

/// One who is connected, until it is dropped.
struct Guest {
    guests: Guests,
    place: Mutex<Place>,
    leaves: CancellationToken,
}

impl Guests {
    fn enter(&self) -> Guest {
        let leaves = CancellationToken::new();
        let place = Mutex::new(self.order().put(Does::Nothing, leaves.clone()));
        Guest { guests: self.clone(), place, leaves }
    }

    /// Has one go.
    fn dismiss(&self) {
        if let Some(leaves) = self.order().pop() {
            leaves.cancel();
        }
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        // The order is whole whatever its holder was doing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest {
    /// It does something else now.
    fn does(&self, does: Does) {
        let (mut place, mut order) = (self.place(), self.guests.order());
        // Who has to go is not let in again.
        if let Some(leaves) = order.places.remove(&*place) {
            *place = order.put(does, leaves);
        }
    }

    fn place(&self) -> MutexGuard<'_, Place> {
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
            debug!("too many connections for probes and metrics: one has to go");
            guests.dismiss();
        }
        let permit = Arc::clone(&room).acquire_owned().await.expect("nobody closes the room");
        let guest = Arc::new(guests.enter());
        let heard = Arc::clone(&guest);
        let hears = Arc::new(move |what| match what {
            Heard::Asks => heard.does(Does::Waits),
            Heard::Answered => heard.does(Does::Rests),
            Heard::Late | Heard::Stalled => {}
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_answered_goes_last_and_who_never_asked_first() {
        let guests = Guests::default();
        let waits = guests.enter();
        waits.does(Does::Waits);
        let rests = [guests.enter(), guests.enter()];
        for guest in rests.iter().rev() {
            guest.does(Does::Waits);
            guest.does(Does::Rests);
        }
        let silent: Vec<Guest> = (0..=FRESH).map(|_| guests.enter()).collect();
        let gone = |guest: &Guest| guest.leaves.is_cancelled();
        guests.dismiss();
        assert!(gone(&silent[0]) && !gone(&rests[1]), "of many that never asked the first");
        guests.dismiss();
        assert!(gone(&rests[1]) && !gone(&rests[0]), "a few have a moment to ask");
        guests.dismiss();
        assert!(gone(&rests[0]) && !gone(&silent[1]));
        silent.iter().skip(1).for_each(|_| guests.dismiss());
        assert!(silent.iter().all(gone) && !gone(&waits));
        // Who has to go does not come back by what it does.
        silent[1].does(Does::Waits);
        guests.dismiss();
        assert!(gone(&waits));
        drop((waits, rests, silent));
        assert!(guests.order().places.is_empty());
    }
}
