//! The calls that a job's end needs, made again until there is an answer.

use std::future::Future;

use ebb_queue::{ErrorKind, Job, JobId, JobResult, Stored};
use tracing::warn;

use crate::alert::alert_job;
use crate::lease::Loan;
use crate::served::Served;
use crate::shared::{PATIENCE, Pauses, heals};

/// Why a call to the broker got no answer.
pub(super) enum Unanswered {
    /// The job belongs to somebody else by now.
    Lost,
    /// The broker refuses, and will refuse again.
    Refused(ebb_queue::Error),
    /// The broker does not permit it to this worker: nothing is wrong with the job.
    Denied(ebb_queue::Error),
}

impl Served {
    pub(super) async fn put(&self, loan: &Loan, result: &JobResult) -> Result<Stored, Unanswered> {
        let results = &self.results;
        self.insist("put", loan, || results.put(result)).await
    }

    /// The result that stays; none when its time is over.
    pub(super) async fn stored(
        &self,
        loan: &Loan,
        id: &JobId,
    ) -> Result<Option<JobResult>, Unanswered> {
        let results = &self.results;
        self.insist("get", loan, || results.get(id)).await
    }

    /// Sends a result to where its job asked for it; an address that cannot be keeps nobody.
    pub(super) async fn reply(
        &self,
        loan: &Loan,
        to: &str,
        result: &JobResult,
        traceparent: Option<&str>,
    ) -> Result<(), Unanswered> {
        let broker = &self.broker;
        let send = || async {
            match broker.reply(to, result, traceparent).await {
                Err(error) if matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Denied) => {
                    Ok(Err(error))
                }
                answer => answer.map(Ok),
            }
        };
        match self.insist("reply", loan, send).await? {
            Ok(()) => self.shared.metrics.replies.with_label_values(&["sent"]).inc(),
            Err(error) => self.reply_refused(&result.id, &error),
        }
        Ok(())
    }

    pub(super) fn reply_refused(&self, id: &JobId, error: &ebb_queue::Error) {
        self.shared.metrics.replies.with_label_values(&["refused"]).inc();
        warn!(job.id = %id, %error, "the reply was not sent; the result is in the store");
    }

    pub(super) async fn alert(
        &self,
        job: &Job,
        loan: &Loan,
        body: bytes::Bytes,
    ) -> Result<(), Unanswered> {
        let alert = alert_job(job, body, self.shared.clock.now()).map_err(Unanswered::Refused)?;
        let alerts = &self.alerts;
        self.insist("publish", loan, || alerts.publish(vec![alert.clone()])).await?;
        Ok(())
    }

    /// Calls until there is an answer, as long as the job is ours.
    async fn insist<T, F: Future<Output = ebb_queue::Result<T>>>(
        &self,
        name: &'static str,
        loan: &Loan,
        call: impl Fn() -> F,
    ) -> Result<T, Unanswered> {
        let mut pauses = Pauses::default();
        loop {
            let error = match call().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            self.trouble(name, &error);
            let pause = pauses.next(self.shared.chance());
            if loan.is_lost() {
                return Err(Unanswered::Lost);
            }
            if !heals(&error) && pauses.n_failures() >= PATIENCE {
                return Err(match error.kind() {
                    ErrorKind::Denied => Unanswered::Denied(error),
                    _ => Unanswered::Refused(error),
                });
            }
            tokio::time::sleep(pause).await;
        }
    }
}
