//! Jobs and the seconds they took: a rate or a mean that grows with what was seen and forgets.

/// Jobs, and the seconds they took together; old ones weigh less and less.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Evidence {
    /// Jobs.
    pub jobs: f64,
    /// Seconds.
    pub seconds: f64,
}

/// A prior weighs as much as so many jobs.
const PRIOR: f64 = 2.0;

/// What was seen weighs less by a factor of e after so many jobs, and not sooner than after so
/// many seconds: so much noise in a rate makes an autoscaler flap.
const MEMORY_JOBS: f64 = 128.0;
const MEMORY_SECONDS: f64 = 120.0;

/// From so many jobs on a mean is known, and what is so many times more or less is brought near it.
const KNOWN: f64 = 16.0;
pub(super) const FAR: f64 = 16.0;

impl Evidence {
    /// Jobs per second.
    #[must_use]
    pub fn rate(&self, prior: f64) -> f64 {
        let prior = self.tame(prior.recip());
        (self.jobs + PRIOR) / (self.seconds + PRIOR * prior)
    }

    /// Seconds per job.
    #[must_use]
    pub fn mean(&self, prior: f64) -> f64 {
        (self.seconds + PRIOR * self.tame(prior)) / (self.jobs + PRIOR)
    }

    /// The prior, brought near what is known.
    fn tame(&self, prior: f64) -> f64 {
        self.known().map_or(prior, |mean| prior.clamp(mean / FAR, mean * FAR))
    }

    /// Seconds per job where there was any.
    #[must_use]
    pub fn seen(&self) -> Option<f64> {
        (self.jobs > 0.0).then(|| self.seconds / self.jobs)
    }

    /// Seconds per job where there were enough of them to tell what is far from it.
    pub(super) fn known(&self) -> Option<f64> {
        self.seen().filter(|mean| self.jobs >= KNOWN && *mean > 0.0)
    }

    /// The least and the most jobs per second that one who does them one by one can do.
    ///
    /// Workers are seen once a second: the seconds are a count of sightings, and about two
    /// standard deviations of a Poisson count are between either limit and the mean.
    #[must_use]
    pub fn rates_of_one(&self) -> (f64, f64) {
        if self.jobs <= 0.0 {
            return (0.0, f64::INFINITY);
        }
        let root = self.seconds.sqrt();
        let (least, most) = ((root + 1.0).powi(2), (root - 1.0).max(0.0).powi(2));
        (self.jobs / least, if most > 0.0 { self.jobs / most } else { f64::INFINITY })
    }

    /// Forgets a part of what was seen, for what comes in now; never makes more of it.
    pub(super) fn fade(&mut self, jobs: f64, elapsed: f64) {
        let part = (jobs / MEMORY_JOBS).min(elapsed / MEMORY_SECONDS).max(0.0);
        let keep = (-part).exp();
        self.jobs *= keep;
        self.seconds *= keep;
    }

    /// Adds what one worker did; whatever is far from the mean is brought near it.
    pub(super) fn add(&mut self, jobs: f64, seconds: f64) {
        let (mut jobs, mut seconds) = (jobs, seconds);
        if let Some(mean) = self.known() {
            seconds = seconds.min(jobs * mean * FAR);
        }
        // However many it claims, one worker does not outweigh all that was seen before.
        let excess = (jobs / MEMORY_JOBS).max(1.0);
        (jobs, seconds) = (jobs / excess, seconds / excess);
        self.jobs += jobs;
        self.seconds += seconds;
    }

    /// The same, and not faster than so many times the mean either.
    pub(super) fn add_rate(&mut self, jobs: f64, seconds: f64) {
        let least = self.known().map_or(0.0, |mean| jobs * mean / FAR);
        self.add(jobs, seconds.max(least));
    }
}

#[cfg(test)]
mod tests {
    use super::Evidence;

    #[test]
    fn a_prior_gives_way_to_what_was_seen() {
        let mut evidence = Evidence::default();
        assert_eq!((evidence.rate(5.0), evidence.mean(0.2)), (5.0, 0.2));
        evidence.add(200.0, 100.0);
        assert!((evidence.rate(50.0) - 2.0).abs() < 0.04, "{evidence:?}");
        assert!((evidence.mean(0.02) - 0.5).abs() < 0.01, "{evidence:?}");
    }

    #[test]
    fn limits_close_in_on_what_is_between_them() {
        let limits = |jobs, seconds| Evidence { jobs, seconds }.rates_of_one();
        assert_eq!(limits(0.0, 0.0), (0.0, f64::INFINITY));
        let (least, most) = limits(100.0, 100.0);
        assert!(least > 0.8 && least < 1.0 && most > 1.0 && most < 1.25, "{least} {most}");
        assert_eq!(limits(100.0, 0.5).1, f64::INFINITY);
    }

    #[test]
    fn one_wild_report_moves_a_known_mean_by_a_bounded_part() {
        for (jobs, seconds) in [(1.0, 1e12), (1e12, 1.0), (1.0, 0.0), (1e12, 1e12)] {
            let mut evidence = Evidence { jobs: 128.0, seconds: 64.0 };
            evidence.add_rate(jobs, seconds);
            let rate = evidence.rate(1.0);
            assert!((0.9..4.0).contains(&rate), "{jobs} jobs in {seconds} s give {rate}");
        }
    }
}
