//! The alert that a job may bring with it: a job of its own.

use ebb_queue::{Job, Timestamp};

/// The alert that belongs to a job, always under the same id, and in the same trace.
pub(crate) fn alert_job(job: &Job, body: bytes::Bytes, now: Timestamp) -> ebb_queue::Result<Job> {
    const SUFFIX: &str = "-alert";
    let name = job.id.as_str();
    let mut alert = Job::new(body, now);
    alert.id = match name.get(..256 - SUFFIX.len()) {
        // A long id gives its end for a hash of the whole, else two jobs could share an alert.
        Some(stem) if name.len() > stem.len() => {
            format!("{}{:016x}{SUFFIX}", &stem[..stem.len() - 16], fingerprint(name)).parse()?
        }
        _ => format!("{name}{SUFFIX}").parse()?,
    };
    alert.headers.traceparent.clone_from(&job.headers.traceparent);
    Ok(alert)
}

/// 64 bits of FNV-1a: the same in every version of every worker.
fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(id: &str) -> Job {
        let mut job = Job::new("", Timestamp::UNIX_EPOCH);
        job.id = id.parse().unwrap();
        job.headers.traceparent = Some("its trace".to_owned());
        alert_job(&job, "{}".into(), Timestamp::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn an_alert_has_the_id_and_the_trace_of_its_job() {
        let id = |text: &str| alert(text).id;
        assert_eq!(alert("job-1").headers.traceparent.as_deref(), Some("its trace"));
        assert_eq!(id("job-1").as_str(), "job-1-alert");
        assert_eq!(id(&"x".repeat(250)).as_str(), format!("{}-alert", "x".repeat(250)));
        let long = |end: char| id(&format!("{}{end}", "x".repeat(255)));
        assert_eq!(long('a'), long('a'));
        assert_ne!(long('a'), long('b'));
        assert_eq!(long('a').as_str().len(), 256);
    }
}
