//! The self-test of a device: what a model makes of fixed inputs, before anybody's job comes.

use crate::{InferError, Model};

/// A device under test.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    /// Its name with its type of numbers, for people.
    pub(crate) device: String,
    /// Largest difference of numbers that should be the same, in parts of the largest of their
    /// item, or of 1 if that is larger.
    pub(crate) tolerance: f32,
}

impl Probe {
    /// Runs the first two of these jobs alone, and then all of them together.
    ///
    /// # Errors
    /// When a number is not finite, when a job has other numbers alone than beside others, and when
    /// the first two, which differ, have the same.
    pub(crate) fn run<M: Model>(
        &self,
        model: &mut M,
        batch: &[M::Input],
        numbers: impl Fn(&M::Output) -> Vec<f32>,
    ) -> Result<(), InferError> {
        let mut alone = Vec::new();
        for job in batch.iter().take(2) {
            alone.extend(self.numbers(model, std::slice::from_ref(job), &numbers)?);
        }
        let together = self.numbers(model, batch, &numbers)?;
        self.compare(&alone, &together)
    }

    /// Holds the numbers of the first two items, which each ran alone, against those of all of them
    /// together.
    ///
    /// # Errors
    /// As those of [`Self::run`].
    pub(crate) fn compare(
        &self,
        alone: &[Vec<f32>],
        together: &[Vec<f32>],
    ) -> Result<(), InferError> {
        if together.len() < alone.len() {
            return Err(self.failed("a text did not come back"));
        }
        for (alone, beside) in alone.iter().zip(together) {
            if !self.agree(alone, beside) {
                return Err(self.failed("a text has other numbers alone than beside others"));
            }
        }
        // Such as zeros, or what an earlier forward left in memory. A share of 1 is that of a model
        // with one label, or without a doubt.
        if let [first, second] = alone
            && first.iter().zip(second).all(|(one, other)| one == other && *one != 1.0)
        {
            return Err(self.failed("two different texts have the same numbers"));
        }
        Ok(())
    }

    /// Holds the tokens that a device chose against logits of the same texts: each is the likeliest, or
    /// as likely as rounding can tell.
    ///
    /// # Errors
    /// When one is not, or there is none.
    pub(crate) fn check_chosen(
        &self,
        logits: &[Vec<f32>],
        chosen: &[Option<u32>],
    ) -> Result<(), InferError> {
        let is_likeliest = |(logits, token): (&Vec<f32>, &Option<u32>)| {
            let largest = logits.iter().fold(1.0, |largest: f32, x| largest.max(x.abs()));
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let found = token.and_then(|token| logits.get(token as usize));
            found.is_some_and(|logit| most - logit <= self.tolerance * largest)
        };
        let are_likeliest = logits.iter().zip(chosen).all(is_likeliest);
        if logits.len() != chosen.len() || !are_likeliest {
            return Err(self.failed("the token that it chooses is not the likeliest"));
        }
        Ok(())
    }

    /// The numbers of each job of a batch.
    fn numbers<M: Model>(
        &self,
        model: &mut M,
        batch: &[M::Input],
        numbers: impl Fn(&M::Output) -> Vec<f32>,
    ) -> Result<Vec<Vec<f32>>, InferError> {
        let results = model.infer(batch)?;
        if results.len() != batch.len() {
            return Err(self.failed("a text did not come back"));
        }
        let of_job = |result: Result<M::Output, _>| {
            let numbers = result.map(|output| numbers(&output));
            numbers.map_err(|error: crate::ItemError| self.failed(&error.to_string()))
        };
        results.into_iter().map(of_job).collect()
    }

    /// No number agrees with what is none.
    fn agree(&self, one: &[f32], other: &[f32]) -> bool {
        let largest = one.iter().fold(1.0, |largest: f32, x| largest.max(x.abs()));
        let near = |(x, y): (&f32, &f32)| (x - y).abs() <= self.tolerance * largest;
        one.len() == other.len() && one.iter().zip(other).all(near)
    }

    fn failed(&self, why: &str) -> InferError {
        InferError::Device(format!(
            "self-test on {}: {why}; compare the model's files with where they came from (ebb model \
             info has their hashes), and try it with --dtype f32, or bf16 for what f16 is too narrow \
             for, or on another device",
            self.device
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{InferErrorKind, ItemError};

    #[test]
    fn a_token_that_is_not_the_likeliest_fails() {
        let probe = Probe { device: "gpu in f16".into(), tolerance: 1e-3 };
        let logits = [vec![1.0, 9.0, 8.995, -20.0], vec![0.0, -1.0, 0.0, 0.0]];
        let check = |chosen: &[Option<u32>]| probe.check_chosen(&logits, chosen).is_ok();
        assert!(check(&[Some(1), Some(0)]) && check(&[Some(2), Some(3)]));
        for chosen in [&[Some(0), Some(0)][..], &[Some(1), None], &[Some(4), Some(0)], &[Some(1)]] {
            assert!(!check(chosen), "{chosen:?}");
        }
    }

    /// A device with a way of its own to be wrong.
    struct Faulty(fn(f32, usize) -> f32);

    impl Model for Faulty {
        type Input = f32;
        type Output = f32;

        fn infer(&mut self, batch: &[f32]) -> Result<Vec<Result<f32, ItemError>>, InferError> {
            let result = |input: &f32| Ok((self.0)(*input, batch.len()));
            Ok(batch.iter().map(result).collect())
        }
    }

    fn run(fault: fn(f32, usize) -> f32) -> Result<(), InferError> {
        let probe = Probe { device: "gpu in f16".into(), tolerance: 1e-3 };
        probe.run(&mut Faulty(fault), &[1.0, 100.0, 3.0], |output| vec![*output])
    }

    #[test]
    fn a_device_that_computes_passes_however_it_rounds() {
        assert_eq!(run(|x, _| x * 2.0), Ok(()));
        assert_eq!(run(|x, n| x + if n > 1 { x * 9e-4 } else { 0.0 }), Ok(()));
    }

    #[test]
    fn rubbish_is_an_error_that_names_the_device_and_what_to_do() {
        for (fault, says) in [
            ((|_, _| f32::NAN) as fn(f32, usize) -> f32, "alone than beside others"),
            (|x, n| if n > 1 { f32::NAN } else { x }, "alone than beside others"),
            (|x, n| x * n as f32, "alone than beside others"),
            (|x, n| if n > 1 && x > 9.0 { x * 1.002 } else { x }, "alone than beside others"),
            (|_, _| 0.0, "two different texts have the same numbers"),
        ] {
            let error = run(fault).expect_err(says);
            assert_eq!(error.kind(), InferErrorKind::Device);
            let error = error.to_string();
            assert!(error.starts_with("device failed: self-test on gpu in f16"), "{error}");
            assert!(error.contains(says) && error.contains("--dtype f32"), "{error}");
        }
    }
}
