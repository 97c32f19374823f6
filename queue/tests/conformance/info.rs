//! A broker says what it is, and whether it is there.

use crate::fixture::Fixture;

pub async fn a_broker_says_what_it_is(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let info = queue.info().await.unwrap();
    assert_eq!(info.broker, fixture.kind());
    assert!(info.version.chars().any(|letter| letter.is_ascii_digit()), "{}", info.version);
    assert!(info.max_body.is_none_or(|limit| limit >= 1 << 16), "{:?}", info.max_body);
    for warning in &info.warnings {
        assert!(!warning.code.contains(' ') && warning.text.contains(' '), "{warning:?}");
    }
}

pub async fn the_link_of_a_handle_is_up(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    queue.depth().await.unwrap();
    assert!(queue.link().is_up());
    assert_eq!((queue.link().n_losses(), queue.link().last_error()), (0, None));
}
