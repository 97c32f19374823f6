//! A clock that a runtime of one thread can wait for to the microsecond; its own timer is a
//! millisecond wide.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::net::unix::pipe::Receiver;

/// Ticks at a steady rate; those that nobody waited for are not lost.
pub(super) struct Clock {
    /// A timer of the system, which is read as a pipe is.
    timer: Receiver,
    began: Instant,
    pace: Duration,
    n_ticks: u32,
}

impl Clock {
    /// Begins to tick, so often a second.
    pub(super) fn start(per_second: u32) -> anyhow::Result<Self> {
        let pace = Duration::from_secs(1).checked_div(per_second).context("--rate is 0")?;
        ensure!(!pace.is_zero(), "--rate is more than one in a nanosecond");
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
        let began = Instant::now();
        let expiration = Expiration::Interval(TimeSpec::from_duration(pace));
        timer.set(expiration, TimerSetTimeFlags::empty())?;
        let timer = Receiver::from_owned_fd_unchecked(timer.into())?;
        Ok(Self { timer, began, pace, n_ticks: 0 })
    }

    /// Waits for the next tick, and says when it was due. May be dropped at any time.
    pub(super) async fn tick(&mut self) -> anyhow::Result<Instant> {
        let due = self.began + self.pace * (self.n_ticks + 1);
        // How often it has expired, which the time of day says as well.
        let mut count = [0; 8];
        while Instant::now() < due {
            self.timer.readable().await?;
            match self.timer.try_read(&mut count) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error.into()),
                _ => {}
            }
        }
        self.n_ticks += 1;
        Ok(due)
    }
}
