//! What handles say of what they hold goes to all others, so they say it seldom.

use std::time::Duration;

use ebb_servers::RabbitMq;
use futures::StreamExt;
use lapin::BasicProperties;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{FieldTable, ShortString};
use tokio::time::{Instant, sleep, timeout};

use crate::{depth, handle, job, on_shared, plain, take, url};

#[test]
fn a_busy_handle_speaks_a_few_times_a_second() {
    on_shared(async |server| {
        let queue = handle(&url(server, "notes")).await;
        let (_connection, channel) = plain(server).await;
        let (options, none) = (QueueDeclareOptions::exclusive(), FieldTable::default());
        let ear = channel.queue_declare("".into(), options, none.clone()).await.unwrap();
        let bound = channel.queue_bind(
            ear.name().clone(),
            "ebb:notes:status".into(),
            "".into(),
            QueueBindOptions::default(),
            none.clone(),
        );
        bound.await.unwrap();

        queue.publish((0..5_000).map(|n| job(&n.to_string())).collect()).await.unwrap();
        let start = Instant::now();
        let work = async || {
            while start.elapsed() < Duration::from_secs(4) {
                let acks: Vec<_> =
                    take(&queue, 4).await.into_iter().map(ebb_queue::Delivery::ack).collect();
                queue.settle(&acks).await.unwrap();
            }
        };
        tokio::join!(work(), work(), work());
        let seconds = start.elapsed().as_secs_f64();
        drop(queue);

        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let mut notes =
            channel.basic_consume(ear.name().clone(), "".into(), options, none).await.unwrap();
        let mut n_notes = 0;
        while let Ok(Some(note)) = timeout(Duration::from_secs(2), notes.next()).await {
            let kind = note.unwrap().properties.kind().clone();
            n_notes += u32::from(kind.as_ref().map(ShortString::as_str) == Some("held"));
        }
        assert!(n_notes > 0);
        assert!(f64::from(n_notes) < 25.0 * seconds, "{n_notes} notes in {seconds} s");
    });
}

#[test]
fn who_just_came_waits_for_the_word_of_one_that_is_slow_to_answer() {
    on_shared(async |server| {
        let mut n_seen = Vec::new();
        // On a busy machine the word may come too late once or twice.
        while n_seen.len() < 5 && !n_seen.contains(&3) {
            n_seen.push(n_held_by_one_that_is_slow(server, n_seen.len()).await);
        }
        assert!(n_seen.contains(&3), "{n_seen:?}");
    });
}

/// How many jobs who just came sees to be held, where the one that holds three of them is slow to say so.
async fn n_held_by_one_that_is_slow(server: &RabbitMq, nth: usize) -> u64 {
    let name = format!("slow-answer-{nth}");
    drop(handle(&url(server, &name)).await);
    let (_connection, channel) = plain(server).await;
    let scaler = handle(&url(server, &name)).await;
    let slow = async {
        sleep(Duration::from_millis(500)).await;
        let holding = br#"{"handle":"slow","held":3,"ahead":0}"#;
        let properties = BasicProperties::default().with_type("held".into());
        let (to, options) = (format!("ebb:{name}:status"), BasicPublishOptions::default());
        let to = to.as_str().into();
        channel.basic_publish(to, "".into(), options, holding, properties).await.unwrap();
    };
    let (depth, ()) = tokio::join!(depth(&scaler), slow);
    depth.in_flight
}
