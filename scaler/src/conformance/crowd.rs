//! Many at once on the one connection that KEDA has: calls, and streams.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tonic::{Status, Streaming};

use super::Plan;
use super::calls::{Seen, TRIPLE, is_silence, poll};
use super::keda::{Keda, told};
use super::report::Findings;
use super::rule::{CONCURRENT, FORGOTTEN, MANY_STREAMS};
use super::streams::Push;

/// Polls that begin at the same moment.
const POLLS: usize = 64;
/// A busy machine may be slow once; calls that wait for each other are slow each time.
const TRIES: usize = 3;
/// How often the crowd of streams comes and goes.
const ROUNDS: usize = 4;

pub(super) async fn examine(
    keda: &Keda,
    plan: &Plan,
    seen: &Seen,
    push: Push,
    findings: &mut Findings,
) {
    let mut at_once = polls_at_once(keda, seen).await;
    for _ in 1..TRIES {
        if at_once.is_err() {
            at_once = polls_at_once(keda, seen).await;
        }
    }
    findings.judge(&CONCURRENT, at_once);
    if !push.activity {
        return findings.skip(&[&MANY_STREAMS, &FORGOTTEN], "no stream of activity stays open");
    }
    let many = many(keda, plan.streams, push).await;
    let open = many.is_ok();
    findings.judge(&MANY_STREAMS, many);
    if !open {
        return findings.skip(&[&FORGOTTEN], "many streams cannot be opened");
    }
    findings.judge(&FORGOTTEN, come_and_go(keda, plan.streams, push).await);
}

/// Many polls at once: none may take much longer than one alone.
async fn polls_at_once(keda: &Keda, seen: &Seen) -> Result<String, String> {
    let limit = TRIPLE.max(4 * seen.slowest());
    let mut polls = JoinSet::new();
    for _ in 0..POLLS {
        let (keda, metric) = (keda.clone(), seen.metric().to_owned());
        polls.spawn(async move { poll(&keda, &metric).await });
    }
    let ended = polls.join_all().await;
    if let Some(status) = ended.iter().find_map(|(_, silence)| silence.as_ref()) {
        return Err(told(status));
    }
    let slowest = ended.iter().map(|(took, _)| *took).max().unwrap_or_default();
    let words = format!("{POLLS} polls at once took {:.0} ms", slowest.as_secs_f64() * 1e3);
    if slowest < limit { Ok(words) } else { Err(words) }
}

async fn many(keda: &Keda, n_streams: usize, push: Push) -> Result<String, String> {
    let crowd = Crowd::open(keda, n_streams, push).await?;
    let asked = Instant::now();
    let silence = keda.specs().await.err().filter(is_silence);
    let n_open = crowd.len();
    if let Some(status) = silence {
        return Err(format!("GetMetricSpec beside {n_open} streams: {}", told(&status)));
    }
    let millis = asked.elapsed().as_secs_f64() * 1e3;
    crowd.heard(keda.patience).await?;
    Ok(format!("beside {n_open} streams GetMetricSpec took {millis:.1} ms"))
}

/// Streams that were dropped must not stand in the way of new ones.
async fn come_and_go(keda: &Keda, n_streams: usize, push: Push) -> Result<String, String> {
    for round in 1..=ROUNDS {
        let tell = |words| format!("after {} dropped streams: {words}", round * n_streams);
        let crowd = Crowd::open(keda, n_streams, push).await.map_err(tell)?;
        crowd.heard(keda.patience).await.map_err(tell)?;
    }
    let alone = Push { specs: false, ..push };
    Crowd::open(keda, 1, alone).await?.heard(keda.patience).await?;
    Ok(format!("{ROUNDS} times {n_streams} streams came and went"))
}

/// Streams that are open and read; dropped with it.
struct Crowd {
    streams: JoinSet<()>,
    /// How many have spoken.
    spoken: watch::Sender<usize>,
    n_speakers: usize,
    /// The first that broke.
    broken: mpsc::Receiver<Status>,
}

impl Crowd {
    /// Opens so many streams of activity, and of metrics where there are any. Waits until all are
    /// open, but not for those of a server that opens a stream with its first word.
    async fn open(keda: &Keda, n_streams: usize, push: Push) -> Result<Self, String> {
        let (tell, broken) = mpsc::channel(1);
        let spoken = watch::Sender::new(0);
        let opened = Arc::new(watch::Sender::new(0));
        let mut streams = JoinSet::new();
        for _ in 0..n_streams {
            let (keda, tell, count) = (keda.clone(), tell.clone(), Arc::clone(&opened));
            let voice = push.speaks.then(|| spoken.clone());
            streams.spawn(async move {
                let stream = keda.pushes().await;
                count.send_modify(|n| *n += 1);
                follow(stream, voice, tell).await;
            });
        }
        for _ in 0..if push.specs { n_streams } else { 0 } {
            let (keda, tell, count) = (keda.clone(), tell.clone(), Arc::clone(&opened));
            streams.spawn(async move {
                let stream = keda.streamed_specs().await;
                count.send_modify(|n| *n += 1);
                follow(stream, None, tell).await;
            });
        }
        let n_all = streams.len();
        let mut opened = opened.subscribe();
        // One that is late is seen by the calls beside it, or by its silence.
        drop(timeout(keda.patience, opened.wait_for(|n| *n == n_all)).await);
        let n_speakers = if push.speaks { n_streams } else { 0 };
        let mut crowd = Self { streams, spoken, n_speakers, broken };
        crowd.whole()?;
        Ok(crowd)
    }

    fn len(&self) -> usize {
        self.streams.len()
    }

    /// Waits until all have spoken that are to.
    async fn heard(mut self, patience: Duration) -> Result<(), String> {
        let n_speakers = self.n_speakers;
        let mut spoken = self.spoken.subscribe();
        let all = timeout(patience, spoken.wait_for(|n| *n >= n_speakers)).await.is_ok();
        self.whole()?;
        let n_spoken = *self.spoken.borrow();
        all.then_some(()).ok_or_else(|| format!("{n_spoken} of {n_speakers} streams spoke"))
    }

    fn whole(&mut self) -> Result<(), String> {
        match self.broken.try_recv() {
            Ok(status) => Err(format!("a stream broke: {}", told(&status))),
            Err(_) => Ok(()),
        }
    }
}

/// Reads a stream until it ends; tells its first word, and when it breaks.
async fn follow<T>(
    stream: Result<Streaming<T>, Status>,
    mut voice: Option<watch::Sender<usize>>,
    broken: mpsc::Sender<Status>,
) {
    let read = async {
        let mut stream = stream?;
        while stream.message().await?.is_some() {
            if let Some(voice) = voice.take() {
                voice.send_modify(|n| *n += 1);
            }
        }
        Ok::<_, Status>(())
    };
    if let Err(status) = read.await {
        // One is enough.
        drop(broken.try_send(status));
    }
}
