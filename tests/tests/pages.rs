//! Holds the pages to the truth: links, paths, and the commands and flags they name.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::collections::{BTreeMap, BTreeSet};

use e2e::{Workplace, tracked_files, workspace_root};
use regex::Regex;

#[track_caller]
fn assert_none(rule: &str, broken: impl IntoIterator<Item = String>) {
    let broken: Vec<String> = broken.into_iter().collect();
    assert!(broken.is_empty(), "{rule}; broken by\n  {}", broken.join("\n  "));
}

fn read(path: &str) -> String {
    let bytes = std::fs::read(workspace_root().join(path)).expect("a tracked file can be read");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `path:line: the line` for each line of a tracked text file that the pattern finds.
fn lines_with(pattern: &str, skip: impl Fn(&str) -> bool) -> Vec<String> {
    let pattern = Regex::new(pattern).expect("a pattern of this file is valid");
    let mut broken = Vec::new();
    for path in tracked_files().into_iter().filter(|path| !skip(path)) {
        let bytes = std::fs::read(workspace_root().join(&path)).unwrap_or_default();
        let Ok(text) = String::from_utf8(bytes) else { continue };
        for (at, line) in text.lines().enumerate().filter(|(_, line)| pattern.is_match(line)) {
            let shown: String = line.trim().chars().take(120).collect();
            broken.push(format!("{path}:{}: {shown}", at + 1));
        }
    }
    broken
}

#[test]
fn no_file_names_a_folder_of_somebodys_machine() {
    // Written so that this line is not found itself.
    let folders = ["root", "home", "work", "Users"].join("|");
    let pattern = format!(r#"(^|[\s"'`(=:,\[])(file://)?/({folders})/"#);
    let broken = lines_with(&pattern, |path| path.ends_with(".lock"));
    assert_none("paths are relative, or come from the environment", broken);
}

#[test]
fn packages_come_from_the_public_registry_and_no_other_is_named() {
    let lock = read("Cargo.lock");
    let source = Regex::new(r#"(?m)^source = "([^"]*)""#).unwrap();
    let public = "registry+https://github.com/rust-lang/crates.io-index";
    let mut broken: Vec<String> = source
        .captures_iter(&lock)
        .filter(|found| &found[1] != public)
        .map(|found| format!("Cargo.lock: {}", &found[1]))
        .collect();
    let settings = r"^\s*(replace-with|registry|index|index-url|extra-index-url)\s*=\s*\S";
    let options = r"--(extra-)?index-url[ =]|--trusted-host";
    let private = r"https?://(10\.|192\.168\.|172\.(1[6-9]|2\d|3[01])\.|[\w-]+(:\d+)?(/|$)|[\w.-]+\.(internal|local|lan|corp)\b)";
    let local = r"https?://(localhost|registry\.npmjs)";
    let local = Regex::new(local).unwrap();
    broken.extend(lines_with(&format!("{settings}|{options}|{private}"), |_| false));
    broken.retain(|place| !local.is_match(place) && !place.starts_with("tests/tests/pages.rs"));
    assert_none("no package index but the public ones is named", broken);
}

#[test]
fn relative_links_lead_somewhere() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let inline = Regex::new("`[^`]*`").unwrap();
    let mut broken = Vec::new();
    for page in tracked_files().into_iter().filter(|path| path.ends_with(".md")) {
        for line in lines(&read(&page)).filter(|line| !line.code) {
            for found in link.captures_iter(&inline.replace_all(line.text, "``")) {
                if let Some(why) = leads_nowhere(&page, &found[1]) {
                    broken.push(format!("{page}:{}: {} {why}", line.number, &found[1]));
                }
            }
        }
    }
    assert_none("a link leads to a file and a heading that exist", broken);
}

fn leads_nowhere(page: &str, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let folder = page.rsplit_once('/').map_or("", |(folder, _)| folder);
    let target = match path {
        "" => workspace_root().join(page),
        path if path.starts_with('/') => return Some("is absolute".to_owned()),
        path => workspace_root().join(folder).join(path),
    };
    if !target.exists() {
        return Some("does not exist".to_owned());
    }
    if anchor.is_empty() || target.extension().is_none_or(|kind| kind != "md") {
        return None;
    }
    let text = std::fs::read_to_string(&target).ok()?;
    let found =
        lines(&text).filter(|line| !line.code).any(|line| line.anchor() == Some(anchor.into()));
    (!found).then(|| "names no heading".to_owned())
}

/// A line of a page, and where it stands.
struct Line<'a> {
    number: usize,
    text: &'a str,
    /// Inside a fenced block.
    code: bool,
}

fn lines(page: &str) -> impl Iterator<Item = Line<'_>> {
    page.lines().enumerate().scan(false, |fenced, (at, text)| {
        let fence = text.trim_start().starts_with("```");
        let code = *fenced || fence;
        *fenced ^= fence;
        Some(Line { number: at + 1, text, code })
    })
}

impl Line<'_> {
    /// The anchor of a heading, as the usual renderers make it.
    fn anchor(&self) -> Option<String> {
        let words = self.text.strip_prefix('#')?.trim_start_matches('#').strip_prefix(' ')?;
        let words = words.to_lowercase().replace(' ', "-");
        Some(words.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect())
    }
}

/// The help of a command and of each command below it, by its words: `ebb dlq list`.
struct Help(BTreeMap<String, String>);

impl Help {
    /// Of the binaries that we ship.
    fn of_ours() -> Self {
        let mut help = Self(BTreeMap::new());
        let workplace = Workplace::new();
        for name in ["ebb", "ebb-bench"] {
            help.add(&workplace, name, &[]);
        }
        help
    }

    fn add(&mut self, workplace: &Workplace, binary: &str, words: &[&str]) {
        let args = [words, &["--help"]].concat();
        let page = e2e::run(&mut workplace.command(binary, &args), "").ok().stdout;
        let below = page.split_once("Commands:\n").map_or("", |(_, below)| below);
        let name = |line: &str| line.strip_prefix("  ")?.split(' ').next().map(str::to_owned);
        let names = below.lines().take_while(|line| !line.is_empty()).filter_map(name);
        for name in names.filter(|name| !name.is_empty() && name != "help") {
            self.add(workplace, binary, &[words, &[name.as_str()]].concat());
        }
        self.0.insert([&[binary], words].concat().join(" "), page);
    }

    fn has_flag(&self, flag: &str) -> bool {
        self.0.values().any(|page| page_has(page, flag))
    }

    /// What is wrong with a command line of ours.
    fn objection(&self, words: &[&str]) -> Option<String> {
        let (mut command, mut rest) = (words[0].to_owned(), &words[1..]);
        while let Some((word, others)) = rest.split_first() {
            let longer = format!("{command} {word}");
            if !self.0.contains_key(&longer) {
                break;
            }
            (command, rest) = (longer, others);
        }
        let page = &self.0[&command];
        let below = page.contains("Commands:\n");
        if below && rest.first().is_some_and(|word| is_name(word)) {
            return Some(format!("there is no `{command} {}`", rest[0]));
        }
        let flags = rest.iter().filter(|word| word.starts_with("--") && word.len() > 2);
        let flags = flags.map(|flag| flag.split('=').next().unwrap_or(flag));
        let unknown = flags.filter(|flag| !page_has(page, flag)).collect::<Vec<_>>();
        let unknown = unknown.join(", ");
        (!unknown.is_empty()).then(|| format!("`{command}` has no {unknown}"))
    }
}

fn page_has(page: &str, flag: &str) -> bool {
    let ends = |c: char| !(c.is_ascii_alphanumeric() || c == '-');
    let starts = page.match_indices(flag).map(|(at, _)| &page[at + flag.len()..]);
    starts.into_iter().any(|rest| rest.is_empty() || rest.starts_with(ends))
}

fn is_name(word: &str) -> bool {
    word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-')
}

/// Every piece of code on a page that could be a command, with its line.
fn snippets(page: &str) -> Vec<(usize, String)> {
    let inline = Regex::new("`([^`]+)`").unwrap();
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut continued = false;
    for line in lines(page) {
        if !line.code {
            let spans = inline.captures_iter(line.text);
            found.extend(spans.map(|span| (line.number, span[1].to_owned())));
            continued = false;
            continue;
        }
        let text = line.text.trim();
        let part = text.strip_suffix('\\').unwrap_or(text);
        match found.last_mut().filter(|_| continued) {
            Some((_, command)) => command.push_str(&format!(" {part}")),
            None => found.push((line.number, part.trim_start_matches("$ ").to_owned())),
        }
        continued = text.ends_with('\\');
    }
    found
}

/// The command lines of ours in a piece of code, as words that begin with the binary's name.
fn commands(snippet: &str) -> Vec<Vec<&str>> {
    let code = snippet.split(" #").next().unwrap_or(snippet);
    let parts = code.split(['|', ';', '&', '(', ')']);
    parts.filter_map(|part| command(part.split_whitespace().collect())).collect()
}

fn command(mut words: Vec<&str>) -> Option<Vec<&str>> {
    // What a pod is to run: `kubectl exec deploy/ebb-worker -- ebb queue depth`.
    if words.first() == Some(&"kubectl") {
        words.drain(..=words.iter().position(|word| *word == "--")?);
    }
    let assignment = |word: &&&str| word.contains('=') && !word.starts_with('-');
    words.drain(..words.iter().take_while(assignment).count());
    let bench = words.windows(2).any(|pair| pair == ["-p", "ebb-bench"]);
    if words.starts_with(&["cargo", "run"]) {
        let end = words.iter().position(|word| *word == "--").map_or(words.len(), |at| at + 1);
        words.splice(..end, [if bench { "ebb-bench" } else { "ebb" }]);
    }
    let first = words.first_mut()?;
    *first = first.rsplit('/').next().unwrap_or(first);
    ["ebb", "ebb-bench"].contains(first).then_some(words)
}

#[test]
fn commands_of_the_pages_are_found_wherever_they_stand() {
    let page = "Run `ebb up` or\n```sh\n$ X=1 ebb enqueue a \\\n  --wait | jq # --no\n\
                cargo run --release -p ebb-bench -- chaos\nkubectl -n a exec deploy/b -- ebb dlq list\n\
                kubectl get pods\n```\nand `target/release/ebb demo`.\n";
    let snippets = snippets(page);
    let found: Vec<_> = snippets.iter().flat_map(|(_, text)| commands(text)).collect();
    let expected: [&[&str]; 5] = [
        &["ebb", "up"],
        &["ebb", "enqueue", "a", "--wait"],
        &["ebb-bench", "chaos"],
        &["ebb", "dlq", "list"],
        &["ebb", "demo"],
    ];
    assert_eq!(found, expected);
}

/// All that we have written for readers; a page that is added is checked from then on.
fn pages() -> Vec<String> {
    let is_page = |path: &String| {
        let of_ours = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "benches/README.md"];
        of_ours.contains(&path.as_str()) || path.starts_with("docs/") || path.starts_with("deploy/")
    };
    let markdown = tracked_files().into_iter().filter(|path| path.ends_with(".md"));
    let pages: Vec<String> = markdown.filter(is_page).collect();
    assert!(pages.len() > 10, "the pages were not found: {pages:?}");
    pages
}

#[test]
fn every_command_on_our_pages_exists_and_has_the_flags_it_is_given() {
    let help = Help::of_ours();
    assert!(help.objection(&["ebb", "enqueu", "x"]).is_some(), "the check finds nothing");
    assert!(help.objection(&["ebb", "enqueue", "--wiat"]).is_some(), "the check finds nothing");
    let mut broken = Vec::new();
    let mut seen = BTreeSet::new();
    for page in pages() {
        for (number, text) in snippets(&read(&page)) {
            for words in commands(&text) {
                let objection = help.objection(&words);
                broken.extend(objection.map(|why| format!("{page}:{number}: {why}")));
                seen.insert(words.join(" "));
            }
        }
    }
    assert!(seen.len() > 5, "the pages show our commands; found {seen:?}");
    assert_none("a command on a page is one that a reader can run", broken);
}

#[test]
fn every_flag_on_our_pages_exists() {
    // Those of cargo, which the pages tell how to use.
    const CARGOS: [&str; 6] =
        ["--release", "--no-default-features", "--workspace", "--all-targets", "--all", "--test"];
    let help = Help::of_ours();
    let mut broken = Vec::new();
    for page in pages() {
        for (number, text) in snippets(&read(&page)) {
            let flag = text.split([' ', '=']).next().unwrap_or("");
            // `---` stands between two objects of YAML.
            let is_flag = flag.starts_with("--") && !flag.starts_with("---");
            let known = !is_flag || CARGOS.contains(&flag) || help.has_flag(flag);
            if !known {
                broken.push(format!("{page}:{number}: {flag}"));
            }
        }
    }
    assert_none("a flag on a page is one of ours", broken);
}

#[test]
fn every_variable_on_our_pages_exists() {
    // Read by the tests and benches.
    const OTHERS: [&str; 8] = [
        "EBB_NATS_SERVER",
        "EBB_NATS_SERVER_OLDEST",
        "EBB_RABBITMQ_SERVER",
        "EBB_REDIS_SERVER",
        "EBB_SKIP_BROKERS",
        "EBB_TEST_HOST",
        "EBB_TEST_IMAGES",
        "EBB_TEST_KUBECONFIG",
    ];
    let variable = Regex::new(r"\bEBB_[A-Z][A-Z_]*[A-Z]\b").unwrap();
    let help = Help::of_ours();
    let mut broken = Vec::new();
    for page in pages() {
        for line in lines(&read(&page)) {
            for found in variable.find_iter(line.text) {
                let name = found.as_str();
                let known = help.0.values().any(|page| page.contains(&format!("[env: {name}")));
                if !known && !OTHERS.contains(&name) {
                    broken.push(format!("{page}:{}: {name}", line.number));
                }
            }
        }
    }
    assert_none("a variable on a page is one of ours", broken);
}

#[test]
fn the_tests_that_the_table_of_failures_names_exist() {
    let named = Regex::new(r"`([a-z][a-z0-9_]{20,})`").unwrap();
    let sources = e2e::sources();
    let mut seen = 0;
    let mut broken = Vec::new();
    for line in lines(&read("docs/failures.md")) {
        let Some(last) = line.text.strip_suffix(" |").and_then(|row| row.rsplit(" | ").next())
        else {
            continue;
        };
        for found in named.captures_iter(last) {
            seen += 1;
            // As a function, or as a promise of the conformance suite.
            let function =
                Regex::new(&format!(r"\bfn {}\b|\b{}[,;]", &found[1], &found[1])).unwrap();
            if !sources.iter().any(|source| function.is_match(&source.text)) {
                broken.push(format!("docs/failures.md:{}: {}", line.number, &found[1]));
            }
        }
    }
    assert!(seen > 20, "the table was not found");
    assert_none("a failure is shown by a test that exists", broken);
}

#[test]
fn the_readme_tells_what_each_broker_cannot_promise_in_the_words_of_the_code() {
    let readme = read("README.md");
    let rows: BTreeSet<&str> = readme.lines().filter(|line| line.starts_with("| `")).collect();
    let mut told = BTreeSet::new();
    for (broker, limits) in ebb_queue::LIMITS {
        for limit in limits {
            told.insert(format!("| `{broker}` | {} | {} |", limit.promise, limit.instead));
        }
    }
    let missing = told.iter().filter(|row| !rows.contains(row.as_str()));
    assert_none("a limit of a broker stands in the README", missing.cloned());
    let stale = rows.iter().filter(|row| {
        ebb_queue::LIMITS.iter().any(|(broker, _)| row.starts_with(&format!("| `{broker}` |")))
            && !told.contains(**row)
    });
    assert_none("what the README says of a broker is so", stale.map(ToString::to_string));
}
