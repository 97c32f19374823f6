//! How much arrives: what the depth and the completions together say.

/// Jobs per second that arrive, over a short and a long time.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Arrivals {
    /// Over the last seconds.
    pub fast: f64,
    /// Over the last minutes.
    pub slow: f64,
}

/// Time constants of the two, in seconds.
const FAST: f64 = 10.0;
const SLOW: f64 = 60.0;

/// Standard deviations by which the fast rate has to differ before it says anything.
const CERTAINTY: f64 = 2.0;

/// A worker tells of completions up to a period late; a missing job that is not made up for by
/// then was taken away and not completed.
const LATE: f64 = 3.0;

impl Arrivals {
    /// What to reckon with: the slow rate, and less where the fast one is so far below that chance
    /// does not explain it. So the end of a burst is seen soon. Its begin is not taken for a rate
    /// that lasts: the jobs that came ask for replicas themselves, and more will come only if the
    /// slow rate says so. A rate averaged with time constant `t` over a Poisson process of rate `a`
    /// has the variance `a / 2t`.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let noise = CERTAINTY * (self.fast / (2.0 * FAST)).sqrt();
        self.slow.min(self.fast + noise)
    }
}

/// Turns differences of counts into rates.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Flow {
    arrivals: Arrivals,
    /// Jobs that are gone and not told as completed yet; never above zero.
    missing: f64,
    missing_for: f64,
}

impl Flow {
    /// Adds the net change of a time in seconds, above zero; says what arrives, and what arrived.
    pub(super) fn add(&mut self, net: f64, elapsed: f64) -> (Arrivals, f64) {
        let net = net + self.missing;
        let arrived = net.max(0.0);
        self.missing = net.min(0.0);
        self.missing_for = if net < 0.0 { self.missing_for + elapsed } else { 0.0 };
        if self.missing_for > LATE {
            (self.missing, self.missing_for) = (0.0, 0.0);
        }
        let mean = arrived / elapsed;
        let follow = |rate: &mut f64, time: f64| {
            let new = -(-elapsed / time).exp_m1();
            *rate += (mean - *rate) * new;
        };
        follow(&mut self.arrivals.fast, FAST);
        follow(&mut self.arrivals.slow, SLOW);
        (self.arrivals, arrived)
    }
}
