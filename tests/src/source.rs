//! The files of this repository as text, and Rust sources with all but their code blanked out.

use std::path::PathBuf;
use std::sync::Arc;

use ignore::WalkBuilder;

/// The root of this repository.
pub fn workspace_root() -> PathBuf {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    package.parent().expect("this package lies in the workspace").to_owned()
}

/// The files that git would track; relative to the root, sorted. It reads `.gitignore` by itself, so
/// that the tests pass where git is not installed, and in an unpacked archive.
///
/// # Panics
/// When a folder cannot be read.
pub fn tracked_files() -> Vec<String> {
    let root = workspace_root();
    // What a machine or a checkout ignores for itself says nothing of the project.
    let mut walk = WalkBuilder::new(&root);
    walk.standard_filters(false).git_ignore(true).require_git(false);
    let mut names = Vec::new();
    for entry in walk.filter_entry(|entry| entry.file_name() != ".git").build() {
        let entry = entry.expect("the folders of the checkout can be read");
        if entry.path().is_file() {
            let name = entry.path().strip_prefix(&root).expect("the walk starts at the root");
            names.push(name.to_str().expect("file names are UTF-8").to_owned());
        }
    }
    names.sort();
    names
}

/// A Rust file of this repository.
#[derive(Debug, Clone)]
pub struct Source {
    /// Relative to the root, with forward slashes.
    pub path: String,
    /// The file as it is.
    pub text: Arc<str>,
    /// The same lines and columns with comments, literals and test items blanked.
    pub code: Arc<str>,
    /// How many lines belong to test items.
    pub test_lines: usize,
}

impl Source {
    /// Reads Rust from a text.
    pub fn new(path: &str, text: &str) -> Self {
        let mut code = text.as_bytes().to_vec();
        blank_comments_and_literals(&mut code);
        let test_lines = blank_tests(&mut code);
        let code = String::from_utf8(code).expect("whole characters were blanked");
        Self { path: path.to_owned(), text: text.into(), code: code.into(), test_lines }
    }

    /// `path:line: the line` for each match in the code.
    pub fn matches(&self, pattern: &regex::Regex) -> Vec<String> {
        let place = |found: regex::Match<'_>| {
            let number = self.code[..found.start()].matches('\n').count();
            let line = self.text.lines().nth(number).unwrap_or("").trim();
            format!("{}:{}: {line}", self.path, number + 1)
        };
        pattern.find_iter(&self.code).map(place).collect()
    }

    /// Whether the whole file is a test: an integration test or a test module of its own.
    pub fn is_test(&self) -> bool {
        let mut folders: Vec<&str> = self.path.split('/').collect();
        let name = folders.pop().unwrap_or("");
        folders.iter().skip(1).any(|folder| *folder == "tests") || name == "tests.rs"
    }
}

/// All Rust files of this repository.
pub fn sources() -> Vec<Source> {
    let rust = tracked_files().into_iter().filter(|path| path.ends_with(".rs"));
    let read = |path: String| {
        let text = std::fs::read_to_string(workspace_root().join(&path)).ok()?;
        Some(Source::new(&path, &text))
    };
    rust.filter_map(read).collect()
}

fn blank(bytes: &mut [u8]) {
    bytes.iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
}

fn blank_comments_and_literals(code: &mut [u8]) {
    let mut at = 0;
    while at < code.len() {
        let rest = &code[at..];
        let length = comment(rest).or_else(|| {
            let in_word = at > 0 && (code[at - 1].is_ascii_alphanumeric() || code[at - 1] == b'_');
            if in_word { None } else { raw_string(rest) }
        });
        let length = length.or_else(|| string(rest)).or_else(|| character(rest));
        match length {
            Some(length) => {
                let end = (at + length).min(code.len());
                blank(&mut code[at..end]);
                at = end;
            }
            None => at += 1,
        }
    }
}

fn comment(rest: &[u8]) -> Option<usize> {
    if rest.starts_with(b"//") {
        return Some(rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()));
    }
    if !rest.starts_with(b"/*") {
        return None;
    }
    let (mut depth, mut at) = (1, 2);
    while depth > 0 && at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    Some(at)
}

fn raw_string(rest: &[u8]) -> Option<usize> {
    let prefix = [b"r".as_slice(), b"br", b"cr"].into_iter().find(|p| rest.starts_with(p))?;
    let hashes = rest[prefix.len()..].iter().take_while(|byte| **byte == b'#').count();
    let open = prefix.len() + hashes;
    if rest.get(open) != Some(&b'"') {
        return None;
    }
    let close = [b"\"".as_slice(), "#".repeat(hashes).as_bytes()].concat();
    let body = &rest[open + 1..];
    let end = body.windows(close.len()).position(|window| window == close);
    Some(end.map_or(rest.len(), |end| open + 1 + end + close.len()))
}

fn string(rest: &[u8]) -> Option<usize> {
    if rest.first() != Some(&b'"') {
        return None;
    }
    let mut at = 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    Some(at + 1)
}

/// A character literal; not a lifetime.
fn character(rest: &[u8]) -> Option<usize> {
    if rest.first() != Some(&b'\'') {
        return None;
    }
    if rest.get(1) == Some(&b'\\') {
        let end = rest.iter().skip(3).position(|byte| *byte == b'\'')?;
        return Some(end + 4);
    }
    let first = *rest.get(1)?;
    let width =
        1 + usize::from(first >= 0xc0) + usize::from(first >= 0xe0) + usize::from(first >= 0xf0);
    (rest.get(1 + width) == Some(&b'\'')).then_some(width + 2)
}

/// Blanks every item under `#[cfg(test)]` and says how many lines they were.
fn blank_tests(code: &mut [u8]) -> usize {
    const MARK: &[u8] = b"#[cfg(test)]";
    let mut lines = 0;
    let mut at = 0;
    while let Some(found) = code[at..].windows(MARK.len()).position(|window| window == MARK) {
        let start = at + found;
        let end = start + item(&code[start..]);
        lines += code[start..end].iter().filter(|byte| **byte == b'\n').count() + 1;
        blank(&mut code[start..end]);
        at = end;
    }
    lines
}

/// The length of an item with its attributes: up to its `;`, or to the brace that closes it.
fn item(code: &[u8]) -> usize {
    let (mut braces, mut brackets) = (0_usize, 0_usize);
    for (at, byte) in code.iter().enumerate() {
        match byte {
            b'[' | b'(' => brackets += 1,
            b']' | b')' => brackets = brackets.saturating_sub(1),
            b'{' => braces += 1,
            b'}' if braces <= 1 => return at + 1,
            b'}' => braces -= 1,
            b';' if braces == 0 && brackets == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        let source = Source::new("a.rs", text);
        assert_eq!(source.code.len(), text.len(), "columns are kept");
        source.code.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn comments_and_literals_are_blanked_and_code_is_not() {
        for (text, expected) in [
            ("a // b\nc /* d /* e */ f */ g", "a c g"),
            (r#"let x = "tokio:: \" // "; y"#, "let x = ; y"),
            (r##"f(r#"a "quoted" b"#, br"\")"##, "f( , )"),
            (
                "match c { '\"' => 'a', '\\'' => '\\u{1F600}', 'é' => x }",
                "match c { => , => , => x }",
            ),
            ("fn f<'a>(x: &'a str) -> &'static str {}", "fn f<'a>(x: &'a str) -> &'static str {}"),
            ("hour\"x\"", "hour"),
        ] {
            assert_eq!(code(text), expected, "{text}");
        }
    }

    #[test]
    fn test_items_are_blanked_and_counted() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() { \"}\" }\n}\nfn c() {}\n\
                    #[cfg(test)]\nmod more;\nfn d() {}\n";
        let source = Source::new("a.rs", text);
        assert_eq!(source.test_lines, 6);
        assert_eq!(code(text), "fn a() {} fn c() {} fn d() {}");
    }

    #[test]
    fn hidden_files_are_listed_and_what_is_built_or_git_has_is_not() {
        let files = tracked_files();
        for file in [".gitignore", "Cargo.toml", "tests/src/source.rs"] {
            assert!(files.iter().any(|name| name == file), "{file}");
        }
        assert!(!files.iter().any(|name| name.starts_with(".git/") || name.starts_with("target/")));
    }

    #[test]
    fn a_match_names_its_line() {
        let source = Source::new("x/y.rs", "// tokio::\nuse tokio::spawn;\n");
        let found = source.matches(&regex::Regex::new("tokio::").unwrap());
        assert_eq!(found, ["x/y.rs:2: use tokio::spawn;"]);
    }
}
