//! What JetStream cannot promise. The same words stand in the README.

use crate::Limit;

/// What JetStream cannot promise however it is set.
pub(crate) const LIMITS: &[Limit] = &[
    Limit {
        promise: "duplicates",
        instead: "an id is known for two minutes after its publication (key_ttl, where that is \
                  shorter) and not as long as its job lives, and that of a job that was done no \
                  longer than its server runs, since JetStream keeps ids in memory; of one that \
                  was purged and published again these two minutes begin with its first \
                  publication; a job that is moved into its lane as its delay ends, or retried, or \
                  given back, or put elsewhere by whoever meets it first, since it came early or \
                  lay above its priority, is there twice where whoever does that loses the server, \
                  or is lost, between storing it anew and removing the old message, and nobody \
                  comes to that within these two minutes, as where the lease is longer, or whoever \
                  comes to it cannot know: a server that crashes may forget that it handed the job \
                  out, that it is being put back cannot be noted while nobody leads the notes, and \
                  a cluster that is full looks for room before it looks for what it knows; a key \
                  is known for key_ttl after its publication, and looked up before the id; a full \
                  queue refuses what it knows as well",
    },
    Limit {
        promise: "batches",
        instead: "a publication that fails halfway may have stored some of its jobs; published \
                  again within two minutes, those are known",
    },
    Limit {
        promise: "ordering",
        instead: "what came back goes before what was published since in its priority; in the old \
                  order within one receive, but not between those that came back and those that \
                  wait behind them in the lane",
    },
    Limit {
        promise: "fencing",
        instead: "JetStream takes any acknowledgement: that a lease is lost is looked up and not \
                  enforced, so that another who settles while one does may succeed as well; a lease \
                  that ended and is extended then may still go to the next who asks; who holds a job \
                  of a stream that was deleted and made anew learns that when it next looks for jobs, \
                  counts them or extends a lease, and what it settles before may remove another job, \
                  which has the same number",
    },
    Limit {
        promise: "forgotten",
        instead: "who begins to follow a job that was done long ago, and whose result is forgotten, \
                  is not told so and waits; so does who follows a job that is purged while \
                  its connection is lost, or by or with an older version",
    },
    Limit {
        promise: "large",
        instead: "a message of a foreign client that leaves no room for headers under max_payload \
                  or within 64 KiB of headers, and any that is longer than a max_msg_size its \
                  stream was given, stays where it is when it is delayed, retried or given back: \
                  it counts as ready meanwhile, and to give it back costs an attempt",
    },
    Limit {
        promise: "state",
        instead: "where a job is that has no result is known of dead letters and of what plain \
                  clients published, unless it was tried before: of others only their messages \
                  tell the id",
    },
    Limit {
        promise: "cancel",
        instead: "a job whose message cannot be found, since it was published more than two \
                  minutes ago (key_ttl, where that is shorter) and not tried since, or put back \
                  from the dead letters, or published again after a purge, is marked: it counts \
                  until a worker meets it, which drops it uncharged, and which may begin it and be \
                  stopped where it was marked within the last second. A mark is forgotten with the \
                  result, after result_ttl, so that a job with a longer delay runs all the same. \
                  Of an id that was never published the same is said, and its job would be dropped \
                  for result_ttl. One that is handed out or moved while its canceller replies to \
                  it, or that two cancel at once, may be replied to twice. An id that an older \
                  cluster does not know when it is cancelled (one of 2.10 does so, one of 2.15 \
                  does not) cannot be published there for two minutes",
    },
    Limit {
        promise: "cost",
        instead: "the cost of what waits is not known: nobody reads the jobs. Of those whose leases \
                  ended the age is looked up of 32 at most, which the stream has longest",
    },
    Limit {
        promise: "plain clients",
        instead: "a job that any client publishes on ebb.NAME.jobs has the priority of its \
                  header from when a worker meets it: one of low priority lets pass what \
                  lies behind it (after 256 of them in a row those that follow run as they \
                  come, for ten seconds), one of high priority waits for normal ones before \
                  it; on ebb.NAME.jobs.high and ebb.NAME.jobs.low they lie right from the \
                  start. Its id and its key are looked up then, too: what repeats those of \
                  another such job is dropped, and a key that Ebb published as well; an id \
                  that Ebb published is known only where its job is dead or its result is \
                  there, unless the client says the id in Nats-Msg-Id. Delay, priority and \
                  deadline of the first 32 that no worker met are in the depth; the rest \
                  counts as ready and normal. max_ready holds nobody back who publishes past \
                  Ebb",
    },
];
