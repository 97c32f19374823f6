//! The plots of a run: pods and queue over time for each policy, and attainment against GPU-seconds
//! for each trace.

use std::path::Path;

use anyhow::Context;

use super::Replayed;
use super::outcome::{Outcome, Sample};
use super::svg::{COLOURS, Chart};

/// Policies that have a colour of their own among the points; the built-in ones share one each.
const FAMILIES: [(&str, usize); 6] =
    [("oracle", 2), ("slo", 0), ("drain", 5), ("unacked", 1), ("ready", 4), ("kpa", 3)];

/// A line has at most about so many steps, else nobody can open it.
const STEPS: usize = 1500;

/// Writes all of them.
pub(crate) fn write(dir: &Path, replayed: &[Replayed], share: f64) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let save = |name: String, chart: &Chart| {
        let path = dir.join(name);
        std::fs::write(&path, chart.to_string())
            .with_context(|| format!("cannot write {}", path.display()))
    };
    for it in replayed {
        let trace = &it.trace.name;
        save(format!("{trace}.svg"), &frontier(trace, &it.outcomes, share))?;
        for (policy, outcome) in &it.outcomes {
            let file = policy.replace('/', "-");
            save(format!("{trace}-{file}.svg"), &over_time(trace, policy, outcome))?;
        }
    }
    Ok(())
}

fn frontier(trace: &str, outcomes: &[(String, Outcome)], share: f64) -> Chart {
    let most =
        |figure: fn(&Outcome) -> f64| outcomes.iter().map(|(_, it)| figure(it)).fold(0.0, f64::max);
    let title = format!("{trace}: jobs within the objective, by cost");
    let axes = ("GPU-seconds", "% of jobs within the objective");
    let to = (most(Outcome::gpu_seconds) * 1.05, 100.0);
    let mut chart = Chart::new(&title, axes, (0.0, 0.0), to);
    chart.level(share * 100.0);
    for (policy, outcome) in outcomes {
        let at = (outcome.gpu_seconds(), outcome.attainment() * 100.0);
        chart.point(at, colour(policy), policy);
    }
    let shown = FAMILIES
        .iter()
        .filter(|(family, _)| outcomes.iter().any(|(policy, _)| policy.starts_with(family)));
    let names: Vec<(&str, &str)> = shown.map(|(name, at)| (*name, COLOURS[*at])).collect();
    chart.legend(&names);
    chart
}

fn colour(policy: &str) -> &'static str {
    let family = FAMILIES.iter().find(|(family, _)| policy.starts_with(family));
    family.map_or("#888888", |(_, at)| COLOURS[*at])
}

/// Pods as they are; the queue scaled to the same height, with its most in the title.
fn over_time(trace: &str, policy: &str, outcome: &Outcome) -> Chart {
    let most = |figure: fn(&Sample) -> u32| outcome.samples.iter().map(figure).max().unwrap_or(0);
    let (pods, ready) = (most(|it| it.pods).max(1), most(|it| it.ready));
    let end = outcome.samples.last().map_or(0.0, |sample| sample.at as f64 / 60.0);
    let title = format!("{trace} under {policy}");
    let mut chart =
        Chart::new(&title, ("minutes", "pods"), (0.0, 0.0), (end, f64::from(pods) * 1.05));
    let every = outcome.samples.len().div_ceil(STEPS).max(1);
    let scale = f64::from(pods) / f64::from(ready.max(1));
    let thinned: Vec<Sample> = outcome.samples.chunks(every).map(fullest).collect();
    let minutes = |sample: &Sample| sample.at as f64 / 60.0;
    let queue = thinned.iter().map(|it| (minutes(it), f64::from(it.ready) * scale));
    chart.steps(queue, COLOURS[1]);
    chart.steps(thinned.iter().map(|it| (minutes(it), f64::from(it.pods))), COLOURS[0]);
    let queue = format!("jobs ready (at most {ready})");
    chart.legend(&[("pods", COLOURS[0]), (queue.as_str(), COLOURS[1])]);
    chart
}

/// The peaks of a few samples.
fn fullest(few: &[Sample]) -> Sample {
    let most = |figure: fn(&Sample) -> u32| few.iter().map(figure).max().unwrap_or(0);
    Sample {
        at: few.first().map_or(0, |sample| sample.at),
        pods: most(|it| it.pods),
        ready: most(|it| it.ready),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::kit::SETTINGS;
    use crate::simulate::policies::{Choice, replay};
    use crate::simulate::trace::{Kind, Trace};

    #[test]
    fn each_policy_has_a_plot_and_the_trace_one_of_all() {
        let trace = Trace::make(Kind::Spike, 1);
        let outcomes = replay(&[Choice::Jobs, Choice::Kpa], SETTINGS, &trace, 0.95).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().join("plots");
        write(&into, &[Replayed { trace, outcomes }], 0.95).unwrap();
        let names = std::fs::read_dir(&into).unwrap();
        let mut names: Vec<String> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        let expected = ["spike-jobs-default.svg", "spike-jobs.svg", "spike-kpa.svg", "spike.svg"];
        assert_eq!(names, expected);
        let read = |name: &str| std::fs::read_to_string(into.join(name)).unwrap();
        let all = read("spike.svg");
        for policy in ["jobs", "jobs/default", "kpa"] {
            assert!(all.contains(&format!("<title>{policy}")) || all.contains(policy), "{policy}");
        }
        assert!(read("spike-jobs.svg").contains("spike under jobs"));
        assert!(read("spike-kpa.svg").contains("jobs ready (at most "));
    }

    #[test]
    fn long_runs_are_thinned_to_their_peaks() {
        let sample = |at, pods, ready| Sample { at, pods, ready };
        let peak = fullest(&[sample(3, 1, 9), sample(4, 5, 0), sample(5, 2, 2)]);
        assert_eq!(peak, sample(3, 5, 9));
    }
}
