//! What handles say of what they hold goes to all others, so they say it seldom.

use std::time::Duration;

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
        drop(handle(&url(server, "slow-answer")).await);
        let (_connection, channel) = plain(server).await;
        let scaler = handle(&url(server, "slow-answer")).await;
        let slow = async {
            sleep(Duration::from_millis(500)).await;
            let holding = br#"{"handle":"slow","held":3,"ahead":0}"#;
            let properties = BasicProperties::default().with_type("held".into());
            let (to, options) = ("ebb:slow-answer:status".into(), BasicPublishOptions::default());
            channel.basic_publish(to, "".into(), options, holding, properties).await.unwrap();
        };
        let (depth, ()) = tokio::join!(depth(&scaler), slow);
        assert_eq!(depth.in_flight, 3);
    });
}
