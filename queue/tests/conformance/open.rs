//! A queue is made once, by whoever comes first, and only where that is allowed.

use ebb_queue::{ErrorKind, Missing};

use crate::brokers::unused_name;
use crate::fixture::{Fixture, publish};

pub async fn two_who_open_a_new_queue_at_once_share_it(fixture: &dyn Fixture) {
    let name = unused_name();
    let open = || fixture.named(&name, Missing::Create);
    let (Some(one), Some(two)) = futures::join!(open(), open()) else { return };
    let (one, two) = (one.unwrap(), two.unwrap());
    publish(&one, fixture.job("a", &[])).await;
    fixture.assert_takes(&two, 9, &["a"]).await;
}

pub async fn a_queue_that_is_not_there_is_refused_with_the_remedy(fixture: &dyn Fixture) {
    let name = unused_name();
    for _ in 0..2 {
        let Some(refused) = fixture.named(&name, Missing::Refuse).await else { return };
        let Err(error) = refused else { panic!("{name} was never made") };
        let kind = error.kind();
        assert!(matches!(kind, ErrorKind::Invalid | ErrorKind::Incompatible), "{kind:?}");
        assert!(error.to_string().contains("ebb queue init"), "{error}");
    }
    // Once somebody has made it, it is opened.
    let made = fixture.named(&name, Missing::Create).await.unwrap();
    assert!(made.is_ok(), "it can be made");
    let found = fixture.named(&name, Missing::Refuse).await.unwrap();
    assert!(found.is_ok(), "it is there");
}
