//! Who proves itself by a key: an nkey in the server's list, and credentials that an operator signed.

use std::io::Write;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ebb_queue::ErrorKind;
use ebb_servers::{Nats, NatsOptions};
use nkeys::KeyPair;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::{VERSIONS, block_on, job, receive, refusal, try_open, until_ok};

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    writeln!(file, "{text}").unwrap();
    file
}

/// A server with more in its configuration, on each version that is supported.
fn on_each_with(config: &str, test: impl AsyncFn(String)) {
    for version in VERSIONS {
        block_on(async {
            let extra_config = config.to_owned();
            let options = NatsOptions { version, extra_config, ..NatsOptions::default() };
            let server = Nats::start(options).await.unwrap();
            test(format!("nats://127.0.0.1:{}", server.port())).await;
        });
    }
}

/// That a job goes in and comes out.
async fn is_served(url: &str) {
    let queue = try_open(url).await.unwrap();
    queue.publish(vec![job("a")]).await.unwrap();
    assert_eq!(receive(&queue, 9).await.unwrap().len(), 1);
}

#[test]
fn an_nkey_is_let_in_and_another_is_not() {
    let (ours, other) = (KeyPair::new_user(), KeyPair::new_user());
    let config = format!("authorization {{ users: [ {{ nkey: {} }} ] }}\n", ours.public_key());
    on_each_with(&config, async |bare| {
        let (ours, other) = (file(&ours.seed().unwrap()), file(&other.seed().unwrap()));
        is_served(&format!("{bare}?nkey={}", ours.path().display())).await;
        let error = refusal(&format!("{bare}?nkey={}", other.path().display())).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.to_string().contains("does not let in the key in"), "{error}");
        let error = refusal(&format!("{bare}?nkey=/nowhere.nk")).await;
        assert!(error.to_string().contains("/nowhere.nk"), "{error}");
    });
}

/// What an operator or an account signs, in the form of NATS.
fn signed(by: &KeyPair, about: &KeyPair, name: &str, nats: &Value) -> String {
    let claims = json!({
        "jti": name,
        "iat": 1_700_000_000,
        "iss": by.public_key(),
        "sub": about.public_key(),
        "name": name,
        "nats": nats,
    });
    let coded = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let text = format!("{}.{}", coded(&header), coded(&claims));
    let signature = by.sign(text.as_bytes()).unwrap();
    format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

fn account(operator: &KeyPair, key: &KeyPair, name: &str, storage: i64) -> String {
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
        "conn": -1, "leaf": -1, "mem_storage": storage, "disk_storage": storage,
        "streams": storage, "consumer": storage,
    });
    signed(operator, key, name, &json!({ "type": "account", "version": 2, "limits": limits }))
}

/// The file that `nsc` writes.
fn credentials(by: &KeyPair) -> String {
    let user = KeyPair::new_user();
    let claims = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
    let (token, seed) = (signed(by, &user, "worker", &claims), user.seed().unwrap());
    format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
}

#[test]
fn credentials_are_let_in_and_those_of_a_stranger_are_not() {
    let operator = KeyPair::new_operator();
    let [system, ours, stranger] = [(); 3].map(|()| KeyPair::new_account());
    let operator_claims = json!({ "type": "operator", "version": 2 });
    let config = format!(
        "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{\n  {}: {}\n  {}: {}\n}}\n",
        signed(&operator, &operator, "operator", &operator_claims),
        system.public_key(),
        system.public_key(),
        account(&operator, &system, "SYS", 0),
        ours.public_key(),
        account(&operator, &ours, "ours", -1),
    );
    on_each_with(&config, async |bare| {
        let (good, bad) = (file(&credentials(&ours)), file(&credentials(&stranger)));
        is_served(&format!("{bare}?creds={}", good.path().display())).await;
        let error = refusal(&format!("{bare}?creds={}", bad.path().display())).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.to_string().contains("does not let in the credentials in"), "{error}");
        let none = file("nothing of the kind");
        let error = refusal(&format!("{bare}?creds={}", none.path().display())).await;
        assert!(error.to_string().contains("holds no credentials"), "{error}");
    });
}

#[test]
fn a_key_that_is_rotated_is_read_anew() {
    let (old, new) = (KeyPair::new_user(), KeyPair::new_user());
    let deny = r#"permissions: { publish: { deny: ["ebb.jobs.jobs.>"] } }"#;
    let extra_config = format!(
        "authorization {{ users: [ {{ nkey: {}, {deny} }}, {{ nkey: {} }} ] }}\n",
        old.public_key(),
        new.public_key()
    );
    for version in VERSIONS {
        block_on(async {
            let extra_config = extra_config.clone();
            let options = NatsOptions { version, extra_config, ..NatsOptions::default() };
            let mut server = Nats::start(options).await.unwrap();
            let key = file(&old.seed().unwrap());
            let bare = format!("nats://127.0.0.1:{}", server.port());
            let queue = try_open(&format!("{bare}?nkey={}", key.path().display())).await.unwrap();
            let error = queue.publish(vec![job("a")]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
            std::fs::write(key.path(), new.seed().unwrap()).unwrap();
            server.restart().await.unwrap();
            until_ok(async || queue.publish(vec![job("a")]).await).await;
        });
    }
}
