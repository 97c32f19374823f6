//! The order of publication, for more jobs in one call than the runtime does operations at a time.

use ebb_queue::{Delivery, Queue};

use crate::{job, on_each, receive, try_open};

const MANY: usize = 1000;

/// The names of all jobs in the order in which they come, and the jobs.
async fn take_all(queue: &Queue) -> (Vec<String>, Vec<Delivery>) {
    let mut held = Vec::new();
    while held.len() < MANY {
        held.extend(receive(queue, MANY - held.len()).await.unwrap());
    }
    (held.iter().map(|one| one.job.id.to_string()).collect(), held)
}

#[test]
fn many_jobs_that_are_published_or_given_back_together_keep_their_order() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let names: Vec<_> = (0..MANY).map(|nth| format!("job-{nth}")).collect();
        let jobs = names.iter().enumerate().map(|(nth, name)| {
            let mut job = job(name);
            if nth % 3 == 0 {
                job.set("ebb-key", name).unwrap();
            }
            job
        });
        queue.publish(jobs.collect()).await.unwrap();
        let (seen, held) = take_all(&queue).await;
        assert_eq!(seen, names, "as they were published");
        let releases: Vec<_> = held.into_iter().map(Delivery::release).collect();
        queue.settle(&releases).await.unwrap();
        let (seen, held) = take_all(&queue).await;
        assert_eq!(seen, names, "as they were before");
        let acks: Vec<_> = held.into_iter().map(Delivery::ack).collect();
        queue.settle(&acks).await.unwrap();
    });
}
