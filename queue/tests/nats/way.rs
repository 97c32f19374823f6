//! A way to a server that can be cut, or held up, while the server goes on for others.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

/// Words of a client that are held back once, and for how long.
type Held = Arc<Mutex<Option<(&'static str, Duration)>>>;

pub struct Way {
    pub port: u16,
    is_open: watch::Sender<bool>,
    held: Held,
}

impl Way {
    /// Leads to this port; it lasts as long as the runtime.
    pub async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (is_open, mut watched) = watch::channel(true);
        let held = Held::default();
        let way = Self { port, is_open, held: held.clone() };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if !*watched.borrow_and_update() {
                    continue;
                }
                let (mut watched, held) = (watched.clone(), held.clone());
                tokio::spawn(async move {
                    let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                    let ((from, mut back), (mut answers, to)) =
                        (client.into_split(), server.into_split());
                    tokio::select! {
                        () = ask(from, to, held) => {}
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
        *self.held.lock().unwrap() = Some((words, span));
    }

    /// Whether nobody said them yet.
    pub fn holds(&self) -> bool {
        self.held.lock().unwrap().is_some()
    }
}

/// Passes on what a client says, until it ends.
async fn ask(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, held: Held) {
    let mut said = vec![0; 64 << 10];
    while let Ok(n_bytes @ 1..) = from.read(&mut said).await {
        let said = &said[..n_bytes];
        let is_held = |(words, _): &mut (&str, Duration)| {
            said.windows(words.len()).any(|part| part == words.as_bytes())
        };
        let span = held.lock().unwrap().take_if(is_held).map(|(_, span)| span);
        if let Some(span) = span {
            sleep(span).await;
        }
        if to.write_all(said).await.is_err() {
            return;
        }
    }
}
