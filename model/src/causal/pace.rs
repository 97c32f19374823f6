//! How many tokens of prompts a pass reads, so that it does not take long: from how long those before
//! took. No clock here.

use std::time::Duration;

/// What a pass should take about, in which some sequences grow: they wait for the prompts that are read
/// in it, and whoever comes during it waits as well.
const BESIDE: Duration = Duration::from_millis(150);

/// What a pass should take about, in which nothing but prompts is read: far less than any time in which
/// a device is taken to be wedged.
const ALONE: Duration = Duration::from_secs(1);

/// Tokens that a pass reads of prompts at least, where there are any: they cost little more than one,
/// as all weights are read for one, too.
const LEAST: usize = 8;

/// Tokens that are read before anything is known: a device on which these take long is too slow for
/// any use.
const FIRST: usize = 16;

/// How much the last pass counts beside all before it.
const WEIGHT: f64 = 0.3;

/// What a pass read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Read {
    /// Sequences that grew, each by the last of its tokens.
    pub(super) n_rows: usize,
    /// Tokens of prompts.
    pub(super) n_prompt: usize,
}

/// How long passes take, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Pace {
    per_row: Option<f64>,
    per_token: Option<f64>,
}

impl Pace {
    /// Learns from a pass. What it took beyond what its rows take is put down to the tokens of prompts:
    /// rather too much than too little.
    pub(super) fn learn(&mut self, read: Read, took: Duration) {
        let took = took.as_secs_f64();
        let Read { n_rows, n_prompt } = read;
        if n_prompt > 0 {
            let rows = (n_rows as f64 * self.per_row.unwrap_or(0.0)).min(took);
            blend(&mut self.per_token, (took - rows) / n_prompt as f64);
        } else if n_rows > 0 {
            blend(&mut self.per_row, took / n_rows as f64);
        }
    }

    /// Tokens of prompts for a pass in which so many sequences grow: at most `most`, and a few in any
    /// case. Up to half of a pass is for prompts, however long the others take.
    ///
    /// The number is `most` or eight times a power of two: a device that is made ready for each shape by
    /// itself sees few of them.
    pub(super) fn prompt_tokens(&self, n_rows: usize, most: usize) -> usize {
        let rows = n_rows as f64 * self.per_row.unwrap_or(0.0);
        let seconds = match n_rows {
            0 => ALONE.as_secs_f64(),
            _ => (BESIDE.as_secs_f64() - rows).max(rows.min(ALONE.as_secs_f64())),
        };
        let fits = match self.per_token {
            None => FIRST,
            // All of them, where they take no time that can be measured.
            Some(per_token) => (seconds / per_token) as usize,
        };
        let mut n_tokens = LEAST;
        while n_tokens < most && n_tokens <= fits / 2 {
            n_tokens *= 2;
        }
        if fits >= most { most } else { n_tokens.min(most) }
    }
}

fn blend(mean: &mut Option<f64>, last: f64) {
    *mean = Some(mean.map_or(last, |mean| mean + WEIGHT * (last - mean)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Passes on a device that takes so long for a pass at all, for a row and for a token of a prompt.
    fn after(passes: &[Read], device: (f64, f64, f64)) -> Pace {
        let mut pace = Pace::default();
        for read in passes {
            pace.learn(*read, takes(*read, device));
        }
        pace
    }

    fn takes(Read { n_rows, n_prompt }: Read, (base, row, token): (f64, f64, f64)) -> Duration {
        Duration::from_secs_f64(base + n_rows as f64 * row + n_prompt as f64 * token)
    }

    /// Reads prompts beside so many rows for a while, as many as the pace says; the last pass.
    fn settled(device: (f64, f64, f64), n_rows: usize, most: usize) -> Read {
        let mut pace = after(&[Read { n_rows, n_prompt: 0 }], device);
        let mut read = Read::default();
        for _ in 0..60 {
            read = Read { n_rows, n_prompt: pace.prompt_tokens(n_rows, most) };
            pace.learn(read, takes(read, device));
        }
        read
    }

    #[test]
    fn it_begins_with_few_and_reads_as_many_as_its_time_allows() {
        let pace = Pace::default();
        assert_eq!([0, 3].map(|n_rows| pace.prompt_tokens(n_rows, 256)), [FIRST; 2]);
        assert_eq!(pace.prompt_tokens(0, 5), 5);
        // A millisecond for a token: a second is for all, and of 150 ms 120 are left.
        let read = |n_rows, n_prompt| Read { n_rows, n_prompt };
        let pace = after(&[read(3, 0), read(0, 16)], (0.0, 0.01, 0.001));
        assert_eq!([0, 3, 14].map(|n_rows| pace.prompt_tokens(n_rows, 256)), [256, 64, 128]);
        assert_eq!(pace.prompt_tokens(0, 4096), 512);
        // A decoder of billions of weights on a slow processor.
        let pace = after(&[read(4, 0), read(0, 16)], (1.0, 0.05, 0.1));
        assert_eq!([0, 4].map(|n_rows| pace.prompt_tokens(n_rows, 256)), [LEAST; 2]);
    }

    #[test]
    fn a_pass_without_prompts_or_time_is_no_matter() {
        let mut pace = Pace::default();
        pace.learn(Read::default(), Duration::from_secs(9));
        assert_eq!(pace, Pace::default());
        pace.learn(Read { n_rows: 1, n_prompt: 16 }, Duration::ZERO);
        assert_eq!(pace.prompt_tokens(1, 300), 300);
    }

    proptest! {
        #[test]
        fn a_pass_takes_about_its_time_or_reads_the_least(
            base in 0.0f64..2.0, row in 0.0f64..0.1, token in 1e-6f64..0.5, n_rows in 0usize..100,
            most in 1usize..2000,
        ) {
            let device = (base, row, token);
            let read = settled(device, n_rows, most);
            let took = takes(read, device).as_secs_f64();
            prop_assert!(read.n_prompt >= LEAST.min(most) && read.n_prompt <= most);
            let rows = takes(Read { n_rows, n_prompt: 0 }, device).as_secs_f64();
            let allowed = match n_rows {
                0 => ALONE.as_secs_f64(),
                _ => BESIDE.as_secs_f64().max(rows + rows.min(ALONE.as_secs_f64())),
            };
            // What a number behind the point has too much or too little.
            prop_assert!(read.n_prompt <= LEAST || took <= 1.01 * allowed, "{} of {}", took, allowed);
        }

        #[test]
        fn a_slower_device_never_reads_more(
            n_rows in 0usize..100, row in 0.0f64..0.1, token in 1e-6f64..0.5, by in 1.0f64..9.0,
        ) {
            let passes = [Read { n_rows: 1, n_prompt: 0 }, Read { n_rows: 0, n_prompt: 16 }];
            let fast = after(&passes, (0.0, row, token)).prompt_tokens(n_rows, 256);
            let slow = after(&passes, (0.0, row, token * by)).prompt_tokens(n_rows, 256);
            prop_assert!(slow <= fast, "{} {}", slow, fast);
        }
    }
}
