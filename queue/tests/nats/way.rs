//! A way to a server that can be cut, or held up, while the server goes on for others.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

/// What is done to the words of a client on their way.
#[derive(Default)]
struct Done {
    /// These are held back once, and for so long.
    held: Option<(&'static str, Duration)>,
    /// In place of the first the second are passed on, which are as long.
    changed: Option<(&'static str, &'static str)>,
    /// Kept since somebody wants to count them.
    said: Option<Vec<u8>>,
}

type Shared = Arc<Mutex<Done>>;

/// What clients said to a server.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counted {
    pub n_subs: usize,
    pub n_unsubs: usize,
    pub n_requests: usize,
}

pub struct Way {
    pub port: u16,
    is_open: watch::Sender<bool>,
    done: Shared,
    let_go: Arc<Notify>,
}

impl Way {
    /// Leads to this port; it lasts as long as the runtime.
    pub async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (is_open, mut watched) = watch::channel(true);
        let (done, let_go) = (Shared::default(), Arc::new(Notify::new()));
        let way = Self { port, is_open, done: done.clone(), let_go: let_go.clone() };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if !*watched.borrow_and_update() {
                    continue;
                }
                let (mut watched, done) = (watched.clone(), done.clone());
                let let_go = let_go.clone();
                tokio::spawn(async move {
                    // At the end of a test it may be gone.
                    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else {
                        return;
                    };
                    let ((from, mut back), (mut answers, to)) =
                        (client.into_split(), server.into_split());
                    tokio::select! {
                        () = ask(from, to, (done, let_go)) => {}
                        _ = copy(&mut answers, &mut back) => {}
                        _ = watched.changed() => {}
                    }
                });
            }
        });
        way
    }

    /// Ends all connections, and lets none in.
    pub fn cut(&self) {
        self.is_open.send_replace(false);
    }

    pub fn mend(&self) {
        self.is_open.send_replace(true);
    }

    /// Holds up the next client that says these words, once and for so long.
    pub fn hold(&self, words: &'static str, span: Duration) {
        self.done.lock().unwrap().held = Some((words, span));
    }

    /// What is held up goes on.
    pub fn let_go(&self) {
        self.let_go.notify_one();
    }

    /// From now on passes on other words, as long, in place of these.
    pub fn change(&self, words: &'static str, others: &'static str) {
        assert_eq!(words.len(), others.len());
        self.done.lock().unwrap().changed = Some((words, others));
    }

    /// Counts from now on what clients say.
    pub fn count(&self) {
        self.done.lock().unwrap().said = Some(Vec::new());
    }

    /// How many lines that begin with these words clients said, since they are counted.
    pub fn n_said(&self, words: &str) -> usize {
        let done = self.done.lock().unwrap();
        let said = String::from_utf8_lossy(done.said.as_deref().unwrap_or_default());
        said.split("\r\n").filter(|line| line.starts_with(words)).count()
    }

    /// How often clients subscribed and how often they sent a request, since they are counted.
    pub fn counted(&self) -> Counted {
        let done = self.done.lock().unwrap();
        let said = String::from_utf8_lossy(done.said.as_deref().unwrap_or_default());
        let mut counted = Counted::default();
        for line in said.split("\r\n") {
            let is_request = line.contains(" _INBOX.");
            match line.split(' ').next() {
                Some("SUB") => counted.n_subs += 1,
                Some("UNSUB") => counted.n_unsubs += 1,
                Some("PUB" | "HPUB") if is_request => counted.n_requests += 1,
                _ => {}
            }
        }
        counted
    }

    /// Whether nobody said them yet.
    pub fn holds(&self) -> bool {
        self.done.lock().unwrap().held.is_some()
    }
}

/// Passes on what a client says, until it ends.
async fn ask(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    (done, let_go): (Shared, Arc<Notify>),
) {
    let mut said = Vec::with_capacity(64 << 10);
    while let Ok(1..) = from.read_buf(&mut said).await {
        let words = |done: &Done| [done.held.map(|held| held.0), done.changed.map(|(old, _)| old)];
        let watched = words(&done.lock().unwrap());
        if watched.into_iter().flatten().any(|words| ends_within(&said, words)) {
            // The rest of them comes.
            continue;
        }
        let is_held = |(words, _): &mut (&str, Duration)| place(&said, words).is_some();
        let span = done.lock().unwrap().held.take_if(is_held).map(|(_, span)| span);
        if let Some(span) = span {
            drop(timeout(span, let_go.notified()).await);
        }
        let changed = done.lock().unwrap().changed;
        if let Some((words, others)) = changed {
            while let Some(at) = place(&said, words) {
                said[at..at + words.len()].copy_from_slice(others.as_bytes());
            }
        }
        if let Some(all) = &mut done.lock().unwrap().said {
            all.extend_from_slice(&said);
        }
        if to.write_all(&said).await.is_err() {
            return;
        }
        said.clear();
    }
}

/// Whether it ends with the begin of these words, and not with all of them.
fn ends_within(said: &[u8], words: &str) -> bool {
    (1..words.len()).any(|n_bytes| said.ends_with(&words.as_bytes()[..n_bytes]))
}

/// Where these words begin.
fn place(said: &[u8], words: &str) -> Option<usize> {
    said.windows(words.len()).position(|part| part == words.as_bytes())
}

#[test]
fn words_that_come_in_two_parts_are_changed_all_the_same() {
    crate::block_on(async {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let way = Way::to(server.local_addr().unwrap().port()).await;
        way.change("SUB one", "SUB two");
        let mut client = TcpStream::connect(("127.0.0.1", way.port)).await.unwrap();
        let (mut there, _) = server.accept().await.unwrap();
        client.set_nodelay(true).unwrap();
        for part in ["SUB on", "e 1\r\n"] {
            client.write_all(part.as_bytes()).await.unwrap();
            sleep(Duration::from_millis(100)).await;
        }
        let mut told = [0; b"SUB two 1\r\n".len()];
        there.read_exact(&mut told).await.unwrap();
        assert_eq!(&told, b"SUB two 1\r\n");
    });
}
