//! How many tokens of prompts a pass reads, so that it does not take long: from how long those before
//! took. No clock here.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::device::sizes::round_up;

/// What a pass should take about, in which some sequences grow: they wait for the prompts that are read
/// in it, and whoever comes during it waits as well.
const BESIDE: Duration = Duration::from_millis(150);

/// What a pass should take about, in which nothing but prompts is read: far less than any time in which
/// a device is taken to be wedged.
const ALONE: Duration = Duration::from_secs(1);

/// Tokens that a pass reads of prompts at least, where there are any: they cost little more than one,
/// as all weights are read for one, too.
const LEAST: usize = 8;

/// How much the last pass counts beside all of its kind before it.
const WEIGHT: f64 = 0.3;

/// Passes with prompts after which one of another size says nothing of the device any more.
const MOST_AGE: u64 = 32;

/// What a pass read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Read {
    /// Sequences that grew, each by the last of its tokens.
    pub(super) n_rows: usize,
    /// Tokens of prompts.
    pub(super) n_prompt: usize,
}

/// How long passes took, by about how many sequences grew in them.
///
/// A pass takes some time whatever it reads, which grows with those sequences in a way of the device's
/// own. So each number of them learns for itself, one step up after the other: what was measured
/// bounds the next, and nothing is taken from what another number of sequences took but that more of
/// them never take less.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Pace(BTreeMap<usize, Beside>);

/// How long passes took in which about as many sequences grew.
#[derive(Debug, Clone, PartialEq, Default)]
struct Beside {
    /// By their tokens of prompts, rounded up as [`step`] does it.
    took: BTreeMap<usize, Took>,
    /// How many had prompts.
    n_passes: u64,
}

/// How long passes took that read about as much, as means.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Took {
    n_prompt: f64,
    seconds: f64,
    /// How many passes with prompts there were up to the last of them.
    last: u64,
}

impl Pace {
    /// Learns from a pass.
    pub(super) fn learn(&mut self, read: Read, took: Duration) {
        if read == Read::default() {
            return;
        }
        let beside = self.0.entry(rounded(read.n_rows)).or_default();
        beside.n_passes += u64::from(read.n_prompt > 0);
        let last = beside.n_passes;
        let now = Took { n_prompt: read.n_prompt as f64, seconds: took.as_secs_f64(), last };
        beside.took.entry(step(read.n_prompt)).and_modify(|mean| mean.blend(now)).or_insert(now);
        beside.took.retain(|_, took| last - took.last <= MOST_AGE);
    }

    /// Tokens of prompts for a pass in which so many sequences grow: at most `most`, and a few in any
    /// case. Up to half of a pass is for prompts, however long the others take.
    ///
    /// The number is `most` or eight times a power of two: a device that is made ready for each shape by
    /// itself sees few of them.
    pub(super) fn prompt_tokens(&self, n_rows: usize, most: usize) -> usize {
        let least = LEAST.min(most);
        let Some(beside) = self.0.get(&rounded(n_rows)) else { return least };
        let Some((highest, high)) = beside.took.last_key_value().filter(|(step, _)| **step > 0)
        else {
            return least;
        };
        if *highest == LEAST && beside.took.len() == 1 {
            // From a single measure nobody knows what of it is the tokens': twice as many take at
            // most twice as long.
            return (2 * LEAST).min(most);
        }
        let target = if n_rows == 0 { ALONE } else { BESIDE };
        let without = self.without(n_rows, beside);
        let allowed = target.as_secs_f64().max(without + without.min(ALONE.as_secs_f64()));
        let per_token = (high.seconds - without) / high.n_prompt;
        let takes = |step: usize, n_tokens: usize| {
            let known = beside.took.get(&step).unwrap_or(high);
            known.seconds + per_token * (n_tokens as f64 - known.n_prompt)
        };
        // No further than one step beyond what was measured.
        let steps = std::iter::successors(Some(2 * LEAST), |step| Some(2 * step));
        let steps = steps.take_while(|step| *step <= 2 * highest && *step < 2 * most);
        let fits = steps.filter(|step| takes(*step, most.min(*step)) <= allowed);
        fits.last().map_or(least, |step| step.min(most))
    }

    /// What a pass takes without prompts: as was measured, or at least, where it was not.
    fn without(&self, n_rows: usize, beside: &Beside) -> f64 {
        let measured = beside.took.get(&0).map(|took| took.seconds);
        let at_least = || {
            let fewer = self.0.range(..rounded(n_rows)).filter_map(|(_, it)| it.took.get(&0));
            fewer.map(|took| took.seconds).fold(beside.drawn(), f64::max)
        };
        let seconds = beside.took.values().map(|took| took.seconds);
        seconds.fold(measured.unwrap_or_else(at_least), f64::min)
    }
}

impl Beside {
    /// What a pass without prompts would take, on the line through the shortest and the longest.
    fn drawn(&self) -> f64 {
        let (Some(low), Some(high)) = (self.took.values().next(), self.took.values().next_back())
        else {
            return 0.0;
        };
        let n_tokens = high.n_prompt - low.n_prompt;
        if n_tokens <= 0.0 {
            return 0.0;
        }
        (low.seconds - (high.seconds - low.seconds) / n_tokens * low.n_prompt).max(0.0)
    }
}

impl Took {
    fn blend(&mut self, now: Self) {
        self.n_prompt += WEIGHT * (now.n_prompt - self.n_prompt);
        self.seconds += WEIGHT * (now.seconds - self.seconds);
        self.last = now.last;
    }
}

/// About how many sequences.
fn rounded(n_rows: usize) -> usize {
    if n_rows == 0 { 0 } else { round_up(n_rows) }
}

/// About how many tokens of prompts: none, or eight times a power of two.
fn step(n_prompt: usize) -> usize {
    if n_prompt == 0 { 0 } else { n_prompt.next_power_of_two().max(LEAST) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a pass takes at all, for a row and for a token of a prompt, in seconds.
    type Device = (f64, f64, f64);

    fn read(n_rows: usize, n_prompt: usize) -> Read {
        Read { n_rows, n_prompt }
    }

    fn takes(Read { n_rows, n_prompt }: Read, (base, row, token): Device) -> f64 {
        base + n_rows as f64 * row + n_prompt as f64 * token
    }

    /// Runs so many passes without prompts.
    fn grow(pace: &mut Pace, device: Device, n_rows: usize, n_passes: usize) {
        for _ in 0..n_passes {
            let read = read(n_rows, 0);
            pace.learn(read, Duration::from_secs_f64(takes(read, device)));
        }
    }

    /// Reads prompts beside so many rows in so many passes, as many tokens as the pace says.
    fn read_prompts(
        pace: &mut Pace,
        device: Device,
        n_rows: usize,
        most: usize,
        n_passes: usize,
    ) -> Vec<Read> {
        let pass = |_| {
            let read = read(n_rows, pace.prompt_tokens(n_rows, most));
            pace.learn(read, Duration::from_secs_f64(takes(read, device)));
            read
        };
        (0..n_passes).map(pass).collect()
    }

    /// What a pass may take: its time, or what one with as few tokens as possible takes.
    fn bound(device: Device, n_rows: usize, most: usize) -> f64 {
        let target = if n_rows == 0 { ALONE } else { BESIDE };
        target.as_secs_f64().max(takes(read(n_rows, LEAST.min(most)), device))
    }

    fn tokens(reads: &[Read]) -> Vec<usize> {
        reads.iter().map(|read| read.n_prompt).collect()
    }

    #[test]
    fn it_begins_with_few_and_reads_as_many_as_its_time_allows() {
        // A millisecond for a token: a second is for more than all, and of 150 ms 120 are left.
        let device = (0.0, 0.01, 0.001);
        let mut pace = Pace::default();
        assert_eq!(tokens(&read_prompts(&mut pace, device, 0, 5, 2)), [5, 5]);
        let mut pace = Pace::default();
        let found = read_prompts(&mut pace, device, 0, 256, 7);
        assert_eq!(tokens(&found), [8, 16, 32, 64, 128, 256, 256]);
        assert_eq!(read_prompts(&mut pace, device, 0, 4096, 20)[19].n_prompt, 512);
        assert_eq!(read_prompts(&mut pace, device, 3, 256, 20)[19].n_prompt, 64);
        // Beside what takes long up to as much again is for prompts, but no more than a second.
        assert_eq!(read_prompts(&mut pace, device, 14, 256, 20)[19].n_prompt, 128);
        assert_eq!(read_prompts(&mut pace, device, 300, 2048, 20)[19].n_prompt, 512);
    }

    #[test]
    fn beside_more_sequences_than_ever_grew_without_prompts_passes_do_not_get_long() {
        // A decoder of billions of weights on a slow processor.
        let device = (1.0, 0.05, 0.1);
        let mut pace = Pace::default();
        grow(&mut pace, device, 1, 200);
        let found = read_prompts(&mut pace, device, 31, 256, 100);
        let longest = found.iter().map(|read| takes(*read, device)).fold(0.0, f64::max);
        assert!(longest < 4.2, "{longest}");
        assert!(found.iter().filter(|read| read.n_prompt > LEAST).count() <= 4);
    }

    #[test]
    fn what_a_pass_takes_at_all_is_not_put_down_to_tokens_where_prompts_are_in_every_pass() {
        let device = (0.5, 0.005, 0.002);
        let mut pace = Pace::default();
        let found = read_prompts(&mut pace, device, 8, 256, 30);
        assert!(found[5..].iter().all(|read| read.n_prompt >= 128), "{found:?}");
        let found = read_prompts(&mut pace, (2.0, 0.0, 0.002), 0, 256, 30);
        assert!(found[8..].iter().all(|read| read.n_prompt == 256), "{found:?}");
    }

    #[test]
    fn a_pass_that_was_held_up_once_is_forgotten() {
        let device = (0.03, 0.0, 0.001);
        let mut pace = Pace::default();
        assert_eq!(read_prompts(&mut pace, device, 4, 256, 20)[19].n_prompt, 64);
        pace.learn(read(4, 64), Duration::from_secs(60));
        let found = tokens(&read_prompts(&mut pace, device, 4, 256, 60));
        assert!(found[0] < 64 && found[59] == 64, "{found:?}");
    }

    #[test]
    fn a_pass_without_prompts_or_time_is_no_matter() {
        let mut pace = Pace::default();
        pace.learn(Read::default(), Duration::from_secs(9));
        assert_eq!(pace, Pace::default());
        let found = read_prompts(&mut pace, (0.0, 0.0, 0.0), 1, 300, 8);
        assert_eq!(tokens(&found), [8, 16, 32, 64, 128, 256, 300, 300]);
    }

    proptest! {
        #[test]
        fn no_pass_takes_much_longer_than_its_time_or_than_one_with_few_tokens(
            base in 0.0f64..2.0, row in 0.0f64..0.1, token in 1e-6f64..0.5,
            phases in proptest::collection::vec((0usize..100, 0usize..40, 0usize..80), 1..6),
            most in 1usize..2000,
        ) {
            let device = (base, row, token);
            let mut pace = Pace::default();
            for (n_rows, n_alone, n_passes) in phases {
                grow(&mut pace, device, n_rows, n_alone);
                let found = read_prompts(&mut pace, device, n_rows, most, n_passes);
                for (n, read) in found.iter().enumerate() {
                    prop_assert!(read.n_prompt >= LEAST.min(most) && read.n_prompt <= most);
                    let (took, bound) = (takes(*read, device), bound(device, n_rows, most));
                    // Of as many sequences as are about as many, the first are measured with others.
                    let factor = if n < MOST_AGE as usize + 8 { 3.0 } else { 2.01 };
                    prop_assert!(took <= factor * bound, "{} {} of {}: {:?}", n, took, bound, read);
                }
            }
        }

        #[test]
        fn as_many_are_read_as_fit(
            base in 0.0f64..2.0, row in 0.0f64..0.1, token in 1e-6f64..0.5, n_rows in 0usize..100,
            most in 1usize..2000,
        ) {
            let device = (base, row, token);
            let found = read_prompts(&mut Pace::default(), device, n_rows, most, 30);
            let without = takes(read(n_rows, 0), device);
            let target = if n_rows == 0 { ALONE } else { BESIDE }.as_secs_f64();
            let allowed = target.max(without + without.min(ALONE.as_secs_f64()));
            // Once more than those that fit were measured.
            let reads = found[20].n_prompt;
            let more = takes(read(n_rows, most.min(2 * reads)), device);
            prop_assert!(reads == most || more >= 0.99 * allowed, "{}: {} of {}", reads, more, allowed);
        }
    }
}
