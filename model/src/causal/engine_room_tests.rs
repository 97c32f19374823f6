//! Who has room, who waits, and what is read again.

use super::*;

#[test]
fn whoever_finds_no_room_waits_until_those_before_have_ended() {
    let mut engine = engine(1000, 64, 50);
    let [mut first, second] =
        [1, 2].map(|key| Sequence { ends: Arc::from([]), ..sequence(key, &[key as u32; 20], 20) });
    for _ in 0..4 {
        let turns = turn(&mut engine, &[first.clone(), second.clone()], 5);
        first.tokens.extend(&turns[0].tokens);
        assert_eq!((turns[0].tokens.len(), &turns[1]), (5, &Turn::default()));
    }
    let turns = turn(&mut engine, &[second], 5);
    assert_eq!(turns[0].tokens.len(), 5);
}

#[test]
fn a_budget_bounds_the_tokens_of_a_sequence() {
    let mut engine = engine(1000, 64, 30);
    assert_eq!(engine.limits().positions, 30);
    let long = Sequence { ends: Arc::from([]), ..sequence(1, &[1; 20], 500) };
    let turns = turn(&mut engine, &[long], usize::MAX);
    assert_eq!((turns[0].tokens.len(), turns[0].ended), (10, Some(Ended::Length)));
    let error = engine.turn(&[sequence(2, &[1; 31], 5)], &mut after(1)).unwrap();
    let error = error[0].as_ref().unwrap_err().to_string();
    assert!(error.contains("takes at most 30"), "{error}");
}

#[test]
fn a_sequence_that_has_all_it_may_have_ends_without_a_pass() {
    let mut engine = engine(10, 64, 100);
    engine.forward.fails = true;
    for sequence in [sequence(1, &[1; 10], 0), sequence(2, &[1], 0)] {
        let turns = turn(&mut engine, &[sequence], 1);
        assert_eq!(turns, [Turn { ended: Some(Ended::Length), ..Turn::default() }]);
    }
}

#[test]
fn after_an_error_all_is_read_again() {
    let mut engine = engine(1000, 64, 1000);
    let mut one = Sequence { ends: Arc::from([]), ..sequence(1, &[1, 2, 3], 40) };
    let (expected, _) = alone(&one, 1000);
    let found = turn(&mut engine, &[one.clone()], 4);
    one.tokens.extend(&found[0].tokens);
    engine.forward.fails = true;
    let error = engine.turn(&[one.clone()], &mut after(1)).unwrap_err();
    assert_eq!((error.kind(), engine.forward.n_held.get()), (InferErrorKind::OutOfMemory, 0));
    engine.forward.fails = false;
    let found = turn(&mut engine, &[one.clone()], 100);
    one.tokens.extend(&found[0].tokens);
    assert_eq!(one.tokens, expected);
}

#[test]
fn a_turn_that_was_lost_is_made_again_with_the_same_tokens() {
    let mut engine = engine(1000, 64, 1000);
    let mut one = Sequence { ends: Arc::from([]), ..sequence(1, &[1, 2, 3], 40) };
    for n_passes in [1, 1, 7] {
        let lost = turn(&mut engine, &[one.clone()], n_passes).remove(0);
        let found = turn(&mut engine, &[one.clone()], n_passes).remove(0);
        // What it finds again of what it has read itself is not another's.
        assert_eq!(found, lost);
        one.tokens.extend(&found.tokens);
    }
}

#[test]
fn two_batches_that_take_turns_come_to_their_ends_where_only_one_has_room() {
    let mut engine = engine(1000, 64, 60);
    let mut running =
        [1, 2].map(|key| Sequence { ends: Arc::from([]), ..sequence(key, &[1; 20], 40) });
    let expected = running.clone().map(|sequence| alone(&sequence, 60));
    let mut ended = [false; 2];
    for n_turn in 0.. {
        assert!(n_turn < 400, "they do not end: {running:?}");
        let set = n_turn % 2;
        if ended == [true; 2] {
            break;
        }
        if ended[set] {
            continue;
        }
        let found = turn(&mut engine, &running[set..=set], 1).swap_remove(0);
        running[set].tokens.extend(&found.tokens);
        ended[set] = found.ended.is_some();
    }
    for (sequence, (tokens, _)) in running.into_iter().zip(expected) {
        assert_eq!(sequence.tokens, tokens);
    }
}

#[test]
fn what_is_kept_for_a_sequence_that_never_comes_back_gives_way() {
    let mut engine = engine(1000, 64, 60);
    let [gone, mut next] =
        [1, 2].map(|key| Sequence { ends: Arc::from([]), ..sequence(key, &[1; 50], 9) });
    turn(&mut engine, std::slice::from_ref(&gone), 1);
    for n_turn in 0..=MOST_EMPTY {
        let found = turn(&mut engine, &[next.clone()], 1).swap_remove(0);
        next.tokens.extend(&found.tokens);
        assert_eq!(found.tokens.len(), usize::from(n_turn == MOST_EMPTY), "turn {n_turn}");
    }
}

#[test]
fn what_is_kept_for_a_sequence_that_others_do_not_miss_gives_way_later() {
    let mut engine = engine(1000, 64, 62);
    let [gone, mut next] =
        [1, 2].map(|key| Sequence { ends: Arc::from([]), ..sequence(key, &[1; 50], 9) });
    turn(&mut engine, std::slice::from_ref(&gone), 1);
    let mut small = Sequence { ends: Arc::from([]), ..sequence(3, &[2], 1) };
    for n_turn in 0..=MOST_AWAY {
        small.key += 1;
        let mut found = turn(&mut engine, &[small.clone(), next.clone()], 1);
        next.tokens.extend(&found[1].tokens);
        assert_eq!(found.remove(0).tokens.len(), 1);
        assert_eq!(found[0].tokens.len(), usize::from(n_turn == MOST_AWAY), "turn {n_turn}");
    }
}

#[test]
fn what_is_kept_for_a_sequence_that_was_let_go_gives_way_at_once() {
    let mut engine = engine(1000, 64, 62);
    let [gone, next] =
        [1, 2].map(|key| Sequence { ends: Arc::from([]), ..sequence(key, &[1; 50], 9) });
    turn(&mut engine, std::slice::from_ref(&gone), 1);
    // As long as somebody has it, it may come again.
    let mut gone = Some(gone);
    for n_turn in 0..3 {
        let small = Sequence { ends: Arc::from([]), ..sequence(3 + n_turn, &[2], 1) };
        gone = gone.filter(|_| n_turn < 2);
        let found = turn(&mut engine, &[small, next.clone()], 1);
        let expected = usize::from(gone.is_none());
        assert_eq!((found[0].tokens.len(), found[1].tokens.len()), (1, expected), "turn {n_turn}");
    }
}
