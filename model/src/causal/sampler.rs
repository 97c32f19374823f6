//! Which token follows: from logits, the tokens so far and what chance says, and from nothing else.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::turn::{Sampling, Sequence};

/// Candidates that are put in order at first; more only where these are not likely enough together.
const FIRST_SORTED: usize = 64;

/// By how much a logit, divided by the temperature, lies below the largest where it is no candidate:
/// 2^24 of such together have less of the probability than a chance of 53 bits tells apart.
const NEVER: f64 = 54.0;

/// A token with its logit, then with its share.
type Candidate = (u32, f64);

/// Chooses the token behind those of a sequence. `logits`, one for each token of the vocabulary and
/// all of them finite, are changed on the way.
pub(super) fn choose(logits: &mut [f32], sequence: &Sequence) -> u32 {
    let sampling = &sequence.sampling;
    punish(logits, sequence);
    if sampling.temperature <= 0.0 {
        return likeliest(logits);
    }
    let n_generated = sequence.tokens.len().saturating_sub(sequence.n_prompt);
    let chance = uniform(sampling.seed, n_generated as u64);
    let largest = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
    let least = largest - NEVER * f64::from(sampling.temperature);
    let logits = logits.iter().map(|logit| f64::from(*logit));
    let mut all: Vec<Candidate> = (0..).zip(logits).filter(|(_, x)| *x >= least).collect();
    if let Some(most) = sampling.top_k.map(|most| most.max(1)).filter(|most| *most < all.len()) {
        all.select_nth_unstable_by(most - 1, before);
        all.truncate(most);
    }
    weigh(&mut all, f64::from(sampling.temperature));
    if sampling.top_p < 1.0 {
        let n_likely = nucleus(&mut all, f64::from(sampling.top_p));
        all.truncate(n_likely);
    }
    // In one order, however they were put apart.
    all.sort_unstable_by_key(|(token, _)| *token);
    draw(&all, chance)
}

/// Whether the likeliest token is chosen by the logits alone, as [`likeliest_sound`] does.
pub(super) fn is_plain(sampling: &Sampling) -> bool {
    let has_penalties = sampling.repetition_penalty != 1.0
        || sampling.frequency_penalty != 0.0
        || sampling.presence_penalty != 0.0;
    sampling.temperature <= 0.0 && !has_penalties
}

/// The first of the largest, unless one is not finite.
pub(super) fn likeliest_sound(logits: &[f32]) -> Option<u32> {
    logits.iter().all(|x| x.is_finite()).then(|| likeliest(logits))
}

/// The first of the largest.
fn likeliest(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, logit) in (0..).zip(logits) {
        if *logit > best.1 {
            best = (token, *logit);
        }
    }
    best.0
}

/// Takes from the logits of tokens that were there what the penalties say: the repetition penalty as
/// in CTRL (Keskar et al. 2019) first, then the two that count what was generated.
fn punish(logits: &mut [f32], sequence: &Sequence) {
    let sampling = &sequence.sampling;
    let counts_all = sampling.repetition_penalty != 1.0;
    let counts_new = sampling.frequency_penalty != 0.0 || sampling.presence_penalty != 0.0;
    if !counts_all && !counts_new {
        return;
    }
    let mut times: BTreeMap<u32, u32> = BTreeMap::new();
    for (place, token) in sequence.tokens.iter().enumerate() {
        *times.entry(*token).or_default() += u32::from(place >= sequence.n_prompt);
    }
    for (token, n_times) in times {
        let Some(logit) = logits.get_mut(token as usize) else { continue };
        if counts_all {
            let by = sampling.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / by } else { *logit * by };
        }
        if n_times > 0 {
            *logit -= sampling.frequency_penalty * n_times as f32 + sampling.presence_penalty;
        }
        // Penalties beyond all measure.
        *logit = if logit.is_nan() { f32::MIN } else { logit.clamp(f32::MIN, f32::MAX) };
    }
}

/// The likelier first, and of two as likely that of the lower number.
fn before(one: &Candidate, other: &Candidate) -> Ordering {
    other.1.total_cmp(&one.1).then(one.0.cmp(&other.0))
}

/// Makes of logits shares that add up to one.
fn weigh(candidates: &mut [Candidate], temperature: f64) {
    let largest = candidates.iter().fold(f64::NEG_INFINITY, |largest, (_, x)| largest.max(*x));
    let mut sum = 0.0;
    for (_, x) in candidates.iter_mut() {
        // The largest becomes one, however low the temperature.
        *x = ((*x - largest) / temperature).exp();
        sum += *x;
    }
    candidates.iter_mut().for_each(|(_, x)| *x /= sum);
}

/// Puts the likeliest first, as many as together have `least` of the probability, and says how many.
fn nucleus(candidates: &mut [Candidate], least: f64) -> usize {
    let (mut n_sorted, mut sum) = (0, 0.0);
    let mut n_more = FIRST_SORTED;
    while n_sorted < candidates.len() {
        let rest = &mut candidates[n_sorted..];
        let n = n_more.min(rest.len());
        if n < rest.len() {
            rest.select_nth_unstable_by(n - 1, before);
        }
        rest[..n].sort_unstable_by(before);
        for (place, (_, share)) in rest[..n].iter().enumerate() {
            sum += share;
            if sum >= least {
                return n_sorted + place + 1;
            }
        }
        n_sorted += n;
        n_more *= 4;
    }
    // By rounding alone all of them have less than what was asked for.
    candidates.len()
}

/// The candidate in whose part of the whole `chance` lies, which is from 0 to below 1.
fn draw(candidates: &[Candidate], chance: f64) -> u32 {
    let whole: f64 = candidates.iter().map(|(_, share)| share).sum();
    let (mut sum, mut last) = (0.0, 0);
    for (token, share) in candidates.iter().filter(|(_, share)| *share > 0.0) {
        sum += share;
        last = *token;
        if sum > chance * whole {
            break;
        }
    }
    last
}

/// A number from 0 to below 1 that a seed and a place alone decide, by the mixing function of
/// `SplitMix64` (Steele, Lea and Flood 2014).
fn uniform(seed: u64, place: u64) -> f64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |x: u64| {
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    // Mixed first, so that the streams of seeds that lie together do not overlap.
    let start = mix(seed.wrapping_add(GOLDEN));
    let bits = mix(start.wrapping_add(place.wrapping_add(1).wrapping_mul(GOLDEN)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn sequence(tokens: &[u32], n_prompt: usize, sampling: Sampling) -> Sequence {
        let tokens = tokens.to_vec();
        Sequence { key: 1, tokens, n_prompt, max_new: 99, ends: Arc::new([]), sampling }
    }

    fn warm(seed: u64) -> Sampling {
        Sampling { temperature: 1.0, seed, ..Sampling::default() }
    }

    /// How often each token comes, of many draws.
    fn counts(logits: &[f32], sampling: Sampling, n_draws: usize) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        for place in 0..n_draws {
            let tokens = vec![0; place + 1];
            let token = choose(&mut logits.to_vec(), &sequence(&tokens, 1, sampling));
            counts[token as usize] += 1;
        }
        counts
    }

    /// By Pearson's test: what deviates by more would by chance come once in a million times.
    fn assert_distributed(counts: &[usize], shares: &[f64]) {
        let n_draws: usize = counts.iter().sum();
        let mut statistic = 0.0;
        for (count, share) in counts.iter().zip(shares) {
            let expected = share * n_draws as f64;
            if *share == 0.0 {
                assert_eq!(*count, 0, "{counts:?} {shares:?}");
            } else {
                statistic += (*count as f64 - expected).powi(2) / expected;
            }
        }
        // The quantile of chi square with five degrees of freedom is 37; here there are no more.
        assert!(statistic < 37.0, "{statistic}: {counts:?} {shares:?}");
    }

    fn shares(logits: &[f32], temperature: f64) -> Vec<f64> {
        let powers: Vec<f64> = logits.iter().map(|x| (f64::from(*x) / temperature).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.iter().map(|x| x / sum).collect()
    }

    #[test]
    fn tokens_come_as_often_as_their_probability_says() {
        let logits = [0.5, 2.0, -1.0, 1.0, 2.0, -9.0];
        for (seed, temperature) in [(1, 1.0), (2, 0.5), (3, 3.0)] {
            let sampling = Sampling { temperature, ..warm(seed) };
            let expected = shares(&logits, f64::from(temperature));
            assert_distributed(&counts(&logits, sampling, 6000), &expected);
        }
    }

    #[test]
    fn candidates_keep_their_proportions_and_others_never_come() {
        let logits: [f32; 5] = [0.2f32, 0.1, 0.3, 0.25, 0.15].map(f32::ln);
        let top_k = Sampling { top_k: Some(2), ..warm(4) };
        let of_two = [0.0, 0.0, 6.0 / 11.0, 5.0 / 11.0, 0.0];
        assert_distributed(&counts(&logits, top_k, 3000), &of_two);
        // The third is needed: 0.3 and 0.25 are less than 0.7 together.
        let top_p = Sampling { top_p: 0.7, ..warm(5) };
        assert_distributed(&counts(&logits, top_p, 3000), &[4.0 / 15.0, 0.0, 0.4, 1.0 / 3.0, 0.0]);
        // Of the two alone, the first has more than half.
        let both = Sampling { top_k: Some(2), top_p: 0.5, ..warm(6) };
        assert_distributed(&counts(&logits, both, 100), &[0.0, 0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn what_is_no_candidate_is_too_unlikely_for_any_chance() {
        assert!(f64::from(1 << 24) * (-NEVER).exp() < (-53.0f64).exp2());
    }

    #[test]
    fn the_likeliest_is_taken_and_of_equals_the_first() {
        let greedy = Sampling { top_k: Some(1), seed: 7, ..Sampling::default() };
        for (logits, expected) in
            [(&[1.0, 3.0, 3.0, 2.0][..], 1), (&[-5.0, -2.0], 1), (&[0.0], 0), (&[f32::MIN; 3], 0)]
        {
            let found = choose(&mut logits.to_vec(), &sequence(&[0], 1, greedy));
            assert_eq!(found, expected, "{logits:?}");
        }
    }

    #[test]
    fn penalties_count_what_their_names_say() {
        let check = |sampling: Sampling, expected: [f32; 4]| {
            let mut logits = [2.0, -2.0, 1.0, 1.0];
            punish(&mut logits, &sequence(&[0, 1, 2, 2], 2, sampling));
            assert_eq!(logits, expected, "{sampling:?}");
        };
        let none = Sampling::default();
        check(none, [2.0, -2.0, 1.0, 1.0]);
        check(Sampling { repetition_penalty: 2.0, ..none }, [1.0, -4.0, 0.5, 1.0]);
        check(Sampling { frequency_penalty: 0.25, ..none }, [2.0, -2.0, 0.5, 1.0]);
        check(Sampling { presence_penalty: 0.25, ..none }, [2.0, -2.0, 0.75, 1.0]);
        check(Sampling { frequency_penalty: f32::INFINITY, ..none }, [2.0, -2.0, f32::MIN, 1.0]);
        // They count without a temperature, too.
        let greedy = sequence(&[0, 1, 2, 2], 2, Sampling { repetition_penalty: 4.0, ..none });
        assert_eq!(choose(&mut [2.0, -2.0, 1.0, 1.0], &greedy), 3);
    }

    #[test]
    fn numbers_of_neighbouring_seeds_and_places_have_nothing_in_common() {
        let mut seen = std::collections::BTreeSet::new();
        let mut sum = 0.0;
        for seed in 0..64 {
            for place in 0..64 {
                let found = uniform(seed, place);
                assert!((0.0..1.0).contains(&found));
                assert!(seen.insert(found.to_bits()), "{seed} {place}");
                sum += found;
            }
        }
        // Five times the standard deviation of the mean.
        assert!((sum / 4096.0 - 0.5).abs() < 5.0 * (1.0f64 / 12.0 / 4096.0).sqrt(), "{sum}");
    }

    fn sampling() -> impl Strategy<Value = Sampling> {
        let top_k = proptest::option::of(0usize..40);
        let penalties = (-2.0f32..2.0, -2.0f32..2.0, 0.1f32..4.0);
        (0.0f32..3.0, top_k, 0.0f32..1.2, penalties, any::<u64>()).prop_map(
            |(temperature, top_k, top_p, (frequency, presence, repetition), seed)| Sampling {
                temperature,
                top_k,
                top_p,
                frequency_penalty: frequency,
                presence_penalty: presence,
                repetition_penalty: repetition,
                seed,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_plain_takes_the_likeliest(
            logits in proptest::collection::vec(-8i8..8, 1..50),
            tokens in proptest::collection::vec(0u32..60, 1..20),
            sampling in sampling(), is_cold: bool, has_penalties: bool,
        ) {
            let mut sampling = sampling;
            if is_cold {
                sampling.temperature = 0.0;
            }
            if !has_penalties {
                let Sampling { temperature, seed, .. } = sampling;
                sampling = Sampling { temperature, seed, ..Sampling::default() };
            }
            let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            let chosen = choose(&mut logits.clone(), &sequence(&tokens, 1, sampling));
            prop_assert!(!is_plain(&sampling) || likeliest_sound(&logits) == Some(chosen));
            prop_assert!(is_plain(&sampling) || sampling.temperature > 0.0 || has_penalties);
        }

        #[test]
        fn the_same_is_chosen_again_and_it_is_a_token(
            logits in proptest::collection::vec(-80.0f32..80.0, 1..300),
            tokens in proptest::collection::vec(0u32..400, 1..20),
            sampling in sampling(),
        ) {
            let sequence = sequence(&tokens, 1, sampling);
            let first = choose(&mut logits.clone(), &sequence);
            prop_assert!((first as usize) < logits.len());
            prop_assert_eq!(choose(&mut logits.clone(), &sequence), first);
        }

        #[test]
        fn a_nucleus_is_the_smallest_set_of_the_likeliest_that_is_likely_enough(
            logits in proptest::collection::vec(-4.0f32..4.0, 1..700), least in 0.0f64..1.0,
        ) {
            let mut found: Vec<Candidate> =
                (0..).zip(logits.iter().map(|x| f64::from(*x))).collect();
            weigh(&mut found, 1.0);
            let mut expected = found.clone();
            expected.sort_by(before);
            let n = nucleus(&mut found, least);
            prop_assert_eq!(&found[..n], &expected[..n]);
            let sum = |n: usize| expected[..n].iter().map(|(_, share)| share).sum::<f64>();
            prop_assert!(sum(n) >= least - 1e-9);
            prop_assert!(n == 1 || sum(n - 1) < least);
        }

        #[test]
        fn a_low_temperature_takes_the_likeliest(
            logits in proptest::collection::hash_set(-1000i32..1000, 2..50), seed in any::<u64>(),
        ) {
            let logits: Vec<f32> = logits.into_iter().map(|x| x as f32).collect();
            let cold = Sampling { temperature: 1e-30, ..warm(seed) };
            let found = choose(&mut logits.clone(), &sequence(&[0], 1, cold));
            prop_assert_eq!(found, likeliest(&logits));
        }
    }
}
