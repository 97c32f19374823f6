//! From a text to its sentences. Also part of the build script, so it uses nothing of ours.

/// The sentences of a text, in order: 4 to 40 words each; no code, no tables, no links.
pub(crate) fn sentences(text: &str) -> Vec<String> {
    paragraphs(text).iter().flat_map(|paragraph| split(paragraph)).filter(|it| good(it)).collect()
}

/// Prose of a Markdown or plain text: lines joined until an empty line, markup taken off.
fn paragraphs(text: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut fenced = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("```") {
            fenced = !fenced;
            continue;
        }
        let item = line.trim_start_matches(['-', '*', '>']).trim_start();
        let item = item.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').trim_start();
        let apart = line.is_empty() || line.starts_with('#') || line.starts_with('|');
        if fenced || apart || item.len() < line.len() {
            found.push(String::new());
        }
        if fenced || apart {
            continue;
        }
        let paragraph = found.last_mut().expect("it began with one");
        if !paragraph.is_empty() {
            paragraph.push(' ');
        }
        paragraph.push_str(&item.replace("**", "").replace('`', ""));
    }
    found
}

/// Ends after a full stop, a question or an exclamation mark that a capital follows.
fn split(paragraph: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = paragraph;
    let mut from = 0;
    while let Some(at) = rest[from..].find(['.', '?', '!']).map(|at| from + at + 1) {
        let capital = rest[at..].trim_start().starts_with(|c: char| c.is_uppercase());
        if rest[at..].starts_with(' ') && capital {
            found.push(rest[..at].trim().to_owned());
            rest = rest[at..].trim_start();
            from = 0;
        } else {
            from = at;
        }
    }
    found.push(rest.trim().to_owned());
    found
}

fn good(sentence: &str) -> bool {
    let n_words = sentence.split_whitespace().count();
    let plain = !sentence.contains(['{', '|', '[', '═', '─', '<', '→', '=', '\\'])
        && !sentence.contains("::")
        && !sentence.contains("://");
    let begins = sentence.starts_with(|c: char| c.is_uppercase());
    let ends = sentence.ends_with(['.', '?', '!']);
    (4..=40).contains(&n_words) && plain && begins && ends
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        assert_eq!(sentences(text), expected, "{text}");
    }

    #[test]
    fn a_sentence_ends_where_the_next_begins() {
        check(
            "It waits for 2.5 seconds. Then it\nasks again, e.g. by name. Does it stop? No!",
            &["It waits for 2.5 seconds.", "Then it asks again, e.g. by name."],
        );
    }

    #[test]
    fn markup_tables_and_code_are_left_out() {
        let text = "# A heading is no sentence.\n\n\
            - **First** item of the `list`.\n- Second item of the list.\n\n\
            | a | table. Has no sentences here. |\n\n\
            ```sh\nThis code is not read.\n```\n\
            See [the page](https://example.org) for more about it.\n";
        check(text, &["First item of the list.", "Second item of the list."]);
    }
}
