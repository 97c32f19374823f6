//! The ids and idempotency keys of jobs that come in here: bound to whose they are. Pure.
//!
//! An id is `OWN.TAG`: a name that is new, or that the client chose, and the first half of the SHA-256
//! of that name, of the tenant and of the queue. The id as a whole is what the broker knows. Who asks
//! for a job by an id must have the tenant by which its tag comes out, and the tenant comes from the
//! caller's key: so an id of another tenant is unknown, and one that was made up for one's own tenant
//! names a job that is not there. No secret is needed, all replicas agree, and the id says on which
//! queue the job is.

use ebb_queue::{JobId, Result};
use sha2::{Digest, Sha256};

use crate::keys::Tenant;

/// Letters of a tag.
const TAG: usize = 32;

/// What the hashes begin with: a change of what they are of changes these.
const OF_IDS: &str = "ebb-gateway id 1";
const OF_KEYS: &str = "ebb-gateway key 1";

/// An id that nobody has.
pub(crate) fn fresh(tenant: Option<&Tenant>, queue: &str) -> JobId {
    let own = JobId::fresh();
    named(own.as_str(), tenant, queue).unwrap_or(own)
}

/// The id of a job that its client calls so; the same each time.
///
/// # Errors
/// When that is no name, or too long a one.
pub(crate) fn named(own: &str, tenant: Option<&Tenant>, queue: &str) -> Result<JobId> {
    format!("{own}.{}", tag(own, tenant, queue)).parse()
}

/// Whether an id is of a job of this tenant on this queue.
pub(crate) fn is_of(id: &JobId, tenant: Option<&Tenant>, queue: &str) -> bool {
    let parts = id.as_str().rsplit_once('.');
    parts.is_some_and(|(own, found)| found == tag(own, tenant, queue))
}

/// The idempotency key of the job of this number: two tenants may choose the same one.
pub(crate) fn key(chosen: &str, tenant: Option<&Tenant>, nth: usize) -> String {
    let own = if nth == 0 { chosen.to_owned() } else { format!("{chosen}#{nth}") };
    match tenant {
        None => own,
        Some(tenant) => hash(OF_KEYS, &[tenant.as_str(), &own]),
    }
}

fn tag(own: &str, tenant: Option<&Tenant>, queue: &str) -> String {
    // Nobody's jobs are not those of a tenant without a name: there is none.
    let mut tag = hash(OF_IDS, &[tenant.map_or("", Tenant::as_str), queue, own]);
    tag.truncate(TAG);
    tag
}

/// SHA-256 in hexadecimal, each part behind its length so that none runs into the next.
fn hash(of: &str, parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in [of].iter().chain(parts) {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn tenant(name: &str) -> Tenant {
        name.parse().unwrap()
    }

    #[test]
    fn an_id_is_of_one_tenant_and_one_queue() {
        let (a, b) = (tenant("a"), tenant("b"));
        let id = fresh(Some(&a), "jobs");
        assert!(is_of(&id, Some(&a), "jobs"));
        assert!(!is_of(&id, Some(&b), "jobs") && !is_of(&id, None, "jobs"));
        assert!(!is_of(&id, Some(&a), "others"));
        assert_ne!(id, fresh(Some(&a), "jobs"));
        assert!(!is_of(&JobId::fresh(), None, "jobs"), "an id of another producer");
    }

    #[test]
    fn a_name_that_is_chosen_gives_the_same_id_to_one_tenant_and_another_to_each() {
        let (a, b) = (tenant("a"), tenant("b"));
        let id = named("order-7", Some(&a), "jobs").unwrap();
        assert_eq!(id.as_str(), "order-7.6f306546a5869c93e189f19f1a124a3c");
        assert_ne!(id, named("order-7", Some(&b), "jobs").unwrap());
        assert!(named(&"x".repeat(250), None, "jobs").is_err() && named("a b", None, "q").is_err());
    }

    #[test]
    fn a_key_is_as_it_was_chosen_where_there_are_no_tenants() {
        assert_eq!((key("k", None, 0), key("k", None, 2)), ("k".to_owned(), "k#2".to_owned()));
        let of = |name: &str, nth| key("k", Some(&tenant(name)), nth);
        let keys = [of("a", 0), of("a", 1), of("b", 0), of("b", 1)];
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert!(distinct.len() == 4 && keys.iter().all(|key| key.len() == 64));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_id_is_of_two_places(
            own in "[!-~]{1,40}", a in "[a-z]{1,3}", b in "[a-z]{1,3}", q in "[a-z]{1,3}", r in "[a-z]{1,3}",
        ) {
            let id = named(&own, Some(&tenant(&a)), &q).unwrap();
            prop_assert!(is_of(&id, Some(&tenant(&a)), &q));
            prop_assert_eq!(is_of(&id, Some(&tenant(&b)), &r), a == b && q == r);
        }

        #[test]
        fn what_somebody_made_up_is_of_nobody(id in "[!-~]{1,80}") {
            prop_assert!(!is_of(&id.parse().unwrap(), None, "jobs"));
        }
    }
}
