//! How long the streams of replies stay.

use crate::{answer, handle, job, plain, server, take, tell, url};

/// What the server says of a key without an end.
const FOR_EVER: i64 = -1;

#[tokio::test]
async fn a_stream_that_a_reply_begins_goes_when_the_result_is_forgotten_and_no_other_does() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    let mut client = plain(&server).await;
    queue.publish(vec![job("a")]).await.unwrap();
    let delivery = take(&queue, 1, std::time::Duration::ZERO).await.remove(0);
    let result = answer(&delivery);
    let ttl = i64::try_from(queue.result_ttl().as_millis()).unwrap();
    let group = ["XGROUP", "CREATE", "kept", "readers", "$", "MKSTREAM"];
    tell::<()>(&mut client, &group).await.unwrap();
    // The last is where the jobs of another queue are.
    for to in ["begun", "kept", "ebb:{other}"] {
        queue.reply(to, &result, None).await.unwrap();
        let left: i64 = tell(&mut client, &["PTTL", to]).await.unwrap();
        match to {
            "begun" => assert!((1..=ttl).contains(&left), "{left}"),
            _ => assert_eq!(left, FOR_EVER, "{to}"),
        }
    }
    // One more reply keeps one with an end longer, whoever made it, and cuts no time short that its reader gave it.
    for (to, given, longer) in
        [("begun", 60_000, true), ("begun", 2 * ttl, false), ("kept", 60_000, true)]
    {
        let words = ["PEXPIRE", to, &given.to_string()];
        tell::<()>(&mut client, &words).await.unwrap();
        queue.reply(to, &result, None).await.unwrap();
        let left: i64 = tell(&mut client, &["PTTL", to]).await.unwrap();
        assert_eq!(left > given, longer, "{to}: {left} of {given}");
        assert!(left > ttl / 2, "{to}: {left}");
    }
    // Who wants it kept says so once.
    tell::<()>(&mut client, &["PERSIST", "begun"]).await.unwrap();
    queue.reply("begun", &result, None).await.unwrap();
    assert_eq!(tell::<i64>(&mut client, &["PTTL", "begun"]).await.unwrap(), FOR_EVER);
}
