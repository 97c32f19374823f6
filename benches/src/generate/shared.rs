//! Prompts that begin alike: how much faster they are answered where that is read once.

use std::fmt;

use anyhow::{Result, ensure};
use ebb_model::causal::Generator;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use super::{Args, Load, generate};
use crate::report;
use crate::rounds::order;

/// Tokens of answers per second.
#[derive(Debug, Serialize)]
pub(super) struct Shared {
    jobs: usize,
    shared: usize,
    own: usize,
    new: usize,
    kept: f64,
    computed: f64,
    ratio: f64,
}

/// Refuses to compare what a device does not do; the generator keeps nothing behind it.
pub(super) fn check(generator: Generator, args: &Args) -> Result<Generator> {
    let generator = generator.with_prefixes(true);
    ensure!(
        args.shared == 0 || generator.keeps_prefixes(),
        "--shared: {} keeps nothing that prompts have in common; use --device cpu",
        generator.device()
    );
    Ok(generator.with_prefixes(false))
}

/// With so many sequences at once at most. The median rates over rounds in which both ways take their
/// turn, each first in every other round, after one that is not counted. Each round has prompts of its
/// own, so that nothing is known of them before.
pub(super) fn compare(
    mut generator: Generator,
    args: &Args,
    most: usize,
    vocabulary: u32,
) -> Result<Shared> {
    let mut dice = SmallRng::seed_from_u64(args.seed);
    let (own, new) = (args.prompt.get(), args.new.get());
    let n_jobs = 4 * most;
    let mut rates: [Vec<f64>; 2] = Default::default();
    for round in 0..=args.rounds.get() {
        report::progress(format_args!("{n_jobs} that begin alike …"));
        let mut text =
            |n: usize| -> Vec<u32> { (0..n).map(|_| dice.random_range(64..vocabulary)).collect() };
        let first = text(args.shared);
        let prompts = (0..n_jobs).map(|_| [first.clone(), text(own)].concat()).collect();
        let name = "that begin alike".to_owned();
        let load = Load { name, prompts, new: vec![new; n_jobs], at_once: most, reads: false };
        let mut made = Vec::new();
        for way in order(round, 2) {
            // First of the rates is that where it is kept.
            generator = generator.with_prefixes(way == 0);
            let found = generate(&mut generator, &load, (2 * round + way) as u64)?;
            if round > 0 {
                rates[way].push((n_jobs * new) as f64 / found.seconds);
            }
            made.push(found.tokens);
        }
        // Where blocks are kept, numbers are the same to the last bit.
        ensure!(made[0] == made[1], "prompts that begin alike have other answers together");
    }
    let [kept, computed] = rates.map(|rates| report::median(&rates));
    let [ratio, kept, computed] =
        [(kept / computed, 3), (kept, 2), (computed, 2)].map(|(x, n)| report::rounded(x, n));
    Ok(Shared { jobs: n_jobs, shared: args.shared, own, new, kept, computed, ratio })
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { jobs, shared, own, new, kept, computed, ratio } = self;
        write!(
            f,
            "{jobs} prompts of {shared} tokens in common and {own} of their own, {new} new: {kept:.1} \
             tokens/s where what they have in common is kept, {computed:.1} where it is not, {ratio:.2} \
             times as fast"
        )
    }
}
