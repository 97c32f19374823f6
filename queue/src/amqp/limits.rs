//! What RabbitMQ cannot promise.

use crate::Limit;

pub(crate) const LIMITS: &[Limit] = &[
    Limit {
        promise: "results",
        instead: "RabbitMQ keeps no results: name a store for them with --results URL. Who follows \
                  a result there waits as long as there is none, also of a job that was purged, \
                  and a job that is put back, or purged and sent again, keeps its failed result until \
                  it has a completed one",
    },
    Limit {
        promise: "cancel",
        instead: "a job is cancelled where results are, so that takes --results; it counts until \
                  a worker receives it, which drops it uncharged. That it is to be dropped is \
                  known for result_ttl less an hour (less a minute, where that is below four \
                  hours), so that one with a longer delay runs all the same, and each job that \
                  is received costs a look at the results until then; one that is received \
                  within a second may begin and be stopped. Of an id that was never published \
                  the same is said, and a job that was put back and still has its failed result \
                  is taken for one that ended",
    },
    Limit {
        promise: "duplicates",
        instead: "RabbitMQ does not know what it has seen: a job that is published twice runs \
                  twice, and the second answer is not stored; repetitions within one publish are \
                  found",
    },
    Limit {
        promise: "batches",
        instead: "RabbitMQ confirms jobs one by one: when publish fails, some of the jobs may be \
                  stored all the same, even one that RabbitMQ says it did not take, where somebody \
                  who listened for new jobs was lost in that moment",
    },
    Limit {
        promise: "max_ready",
        instead: "RabbitMQ counts and stores in two steps: producers that publish at the same \
                  moment may go over max_ready together, and who publishes while a queue has a leader that \
                  does not answer may do so by what waits there",
    },
    Limit {
        promise: "ordering",
        instead: "each priority is a queue of its own, first in first out; jobs that came back go \
                  before new ones, whatever their priority, and in order only within what one \
                  receive brings",
    },
    Limit {
        promise: "fencing",
        instead: "AMQP has no leases: a delivery belongs to the connection of the handle that \
                  received it, and only that handle can extend or settle it. The handle gives a job \
                  back when its lease ends, and the lease is lost from that moment",
    },
    Limit {
        promise: "crashes",
        instead: "RabbitMQ counts the deliveries that ended with their connection and does not say \
                  whose they were: the history tells of such a crash without the worker's name. \
                  What was only fetched ahead is charged too. From 4.3 on a header x-delivery-count that a \
                  client sent along is taken for RabbitMQ's, as far as its job was delivered before",
    },
    Limit {
        promise: "hold",
        instead: "RabbitMQ closes the channel of who holds a job for longer than its \
                  consumer_timeout, 30 minutes unless it is set otherwise, however often the lease \
                  is extended. All that this handle holds comes back and is charged, but for the job that \
                  was held for too long: from 4.3 on that is not",
    },
    Limit {
        promise: "depth",
        instead: "RabbitMQ tells the depth of no queue whose leader does not answer within 0.25 s: \
                  that is an error here and no 0. Of one whose leader has just been lost with its \
                  server it says 0 at once, until another is chosen",
    },
    Limit {
        promise: "deadline",
        instead: "RabbitMQ does not look into jobs: one that has expired counts as ready or delayed \
                  until a receive meets it, and becomes a dead letter then",
    },
    Limit {
        promise: "in_flight",
        instead: "AMQP does not say what is held: handles tell each other, each second and when it \
                  changes. A handle that is lost counts for 5 seconds more. While RabbitMQ is short \
                  of memory or disk nobody can tell: what waits no more counts as held until 5 \
                  seconds after that. The management API is \
                  not asked, since its figures are seconds old",
    },
    Limit {
        promise: "oldest_ready",
        instead: "a queue of RabbitMQ can be read only by taking from it, so the age of what waits \
                  and its cost are not known",
    },
    Limit {
        promise: "next_due",
        instead: "RabbitMQ does not say when it makes a delayed job ready; it does so by itself, \
                  and the ready count grows. Delays are rounded up to 0.1 s and end after 77 days \
                  at most",
    },
    Limit {
        promise: "delayed",
        instead: "RabbitMQ counts a message in no queue while it is on its way to the next: of \
                  many jobs that fall due together, thousands are in neither the ready nor the \
                  delayed count for some seconds. What falls due while RabbitMQ starts finds no \
                  way on and is tried again, and counted again, after \
                  dead_letter_worker_publisher_confirm_timeout, three minutes unless it is set \
                  otherwise",
    },
    Limit {
        promise: "dead_letters",
        instead: "a queue can be read from its head only: who looks at the dead letters takes them \
                  for that while, another who looks at the same moment sees the rest, and no more \
                  than the oldest 50000 are looked through at once. With dead_ttl their age goes by \
                  the clocks of the worker that buried them and of the one that deletes them, and \
                  bodies in a store of payloads stay until its lifecycle rules delete them. Of \
                  messages in ebb:NAME:dead without ebb-died-at, which are another's, more than 8 at \
                  its head keep those behind them. A purge of old ones puts one that is too young back \
                  behind those that somebody has looked at, so an old one of these may stay until as \
                  many more purges have looked as there are letters",
    },
    Limit {
        promise: "purge",
        instead: "a purge of what waits has RabbitMQ delete it without a look at it: expired jobs \
                  go as well, bodies in a store of payloads stay until its lifecycle rules delete \
                  them, and what a worker fetched ahead stays",
    },
    Limit {
        promise: "state",
        instead: "where a job is that has no result is not known, since a queue can be read from \
                  its head only",
    },
    Limit {
        promise: "plain clients",
        instead: "RabbitMQ does not look into jobs: one that any client publishes with the \
                  routing key NAME counts as ready and normal, whatever its headers say, \
                  until a worker meets it, so that one with a delay wakes a pool at zero. \
                  Then its delay and its TTL begin, unless the property timestamp says since \
                  when it waits, and one of low priority lets pass what lies behind it \
                  (after 256 of them in a row those that follow run as they come, for ten \
                  seconds); one of high priority waits for normal ones before it. With the \
                  routing keys ebb:NAME:high and ebb:NAME:low they lie right from the start. \
                  max_ready holds nobody back who publishes past Ebb; a policy of the broker \
                  with max-length and overflow reject-publish on the queue NAME does",
    },
];
