//! Holds a page that tells of metrics to the metrics.

use std::collections::BTreeSet;

use prometheus::core::Collector;

/// Fails unless the page has a row `| name | type | labels | meaning |` for each of these metrics, as
/// they are, and no other whose name begins with `prefix`.
#[track_caller]
pub fn assert_page_tells<'a>(
    page: &str,
    prefix: &str,
    metrics: impl IntoIterator<Item = &'a dyn Collector>,
) {
    let code: BTreeSet<String> = metrics.into_iter().map(row).collect();
    let start = format!("| `{prefix}");
    let rows = page.lines().filter(|line| line.starts_with(&start));
    let told: BTreeSet<String> = rows.map(without_values).collect();
    let (missing, stale): (Vec<_>, Vec<_>) =
        (code.difference(&told).collect(), told.difference(&code).collect());
    assert!(missing.is_empty(), "write into the page: {missing:#?}; and out: {stale:#?}");
    assert!(stale.is_empty(), "the page tells of what is not there: {stale:#?}");
}

/// The row of the page for a metric, without the values of its labels.
fn row(metric: &dyn Collector) -> String {
    let desc = metric.desc()[0];
    let kind = format!("{:?}", metric.collect()[0].get_field_type()).to_lowercase();
    let mut labels: Vec<String> =
        desc.variable_labels.iter().map(|label| format!("`{label}`")).collect();
    labels.sort_unstable();
    let labels = if labels.is_empty() { "-".to_owned() } else { labels.join(", ") };
    format!("| `{}` | {kind} | {labels} | {} |", desc.fq_name, desc.help)
}

fn without_values(row: &str) -> String {
    let cells: Vec<&str> = row.split(" | ").collect();
    let [name, kind, labels, meaning] = cells[..] else { panic!("not four cells: {row}") };
    // The last one of the page is the one whose values it tells.
    let labels = labels.split(": ").next().unwrap_or(labels);
    let mut labels: Vec<&str> = labels.split(", ").collect();
    labels.sort_unstable();
    [name, kind, &labels.join(", "), meaning].join(" | ")
}

#[cfg(test)]
mod tests {
    use prometheus::{IntCounterVec, IntGauge, Opts};

    use super::*;

    fn holds(page: &str) -> bool {
        let jobs = Opts::new("worker_jobs_total", "Jobs that left.");
        let jobs = IntCounterVec::new(jobs, &["outcome", "model"]).unwrap();
        jobs.with_label_values(&["done", "echo"]).inc();
        let up = IntGauge::new("worker_up", "Always 1.").unwrap();
        let check = || assert_page_tells(page, "worker_", [&jobs as &dyn Collector, &up]);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_ok()
    }

    #[test]
    fn a_page_holds_when_it_tells_all_of_them_as_they_are_and_no_other() {
        let jobs = "| `worker_jobs_total` | counter | `model`, `outcome`: done | Jobs that left. |";
        let up = "| `worker_up` | gauge | - | Always 1. |";
        let other = "| `scaler_up` | gauge | - | Always 1. |";
        assert!(holds(&format!("# Metrics\n{jobs}\n{up}\n{other}\n")));
        let older = "| `worker_age` | gauge | - | It was here once. |";
        for wrong in [
            jobs.to_owned(),
            format!("{jobs}\n{up}\n{older}"),
            format!("{jobs}\n{}", up.replace("gauge", "counter")),
            format!("{up}\n{}", jobs.replace("`model`, ", "")),
            format!("{jobs}\n{}", up.replace("Always", "Mostly")),
        ] {
            assert!(!holds(&wrong), "{wrong}");
        }
    }
}
