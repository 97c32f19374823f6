//! What sequences have in common, and what is theirs alone.

use super::*;

/// Answers that begin alike, all of them whole.
fn answered(engine: &mut Engine<Fake>, batch: &[Sequence]) -> Vec<Turn> {
    let turns = turn(engine, batch, usize::MAX);
    for (turn, sequence) in turns.iter().zip(batch) {
        let (tokens, ended) = alone(sequence, engine.limits.positions);
        assert_eq!((&turn.tokens[..], turn.ended), (&tokens[sequence.n_prompt..], Some(ended)));
    }
    turns
}

#[test]
fn what_was_read_once_is_read_no_more_where_another_begins_alike() {
    let mut engine = engine(1000, 64, 1000);
    let long = [sequence(1, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2], 1)];
    assert_eq!(answered(&mut engine, &long)[0].n_reused, 0);
    assert_eq!(engine.forward.n_read(), 11);
    // One token is left to read, and what stands in no whole block is its own.
    for (tokens, n_reused) in [
        (&[1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2][..], 8),
        (&[1, 2, 3, 4, 5, 6, 7, 8], 4),
        (&[1, 2, 3, 4, 5, 6, 7], 4),
        (&[1, 2, 3], 0),
        (&[2, 2, 3, 4, 5, 6, 7, 8, 9], 0),
        (&[1, 2, 3, 4, 1, 6, 7, 8, 9], 4),
    ] {
        let n_before = engine.forward.n_read();
        let found = answered(&mut engine, &[sequence(2, tokens, 1)]);
        assert_eq!(found[0].n_reused, n_reused, "{tokens:?}");
        assert_eq!(engine.forward.n_read() - n_before, tokens.len() - n_reused);
    }
    let limits = Limits { keeps_prefixes: false, ..engine.limits };
    engine.bound(limits);
    assert_eq!(engine.forward.n_held.get(), 0);
    assert_eq!(answered(&mut engine, &long)[0].n_reused, 0);
}

#[test]
fn what_a_sequence_finds_again_of_its_own_is_not_another_s() {
    let mut engine = engine(1000, 8, 1000);
    answered(&mut engine, &[sequence(1, &[1; 9], 1)]);
    let text = [[1; 8], [2; 8], [3; 8]].concat();
    let one = Sequence { ends: Arc::from([]), ..sequence(2, &text, 5) };
    let found = turn(&mut engine, std::slice::from_ref(&one), 1);
    assert_eq!((found[0].n_read, found[0].n_reused), (16, 8));
    engine.kept.clear();
    // Another reads further meanwhile: that is another's again.
    answered(&mut engine, &[sequence(3, &[&text[..20], &[5]].concat(), 1)]);
    let found = turn(&mut engine, &[one], 1);
    assert_eq!((found[0].n_read, found[0].n_reused), (24, 12));
}

#[test]
fn what_was_spoilt_once_is_not_kept_for_others() {
    for pass_tokens in [64, 8, 4] {
        let mut engine = engine(1000, pass_tokens, 1000);
        let text = [[1; 8], [2; 8]].concat();
        let one = |key| Sequence { ends: Arc::from([]), ..sequence(key, &text, 9) };
        engine.forward.spoils = true;
        let found = engine.turn(&[one(1)], &mut after(usize::MAX)).unwrap();
        let error = found[0].as_ref().unwrap_err().to_string();
        assert!(error.contains("not finite"), "{error}");
        assert_eq!(answered(&mut engine, &[one(2)])[0].n_reused, 0);
        // What is sound is had in common as before.
        assert_eq!(answered(&mut engine, &[one(3)])[0].n_reused, 12);
    }
}

#[test]
fn what_is_turned_off_and_on_again_while_sequences_grow_gives_nobody_anothers_text() {
    let mut engine = engine(1000, 64, 1000);
    let mut first = Sequence { ends: Arc::from([]), ..sequence(1, &[1, 2, 3, 4, 5], 40) };
    first.tokens.extend(&turn(&mut engine, &[first.clone()], 1)[0].tokens);
    for keeps_prefixes in [false, true] {
        engine.bound(Limits { keeps_prefixes, ..engine.limits });
    }
    answered(&mut engine, &[sequence(2, &[5, 6, 7, 8, 9], 1)]);
    first.tokens.extend(&turn(&mut engine, &[first.clone()], 7)[0].tokens);
    let other = [&[5, 6, 7, 8], &first.tokens[4..9]].concat();
    assert_eq!(answered(&mut engine, &[sequence(3, &other, 1)])[0].n_reused, 4);
}

#[test]
fn logits_that_do_not_come_back_are_an_error_of_the_device() {
    for temperature in [0.0, 1.0] {
        let mut engine = engine(1000, 64, 1000);
        let sampling = Sampling { temperature, ..Sampling::default() };
        let batch = [1, 2].map(|key| Sequence { sampling, ..sequence(key, &[key as u32; 3], 9) });
        engine.forward.loses = true;
        let error = engine.turn(&batch, &mut after(1)).unwrap_err();
        assert!(error.to_string().contains("did not come back"), "{error}");
    }
}

#[test]
fn an_answer_is_known_to_the_next_turn_of_its_conversation() {
    let mut engine = engine(1000, 64, 1000);
    let first = Sequence { ends: Arc::from([]), ..sequence(1, &[1, 2, 3], 10) };
    let mut tokens = first.tokens.clone();
    tokens.extend(&answered(&mut engine, &[first])[0].tokens);
    tokens.extend([5, 6]);
    assert_eq!(answered(&mut engine, &[sequence(2, &tokens, 1)])[0].n_reused, 12);
}

#[test]
fn of_sequences_that_come_together_the_first_reads_what_all_begin_with() {
    let mut engine = engine(1000, 10, 1000);
    let mut prompt = vec![7; 40];
    let jobs = (0..5).map(|key| {
        prompt.push(key as u32);
        sequence(key, &prompt, 5)
    });
    let jobs: Vec<Sequence> = jobs.collect();
    let n_new: usize = answered(&mut engine, &jobs).iter().map(|it| it.tokens.len()).sum();
    // Forty and one, and of each of the others what is behind the forty.
    assert!(engine.forward.n_read() <= 41 + 2 + 3 + 4 + 5 + n_new, "{}", engine.forward.n_read());
}

#[test]
fn what_nobody_has_gives_way_to_sequences_that_grow() {
    let mut engine = engine(1000, 64, 60);
    answered(&mut engine, &[sequence(1, &[1; 41], 1)]);
    answered(&mut engine, &[sequence(2, &[2; 41], 1)]);
    // The first has gone, and of the second as much as there is no room for.
    assert!(engine.forward.most_held <= 60);
    assert_eq!(answered(&mut engine, &[sequence(3, &[1; 41], 1)])[0].n_reused, 16);
    assert_eq!(answered(&mut engine, &[sequence(4, &[1; 41], 1)])[0].n_reused, 40);
    assert!(engine.forward.most_held <= 60);
}

#[test]
fn after_an_error_nothing_is_had_in_common() {
    let mut engine = engine(1000, 64, 1000);
    answered(&mut engine, &[sequence(1, &[1; 41], 1)]);
    engine.forward.fails = true;
    engine.turn(&[sequence(2, &[1; 41], 1)], &mut after(1)).unwrap_err();
    assert_eq!(engine.forward.n_held.get(), 0);
    engine.forward.fails = false;
    assert_eq!(answered(&mut engine, &[sequence(3, &[1; 41], 1)])[0].n_reused, 0);
}
