//! How much waits and runs, and what the first of the plain clients' entries say of themselves.

use redis::Value;

use super::Calls;
use super::receive::Stranger;
use super::script;
use super::value::{self, garbled, int, list};
use crate::{ByPriority, Depth, Result, unread};

impl Calls {
    pub(super) async fn depth(&self) -> Result<Depth> {
        let mut parts = list(self.look(self.call(&script::DEPTH).number(unread::READ)).await?)?;
        let entries = parts.pop().ok_or_else(|| garbled("depth"))?;
        let numbers: Vec<i64> = parts.iter().map(int).collect::<Result<_>>()?;
        let &[ready, in_flight, delayed, dead, ref rest @ ..] = &numbers[..] else {
            return Err(garbled("depth"));
        };
        let &[oldest, next_due, next_delayed, cost, high, normal, low, ref rest @ ..] = rest else {
            return Err(garbled("depth"));
        };
        let &[deadline, now, ahead, n_strangers] = rest else { return Err(garbled("depth")) };
        let count = |n: i64| u64::try_from(n).unwrap_or(0);
        let moment = |at: i64| (at >= 0).then(|| value::moment(at));
        let by = ByPriority { high: count(high), normal: count(normal), low: count(low) };
        let now = value::moment(now);
        let mut depth = Depth {
            ready: count(ready),
            in_flight: count(in_flight),
            delayed: count(delayed),
            dead: count(dead),
            oldest_ready: moment(oldest),
            next_due: moment(next_due),
            next_delayed: moment(next_delayed),
            cost: (cost >= 0).then_some(cost as f64 / 1e3),
            ready_by_priority: Some(by),
            first_deadline: moment(deadline),
            ..Depth::empty(now)
        };
        let read: Vec<Value> = list(entries)?;
        let read = read.into_iter().map(|entry| Ok(Stranger::read(entry, -ahead)?.job));
        let read = read.collect::<Result<Vec<_>>>()?;
        let n_more = count(n_strangers).saturating_sub(read.len() as u64);
        unread::count(&mut depth, &read, n_more, now);
        Ok(depth)
    }
}
