//! Who is not let in, and what does not fit, is told with the remedy and without the password.

use ebb_queue::ErrorKind;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use crate::{on_shared, plain, refusal, url};

#[test]
fn a_wrong_password_is_told_and_not_shown() {
    on_shared(async |server| {
        let text = format!("amqp://guest:s3cret@127.0.0.1:{}", server.port());
        let error = refusal(&text.parse().unwrap()).await;
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(error.to_string().contains("check the password"), "{error}");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    });
}

#[test]
fn a_virtual_host_that_is_not_there_is_named() {
    on_shared(async |server| {
        let error = refusal(&format!("{}/nowhere", server.url()).parse().unwrap()).await;
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(error.to_string().contains("\"nowhere\""), "{error}");
        assert!(error.to_string().contains("add_vhost"), "{error}");
    });
}

#[test]
fn a_classic_queue_of_the_same_name_does_not_fit() {
    on_shared(async |server| {
        let (_connection, channel) = plain(server).await;
        let options = QueueDeclareOptions::durable();
        channel.queue_declare("classic".into(), options, FieldTable::default()).await.unwrap();
        let error = refusal(&url(server, "classic")).await;
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        assert!(error.to_string().contains("x-queue-type"), "{error}");
    });
}
