//! Which subjects tell of what comes to a consumer.

use serde_json::Value;

/// What to listen to for what comes to a consumer with these filters, and as little else as can be:
/// the filters, or the subjects of a stream where it takes less, or other, than they say.
pub(super) fn worth_hearing(stream: Option<&Value>, filters: &[&str]) -> Vec<String> {
    // What it copies from other streams comes on no subject.
    let copies = |config: &&Value| ["mirror", "sources"].iter().any(|key| !config[key].is_null());
    if stream.is_some_and(|config| copies(&config)) {
        return Vec::new();
    }
    let taken = stream.map(|config| {
        let subjects = config["subjects"].as_array().into_iter().flatten();
        subjects.filter_map(Value::as_str).collect::<Vec<_>>()
    });
    // What is stored under another subject than it came with fits no filter when it comes.
    let is_renamed = stream.is_some_and(|config| !config["subject_transform"].is_null());
    let taken_in_whole = |filter: &&str| {
        taken.as_ref().is_none_or(|taken| taken.iter().any(|subject| covers(subject, filter)))
    };
    let is_narrow = !is_renamed && !filters.is_empty() && filters.iter().all(taken_in_whole);
    let subjects = if is_narrow { filters.to_vec() } else { taken.unwrap_or_default() };
    // All that anybody says, our own questions too, is no news of this stream.
    if subjects.iter().any(|subject| covers(subject, "a.>")) {
        return Vec::new();
    }
    subjects.into_iter().map(str::to_owned).collect()
}

/// Whether a pattern of subjects holds all that another does.
fn covers(pattern: &str, other: &str) -> bool {
    let (mut pattern, mut other) = (pattern.split('.'), other.split('.'));
    loop {
        match (pattern.next(), other.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(one), Some(token)) if one == token => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{covers, worth_hearing};

    #[test]
    fn a_pattern_covers_what_it_holds_in_whole() {
        for (pattern, other, expected) in [
            ("work", "work", true),
            ("work", "work.a", false),
            ("work.*", "work.a", true),
            ("work.*", "work.*", true),
            ("work.*", "work.>", false),
            ("work.*", "work", false),
            ("work.>", "work.*.b", true),
            ("work.>", "work", false),
            ("work.a", "work.*", false),
            (">", "work.>", true),
            ("*.b", "a.b", true),
        ] {
            assert_eq!(covers(pattern, other), expected, "{pattern} {other}");
        }
    }

    #[test]
    fn as_little_is_listened_to_as_tells_of_every_arrival() {
        let many = json!({ "subjects": ["work.*", "more.>"] });
        let check = |stream: Option<&serde_json::Value>, filters: &[&str], expected: &[&str]| {
            assert_eq!(worth_hearing(stream, filters), expected, "{stream:?} {filters:?}");
        };
        check(Some(&many), &[], &["work.*", "more.>"]);
        check(Some(&many), &["work.a"], &["work.a"]);
        check(Some(&many), &["work.a", "more.b.c"], &["work.a", "more.b.c"]);
        // A filter that takes in more than the stream does is not listened to.
        check(Some(&many), &[">"], &["work.*", "more.>"]);
        check(Some(&many), &["*.a"], &["work.*", "more.>"]);
        let renamed = json!({ "subjects": ["in.>"], "subject_transform": { "dest": "work.>" } });
        check(Some(&renamed), &["work.a"], &["in.>"]);
        // What comes out of other streams is not heard, and one that takes everything says nothing.
        check(Some(&json!({ "mirror": {} })), &["work.a"], &[]);
        check(Some(&json!({ "subjects": ["work.*"], "sources": [{}] })), &[], &[]);
        check(Some(&json!({ "subjects": [">"] })), &[], &[]);
        check(Some(&json!({ "subjects": [">"] })), &["work.a"], &["work.a"]);
        // Who may not look at the stream listens to what the consumer says.
        check(None, &["work.a"], &["work.a"]);
        check(None, &[], &[]);
        check(None, &[">"], &[]);
    }
}
