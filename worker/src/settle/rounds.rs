//! The last stage: tells the broker what became of jobs, until it has heard it of each.

use ebb_queue::{ErrorKind, Settled, Settlement, Unsettled, Verdict, answer_at};
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;
use tracing::error;

use super::{CHUNK, Concluded};
use crate::lease::Loan;
use crate::outcome::{CANCELLED, COMPLETED, outcome};
use crate::pauses::{Failed, Pauses};
use crate::served::Served;
use crate::shared::sleep_until;
use crate::trace::Way;

/// What the broker did not take of a call.
struct Refused {
    error: ebb_queue::Error,
    jobs: Vec<Concluded>,
    /// Whether it took the others, or did not answer at all.
    took_others: bool,
}

/// Settles, many at once. What the broker did not take is kept and sent again; the others go on
/// meanwhile, if it takes any.
pub(crate) async fn settle(served: Served, mut stored: Receiver<Concluded>) {
    let mut pauses = Pauses::default();
    let (mut left, mut again) = (Vec::new(), None);
    let (mut is_open, mut is_taking) = (true, true);
    while is_open || !left.is_empty() {
        let mut sent = Vec::new();
        tokio::select! { biased;
            () = sleep_until(again), if again.is_some() => {
                sent.append(&mut left);
                again = None;
            }
            n_jobs = stored.recv_many(&mut sent, CHUNK), if is_open && is_taking => {
                is_open = n_jobs > 0;
            }
        }
        while sent.len() < CHUNK
            && let Ok(more) = stored.try_recv()
        {
            sent.push(more);
        }
        if sent.is_empty() {
            continue;
        }
        let Err(refused) = served.settle_once(sent).await else {
            is_taking = true;
            if left.is_empty() {
                pauses.reset();
            }
            continue;
        };
        let Refused { error, jobs, took_others } = refused;
        match took_others {
            true => served.complain("settle", &error),
            false => served.trouble("settle", &error),
        }
        // Those that wait already say when to try again.
        if again.is_none() {
            let pause = pauses.next(Failed::with(error.kind()), served.shared.chance());
            if pauses.are_over() {
                served.forgo(&jobs, &error);
                pauses.reset();
                is_taking = true;
                continue;
            }
            again = Some(Instant::now() + pause);
        }
        left.extend(jobs);
        // Where one kind of end has no room, another may. Who has none to send again waits for more.
        let may_take = took_others || error.kind() == ErrorKind::Full;
        is_taking = left.is_empty() || (may_take && left.len() < CHUNK);
    }
}

impl Served {
    /// Leaves to their leases what this worker cannot settle.
    fn forgo(&self, jobs: &[Concluded], error: &ebb_queue::Error) {
        error!(n_jobs = jobs.len(), %error, "not settled: they come back by their lease");
        if error.kind() == ErrorKind::Denied {
            self.shared.give_up(error);
        }
    }

    /// Sends settlements once; those that were not carried out come back, unless their time is over.
    async fn settle_once(&self, concluded: Vec<Concluded>) -> Result<(), Refused> {
        let now = Instant::now();
        let (timely, late): (Vec<_>, Vec<_>) =
            concluded.into_iter().partition(|one| one.is_timely(now));
        late.into_iter().for_each(|one| self.lose(one.lane, &one.loan));
        if timely.is_empty() {
            return Ok(());
        }
        let split = timely.into_iter().map(|one| (one.settlement, (one.lane, one.loan, one.way)));
        let (settlements, loans): (Vec<_>, Vec<_>) = split.unzip();
        loans.iter().for_each(|(_, loan, _)| loan.begin_settling());
        let answers = self.broker.settle(&settlements).await;
        loans.iter().for_each(|(_, loan, _)| loan.end_settling());
        let (n_sent, mut jobs) = (settlements.len(), Vec::new());
        for (nth, (settlement, (lane, loan, way))) in settlements.into_iter().zip(loans).enumerate()
        {
            match answer_at(&answers, nth) {
                Some(answer) => self.settled(&settlement, answer, (lane, &loan), way),
                None => jobs.push(Concluded { settlement, lane, loan, way }),
            }
        }
        match answers {
            Ok(_) => {
                self.broker_answers();
                Ok(())
            }
            Err(Unsettled { error, .. }) => {
                Err(Refused { error, took_others: jobs.len() < n_sent, jobs })
            }
        }
    }

    fn settled(
        &self,
        settlement: &Settlement,
        answer: Settled,
        (lane, loan): (Option<usize>, &Loan),
        way: Way,
    ) {
        let outcome = match answer {
            Settled::Held if loan.is_cancelled() => CANCELLED,
            answer => outcome(settlement, answer),
        };
        match answer {
            Settled::Held | Settled::Cancelled => self.count(lane, outcome),
            Settled::Lost => self.lose(lane, loan),
        }
        self.shared.metrics.job.observe(way.since.elapsed().as_secs_f64());
        if outcome == COMPLETED {
            self.shared.metrics.turnaround.observe(way.since_publication().as_secs_f64());
        }
        way.settled(outcome);
    }

    pub(super) fn count(&self, lane: Option<usize>, outcome: &'static str) {
        self.shared.metrics.jobs.with_label_values(&[outcome, self.shared.model_name(lane)]).inc();
        // Of the worker, and of the queue.
        self.shared.counts.count(outcome);
        self.counts.count(outcome);
    }
}

impl Concluded {
    /// An ack is right at any time, since the result is stored: the broker may say what it is worth.
    /// All else would meddle with somebody else's attempt where the broker does not fence.
    fn is_timely(&self, now: Instant) -> bool {
        !self.loan.is_lost()
            && (*self.settlement.verdict() == Verdict::Ack || self.loan.may_live(now))
    }
}
