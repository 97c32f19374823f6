//! The configuration from disk, at the start and again whenever it changes: the file, and the
//! secrets that it names.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use ebb_queue::{Address, QueueUrl, Server};
use ebb_telemetry::Condition;
use tokio::sync::watch;

use crate::file::{Draft, File, FileError, Section};
use crate::metrics::{Files, Metrics};
use crate::profiles::{DEFAULT_PROFILE, Profile, Profiles};
use crate::trigger::{MODE, Options};

/// A configuration file is read whole.
const MAX_FILE: u64 = 1 << 20;

/// Where the connection profiles come from.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// The configuration file.
    pub(crate) file: Option<PathBuf>,
    /// The profile `default`, unless the file has one.
    pub(crate) queue: Option<QueueUrl>,
}

impl Source {
    /// Reads the file and the secrets that it names.
    ///
    /// # Errors
    /// Names the file, the line, the key and the remedy, and no secret.
    pub(crate) fn load(&self) -> anyhow::Result<Profiles> {
        let Some(path) = &self.file else {
            let queue = self.queue.clone();
            return Ok(queue.map(single).unwrap_or_default());
        };
        let shown = path.display();
        let text = read(path).with_context(|| format!("--config: {shown}"))?;
        let mut profiles = profiles(&text).with_context(|| format!("--config: {shown}"))?;
        if let Some(queue) = &self.queue {
            if profiles.by_name.contains_key(DEFAULT_PROFILE) {
                bail!(
                    "--queue and the profile default of {shown} are the same profile; keep one \
                     of them"
                );
            }
            profiles.by_name.extend(single(queue.clone()).by_name);
        }
        if profiles.by_name.is_empty() {
            bail!("--config: {shown} has no profile; write [profiles.default] with its url");
        }
        Ok(profiles)
    }

    /// Looks again and again, and tells what has changed. A configuration that is broken is logged
    /// once and counted, and the one before it stays; that it is mended is logged too.
    pub(crate) async fn follow(
        self,
        every: Duration,
        profiles: watch::Sender<Arc<Profiles>>,
        metrics: Metrics,
    ) {
        let now = Arc::clone(&profiles.borrow());
        let found = |condition: Condition<'_>| {
            metrics.found(Files::Config, condition);
            match condition {
                Condition::Broken(error) => {
                    tracing::error!(error, "configuration is broken; what was before it stays");
                }
                Condition::Mended => tracing::info!("configuration is no longer broken"),
            }
        };
        // Why a part of it was not taken.
        let withheld: Mutex<Option<String>> = Mutex::default();
        let withheld = || withheld.lock().unwrap_or_else(PoisonError::into_inner);
        let take = |_: &Arc<Profiles>, after: &Arc<Profiles>| {
            let before = Arc::clone(&profiles.borrow());
            let (taken, error) = with_secrets(&before, after);
            let error = error.map(|error| error.to_string());
            let told = std::mem::replace(&mut *withheld(), error.clone());
            if taken != before {
                for profile in with_another_mode(&before, &taken) {
                    tracing::warn!(
                        profile,
                        "mode changed in the defaults, and with it the names of metrics: before \
                         2.21 KEDA has the HPA ask for the old ones until its ScaledObjects are \
                         read again; change something in their spec, or restart KEDA's operator"
                    );
                }
                profiles.send_replace(taken);
                metrics.reloaded(Files::Config);
                tracing::info!("configuration changed");
            }
            if error != told {
                found(error.as_deref().map_or(Condition::Mended, Condition::Broken));
            }
            Ok(())
        };
        let tell = |condition: Condition<'_>| match &*withheld() {
            Some(error) if condition == Condition::Mended => found(Condition::Broken(error)),
            _ => found(condition),
        };
        let load = move || self.load().map(Arc::new);
        ebb_telemetry::follow(now, every, load, take, tell).await;
    }
}

/// The profiles whose defaults, or those of a queue, name another mode than before.
fn with_another_mode<'a>(before: &Profiles, after: &'a Profiles) -> Vec<&'a str> {
    let modes = |profile: &Profile| -> BTreeMap<Option<String>, String> {
        let of_queues = profile.queues.iter().map(|(queue, options)| (Some(queue), options));
        let all = of_queues.chain([(None, &profile.defaults)]);
        let mode = |options: &Options| options.get(MODE).map_or("", |mode| mode.trim()).to_owned();
        all.map(|(queue, options)| (queue.cloned(), mode(options)))
            .filter(|(_, mode)| !mode.is_empty())
            .collect()
    };
    let is_another = |(name, profile): &(&'a String, &'a Arc<Profile>)| {
        before.by_name.get(*name).is_some_and(|before| modes(before) != modes(profile))
    };
    after.by_name.iter().filter(is_another).map(|(name, _)| name.as_str()).collect()
}

/// A secret that has changed must be there: somebody may be replacing it. A profile whose secret is
/// not stays as it was, says why, and keeps nothing else of the change from being taken.
fn with_secrets(
    before: &Arc<Profiles>,
    after: &Arc<Profiles>,
) -> (Arc<Profiles>, Option<anyhow::Error>) {
    let mut taken = Arc::clone(after);
    let mut error = None;
    for (name, profile) in &after.by_name {
        let Some(before) = before.by_name.get(name) else { continue };
        let secrets = if before.files == profile.files { vec![] } else { secrets(&profile.url) };
        if let Some(path) = secrets.into_iter().find(|path| is_unreadable(path)) {
            let words = format!("profile {name}: {} cannot be read, or is empty", path.display());
            error.get_or_insert_with(|| anyhow::anyhow!(words));
            Arc::make_mut(&mut taken).by_name.insert(name.clone(), Arc::clone(before));
        }
    }
    (taken, error)
}

/// The profile of the command line, whose secrets are followed as those of a file's profiles are.
fn single(url: QueueUrl) -> Profiles {
    let files = digest(&url);
    let profile = Profile { files, ..Profile::new(DEFAULT_PROFILE, url) };
    let by_name = BTreeMap::from([(DEFAULT_PROFILE.to_owned(), Arc::new(profile))]);
    Profiles { by_name, policy: None }
}

fn profiles(text: &str) -> anyhow::Result<Profiles> {
    let file = File::parse(text)?;
    let mut by_name = BTreeMap::new();
    for (name, draft) in file.profiles {
        let profile = profile(&name, draft)?;
        by_name.insert(name, Arc::new(profile));
    }
    Ok(Profiles { by_name, policy: file.policy })
}

fn profile(name: &str, draft: Draft) -> anyhow::Result<Profile> {
    let Draft { line, address, defaults, queues } = draft;
    let url = address.read("url").with_context(|| format!("line {line}: profile {name}"))?;
    let lines: BTreeMap<String, usize> =
        queues.iter().map(|(queue, section)| (queue.clone(), section.line)).collect();
    let files = digest(&url);
    let options = |(queue, section): (String, Section)| (queue, section.options);
    let profile = Profile {
        files,
        defaults: defaults.options,
        queues: queues.into_iter().map(options).collect(),
        ..Profile::new(name, url)
    };
    if let Err((queue, error)) = profile.check() {
        let of_queue = queue.and_then(|queue| lines.get(queue));
        let line = of_queue.copied().unwrap_or(defaults.line);
        let place = queue.map_or("defaults".to_owned(), |queue| format!("queues.{queue}"));
        let words = format!("profiles.{name}.{place}: {}", error.words());
        return Err(FileError { line, words }.into());
    }
    Ok(profile)
}

fn read(path: &Path) -> anyhow::Result<String> {
    let n_bytes = fs::metadata(path).context("cannot be read")?.len();
    if n_bytes > MAX_FILE {
        bail!("{n_bytes} bytes are too many; use {MAX_FILE} at most");
    }
    fs::read_to_string(path).context("cannot be read")
}

/// Changes with what stands in the files that say who we are to the broker. At the start, one that
/// cannot be read is for the connect to complain of.
fn digest(url: &QueueUrl) -> u64 {
    let mut hasher = DefaultHasher::new();
    for path in secrets(url) {
        fs::read(path).unwrap_or_default().hash(&mut hasher);
    }
    hasher.finish()
}

fn is_unreadable(path: &Path) -> bool {
    fs::read(path).map_or(true, |bytes| bytes.is_empty())
}

/// The files that say who we are to the broker, and whom we trust.
fn secrets(url: &QueueUrl) -> Vec<&PathBuf> {
    let (server, keys) = match &url.address {
        Address::Sqlite { .. } => return Vec::new(),
        Address::Nats(nats) => (&nats.server, [nats.creds.as_ref(), nats.nkey.as_ref()]),
        Address::Amqp(amqp) => (&amqp.server, [None, None]),
        Address::Redis(redis) => (&redis.server, [None, None]),
    };
    let Server { password_file, tls, .. } = server;
    let tls = tls.iter().flat_map(|tls| {
        let identity = tls.identity.iter().flat_map(|(cert, key)| [cert, key]);
        tls.ca.iter().chain(identity)
    });
    keys.into_iter().flatten().chain(password_file).chain(tls).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use ebb_queue::QueueUrl;

    use super::{Source, with_another_mode, with_secrets};
    use crate::profiles::Profiles;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        }

        fn load(&self, text: &str) -> Result<Profiles, String> {
            let source = Source { file: Some(self.write("scaler.toml", text)), queue: None };
            source.load().map_err(|error| format!("{error:#}"))
        }
    }

    #[test]
    fn an_address_is_taken_from_the_file_from_another_and_from_the_environment() {
        let folder = Folder::new();
        let secret = folder.write("night", "redis://:hunter2@night\n");
        let text = format!(
            "[profiles.day]\nurl = \"sqlite:/data/q.db\"\n\
             [profiles.night]\nurl_file = {secret:?}\n\
             [profiles.env]\nurl_env = \"EBB_TEST_NO_SUCH_VARIABLE\"\n"
        );
        let told = folder.load(&text).unwrap_err();
        let expected = "line 5: profile env: url_env: the variable EBB_TEST_NO_SUCH_VARIABLE";
        assert!(told.contains(expected), "{told}");

        let profiles = folder.load(text.split("[profiles.env]").next().unwrap()).unwrap();
        assert_eq!(profiles.by_name["day"].url, QueueUrl::sqlite("/data/q.db"));
        assert!(profiles.by_name["night"].url.with_secrets().contains("hunter2"));
        assert!(!format!("{profiles:?}").contains("hunter2"));
    }

    #[test]
    fn a_url_in_the_place_of_a_name_is_told_without_its_password() {
        let folder = Folder::new();
        for (key, wanted) in [("url_env", "name of a variable"), ("url_file", "path of a file")] {
            for url in ["redis://:hunter2@host", "redis:hunter2@host"] {
                let told = folder.load(&format!("[profiles.a]\n{key} = \"{url}\"")).unwrap_err();
                assert!(told.contains(&format!("{key} is the {wanted}")), "{told}");
                assert!(told.contains("belongs into `url`") && !told.contains("hunter2"), "{told}");
            }
        }
    }

    #[test]
    fn a_secret_that_is_rotated_changes_the_profile_and_nothing_else_does() {
        let folder = Folder::new();
        let password = folder.write("password", "one");
        let text =
            format!("[profiles.a]\nurl = \"redis://host?password_file={}\"\n", password.display());
        let before = folder.load(&text).unwrap();
        assert_eq!(folder.load(&text).unwrap(), before);
        assert_eq!(folder.load(&format!("# a remark\n{text}")).unwrap(), before);
        folder.write("password", "two");
        assert_ne!(folder.load(&text).unwrap(), before);
    }

    #[test]
    fn a_secret_of_the_command_lines_queue_changes_its_profile_too() {
        let folder = Folder::new();
        let password = folder.write("password", "one");
        let queue: QueueUrl =
            format!("redis://host?password_file={}", password.display()).parse().unwrap();
        let file = folder.write("scaler.toml", "[profiles.night]\nurl = \"sqlite:/data/n.db\"\n");
        for file in [None, Some(file)] {
            folder.write("password", "one");
            let source = Source { file, queue: Some(queue.clone()) };
            let before = source.load().unwrap();
            assert_eq!(source.load().unwrap(), before);
            folder.write("password", "two");
            assert_ne!(source.load().unwrap(), before);
        }
    }

    #[test]
    fn a_change_is_taken_once_its_secrets_can_be_read() {
        let folder = Folder::new();
        let password = folder.write("password", "one");
        let text =
            format!("[profiles.a]\nurl = \"redis://host?password_file={}\"\n", password.display());
        let now = Arc::new(folder.load(&text).unwrap());
        let policy = "[[policy]]\nnamespaces = [\"ml\"]\nprofiles = [\"a\"]\n";
        let load = || Arc::new(folder.load(&format!("{text}{policy}")).unwrap());
        let taken = || with_secrets(&now, &load());
        assert!(taken().1.is_none());
        folder.write("password", "");
        let (profiles, told) = taken();
        let told = told.unwrap().to_string();
        assert!(told.contains("profile a") && told.contains("password cannot be read"), "{told}");
        // That one profile stays, and the policy is the new one.
        assert_eq!(profiles.by_name, now.by_name);
        assert!(now.policy.is_none() && profiles.policy.is_some());
        std::fs::remove_file(&password).unwrap();
        assert!(taken().1.is_some());
        folder.write("password", "two");
        let (profiles, told) = taken();
        assert!(told.is_none() && profiles == load() && profiles.by_name != now.by_name);
    }

    #[test]
    fn a_change_of_the_mode_is_told_with_its_profile() {
        let folder = Folder::new();
        let load = |of_profile: &str, of_queue: &str| {
            let url = "url = \"sqlite:/data/q.db\"";
            let rest =
                format!("[profiles.b.defaults]\n{of_profile}[profiles.b.queues.q]\n{of_queue}");
            folder.load(&format!("[profiles.a]\n{url}\n[profiles.b]\n{url}\n{rest}")).unwrap()
        };
        let before = load("", "");
        let jobs = load("jobsPerReplica = 4\n", "");
        let (drain, of_queue) = (load("mode = \"drain\"\n", ""), load("", "mode = \"drain\"\n"));
        assert!(with_another_mode(&before, &jobs).is_empty());
        assert_eq!(with_another_mode(&before, &drain), ["b"]);
        assert_eq!(with_another_mode(&drain, &before), ["b"]);
        assert_eq!(with_another_mode(&before, &of_queue), ["b"]);
    }

    #[test]
    fn the_queue_of_the_command_line_is_the_default_profile() {
        let folder = Folder::new();
        let queue = Some(QueueUrl::sqlite("/data/q.db"));
        let file = folder.write("scaler.toml", "[profiles.night]\nurl = \"sqlite:/data/n.db\"\n");
        let source = Source { file: Some(file), queue };
        let names: Vec<_> = source.load().unwrap().by_name.into_keys().collect();
        assert_eq!(names, ["default", "night"]);
        folder.write("scaler.toml", "[profiles.default]\nurl = \"sqlite:/data/n.db\"\n");
        let told = source.load().unwrap_err().to_string();
        assert!(told.contains("--queue") && told.contains("keep one"), "{told}");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_no_secret() {
        let folder = Folder::new();
        let url = "url = \"redis://:hunter2@host\"";
        let password = folder.write("password", "hunter2");
        let cases = [
            (String::new(), "has no profile; write [profiles.default]"),
            (
                "[profiles.a]\nurl = \"redis://:hunter2@host?colour=red\"".to_owned(),
                "line 1: profile a: url: option colour is not known",
            ),
            ("[profiles.a]\nurl_file = \"/no/such/file\"".to_owned(), "url_file: /no/such/file"),
            (format!("[profiles.a]\nurl_file = {password:?}"), "it has no scheme"),
            (
                format!("[profiles.a]\n{url}\n[profiles.a.defaults]\n\njobPerReplica = 1"),
                "line 3: profiles.a.defaults: key \"jobPerReplica\" is not known; use jobsPerReplica",
            ),
            (
                format!("[profiles.a]\n{url}\n\n[profiles.a.queues.q]\nmode = \"x\""),
                "line 4: profiles.a.queues.q: mode: \"x\" is not valid",
            ),
        ];
        for (text, expected) in cases {
            let told = folder.load(&text).unwrap_err();
            assert!(told.contains(expected), "{told}");
            assert!(told.contains("--config") && told.contains("scaler.toml"), "{told}");
            assert!(!told.contains("hunter2"), "{told}");
        }
    }
}
