//! Replies: a result becomes a job in another queue of the same file.

use super::failure::{Failure, Outcome};
use super::publish;
use super::tx::{Millis, Tx, moment};
use crate::open::check_reply_to;
use crate::owed::Owed;
use crate::{Error, ErrorKind, Headers, Job};

/// Publishes the result in the queue that is named, which is made where it is missing; a reply that is there
/// already stays as it is.
///
/// It is refused by no `max_ready`, since nobody would send it again, and so it has a deadline, which is when
/// the result is forgotten: from then on it counts as a dead letter and wakes no pool. It is deleted by nobody
/// who does not open that queue: at an address that nobody reads it keeps its place in the file.
pub(super) fn reply(
    tx: &mut Tx<'_>,
    (now, result_ttl): (Millis, Millis),
    owed: &Owed,
) -> Outcome<()> {
    let Owed { to, result, traceparent } = owed;
    check_reply_to(to)?;
    tx.sql("INSERT INTO queues (name) VALUES (?1) ON CONFLICT (name) DO NOTHING")?.execute([to])?;
    let sql = "SELECT id FROM queues WHERE name = ?1";
    let queue: i64 = tx.sql(sql)?.query_row([to], |row| row.get(0))?;
    if queue == tx.queue {
        // Its id is known there: the reply would be taken for the job.
        let words = format!("ebb-reply-to: {to:?} is the queue of the job itself; name another");
        return Err(Failure::Refused(Error::new(ErrorKind::Invalid, words)));
    }
    let (content_type, body) = result.reply_body();
    let (content_type, traceparent) = (Some(content_type), traceparent.clone());
    let deadline = Some(moment(now.saturating_add(result_ttl)));
    let headers = Headers { content_type, traceparent, deadline, ..Headers::default() };
    let job = Job { id: result.id.clone(), enqueued_at: moment(now), headers, body };
    tx.on_queue(queue, |tx| publish::publish(tx, now, &[job], None).map(drop))
}
