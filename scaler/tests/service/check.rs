//! A configuration is tried before anybody depends on it.

use std::collections::BTreeMap;

use ebb_queue::{Job, OpenOptions, Priority, QueueUrl, Timestamp, open};
use ebb_scaler::{Answer, Asking, CheckArgs, ProblemKind, check};

fn asking(namespace: &str, triggers: &[&[(&str, &str)]]) -> Asking {
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let metadata = |pairs: &&[(&str, &str)]| pairs.iter().map(own).collect::<BTreeMap<_, _>>();
    Asking {
        kind: "ScaledObject".into(),
        namespace: namespace.into(),
        name: "pool".into(),
        triggers: triggers.iter().map(metadata).enumerate().collect(),
    }
}

#[tokio::test]
async fn every_profile_is_tried_and_every_trigger_answered_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let queue = open(&QueueUrl::sqlite(at("day.db")), OpenOptions::default()).await.unwrap();
    queue.publish((0..12).map(|_| Job::new("{}", Timestamp::now())).collect()).await.unwrap();
    let text = format!(
        "[profiles.day]\nurl = \"sqlite:{}\"\n[profiles.gone]\nurl = \"sqlite:{}\"\n\
         [[policy]]\nnamespaces = [\"ml\"]\nprofiles = [\"*\"]\n",
        at("day.db").display(),
        at("gone.db").display()
    );
    std::fs::write(at("scaler.toml"), text).unwrap();
    let day = ("profile", "day");
    let objects = vec![
        asking("ml", &[&[day, ("jobsPerReplica", "5")], &[day, ("modeFromEnv", "MODE")]]),
        asking("other", &[&[day]]),
        asking("ml", &[&[day, ("jobPerReplica", "5")], &[("profile", "gone")]]),
    ];
    let args = CheckArgs { config: Some(at("scaler.toml")), queue: None, objects };
    let found = check(args).await.unwrap();

    let [one, two] = &found.profiles[..] else { panic!("{found:?}") };
    assert!(one.server.as_ref().unwrap().contains("SQLite") && one.problem.is_none(), "{one:?}");
    assert!(two.server.is_none() && two.problem.is_some(), "{two:?}");
    assert!(!at("gone.db").exists(), "nothing is created");

    // Named after the profile as well.
    let plain_metric = found.triggers[0].answer.as_ref().unwrap().metric.clone();
    assert!(plain_metric.starts_with("ebb-jobs-jobs-"), "{plain_metric}");
    let basis = found.triggers[0].answer.as_ref().unwrap().basis.clone();
    let answer = Answer {
        profile: "day".into(),
        queue: "jobs".into(),
        looks_at: "queue jobs".into(),
        metric: plain_metric,
        target: 5.0,
        value: 12.0,
        active: true,
        why: "active: 12 ready".into(),
        basis,
    };
    let [plain, from_env, denied, wrong, gone] = &found.triggers[..] else { panic!("{found:?}") };
    assert_eq!(plain.answer, Some(answer.clone()));
    assert_eq!(from_env.answer, Some(Answer { target: 10.0, ..answer }));
    assert_eq!(from_env.left_out, ["modeFromEnv"]);
    let kind = |check: &ebb_scaler::TriggerCheck| check.problem.as_ref().unwrap().kind;
    assert_eq!((kind(denied), kind(wrong)), (ProblemKind::Refused, ProblemKind::Refused));
    assert!(denied.problem.as_ref().unwrap().words.contains("namespace other"), "{denied:?}");
    assert!(wrong.problem.as_ref().unwrap().words.contains("use jobsPerReplica"), "{wrong:?}");
    assert_ne!(kind(gone), ProblemKind::Refused);
}

#[tokio::test]
async fn a_profile_that_names_no_queue_needs_none_but_those_of_its_triggers() {
    let folder = tempfile::tempdir().unwrap();
    let url = QueueUrl::sqlite(folder.path().join("day.db"));
    let named = url.with_queue("embeddings").unwrap();
    drop(open(&named, OpenOptions::default()).await.unwrap());
    let objects = vec![asking("ml", &[&[("queue", "embeddings")]])];
    let args = CheckArgs { queue: Some(url.clone()), objects, ..CheckArgs::default() };
    let found = check(args).await.unwrap();
    let [profile] = &found.profiles[..] else { panic!("{found:?}") };
    assert!(profile.problem.is_none() && profile.server.is_some(), "{profile:?}");
    assert_eq!(profile.warnings[0].code, "no_queue");
    assert!(found.triggers[0].answer.is_some(), "{found:?}");

    // One that is named is missed, and so is the one that a trigger asks for.
    let queue = Some(url.with_queue("embedings").unwrap());
    let found = check(CheckArgs { queue, ..CheckArgs::default() }).await.unwrap();
    assert!(found.profiles[0].problem.is_some(), "{found:?}");
    let objects = vec![asking("ml", &[&[]])];
    let args = CheckArgs { queue: Some(url), objects, ..CheckArgs::default() };
    assert!(check(args).await.unwrap().triggers[0].problem.is_some());
}

#[tokio::test]
async fn what_only_the_cluster_knows_is_neither_answered_nor_a_problem() {
    const SLO: (&str, &str) = ("mode", "slo");
    const SECONDS: (&str, &str) = ("sloSeconds", "60");
    const NEVER: (&str, &str) = ("activationWait", "never");
    let folder = tempfile::tempdir().unwrap();
    let url = QueueUrl::sqlite(folder.path().join("day.db"));
    drop(open(&url, OpenOptions::default()).await.unwrap());
    let objects = vec![asking(
        "ml",
        &[
            // Their values say what is looked at, or are needed.
            &[("queueFromEnv", "QUEUE")],
            &[("profileFromEnv", "PROFILE")],
            &[("mode", "slo"), ("sloSecondsFromEnv", "SLO")],
            // Of use in the mode that is not known.
            &[("modeFromEnv", "MODE"), ("sloSeconds", "60")],
            // What is wrong where no priority is given may be right with the one that is.
            &[SLO, SECONDS, ("sloPriorityFromEnv", "PRIORITY"), NEVER],
            &[("activationPriorityFromEnv", "PRIORITY"), NEVER],
            // What counts without them is told, and what is wrong without them too.
            &[("jobsPerReplicaFromEnv", "JOBS")],
            &[("jobsPerReplicaFromEnv", "JOBS"), ("colour", "red")],
        ],
    )];
    let args = CheckArgs { queue: Some(url), objects, ..CheckArgs::default() };
    let found = check(args).await.unwrap();
    let said: Vec<_> = found
        .triggers
        .iter()
        .map(|trigger| (trigger.answer.is_some(), trigger.problem.is_some()))
        .collect();
    let (unknown, known) = (vec![(false, false); 6], [(true, false), (false, true)]);
    assert_eq!(said, [&unknown[..], &known].concat());
    let triggers = &found.triggers;
    assert!(triggers.iter().all(|trigger| !trigger.left_out.is_empty()), "{triggers:?}");
}

#[tokio::test]
async fn what_has_less_effect_than_it_says_is_answered_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let url = QueueUrl::sqlite(folder.path().join("day.db"));
    drop(open(&url, OpenOptions::default()).await.unwrap());
    let slo = [("mode", "slo"), ("sloSeconds", "120"), ("coldStartSeconds", "90")];
    let held = |wait| [&slo[..], &[("activationJobs", "7"), ("activationWait", wait)]].concat();
    let objects = vec![asking("ml", &[&held("15s"), &held("30s")])];
    let args = CheckArgs { config: None, queue: Some(url), objects };
    let found = check(args).await.unwrap();
    let [early, late] = &found.triggers[..] else { panic!("{found:?}") };
    assert!(early.answer.is_some() && late.answer.is_some(), "{found:?}");
    assert_eq!(early.warning, None);
    assert!(
        late.warning.as_ref().unwrap().contains("sloSeconds less coldStartSeconds"),
        "{late:?}"
    );
}

#[tokio::test]
async fn a_file_that_is_wrong_is_told_before_anything_is_tried() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("scaler.toml");
    std::fs::write(&config, "[profiles.a]\nurll = \"x\"\n").unwrap();
    let args = CheckArgs { config: Some(config), ..CheckArgs::default() };
    let told = format!("{:#}", check(args).await.unwrap_err());
    assert!(told.contains("line 2") && told.contains("use url"), "{told}");
}

#[tokio::test]
async fn jobs_of_low_priority_that_waited_wake_no_pool_whose_objective_is_not_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let url = QueueUrl::sqlite(folder.path().join("day.db"));
    let queue = open(&url, OpenOptions::default()).await.unwrap();
    let published = Timestamp::now() - std::time::Duration::from_secs(81);
    let low = |_| {
        let mut job = Job::new("{}", published);
        job.headers.priority = Priority::Low;
        job
    };
    queue.publish((0..2003).map(low).collect()).await.unwrap();
    let all = [("mode", "slo"), ("sloSeconds", "120"), ("activationPriority", "normal")];
    let not_low = [all[0], all[1], ("sloPriority", "normal"), ("activationWait", "12h")];
    let args = CheckArgs {
        queue: Some(url),
        objects: vec![asking("ml", &[&all, &not_low])],
        ..CheckArgs::default()
    };
    let found = check(args).await.unwrap();
    let answers = found.triggers.iter().map(|trigger| trigger.answer.as_ref().unwrap());
    let [all, not_low] = &answers.collect::<Vec<_>>()[..] else { panic!("{found:?}") };
    assert!(all.active && all.value > 20.0, "{all:?}");
    let why = "inactive: 2003 ready, all of low priority; one may wait 43200 s";
    assert_eq!((not_low.active, not_low.value, not_low.why.as_str()), (false, 0.0, why));
    assert!(not_low.basis.contains("2003 ready of low priority left out"), "{not_low:?}");
}
