//! What became of messages, by the confirmations of the channel that they were published on.
//!
//! A message that finds no queue comes back, and is confirmed after that. The client hands it out
//! with whatever is confirmed next on the channel, which may be a message of somebody else, the first
//! that came back first. That is no later than its own confirmation, or where several came back that
//! confirmation has another of them. So nobody is told anything before all confirmations that are there
//! have been looked at for what came back.
//!
//! Where one has what is not its own, its own message may have come back too, behind that. Each
//! confirmation takes one, and each that came back has one: so as long as one of them is to be handed
//! out, another that was handed out is not confirmed yet. When all that were handed out are confirmed,
//! nothing is left, and who has what is not its own is told nothing before. All others are: one that came
//! back finds its own message with its confirmation, or another's that came back before it.

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
use tokio::time::{Instant, sleep_until, timeout};
use tracing::warn;

/// Messages that are on their way without a confirmation, of one caller.
pub(super) const WINDOW: usize = 256;

/// Who publishes for longer than this is held up by the broker, and what it publishes is not there
/// to be confirmed.
const HELD_UP: Duration = Duration::from_secs(1);

/// How long after it was sent a message may be in doubt: who waits for it has some patience left then. A
/// broker confirms what comes back as soon as it sends it back.
const STRAGGLE: Duration = Duration::from_secs(8);

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

impl Address {
    /// Whether a message that came back may be one that was sent here.
    fn is_of(&self, (exchange, key): &Returned) -> bool {
        self.must_arrive && self.exchange == *exchange && self.key == *key
    }
}

/// The exchange and the key of a message that came back.
type Returned = (String, String);

/// What a confirmation says: of its own message whether it was taken, and of some message that it
/// came back.
struct Word {
    is_ack: bool,
    returned: Option<Returned>,
}

fn returned(word: &lapin::Result<Word>) -> Option<&Returned> {
    word.as_ref().ok()?.returned.as_ref()
}

impl From<Confirmation> for Word {
    fn from(confirmation: Confirmation) -> Self {
        let is_ack = confirmation.is_ack();
        let returned = confirmation.take_message();
        let returned = returned.map(|one| (one.exchange.to_string(), one.routing_key.to_string()));
        Self { is_ack, returned }
    }
}

/// Whom to tell what became of a message.
type Teller = oneshot::Sender<lapin::Result<Arrival>>;

/// A message that was published and is not confirmed yet, as far as is known.
struct Sent {
    address: Address,
    word: BoxFuture<'static, lapin::Result<Word>>,
    told: Teller,
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
        open.add(nth, address, told);
        words.push(word.map(move |word| (nth, word)));
    };
    loop {
        let end = open.end_of_doubt();
        let first = tokio::select! { biased;
            sent = inbox.recv() => match sent {
                Some(sent) => {
                    watch(sent, &mut open, &words);
                    continue;
                }
                None => return,
            },
            Some(word) = words.next() => Some(word),
            () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => None,
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
        if let Some(word) = first {
            open.hear(word);
        }
        while let Some(Some(word)) = words.next().now_or_never() {
            open.hear(word);
        }
        open.tell(Instant::now());
    }
}

/// What nobody was told yet.
#[derive(Default)]
struct Open {
    /// By the order of publication.
    messages: HashMap<u64, (Untold, Teller)>,
    /// Those that are confirmed.
    confirmed: Vec<u64>,
}

struct Untold {
    address: Address,
    sent_at: Instant,
    is_back: bool,
    word: Option<lapin::Result<Word>>,
}

impl Untold {
    /// Whether it may have come back though it is not known to, since its word has another message.
    fn is_crossed(&self) -> bool {
        let returned = self.word.as_ref().and_then(returned);
        let has_other = returned.is_some_and(|returned| !self.address.is_of(returned));
        has_other && self.address.must_arrive && !self.is_back
    }

    fn arrival(self, is_in_doubt: bool) -> lapin::Result<Arrival> {
        let is_crossed = self.is_crossed();
        let late = || std::io::Error::other("what came back was not confirmed in time");
        match self.word.unwrap_or_else(|| Err(late().into()))?.is_ack {
            _ if self.is_back => Ok(Arrival::Homeless(self.address.key)),
            _ if is_in_doubt && is_crossed => Err(late().into()),
            // Where it need not arrive, only somebody who would have heard of it is gone.
            is_ack if is_ack || !self.address.must_arrive => Ok(Arrival::Stored),
            _ => Ok(Arrival::Refused),
        }
    }
}

impl Open {
    fn add(&mut self, nth: u64, address: Address, told: Teller) {
        let sent_at = Instant::now();
        self.messages.insert(nth, (Untold { address, sent_at, is_back: false, word: None }, told));
    }

    /// Takes the confirmation of a message, and what came back with it.
    fn hear(&mut self, (nth, word): (u64, lapin::Result<Word>)) {
        if let Some(returned) = returned(&word) {
            // Which of those with this address it is, nobody knows: one too many is sent again.
            let all = self.messages.values_mut().map(|(one, _)| one);
            let those = all.filter(|one| one.address.is_of(returned));
            if those.map(|one| one.is_back = true).count() == 0 {
                let key = &returned.1;
                warn!(key, "a message that nobody waits for found no queue on RabbitMQ");
            }
        }
        if let Some((one, _)) = self.messages.get_mut(&nth) {
            one.word = Some(word);
            self.confirmed.push(nth);
        }
    }

    /// Those that are confirmed and may have come back, if anything that came back is still to be heard of.
    fn crossed(&self) -> impl Iterator<Item = &Untold> {
        let confirmed = self.confirmed.iter().filter_map(|nth| self.messages.get(nth));
        confirmed.map(|(one, _)| one).filter(|one| one.is_crossed())
    }

    /// Whether one that is confirmed may have come back, and nobody knows yet.
    fn is_in_doubt(&self) -> bool {
        let mut messages = self.messages.values();
        self.crossed().next().is_some()
            && messages.any(|(one, _)| one.is_back && one.word.is_none())
    }

    /// When the next of those that are in doubt is told that.
    fn end_of_doubt(&self) -> Option<Instant> {
        self.crossed().map(|one| one.sent_at + STRAGGLE).min()
    }

    /// Tells what became of those that are confirmed, but for those that are in doubt and can wait.
    fn tell(&mut self, now: Instant) {
        let is_in_doubt = self.is_in_doubt();
        for nth in std::mem::take(&mut self.confirmed) {
            let can_wait = |one: &Untold| one.is_crossed() && now < one.sent_at + STRAGGLE;
            if is_in_doubt && self.messages.get(&nth).is_some_and(|(one, _)| can_wait(one)) {
                self.confirmed.push(nth);
                continue;
            }
            let Some((message, told)) = self.messages.remove(&nth) else { continue };
            // Who gave up does not want to know.
            told.send(message.arrival(is_in_doubt)).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::session::PATIENCE;
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

    #[tokio::test(start_paused = true)]
    async fn of_several_that_come_back_none_is_taken_for_stored_however_late_the_others_are() {
        let confirms = Confirms::new();
        let (say_one, one) = sent(&confirms, "one").await;
        let (say_two, two) = sent(&confirms, "two").await;
        let (say_three, three) = sent(&confirms, "three").await;
        let (say_other, other) = sent(&confirms, "there").await;
        // Each has another, and the last has none: there are as many of those as come back.
        for (say, returned) in [(say_one, "two"), (say_two, "three"), (say_other, "one")] {
            assert!(say.send(ack(Some(returned))).is_ok());
            tokio::time::sleep(STRAGGLE / 4).await;
        }
        assert!(say_three.send(ack(None)).is_ok());
        for (lost, key) in [(one, "one"), (two, "two"), (three, "three")] {
            assert_eq!(lost.await.unwrap(), Arrival::Homeless(key.to_owned()));
        }
        assert_eq!(other.await.unwrap(), Arrival::Stored);
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_have_come_back_is_never_taken_for_stored() {
        let confirms = Confirms::new();
        let (say_one, one) = sent(&confirms, "one").await;
        let (_say_two, two) = sent(&confirms, "two").await;
        let (say_three, three) = sent(&confirms, "three").await;
        assert!(say_one.send(ack(Some("two"))).is_ok());
        assert!(say_three.send(ack(None)).is_ok());
        // Two is confirmed by nobody.
        assert!(one.await.is_err());
        assert_eq!(three.await.unwrap(), Arrival::Stored);
        assert!(two.now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn while_one_is_in_doubt_others_are_published_and_told_of_at_once() {
        let (confirms, start) = (Confirms::new(), Instant::now());
        let (say_one, one) = sent(&confirms, "one").await;
        let (_say_two, _two) = sent(&confirms, "two").await;
        let (say_three, three) = sent(&confirms, "three").await;
        assert!(say_one.send(ack(Some("two"))).is_ok());
        assert!(say_three.send(ack(None)).is_ok());
        assert_eq!(three.await.unwrap(), Arrival::Stored);
        let (say_four, four) = {
            let _turn = confirms.turn().await;
            sent(&confirms, "four").await
        };
        assert!(say_four.send(ack(None)).is_ok());
        assert_eq!(four.await.unwrap(), Arrival::Stored);
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert!(one.await.is_err());
        assert_eq!(start.elapsed(), STRAGGLE);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_message_in_doubt_is_told_while_its_patience_lasts() {
        let (confirms, start) = (Confirms::new(), Instant::now());
        let (say_one, one) = sent(&confirms, "one").await;
        let (_say_two, _two) = sent(&confirms, "two").await;
        // A slow broker.
        tokio::time::sleep(STRAGGLE - Duration::from_secs(1)).await;
        assert!(say_one.send(ack(Some("two"))).is_ok());
        assert!(one.await.is_err());
        assert!(start.elapsed() + HELD_UP < PATIENCE, "{:?}", start.elapsed());
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
        let (say_unheard, word) = oneshot::channel();
        let word = word.map(|word| Ok(word.expect("it is confirmed"))).boxed();
        let unheard = confirms.watch_word(Address { must_arrive: false, ..to("ears") }, word).await;
        assert!(say_unheard.send(Word { is_ack: false, returned: None }).is_ok());
        assert!(say_refused.send(Word { is_ack: false, returned: None }).is_ok());
        assert!(say_lost.send(ack(Some("gone"))).is_ok());
        assert!(say.send(ack(None)).is_ok());
        assert_eq!(refused.await.unwrap(), Arrival::Refused);
        assert_eq!(lost.await.unwrap(), Arrival::Homeless("gone".to_owned()));
        assert_eq!(note.await.unwrap(), Arrival::Stored);
        assert_eq!(unheard.await.unwrap(), Arrival::Stored);
    }
}
