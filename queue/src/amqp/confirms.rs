//! What became of messages, by the confirmations of the channel that they were published on.
//!
//! A message that finds no queue comes back, and is confirmed after that. The client hands it out
//! with whatever is confirmed next on the channel, which may be a message of somebody else. That is
//! no later than its own confirmation, or where several came back that confirmation has another of
//! them. So nobody is told anything before all confirmations that are there have been looked at for
//! what came back, and where one has what is not its own, before the others have come.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use lapin::{Confirmation, PublisherConfirm};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::{Mutex, MutexGuard, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::warn;

/// Messages that are on their way without a confirmation, of one caller.
pub(super) const WINDOW: usize = 256;

/// Who publishes for longer than this is held up by the broker, and what it publishes is not there
/// to be confirmed.
const HELD_UP: Duration = Duration::from_secs(1);

/// Those that the server confirmed together come within this.
const TOGETHER: Duration = Duration::from_millis(20);

/// Where a message went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) exchange: String,
    pub(super) key: String,
    /// Whether it comes back where it finds no queue.
    pub(super) must_arrive: bool,
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It is on the disks of the broker, or may be lost.
    Stored,
    /// Its queue takes no more.
    Refused,
    /// There is no queue for this key.
    Homeless(String),
}

/// What a confirmation says: of its own message whether it was taken, and of some message that it
/// came back.
struct Word {
    is_ack: bool,
    returned: Option<(String, String)>,
}

impl From<Confirmation> for Word {
    fn from(confirmation: Confirmation) -> Self {
        let is_ack = confirmation.is_ack();
        let returned = confirmation.take_message();
        let returned = returned.map(|one| (one.exchange.to_string(), one.routing_key.to_string()));
        Self { is_ack, returned }
    }
}

/// A message that was published and is not confirmed yet, as far as is known.
struct Sent {
    address: Address,
    word: BoxFuture<'static, lapin::Result<Word>>,
    told: oneshot::Sender<lapin::Result<Arrival>>,
}

/// The confirmations of one channel.
#[derive(Debug)]
pub(super) struct Confirms {
    sent: Sender<Sent>,
    /// Of who publishes: confirmations are matched by number.
    turn: Arc<Mutex<()>>,
}

impl Confirms {
    pub(super) fn new() -> Self {
        let (sent, inbox) = mpsc::channel(WINDOW);
        let turn = Arc::<Mutex<()>>::default();
        // Ends with this.
        tokio::spawn(tell(inbox, Arc::clone(&turn)));
        Self { sent, turn }
    }

    /// To be held from before a message is published until it is watched.
    pub(super) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// What becomes of a message that was just published.
    pub(super) async fn watch(
        &self,
        address: Address,
        confirm: PublisherConfirm,
    ) -> impl Future<Output = lapin::Result<Arrival>> + use<> {
        self.watch_word(address, confirm.map(|said| said.map(Word::from)).boxed()).await
    }

    async fn watch_word(
        &self,
        address: Address,
        word: BoxFuture<'static, lapin::Result<Word>>,
    ) -> impl Future<Output = lapin::Result<Arrival>> + use<> {
        let (told, arrival) = oneshot::channel();
        let gone = || std::io::Error::other("nobody watches the confirmations any more").into();
        // What cannot be sent is dropped, and `told` with it.
        self.sent.send(Sent { address, word, told }).await.ok();
        async move { arrival.await.unwrap_or_else(|_| Err(gone())) }
    }
}

/// Tells what became of messages until there is nobody to tell.
async fn tell(mut inbox: Receiver<Sent>, turn: Arc<Mutex<()>>) {
    let (mut open, mut words) = (Open::default(), FuturesUnordered::new());
    let mut n_sent = 0;
    let mut watch = |sent, open: &mut Open, words: &FuturesUnordered<_>| {
        let Sent { address, word, told } = sent;
        n_sent += 1;
        let nth: u64 = n_sent;
        open.0.insert(nth, Unconfirmed { address, is_back: false, told });
        words.push(word.map(move |word| (nth, word)));
    };
    loop {
        let first = tokio::select! { biased;
            sent = inbox.recv() => match sent {
                Some(sent) => {
                    watch(sent, &mut open, &words);
                    continue;
                }
                None => return,
            },
            Some(word) = words.next() => word,
        };
        // With the turn, nobody else has published what is not watched yet.
        let mut ours = pin!(timeout(HELD_UP, turn.lock()));
        let _turn = loop {
            tokio::select! { biased;
                Some(sent) = inbox.recv() => watch(sent, &mut open, &words),
                turn = &mut ours => break turn,
            }
        };
        while let Ok(sent) = inbox.try_recv() {
            watch(sent, &mut open, &words);
        }
        let mut heard = vec![first];
        while let Some(Some(word)) = words.next().now_or_never() {
            heard.push(word);
        }
        if open.is_crossed(&heard) {
            let end = Instant::now() + TOGETHER;
            while let Ok(Some(word)) = timeout_at(end, words.next()).await {
                heard.push(word);
            }
        }
        open.hear(heard);
    }
}

/// What is not confirmed yet, by the order of publication.
#[derive(Default)]
struct Open(HashMap<u64, Unconfirmed>);

struct Unconfirmed {
    address: Address,
    is_back: bool,
    told: oneshot::Sender<lapin::Result<Arrival>>,
}

impl Open {
    /// Whether one of these words has what another message came back as.
    fn is_crossed(&self, heard: &[(u64, lapin::Result<Word>)]) -> bool {
        heard.iter().any(|(nth, word)| {
            let returned = word.as_ref().ok().and_then(|word| word.returned.as_ref());
            returned.is_some_and(|(exchange, key)| {
                let own = self.0.get(nth).map(|one| (&one.address.exchange, &one.address.key));
                own != Some((exchange, key))
            })
        })
    }

    /// Takes what came back with any of these words, and tells what became of their messages.
    fn hear(&mut self, heard: Vec<(u64, lapin::Result<Word>)>) {
        let returned = heard.iter().filter_map(|(_, word)| word.as_ref().ok()?.returned.as_ref());
        for (exchange, key) in returned {
            let is_it = |one: &&mut Unconfirmed| {
                let Address { exchange: to, key: by, must_arrive } = &one.address;
                *must_arrive && to == exchange && by == key
            };
            // Which of those with this address it is, nobody knows: one too many is sent again.
            let back = self.0.values_mut().filter(is_it).map(|one| one.is_back = true).count();
            if back == 0 {
                warn!(key, "a message that nobody waits for found no queue on RabbitMQ");
            }
        }
        for (nth, word) in heard {
            let Some(Unconfirmed { address, is_back, told }) = self.0.remove(&nth) else {
                continue;
            };
            let arrival = word.map(|word| match word.is_ack {
                _ if is_back => Arrival::Homeless(address.key),
                true => Arrival::Stored,
                false => Arrival::Refused,
            });
            // Who gave up does not want to know.
            told.send(arrival).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(key: &str) -> Address {
        Address { exchange: String::new(), key: key.to_owned(), must_arrive: true }
    }

    /// A message whose confirmation comes when this says so.
    async fn sent(
        confirms: &Confirms,
        key: &str,
    ) -> (oneshot::Sender<Word>, BoxFuture<'static, lapin::Result<Arrival>>) {
        let (say, word) = oneshot::channel();
        let word = word.map(|word| Ok(word.expect("it is confirmed"))).boxed();
        (say, confirms.watch_word(to(key), word).await.boxed())
    }

    fn ack(returned: Option<&str>) -> Word {
        Word { is_ack: true, returned: returned.map(|key| (String::new(), key.to_owned())) }
    }

    #[tokio::test]
    async fn what_comes_back_with_the_confirmation_of_another_message_is_not_taken_for_stored() {
        for is_first in [true, false] {
            let confirms = Confirms::new();
            let (say_lost, lost) = sent(&confirms, "gone").await;
            let (say_other, other) = sent(&confirms, "there").await;
            tokio::task::yield_now().await;
            // As the client does it: the other one is confirmed first, and carries what came back.
            assert!(say_other.send(ack(Some("gone"))).is_ok());
            if is_first {
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
            }
            assert!(say_lost.send(ack(None)).is_ok());
            assert_eq!(lost.await.unwrap(), Arrival::Homeless("gone".to_owned()));
            assert_eq!(other.await.unwrap(), Arrival::Stored);
        }
    }

    #[tokio::test]
    async fn of_two_that_come_back_each_may_have_the_other() {
        let confirms = Confirms::new();
        let (say_one, one) = sent(&confirms, "one").await;
        let (say_two, two) = sent(&confirms, "two").await;
        assert!(say_two.send(ack(Some("one"))).is_ok());
        for _ in 0..5 {
            tokio::task::yield_now().await;
        }
        assert!(say_one.send(ack(Some("two"))).is_ok());
        assert_eq!(two.await.unwrap(), Arrival::Homeless("two".to_owned()));
        assert_eq!(one.await.unwrap(), Arrival::Homeless("one".to_owned()));
    }

    #[tokio::test]
    async fn a_message_that_is_published_is_watched_before_anybody_is_told() {
        let confirms = Confirms::new();
        let (say_lost, lost) = sent(&confirms, "gone").await;
        tokio::task::yield_now().await;
        let turn = confirms.turn().await;
        // Another one is published, and confirmed before it is watched.
        assert!(say_lost.send(ack(None)).is_ok());
        for _ in 0..5 {
            tokio::task::yield_now().await;
        }
        let (say_other, other) = sent(&confirms, "there").await;
        assert!(say_other.send(ack(Some("gone"))).is_ok());
        drop(turn);
        assert_eq!(lost.await.unwrap(), Arrival::Homeless("gone".to_owned()));
        assert_eq!(other.await.unwrap(), Arrival::Stored);
    }

    #[tokio::test]
    async fn what_need_not_arrive_and_what_is_refused_are_told_apart() {
        let confirms = Confirms::new();
        let (say_refused, refused) = sent(&confirms, "full").await;
        let (say_lost, lost) = sent(&confirms, "gone").await;
        let (say, word) = oneshot::channel();
        let word = word.map(|word| Ok(word.expect("it is confirmed"))).boxed();
        let note = confirms.watch_word(Address { must_arrive: false, ..to("gone") }, word).await;
        assert!(say_refused.send(Word { is_ack: false, returned: None }).is_ok());
        assert!(say_lost.send(ack(Some("gone"))).is_ok());
        assert!(say.send(ack(None)).is_ok());
        assert_eq!(refused.await.unwrap(), Arrival::Refused);
        assert_eq!(lost.await.unwrap(), Arrival::Homeless("gone".to_owned()));
        assert_eq!(note.await.unwrap(), Arrival::Stored);
    }
}
