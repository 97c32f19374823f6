//! What a worker last said of itself is known to all, for a while.

use ebb_queue::{BatchTime, Phase, STATUS_TTL, WorkerStatus};

use crate::fixture::Fixture;

pub async fn a_status_is_read_as_it_was_reported(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let mut one = status(fixture, "one", Phase::Busy);
    one.batch_time = Some(BatchTime { base: 0.01, per_cost: 1e-4, per_job: 0.002 });
    one.cold_start = vec![("process".to_owned(), 0.1), ("weights".to_owned(), 2.5)];
    one.first_result = Some(3.25);
    queue.report(&one).await.unwrap();
    let two = status(fixture, "two", Phase::Starting);
    fixture.again("two").await.report(&two).await.unwrap();
    let look = async || {
        let mut workers = queue.workers().await.unwrap();
        workers.sort_by(|a, b| a.id.cmp(&b.id));
        workers
    };
    let expected = [one, two];
    assert_eq!(fixture.when(look, |workers| *workers == expected).await, expected);
}

pub async fn the_last_status_counts(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    for phase in [Phase::Starting, Phase::Idle, Phase::Busy, Phase::Draining] {
        let status = status(fixture, "one", phase);
        queue.report(&status).await.unwrap();
        let other = fixture.again("two").await;
        let look = async || other.workers().await.unwrap();
        let expected = [status];
        assert_eq!(fixture.when(look, |workers| *workers == expected).await, expected);
    }
}

pub async fn a_worker_that_fell_silent_is_taken_for_gone(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    for id in ["silent", "alive"] {
        queue.report(&status(fixture, id, Phase::Idle)).await.unwrap();
    }
    fixture.pass(STATUS_TTL / 5).await;
    assert_eq!(queue.workers().await.unwrap().len(), 2);
    // Just before both would be gone: that leaves the time to see which one is.
    fixture.pass(STATUS_TTL * 7 / 10).await;
    queue.report(&status(fixture, "alive", Phase::Idle)).await.unwrap();
    fixture.pass(STATUS_TTL / 5).await;
    let ids = async || {
        let workers = queue.workers().await.unwrap();
        workers.into_iter().map(|one| one.id).collect::<Vec<_>>()
    };
    let left = fixture.when(ids, |ids| *ids == ["alive"]).await;
    assert_eq!(left, ["alive"]);
    queue.report(&status(fixture, "silent", Phase::Idle)).await.unwrap();
    assert_eq!(queue.workers().await.unwrap().len(), 2);
}

pub fn status(fixture: &dyn Fixture, id: &str, phase: Phase) -> WorkerStatus {
    WorkerStatus {
        id: id.to_owned(),
        pod: "pod".to_owned(),
        phase,
        in_flight: 3,
        slots: 32,
        completed: 1 << 40,
        failed: 2,
        batch_time: None,
        cold_start: Vec::new(),
        first_result: None,
        model: "echo on cpu".to_owned(),
        at: ebb_queue::Timestamp::from_millisecond(fixture.now().as_millisecond()).unwrap(),
    }
}
