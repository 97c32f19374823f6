//! Dead letters whose bodies lie in the store.

use std::time::Duration;

use ebb_queue::{Behavior, Elsewhere, JobResult, Timestamp};
use futures::TryStreamExt;

use crate::{Site, body, id, job, take};

/// Dead letters of these names, each with a large body, and one with a small one.
async fn dead(names: &[&str]) -> Site {
    let site = Site::new().await;
    let jobs = names.iter().map(|name| job(name, 500)).chain([job("small", 10)]);
    site.queue.publish(jobs.collect()).await.unwrap();
    let rejects: Vec<_> =
        take(&site.queue, 999).await.into_iter().map(|one| one.reject("bad")).collect();
    site.queue.settle(&rejects).await.unwrap();
    assert_eq!(site.keys("bodies").len(), names.len());
    site
}

#[tokio::test]
async fn the_list_shows_the_reference_and_a_look_the_body() {
    let site = dead(&["a"]).await;
    let list = site.queue.list(9).await.unwrap();
    let large = list.iter().find(|letter| letter.job.id == id("a")).unwrap();
    let key = large.job.headers.body_ref.as_deref().unwrap();
    assert!(key.starts_with("bodies/") && large.job.body.starts_with(b"{\"key\""));
    let look = site.queue.show(&id("a")).await.unwrap().unwrap();
    assert_eq!((look.job.body.to_vec(), &look.job.headers.body_ref), (body(500), &None));

    std::fs::remove_file(&site.keys("bodies")[0]).unwrap();
    let look = site.queue.show(&id("a")).await.unwrap().unwrap();
    assert_eq!(look.job.headers.body_ref.as_deref(), Some(key), "gone, so where it was");
}

#[tokio::test]
async fn what_is_put_back_has_its_body() {
    let site = dead(&["a"]).await;
    assert_eq!(site.queue.redrive(Some(&[id("a")])).await.unwrap(), 1);
    assert_eq!(take(&site.queue, 1).await[0].job.body, body(500));
}

#[tokio::test]
async fn a_purge_deletes_the_bodies_of_those_it_purges() {
    let site = dead(&["a", "b", "c"]).await;
    site.queue.redrive(Some(&[id("c")])).await.unwrap();
    let some = [id("a"), id("c"), id("none")];
    assert_eq!(site.queue.purge(Some(&some)).await.unwrap(), 1);
    assert_eq!(site.keys("bodies").len(), 2);
    assert_eq!(site.queue.purge(None).await.unwrap(), 2, "b and the small one");
    assert_eq!(site.keys("bodies").len(), 1);
    assert_eq!(take(&site.queue, 9).await[0].job.body, body(500), "what was put back is whole");
}

#[tokio::test]
async fn a_purge_of_all_takes_more_than_a_page() {
    let names: Vec<_> = (0..600).map(|number| format!("job-{number}")).collect();
    let site = dead(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert_eq!(site.queue.purge(None).await.unwrap(), 601);
    assert!(site.keys("bodies").is_empty() && site.queue.list(9).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_purge_of_all_spares_what_dies_meanwhile() {
    let names: Vec<_> = (0..600).map(|number| format!("job-{number}")).collect();
    let site = dead(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let die_meanwhile = async {
        for name in ["late-1", "late-2"] {
            tokio::time::sleep(Duration::from_millis(2)).await;
            site.queue.publish(vec![job(name, 500)]).await.unwrap();
            let reject = take(&site.queue, 1).await.remove(0).reject("bad");
            site.queue.settle(&[reject]).await.unwrap();
        }
    };
    // The purge is polled first, and waits for the first bodies to be deleted.
    let (n_purged, ()) = tokio::join!(site.queue.purge(None), die_meanwhile);
    assert_eq!(n_purged.unwrap(), 601);
    let left = site.queue.list(9).await.unwrap();
    let left: Vec<_> = left.iter().map(|letter| letter.job.id.as_str()).collect();
    assert_eq!((left, site.keys("bodies").len()), (vec!["late-2", "late-1"], 2));
}

#[tokio::test]
async fn a_purge_of_what_waits_deletes_its_bodies_and_no_others() {
    let site = dead(&["dead"]).await;
    let mut later = job("later", 500);
    later.set("ebb-delay", "1h").unwrap();
    site.queue.publish(vec![job("running", 500)]).await.unwrap();
    let running = take(&site.queue, 1).await.remove(0);
    let gone_on = job("gone-on", 500);
    site.queue.put(&JobResult::moved(id("gone-on"), "canary", Timestamp::now())).await.unwrap();
    site.queue.publish(vec![job("waits", 500), later, gone_on, job("tiny", 10)]).await.unwrap();
    assert_eq!(site.keys("bodies").len(), 5);
    let steps: Vec<_> = site.queue.purge_waiting().await.unwrap().try_collect().await.unwrap();
    assert_eq!(steps.iter().map(|step| step.n_jobs).sum::<u64>(), 4);
    assert_eq!(site.keys("bodies").len(), 3, "what runs, the dead letter, what has gone on");
    site.queue.settle(&[running.ack()]).await.unwrap();
    assert_eq!(site.keys("bodies").len(), 2);
}

#[tokio::test]
async fn the_body_of_a_dead_letter_that_has_gone_on_is_kept() {
    let site = dead(&["gone-on", "stays"]).await;
    // Passed on by a split that was lost before it could say so here.
    site.queue.put(&JobResult::moved(id("gone-on"), "canary", Timestamp::now())).await.unwrap();
    let named = [id("gone-on"), id("stays")];
    assert_eq!(site.queue.purge(Some(&named)).await.unwrap(), 2);
    assert_eq!(site.keys("bodies").len(), 1, "the other queue needs it");
}

#[tokio::test]
async fn a_job_that_says_it_is_of_the_end_of_time_is_purged_with_its_body() {
    let dead_ttl = Some(Duration::from_millis(1));
    let site = Site::with(Behavior { dead_ttl, ..Behavior::default() }).await;
    let at = |name: &str, enqueued_at| ebb_queue::Job { enqueued_at, ..job(name, 500) };
    let jobs = vec![at("late", Timestamp::MAX), at("early", Timestamp::MIN)];
    site.queue.publish(jobs.clone()).await.unwrap();
    let rejects: Vec<_> =
        take(&site.queue, 9).await.into_iter().map(|one| one.reject("bad")).collect();
    site.queue.settle(&rejects).await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(site.queue.purge_old(Elsewhere::Leave).await.unwrap().n_jobs, 2);
    assert_eq!(site.keys("bodies").len(), 1, "of the old one nobody knows");
    site.queue.publish(jobs).await.unwrap();
    let steps: Vec<_> = site.queue.purge_waiting().await.unwrap().try_collect().await.unwrap();
    assert_eq!(steps.iter().map(|step| step.n_jobs).sum::<u64>(), 2);
    assert_eq!(site.keys("bodies").len(), 2);
}

#[tokio::test]
async fn old_dead_letters_take_their_bodies_along() {
    let dead_ttl = Some(Duration::from_millis(1));
    let site = Site::with(Behavior { dead_ttl, ..Behavior::default() }).await;
    let names = ["a", "gone-on", "put-back"];
    site.queue.publish(names.map(|name| job(name, 500)).to_vec()).await.unwrap();
    let rejects: Vec<_> =
        take(&site.queue, 9).await.into_iter().map(|one| one.reject("bad")).collect();
    site.queue.settle(&rejects).await.unwrap();
    site.queue.put(&JobResult::moved(id("gone-on"), "canary", Timestamp::now())).await.unwrap();
    site.queue.redrive(Some(&[id("put-back")])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    // Who has the store deletes the bodies whatever is asked for.
    let purged = site.queue.purge_old(Elsewhere::Leave).await.unwrap();
    assert_eq!((purged.n_jobs, purged.referring.len()), (2, 0));
    assert_eq!(site.keys("bodies").len(), 2, "what has gone on, and what was put back");
    assert_eq!(take(&site.queue, 9).await[0].job.body, body(500));
}

#[tokio::test]
async fn the_body_of_a_letter_outlives_it_where_nobody_knows_whether_it_has_gone_on() {
    let (result_ttl, dead_ttl) = (Duration::from_millis(20), Some(Duration::from_millis(60)));
    let site = Site::with(Behavior { dead_ttl, result_ttl, ..Behavior::default() }).await;
    site.queue.publish(["gone-on", "purged"].map(|name| job(name, 500)).to_vec()).await.unwrap();
    let rejects: Vec<_> =
        take(&site.queue, 9).await.into_iter().map(|one| one.reject("lost")).collect();
    site.queue.put(&JobResult::moved(id("gone-on"), "canary", Timestamp::now())).await.unwrap();
    site.queue.settle(&rejects).await.unwrap();
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert!(!site.queue.has_gone_on(&id("gone-on")).await.unwrap(), "the record is forgotten");
    assert_eq!(site.queue.purge(Some(&[id("purged")])).await.unwrap(), 1);
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert_eq!(site.queue.purge_old(Elsewhere::Leave).await.unwrap().n_jobs, 1);
    assert_eq!(site.keys("bodies").len(), 2, "the other queue may need them");
}

#[tokio::test]
async fn old_dead_letters_with_bodies_go_in_steps_that_end_in_time() {
    let dead_ttl = Some(Duration::from_millis(1));
    let site = Site::with(Behavior { dead_ttl, ..Behavior::default() }).await;
    let jobs = (0..150).map(|number| job(&format!("job-{number}"), 500)).collect();
    site.queue.publish(jobs).await.unwrap();
    let rejects: Vec<_> =
        take(&site.queue, 999).await.into_iter().map(|one| one.reject("bad")).collect();
    site.queue.settle(&rejects).await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    for expected in [64, 64, 22, 0] {
        assert_eq!(site.queue.purge_old(Elsewhere::Leave).await.unwrap().n_jobs, expected);
    }
    assert!(site.keys("bodies").is_empty());
}
