//! HTTP by hand, as plain as it gets: a probe's GET, and a server of files that stands for a hub.

use std::hash::{Hash, Hasher};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::PATIENCE;

/// What a request was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The page.
    pub body: String,
}

/// Asks for a page; none when nobody listens or the answer is cut short.
pub fn get(address: &str, path: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").ok()?;
    answer(&mut stream)
}

/// Sends a request with a body and waits for the whole answer, as long as the tests have patience; none
/// when nobody listens or the answer is cut short.
pub fn ask(
    method: &str,
    address: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Option<Answer> {
    answer(&mut send(method, address, path, headers, body)?)
}

/// Sends a request with a body.
fn send(
    method: &str,
    address: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let headers: String =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let n_bytes = body.len();
    // By the older version, so that a stream is not told in chunks but up to its end.
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nhost: {address}\r\n{headers}content-length: {n_bytes}\r\n\r\n{body}"
    )
    .ok()?;
    Some(stream)
}

/// A response that is read while it is written.
#[derive(Debug)]
pub struct Reading {
    stream: BufReader<TcpStream>,
    heard: String,
}

impl Reading {
    /// Sends a request with a body, in JSON; none when nobody listens.
    pub fn begin(method: &str, address: &str, path: &str, body: &str) -> Option<Self> {
        let json = [("content-type", "application/json")];
        let stream = BufReader::new(send(method, address, path, &json, body)?);
        Some(Self { stream, heard: String::new() })
    }

    /// Reads on until all that was heard, head included, has an answer for `look`; panics when the
    /// response ends or is silent before.
    #[track_caller]
    pub fn until<T>(&mut self, what: &str, mut look: impl FnMut(&str) -> Option<T>) -> T {
        loop {
            if let Some(answer) = look(&self.heard) {
                return answer;
            }
            let n = self.stream.read_line(&mut self.heard);
            assert!(n.is_ok_and(|n| n > 0), "{what} is never told:\n{}", self.heard);
        }
    }

    /// Reads to the end; all that was heard, head included. Panics when nothing comes for as long as the
    /// tests have patience.
    #[track_caller]
    pub fn rest(mut self) -> String {
        if let Err(error) = self.stream.read_to_string(&mut self.heard) {
            panic!("{error} behind:\n{}", self.heard);
        }
        self.heard
    }
}

fn answer(stream: &mut TcpStream) -> Option<Answer> {
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    let (head, body) = page.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

/// Serves the files of a folder by URL path on a free local port, and keeps what was asked.
#[derive(Debug)]
pub struct FileServer {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl FileServer {
    /// Starts serving; what is not in the folder is answered 404. Serves until the test ends.
    pub fn start(folder: impl Into<PathBuf>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a local port is free");
        let address = listener.local_addr().expect("a bound listener has an address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (folder, log) = (folder.into(), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client may hang up in the middle of a page.
                drop(serve(stream, &folder, &log));
            }
        });
        Self { address, asked }
    }

    /// Where it serves, as a URL without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The paths asked for so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("the server does not panic").clone()
    }
}

fn serve(mut stream: TcpStream, folder: &Path, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    lines.read_line(&mut first)?;
    let mut header = String::new();
    while lines.read_line(&mut header)? > 2 {
        header.clear();
    }
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or("/"));
    let path = target.split('?').next().unwrap_or("/").to_owned();
    log.lock().expect("the server does not panic").push(path.clone());
    let relative = path.trim_start_matches('/');
    let inside = !relative.split('/').any(|part| part == "..");
    let file = if inside { std::fs::read(folder.join(relative)).ok() } else { None };
    let (status, page) = file.map_or(("404 Not Found", Vec::new()), |page| ("200 OK", page));
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n", page.len())?;
    // Another content, another tag, and no hash that a client could check: that is its own affair.
    let mut hash = std::hash::DefaultHasher::new();
    page.hash(&mut hash);
    write!(stream, "etag: \"tag-{:x}\"\r\nconnection: close\r\n\r\n", hash.finish())?;
    if method != "HEAD" {
        stream.write_all(&page)?;
    }
    stream.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_served_and_nothing_outside_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        std::fs::write(folder.path().join("a/b.txt"), "hello").unwrap();
        let server = FileServer::start(folder.path().join("a"));
        let address = server.url().replace("http://", "");
        let found = Answer { status: 200, body: "hello".to_owned() };
        assert_eq!(get(&address, "/b.txt?download=true"), Some(found));
        assert_eq!(get(&address, "/c.txt").unwrap().status, 404);
        assert_eq!(get(&address, "/../a/b.txt").unwrap().status, 404);
        assert_eq!(server.asked(), ["/b.txt", "/c.txt", "/../a/b.txt"]);
    }
}
