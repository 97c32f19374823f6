//! The ids and idempotency keys of jobs that come in here: bound to whose they are. Pure.
//!
//! An id is `OWN.TAG`: a name that is new, or that the client chose, and the first half of an
//! HMAC-SHA-256 of that name, of the tenant and of the model. The id as a whole is what the broker knows.
//! Who asks for a job by an id must have the tenant by which its tag comes out, and the tenant comes from
//! the caller's key: so an id of another tenant is unknown. The secret of the HMAC is the gateway's, and
//! the same in all replicas: so an id that was made up, even for one's own tenant, is unknown too. And
//! the id says on which model's queue the job is.

use std::sync::Arc;

use ebb_queue::{JobId, Result};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::keys::Tenant;

/// Letters of a tag, and of a name that is made of an idempotency key.
const TAG: usize = 32;

/// What the hashes begin with: a change of what they are of changes these.
const OF_IDS: &str = "ebb-gateway id 2";
const OF_KEYS: &str = "ebb-gateway key 2";
const OF_NAMES: &str = "ebb-gateway name 1";

/// Makes ids, and knows those that it has made.
#[derive(Clone, Default)]
pub struct Ids(Arc<[u8]>);

/// Not the secret.
impl std::fmt::Debug for Ids {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ids").finish_non_exhaustive()
    }
}

impl Ids {
    /// With this secret, which all replicas have. The default has none: then anybody can make ids up,
    /// which does no harm where everybody may see all jobs.
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        Self(secret.into())
    }

    /// An id that nobody has.
    pub(crate) fn fresh(&self, tenant: Option<&Tenant>, model: &str) -> JobId {
        let own = JobId::fresh();
        self.named(own.as_str(), tenant, model).unwrap_or(own)
    }

    /// The id of a job that its client calls so; the same each time.
    ///
    /// # Errors
    /// When that is no name, or too long a one.
    pub(crate) fn named(&self, own: &str, tenant: Option<&Tenant>, model: &str) -> Result<JobId> {
        format!("{own}.{}", self.tag(own, tenant, model)).parse()
    }

    /// The name in what a client says for one: it may say an id that it was told, and means the same job.
    pub(crate) fn own<'a>(&self, said: &'a str, tenant: Option<&Tenant>, model: &str) -> &'a str {
        let (own, tag) = said.rsplit_once('.').unwrap_or((said, ""));
        if self.is_tag(tag, own, tenant, model) { own } else { said }
    }

    /// The id of the job of this number with an idempotency key, so that two of one key are one job for
    /// the store of results, whatever the broker knows.
    ///
    /// # Errors
    /// Never: the name is made of digits.
    pub(crate) fn of_key(
        &self,
        chosen: &str,
        tenant: Option<&Tenant>,
        model: &str,
        nth: usize,
    ) -> Result<JobId> {
        let parts = [tenant.map_or("", Tenant::as_str), chosen, &nth.to_string()];
        let mut own = hash(OF_NAMES, &parts);
        own.truncate(TAG);
        self.named(&own, tenant, model)
    }

    /// Whether an id is of a job of this tenant for this model.
    pub(crate) fn is_of(&self, id: &JobId, tenant: Option<&Tenant>, model: &str) -> bool {
        let parts = id.as_str().rsplit_once('.');
        parts.is_some_and(|(own, found)| self.is_tag(found, own, tenant, model))
    }

    fn is_tag(&self, found: &str, own: &str, tenant: Option<&Tenant>, model: &str) -> bool {
        self.tag(own, tenant, model).as_bytes().ct_eq(found.as_bytes()).into()
    }

    fn tag(&self, own: &str, tenant: Option<&Tenant>, model: &str) -> String {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("a secret may have any length");
        // Nobody's jobs are not those of a tenant without a name: there is none.
        let parts = [tenant.map_or("", Tenant::as_str), model, own];
        framed(OF_IDS, &parts, |bytes| mac.update(bytes));
        let mut tag = hex(&mac.finalize().into_bytes());
        tag.truncate(TAG);
        tag
    }
}

/// The idempotency key of the job of this number: two tenants may choose the same one, and one tenant for
/// two models that share a queue. Without a tenant, and for a model that is alone on its queue, it is as
/// it was chosen.
pub(crate) fn key(
    chosen: &str,
    tenant: Option<&Tenant>,
    (model, is_alone): (&str, bool),
    nth: usize,
) -> String {
    let own = if nth == 0 { chosen.to_owned() } else { format!("{chosen}#{nth}") };
    match tenant {
        None if is_alone => own,
        tenant => hash(OF_KEYS, &[tenant.map_or("", Tenant::as_str), model, &own]),
    }
}

/// SHA-256 in hexadecimal.
fn hash(of: &str, parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    framed(of, parts, |bytes| hasher.update(bytes));
    hex(&hasher.finalize())
}

/// Each part behind its length, so that none runs into the next.
fn framed(of: &str, parts: &[&str], mut update: impl FnMut(&[u8])) {
    for part in [of].iter().chain(parts) {
        update(&(part.len() as u64).to_le_bytes());
        update(part.as_bytes());
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn tenant(name: &str) -> Tenant {
        name.parse().unwrap()
    }

    fn ids() -> Ids {
        Ids::new(b"a secret")
    }

    #[test]
    fn an_id_is_of_one_tenant_and_one_model() {
        let (a, b) = (tenant("a"), tenant("b"));
        let id = ids().fresh(Some(&a), "jobs");
        assert!(ids().is_of(&id, Some(&a), "jobs"));
        assert!(!ids().is_of(&id, Some(&b), "jobs") && !ids().is_of(&id, None, "jobs"));
        assert!(!ids().is_of(&id, Some(&a), "others"));
        assert_ne!(id, ids().fresh(Some(&a), "jobs"));
        assert!(!ids().is_of(&JobId::fresh(), None, "jobs"), "an id of another producer");
    }

    #[test]
    fn who_does_not_have_the_secret_makes_no_id_up() {
        let a = tenant("a");
        let made_up = Ids::default().named("x", Some(&a), "jobs").unwrap();
        assert!(!ids().is_of(&made_up, Some(&a), "jobs"));
        assert!(!format!("{:?}", ids()).contains("secret"));
    }

    #[test]
    fn a_name_that_is_chosen_gives_the_same_id_to_one_tenant_and_another_to_each() {
        let (a, b) = (tenant("a"), tenant("b"));
        let named = |own: &str, tenant| ids().named(own, tenant, "jobs");
        let id = named("order-7", Some(&a)).unwrap();
        assert_eq!(id.as_str(), "order-7.f24eaae794a673af610af1d2861cec99");
        let own = |said: &'static str, tenant| ids().own(said, Some(tenant), "jobs").to_owned();
        assert_eq!(own("order-7.f24eaae794a673af610af1d2861cec99", &a), "order-7");
        for other in ["order-7", "order-8.f24eaae794a673af610af1d2861cec99", "order-7.", "."] {
            assert_eq!(own(other, &a), other, "is no id of ours");
        }
        assert_ne!(own("order-7.f24eaae794a673af610af1d2861cec99", &b), "order-7");
        assert_ne!(id, named("order-7", Some(&b)).unwrap());
        assert!(named(&"x".repeat(250), None).is_err() && named("a b", None).is_err());
    }

    #[test]
    fn the_jobs_of_one_idempotency_key_have_ids_of_their_own() {
        let (a, b) = (tenant("a"), tenant("b"));
        let id = |chosen: &str, tenant, nth| ids().of_key(chosen, tenant, "jobs", nth).unwrap();
        let all =
            [id("k", Some(&a), 0), id("k", Some(&a), 1), id("k", Some(&b), 0), id("k", None, 0)];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(all[0], id("k", Some(&a), 0), "the same each time");
        id(&"x".repeat(1000), None, usize::MAX);
    }

    #[test]
    fn a_key_is_as_it_was_chosen_where_there_are_no_tenants() {
        let alone = |nth| key("k", None, ("m", true), nth);
        assert_eq!((alone(0), alone(2)), ("k".to_owned(), "k#2".to_owned()));
        let of = |name: &str, model, nth| key("k", Some(&tenant(name)), (model, true), nth);
        let beside = |model| key("k", None, (model, false), 0);
        let keys = [
            [of("a", "m", 0), of("a", "m", 1), of("b", "m", 0), of("b", "m", 1)],
            [of("a", "n", 0), of("b", "n", 0), beside("m"), beside("n")],
        ];
        let keys = keys.as_flattened();
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert!(distinct.len() == 8 && keys.iter().all(|key| key.len() == 64));
        assert_eq!(of("a", "m", 0), key("k", Some(&tenant("a")), ("m", false), 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_id_is_of_two_places(
            own in "[!-~]{1,40}", a in "[a-z]{1,3}", b in "[a-z]{1,3}", q in "[a-z]{1,3}", r in "[a-z]{1,3}",
        ) {
            let id = ids().named(&own, Some(&tenant(&a)), &q).unwrap();
            prop_assert!(ids().is_of(&id, Some(&tenant(&a)), &q));
            prop_assert_eq!(ids().is_of(&id, Some(&tenant(&b)), &r), a == b && q == r);
        }

        #[test]
        fn what_somebody_made_up_is_of_nobody(id in "[!-~]{1,80}") {
            prop_assert!(!ids().is_of(&id.parse().unwrap(), None, "jobs"));
        }
    }
}
