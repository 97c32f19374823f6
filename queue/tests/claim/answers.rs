//! Answers that lie in the store, and references to them in the result store.

use ebb_queue::claim::REFERENCE;
use ebb_queue::{Frame, Outcome, PayloadsUrl, Result, ResultStore, Stored};
use futures::StreamExt;

use crate::{INLINE, Site, answer, body, id, job, over, take};

async fn followed(site: &Site, name: &str) -> Vec<Frame> {
    let frames = site.queue.follow(&id(name), 0).await.unwrap();
    frames.collect::<Vec<_>>().await.into_iter().collect::<Result<_>>().unwrap()
}

#[tokio::test]
async fn an_answer_of_any_size_comes_back_as_it_was() {
    let site = Site::new().await;
    for (n, n_kept) in [(0, 0), (INLINE, 0), (INLINE + 1, 1), (50_000, 2)] {
        let name = format!("job-{n}");
        assert_eq!(site.queue.put(&answer(&name, 1, n)).await.unwrap(), Stored::Stored);
        assert_eq!(site.queue.get(&id(&name)).await.unwrap(), Some(answer(&name, 1, n)));
        assert_eq!(followed(&site, &name).await, [Frame::Final(answer(&name, 1, n))]);
        assert_eq!(site.keys("results").len(), n_kept);
    }
    let in_results = over(&site.plain, &PayloadsUrl::Results).await;
    in_results.put(&answer("other", 1, 5_000)).await.unwrap();
    assert_eq!(in_results.get(&id("other")).await.unwrap(), Some(answer("other", 1, 5_000)));
}

#[tokio::test]
async fn who_has_no_store_sees_a_reference() {
    let site = Site::new().await;
    site.queue.put(&answer("a", 1, 500)).await.unwrap();
    let plain = site.plain.get(&id("a")).await.unwrap().unwrap();
    let Outcome::Completed { content_type, body: reference } = plain.outcome else { panic!() };
    assert_eq!(content_type, REFERENCE);
    let reference: serde_json::Value = serde_json::from_slice(&reference).unwrap();
    assert_eq!(
        (&reference["size"], &reference["content_type"]),
        (&500.into(), &"text/plain".into())
    );
    let file = site.folder.join(reference["key"].as_str().unwrap());
    assert_eq!(std::fs::read(file).unwrap(), body(500));
}

#[tokio::test]
async fn a_completed_answer_never_changes() {
    let site = Site::new().await;
    site.queue.put(&answer("a", 1, 500)).await.unwrap();
    assert_eq!(site.queue.put(&answer("a", 1, 500)).await.unwrap(), Stored::Duplicate);
    assert_eq!(site.queue.put(&answer("a", 2, 600)).await.unwrap(), Stored::Duplicate);
    assert_eq!(site.queue.get(&id("a")).await.unwrap(), Some(answer("a", 1, 500)));
}

#[tokio::test]
async fn pieces_come_before_the_answer_that_is_fetched() {
    let site = Site::new().await;
    let body = bytes::Bytes::from_static(b"piece");
    site.queue.chunk(&id("a"), 1, 0, body.clone()).await.unwrap();
    site.queue.put(&answer("a", 1, 500)).await.unwrap();
    let piece = Frame::Chunk { attempt: 1, seq: 0, body };
    assert_eq!(followed(&site, "a").await, [piece, Frame::Final(answer("a", 1, 500))]);
}

#[tokio::test]
async fn an_answer_whose_time_in_the_store_is_over_is_forgotten() {
    let site = Site::new().await;
    site.queue.publish(vec![job("a", 10)]).await.unwrap();
    site.queue.put(&answer("a", 1, 500)).await.unwrap();
    let ack = take(&site.queue, 1).await.remove(0).ack();
    site.queue.settle(&[ack]).await.unwrap();
    std::fs::remove_file(&site.keys("results")[0]).unwrap();
    assert_eq!(site.queue.get(&id("a")).await.unwrap(), None);
    assert_eq!(followed(&site, "a").await, []);
}

#[tokio::test]
async fn an_answer_in_a_store_that_is_away_is_asked_for_again() {
    let site = Site::new().await;
    site.queue.put(&answer("a", 1, 500)).await.unwrap();
    let elsewhere = site.folder.with_extension("away");
    std::fs::rename(&site.folder, &elsewhere).unwrap();
    let error = site.queue.get(&id("a")).await.unwrap_err();
    assert_eq!(error.kind(), ebb_queue::ErrorKind::Unavailable);
    std::fs::rename(&elsewhere, &site.folder).unwrap();
    assert!(site.queue.get(&id("a")).await.unwrap().is_some());
}

#[tokio::test]
async fn a_large_reply_is_the_same_reference() {
    let site = Site::new().await;
    site.queue.put(&answer("a", 1, 500)).await.unwrap();
    site.queue.reply("inbox", &answer("a", 1, 500), None).await.unwrap();
    let (_, reply) = site.plain.replies().remove(0);
    assert_eq!(Some(reply), site.plain.get(&id("a")).await.unwrap());
    assert_eq!(site.keys("results").len(), 1);
}
