//! The exchange where all handles of a queue meet, and whether what is said there still comes to us: with an
//! exchange that is deleted goes what leads from it to us, and nobody tells, also where it is made again.
//!
//! Whoever hears others hears. Where all are silent one says a word, which all hear; who does not hear its own
//! word either binds its queue anew. Were that done each second, all servers of the broker would have to agree
//! on it each second, for each handle.

use futures::FutureExt;
use futures::future::{BoxFuture, Fuse, FusedFuture};
use lapin::message::Delivery;
use lapin::options::{
    BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Consumer, ExchangeKind};
use tokio::time::{sleep, timeout};

use super::core::Core;
use super::errors;
use super::parcel::long;
use super::session::{PATIENCE, Session};
use super::voice::BEAT;
use crate::{Missing, Result};

/// Messages of others that wait for us at the broker at most, when it cannot pass them on.
const MAX_WAITING: i64 = 10_000;
/// Those of them that are here and not heard yet, at most: the rest waits at the broker.
pub(super) const WINDOW: u16 = 256;

/// What was heard and said since somebody looked.
#[derive(Debug, Default)]
struct Presence {
    has_heard: bool,
    /// Whether a word of our own is to come.
    has_spoken: bool,
    /// Whether that was not heard, and nothing was done about it since that was seen to help.
    is_deaf: bool,
}

/// What there is to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Others are heard: it is only seen that the exchange is there.
    Look,
    /// Nobody was heard, so we are to say a word.
    Speak,
    /// That was not heard.
    Bind,
    /// It was not, and something is heard now: the broker has bound the queue, and did not answer in time.
    Greet,
}

impl Presence {
    /// What to do now, a while after it was asked before.
    fn step(&mut self) -> Step {
        let has_heard = std::mem::take(&mut self.has_heard);
        let has_spoken = std::mem::take(&mut self.has_spoken);
        match (has_heard, has_spoken) {
            (true, _) if self.is_deaf => Step::Greet,
            (true, _) => Step::Look,
            (false, false) => Step::Speak,
            (false, true) => {
                self.is_deaf = true;
                Step::Bind
            }
        }
    }

    /// Notes that this was done.
    fn note(&mut self, step: Step) {
        self.is_deaf &= !matches!(step, Step::Bind | Step::Greet);
    }
}

/// A look now and then at whether all still meet where they did, beside all else: what all servers of the
/// broker have to agree on may take long, and others are to be heard meanwhile.
pub(super) struct Meeting<'a> {
    core: &'a Core,
    session: &'a Session,
    /// Nothing else is done there.
    channel: Channel,
    queue: ShortString,
    presence: Presence,
    looking: Fuse<BoxFuture<'a, Result<Step>>>,
}

impl<'a> Meeting<'a> {
    pub(super) async fn new(
        core: &'a Core,
        session: &'a Session,
        queue: ShortString,
    ) -> Result<Self> {
        let opening = session.intake.create_channel();
        let channel = session.patiently("let us hear what is held", opening).await?;
        let (presence, looking) = (Presence::default(), Fuse::terminated());
        Ok(Self { core, session, channel, queue, presence, looking })
    }

    pub(super) fn hear(&mut self, heard: &Delivery) {
        // To our own queue alone says something whoever wants to hear itself.
        self.presence.has_heard |= !heard.exchange.as_str().is_empty();
    }

    /// Begins to look, unless that goes on.
    pub(super) fn look(&mut self) {
        if self.looking.is_terminated() {
            let at = (self.channel.clone(), self.queue.clone());
            let step = self.presence.step();
            self.looking = meet(self.core, self.session, at, step).boxed().fuse();
        }
    }

    /// What came of a look: what was done, but that a word or a greeting is only to be said. May be dropped
    /// and asked again.
    pub(super) async fn looked(&mut self) -> Result<Step> {
        let step = (&mut self.looking).await?;
        self.presence.note(step);
        Ok(step)
    }

    /// A word of ours is on its way here, if it could be said.
    pub(super) fn note_word(&mut self, is_said: bool) {
        self.presence.has_spoken = is_said;
    }
}

/// Looks whether all still meet where they did, and takes this step, or none. It says nothing: whoever waits
/// for it may do so meanwhile, by the channel that all share.
async fn meet(
    core: &Core,
    session: &Session,
    (channel, queue): (Channel, ShortString),
    step: Step,
) -> Result<Step> {
    let finding = timeout(PATIENCE, have_exchange(core, &channel, Missing::Refuse));
    // Who does not answer has not said that it is gone.
    let Ok(found) = finding.await else { return Ok(Step::Look) };
    found.map_err(|error| failed(&error))?;
    match step {
        Step::Look | Step::Speak | Step::Greet => Ok(step),
        // Where the broker takes no messages our word is not lost, and is said again when that is over.
        Step::Bind if session.check_open().is_err() => Ok(Step::Look),
        Step::Bind => match timeout(PATIENCE, bind(core, &channel, queue)).await {
            Ok(bound) => bound.map(|()| step).map_err(|error| failed(&error)),
            Err(_) => Ok(Step::Look),
        },
    }
}

fn failed(error: &lapin::Error) -> crate::Error {
    errors::op(error, "let us hear what is held")
}

/// A queue where all is heard that is said from now on.
pub(super) async fn listen(core: &Core, session: &Session) -> lapin::Result<(Channel, Consumer)> {
    let mut channel = session.intake.create_channel().await?;
    // Before the queue, which would stay.
    match have_exchange(core, &channel, Missing::Refuse).await {
        Err(error) if core.missing == Missing::Create && errors::is_missing(&error) => {
            // All others are to see that it is gone.
            sleep(BEAT).await;
            channel = session.intake.create_channel().await?;
            have_exchange(core, &channel, Missing::Create).await?;
        }
        found => found?,
    }
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), long("classic"));
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(MAX_WAITING));
    let options = QueueDeclareOptions::exclusive().auto_delete();
    let queue = channel.queue_declare("".into(), options, arguments).await?;
    bind(core, &channel, queue.name().clone()).await?;
    // Without acknowledgements the broker would hand over all there is, however slowly it is heard.
    channel.basic_qos(WINDOW, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
    let consumer = channel
        .basic_consume(queue.name().clone(), "".into(), options, FieldTable::default())
        .await?;
    Ok((channel, consumer))
}

async fn have_exchange(core: &Core, channel: &Channel, missing: Missing) -> lapin::Result<()> {
    let passive = missing == Missing::Refuse;
    let options =
        ExchangeDeclareOptions { passive, durable: true, ..ExchangeDeclareOptions::default() };
    let (exchange, none) = (core.names.status(), FieldTable::default());
    channel.exchange_declare(exchange.as_str().into(), ExchangeKind::Fanout, options, none).await
}

async fn bind(core: &Core, channel: &Channel, queue: ShortString) -> lapin::Result<()> {
    let exchange = core.names.status().as_str().into();
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(queue, exchange, "".into(), options, none).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_hears_others_says_nothing_and_who_does_not_hear_itself_binds_anew() {
        let mut presence = Presence::default();
        let mut steps = Vec::new();
        // Whether something comes before it is looked at again.
        for comes in [true, true, false, true, false, false, false, false, true] {
            presence.has_heard |= comes;
            let step = presence.step();
            presence.has_spoken = step == Step::Speak;
            presence.note(step);
            steps.push(step);
        }
        use Step::{Bind, Look, Speak};
        assert_eq!(steps, [Look, Look, Speak, Look, Speak, Bind, Speak, Bind, Look]);
    }

    #[test]
    fn who_is_heard_after_a_binding_that_was_not_answered_greets_all() {
        use Step::{Bind, Greet, Look, Speak};
        let mut presence = Presence::default();
        let mut steps = Vec::new();
        for comes in [false, false, false, false, true, true, true] {
            presence.has_heard |= comes;
            let step = presence.step();
            presence.has_spoken = step == Speak;
            // The second greeting can be said, and no binding was seen to be made.
            if step != Bind && steps.last() == Some(&Greet) {
                presence.note(step);
            }
            steps.push(step);
        }
        assert_eq!(steps, [Speak, Bind, Speak, Bind, Greet, Greet, Look]);
    }

    #[test]
    fn who_could_not_say_a_word_does_not_miss_it() {
        let mut presence = Presence::default();
        for _ in 0..5 {
            assert_eq!(presence.step(), Step::Speak);
        }
    }
}
