//! Which broker a trigger means, with which options, and whether it may.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ebb_queue::QueueUrl;

use super::{Origin, Profile, Profiles, Refusal, Resolved};
use crate::file::File;
use crate::trigger::{Low, Mode};

fn profiles(text: &str) -> Profiles {
    let file = File::parse(text).unwrap();
    let profile = |(name, draft): (String, crate::file::Draft)| {
        let url = QueueUrl::sqlite(format!("/data/{name}.db"));
        let queues = draft.queues.into_iter().map(|(queue, section)| (queue, section.options));
        let profile = Profile {
            defaults: draft.defaults.options,
            queues: queues.collect(),
            ..Profile::new(&name, url)
        };
        (name, Arc::new(profile))
    };
    let by_name: BTreeMap<_, _> = file.profiles.into_iter().map(profile).collect();
    Profiles { by_name, policy: file.policy }
}

fn ask(
    profiles: &Profiles,
    namespace: &str,
    metadata: &[(&str, &str)],
) -> Result<Resolved, Refusal> {
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    profiles.resolve(namespace, &metadata.iter().map(own).collect::<HashMap<_, _>>())
}

const TWO: &str = "\
[profiles.day]
url = \"x\"
[profiles.night]
url = \"x\"
[profiles.night.defaults]
mode = \"waiting\"
jobsPerReplica = 4
[profiles.night.queues.embeddings]
jobsPerReplica = 8
activationJobs = 2
";

const POLICY: &str = "\
[[policy]]
namespaces = [\"team-a\"]
profiles = [\"night\"]
queues = [\"a-*\"]
";

#[test]
fn the_metadata_win_over_the_queue_and_the_queue_over_the_profile() {
    let two = profiles(TWO);
    let seen = |metadata: &[(&str, &str)]| {
        let trigger = ask(&two, "any", metadata).unwrap().trigger;
        (trigger.mode, trigger.activation.jobs)
    };
    let night = ("profile", "night");
    let embeddings = ("queue", "embeddings");
    let waiting = |per_replica| Mode::Waiting { per_replica };
    let jobs = |per_replica| Mode::Jobs { per_replica };
    assert_eq!(seen(&[("profile", "day")]), (jobs(10.0), 0));
    assert_eq!(seen(&[night]), (waiting(4.0), 0));
    assert_eq!(seen(&[night, embeddings]), (waiting(8.0), 2));
    assert_eq!(seen(&[night, embeddings, ("mode", "jobs")]), (jobs(8.0), 2));
    // What the mode has no use for is left away, and what the trigger says itself is not.
    let slo = [night, embeddings, ("mode", "slo"), ("sloSeconds", "60")];
    assert!(matches!(seen(&slo), (Mode::Slo { .. }, 2)));
    let own = [night, ("mode", "slo"), ("sloSeconds", "60"), ("jobsPerReplica", "1")];
    assert!(ask(&two, "any", &own).is_err());
    // However it is given, it is one option.
    let from_env = [night, ("queueFromEnv", "embeddings\n"), ("jobsPerReplicaFromEnv", "3")];
    assert_eq!(seen(&from_env), (waiting(3.0), 2));
}

#[test]
fn a_wait_that_is_a_default_for_another_mode_spoils_no_objective() {
    const PATIENT: &str = "\
[profiles.never]
url = \"x\"
[profiles.never.defaults]
activationPriority = \"normal\"
activationWait = \"never\"
[profiles.long]
url = \"x\"
[profiles.long.defaults]
activationWait = \"10m\"
[profiles.long.queues.few]
activationWait = \"never\"
activationPriority = \"normal\"
[profiles.short]
url = \"x\"
[profiles.short.defaults]
activationWait = \"20s\"
";
    let all = profiles(PATIENT);
    let (slo, seconds) = (("mode", "slo"), ("sloSeconds", "60"));
    let wait = |metadata: &[(&str, &str)]| {
        let metadata = [&[slo, seconds, ("activationJobs", "4")], metadata].concat();
        let trigger = ask(&all, "any", &metadata)?.trigger;
        Ok::<_, Refusal>((trigger.activation.wait.as_secs(), trigger.low))
    };
    // What counts without one: half of the objective.
    for passed_over in [
        &[("profile", "never")][..],
        &[("profile", "long")],
        &[("profile", "long"), ("queue", "few")],
        &[("profile", "long"), ("sloPriority", "low")],
    ] {
        assert_eq!(wait(passed_over), Ok((30, Low::Counts)), "{passed_over:?}");
    }
    // What fits counts, and so does what the trigger says itself.
    assert_eq!(wait(&[("profile", "short")]), Ok((20, Low::Counts)));
    assert!(wait(&[("profile", "short"), ("activationWait", "10m")]).is_err());
    assert!(wait(&[("profile", "short"), ("activationWait", "never")]).is_err());
    // Where low priority is left out it is for that.
    let not_low = ("sloPriority", "normal");
    let long = Low::LeftOut { wait: Some(std::time::Duration::from_secs(600)) };
    assert_eq!(wait(&[("profile", "long"), not_low]).unwrap().1, long);
    assert_eq!(wait(&[("profile", "never"), not_low]).unwrap().1, Low::LeftOut { wait: None });
    // In its own mode it is what it was.
    let jobs = ask(&all, "any", &[("profile", "never")]).unwrap().trigger;
    assert_eq!(jobs.low, Low::LeftOut { wait: None });
}

#[test]
fn a_wait_of_the_profile_spoils_no_objective_of_a_queue_and_one_beside_it_is_a_mistake() {
    const CHAT: &str = "\
[profiles.default]
url = \"x\"
[profiles.default.defaults]
activationPriority = \"normal\"
activationWait = \"never\"
[profiles.default.queues.chat]
mode = \"slo\"
sloSeconds = \"60\"
activationJobs = \"4\"
";
    let all = profiles(CHAT);
    assert_eq!(all.by_name["default"].check(), Ok(()));
    let chat = ask(&all, "any", &[("queue", "chat")]).unwrap().trigger;
    assert_eq!((chat.activation.wait.as_secs(), chat.low), (30, Low::Counts));
    let beside = profiles(&format!("{CHAT}activationWait = \"never\"\n"));
    let (queue, _) = beside.by_name["default"].check().unwrap_err();
    assert_eq!(queue, Some("chat"));
}

#[test]
fn where_an_option_comes_from_is_kept_and_what_came_from_an_environment_is_not() {
    let two = profiles(TWO);
    let metadata = [
        ("profile", "night"),
        ("queue", "embeddings"),
        ("scalerAddress", "ebb:6000"),
        ("activationJobsFromEnv", "1"),
    ];
    let resolved = ask(&two, "any", &metadata).unwrap();
    let shown: Vec<_> =
        resolved.options.iter().map(|o| (&*o.key, o.value.as_deref(), o.from)).collect();
    let expected = [
        ("activationJobsFromEnv", None, Origin::Environment),
        ("jobsPerReplica", Some("8"), Origin::Queue),
        ("mode", Some("waiting"), Origin::Profile),
        ("profile", Some("night"), Origin::Metadata),
        ("queue", Some("embeddings"), Origin::Metadata),
    ];
    assert_eq!(shown, expected);
    assert_eq!(
        (&*resolved.place.profile, resolved.place.source.to_string()),
        ("night", "embeddings".to_owned())
    );
}

#[test]
fn one_broker_is_the_default_profile_for_everybody() {
    let single = Profiles::single(QueueUrl::sqlite("/data/q.db"));
    for metadata in [&[][..], &[("profile", "default")]] {
        let resolved = ask(&single, "any", metadata).unwrap();
        assert_eq!(
            (&*resolved.place.profile, resolved.place.source.to_string()),
            ("default", "jobs".to_owned())
        );
    }
    let told = ask(&single, "any", &[("profile", "night")]).unwrap_err();
    assert!(matches!(&told, Refusal::Invalid(words) if words.contains("profile \"night\"")));
}

#[test]
fn without_a_policy_a_profile_that_is_not_there_is_a_mistake() {
    let two = profiles(TWO);
    for metadata in [&[("profile", "nigth")][..], &[("profileFromEnv", "hunter2")], &[]] {
        let Err(Refusal::Invalid(words)) = ask(&two, "any", metadata) else {
            panic!("{metadata:?} is taken");
        };
        assert!(words.contains("profile") && words.contains("operator"), "{words}");
        assert!(!words.contains("hunter2"), "{words}");
        assert!(!words.contains("day") && !words.contains("night"), "{words}");
    }
}

/// A namespace, what its trigger says, and part of what it is told.
type Denied = (&'static str, &'static [(&'static str, &'static str)], &'static str);

#[test]
fn with_a_policy_what_no_rule_allows_is_denied() {
    let two = profiles(&format!("{TWO}{POLICY}"));
    assert!(ask(&two, "team-a", &[("profile", "night"), ("queue", "a-1")]).is_ok());
    let denied: [Denied; 6] = [
        (
            "team-b",
            &[("profile", "night"), ("queue", "a-1")],
            "team-b may not use profile \"night\"",
        ),
        ("team-a", &[("profile", "day"), ("queue", "a-1")], "team-a may not use profile \"day\""),
        ("team-a", &[("profile", "none")], "team-a may not use profile \"none\""),
        ("team-a", &[], "team-a may not use the default profile"),
        (
            "team-a",
            &[("profile", "night"), ("queue", "b-1")],
            "team-a may not use queue \"b-1\" of profile night",
        ),
        (
            "team-a",
            &[("profile", "night")],
            "team-a may not use the default queue of profile night",
        ),
    ];
    for (namespace, metadata, expected) in denied {
        let told = ask(&two, namespace, metadata);
        let Err(Refusal::Denied(words)) = told else { panic!("{metadata:?}: {told:?}") };
        assert!(words.contains(expected), "{words}");
        assert!(words.contains("operator"), "{words}");
    }
}

/// The profile `night` of [`TWO`] on NATS, with more defaults.
fn on_nats(policy: &str) -> Profiles {
    let mut two = profiles(&format!("{TWO}{policy}"));
    let night = Profile {
        defaults: [("jobsPerReplica", "4"), ("activationPriority", "normal")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        ..Profile::new("night", "nats://broker".parse().unwrap())
    };
    two.by_name.insert("night".to_owned(), Arc::new(night));
    two
}

#[test]
fn a_stream_of_others_is_of_the_policy_as_a_queue_is() {
    let policed = on_nats(POLICY);
    let asked = |stream: &str| {
        let given = [("profile", "night"), ("stream", stream), ("consumer", "c")];
        ask(&policed, "team-a", &given).map_err(|refusal| refusal.to_string())
    };
    let place = asked("a-1").unwrap().place;
    assert_eq!((place.source.to_string(), place.words()).0, "a-1/c");
    let told = asked("b-1").unwrap_err();
    assert!(told.contains("team-a may not use stream \"b-1\" of profile night"), "{told}");
    let told = asked("nats://me:hunter2@broker").unwrap_err();
    assert!(told.contains("the stream that is given") && !told.contains("hunter2"), "{told}");
}

#[test]
fn defaults_that_a_stream_of_others_has_no_use_for_are_passed_over() {
    let two = on_nats("");
    let stream = [("profile", "night"), ("stream", "work"), ("consumer", "c")];
    let target = |rest: &[(&str, &str)]| {
        ask(&two, "any", &[&stream, rest].concat()).map(|resolved| resolved.trigger.target())
    };
    assert_eq!(target(&[]), Ok(4.0));
    assert_eq!(target(&[("lagThreshold", "7")]), Ok(7.0), "which is jobsPerReplica");
    assert!(target(&[("activationPriority", "high")]).is_err(), "the trigger says so itself");
    // A wait of jobs of low priority, and a mode that only queues of Ebb have.
    for defaults in [
        &[("mode", "cost"), ("costPerReplica", "9"), ("jobsPerReplica", "4")][..],
        &[("activationPriority", "normal"), ("activationWait", "never"), ("jobsPerReplica", "4")],
        &[
            ("mode", "slo"),
            ("sloSeconds", "60"),
            ("sloPriority", "normal"),
            ("activationWait", "2h"),
        ],
    ] {
        let own = defaults.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let url = "nats://broker".parse().unwrap();
        let night = Profile { defaults: own.collect(), ..Profile::new("night", url) };
        let by_name = BTreeMap::from([("night".to_owned(), Arc::new(night))]);
        let resolved = ask(&Profiles { by_name, policy: None }, "any", &stream);
        assert!(resolved.is_ok(), "{defaults:?}: {resolved:?}");
    }
}

#[test]
fn of_a_long_name_that_is_denied_the_first_letters_are_told() {
    let policed = on_nats(POLICY);
    let name = format!("{}{}", "é".repeat(64), "x".repeat(16_000));
    let asked = [("profile", "night"), ("stream", name.as_str()), ("consumer", "c")];
    let told = ask(&policed, "team-a", &asked).unwrap_err().to_string();
    assert!(told.contains(&"é".repeat(64)) && told.len() < 512, "{told}");
}

#[test]
fn who_may_not_use_a_profile_cannot_tell_whether_it_exists() {
    let two = profiles(&format!("{TWO}{POLICY}"));
    let told = |profile: &str| {
        let words = ask(&two, "team-a", &[("profile", profile)]).unwrap_err().to_string();
        words.replace(profile, "X")
    };
    assert_eq!(told("day"), told("dawn"));
    assert!(!told("dawn").contains("night"), "{}", told("dawn"));
}

#[test]
fn nothing_that_came_from_an_environment_is_shown() {
    let two = profiles(&format!("{TWO}{POLICY}"));
    let cases: [&[(&str, &str)]; 3] = [
        &[("profileFromEnv", "hunter2")],
        &[("profile", "night"), ("queueFromEnv", "hunter2")],
        &[("passwordFromEnv", "hunter2")],
    ];
    for metadata in cases {
        let told = ask(&two, "team-a", metadata).unwrap_err().to_string();
        assert!(!told.contains("hunter2"), "{told}");
        assert!(told.contains(metadata.last().unwrap().0), "{told}");
    }
}

#[test]
fn a_url_in_the_place_of_a_name_is_not_shown() {
    let url = "redis://:hunter2@redis:6379";
    for (text, profile) in [(TWO.to_owned(), "night"), (format!("{TWO}{POLICY}"), "night")] {
        let two = profiles(&text);
        let cases: [&[(&str, &str)]; 4] = [
            &[("profile", url)],
            &[("profile", profile), ("queue", url)],
            &[("profile", profile), ("mode", url)],
            &[("profile", profile), ("jobsPerReplica", url)],
        ];
        for metadata in cases {
            let told = ask(&two, "team-a", metadata).unwrap_err().to_string();
            assert!(!told.contains("hunter2"), "{told}");
            let key = metadata.last().unwrap().0;
            assert!(told.contains(key) || told.contains("the default queue"), "{told}");
        }
    }
}

#[test]
fn addresses_and_passwords_have_no_place_in_metadata() {
    let two = profiles(TWO);
    for key in ["url", "URL", "host", "hostFromEnv", "address", "password"] {
        let Err(Refusal::Invalid(words)) = ask(&two, "any", &[(key, "redis://:hunter2@h")]) else {
            panic!("{key} is taken");
        };
        assert!(words.contains(key) && words.contains("by profile"), "{words}");
        assert!(!words.contains("hunter2"), "{words}");
    }
}

#[test]
fn defaults_that_no_trigger_can_have_are_found() {
    let check = |text: &str| {
        let all = profiles(text);
        all.by_name["night"].check().map_err(|(queue, error)| format!("{queue:?} {error}"))
    };
    assert_eq!(check(TWO), Ok(()));
    let slo = "[profiles.night]\nurl = \"x\"\n[profiles.night.defaults]\nmode = \"slo\"";
    assert_eq!(check(slo), Ok(()), "each trigger has its own objective");
    let told = check("[profiles.night]\nurl = \"x\"\n[profiles.night.defaults]\nmod = \"jobs\"");
    let told = told.unwrap_err();
    assert!(told.starts_with("None") && told.contains("use mode"), "{told}");
    let told = check("[profiles.night]\nurl = \"x\"\n[profiles.night.queues.q]\nmode = \"x\"");
    assert!(told.unwrap_err().starts_with("Some(\"q\")"));
    let told =
        check("[profiles.night]\nurl = \"x\"\n[profiles.night.queues.\"a b\"]\nmode = \"jobs\"");
    assert!(told.unwrap_err().contains("name of a queue"));
}
