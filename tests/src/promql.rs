//! What a PromQL expression asks for: its metrics, and the labels that it selects and groups by.
//!
//! Whether it is PromQL at all is promtool's to say; this finds names in what promtool takes.

use std::collections::BTreeSet;

/// What an expression asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Its metrics, each with its matchers.
    pub metrics: Vec<(String, Vec<Matcher>)>,
    /// Labels that it groups by or joins on.
    pub labels: BTreeSet<String>,
}

/// A matcher of a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matcher {
    /// The label.
    pub label: String,
    /// `=`, `!=`, `=~` or `!~`.
    pub operator: String,
    /// What it is compared with.
    pub value: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Name(String),
    Text(String),
    Sign(String),
}

/// Words that take a list of labels.
const LISTS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// Words that are no metric.
const WORDS: [&str; 6] = ["and", "or", "unless", "bool", "offset", "atan2"];

impl Asked {
    /// Reads an expression without variables of Grafana.
    pub fn read(expression: &str) -> Self {
        let tokens = tokens(expression);
        let mut asked = Self::default();
        let mut at = 0;
        while at < tokens.len() {
            let next = tokens.get(at + 1);
            match &tokens[at] {
                Token::Name(name) if LISTS.contains(&name.as_str()) => {
                    at += 1;
                    if next == Some(&sign("(")) {
                        at = asked.list(&tokens, at + 1);
                    }
                }
                Token::Name(name) => {
                    let calls = |next: &Token| match next {
                        Token::Sign(sign) => sign == "(",
                        Token::Name(word) => ["by", "without"].contains(&word.as_str()),
                        Token::Text(_) => false,
                    };
                    let is_word = WORDS.contains(&name.as_str());
                    if !is_word && !next.is_some_and(calls) {
                        asked.metrics.push((name.clone(), Vec::new()));
                    }
                    at += 1;
                }
                Token::Sign(brace) if brace == "{" => at = asked.matchers(&tokens, at + 1),
                Token::Sign(_) | Token::Text(_) => at += 1,
            }
        }
        asked
    }

    /// Labels up to the parenthesis, and the place behind it.
    fn list(&mut self, tokens: &[Token], mut at: usize) -> usize {
        while let Some(token) = tokens.get(at) {
            at += 1;
            match token {
                Token::Name(label) => drop(self.labels.insert(label.clone())),
                Token::Sign(end) if end == ")" => break,
                _ => {}
            }
        }
        at
    }

    /// Matchers of the metric before them, and the place behind the brace.
    fn matchers(&mut self, tokens: &[Token], mut at: usize) -> usize {
        while let Some(token) = tokens.get(at) {
            match (token, tokens.get(at + 1), tokens.get(at + 2)) {
                (Token::Name(label), Some(Token::Sign(operator)), Some(Token::Text(value))) => {
                    let matcher = Matcher {
                        label: label.clone(),
                        operator: operator.clone(),
                        value: value.clone(),
                    };
                    let metric = self.metrics.last_mut().expect("a matcher has a metric");
                    metric.1.push(matcher);
                    at += 3;
                }
                (Token::Sign(end), ..) if end == "}" => return at + 1,
                _ => at += 1,
            }
        }
        at
    }
}

fn sign(text: &str) -> Token {
    Token::Sign(text.to_owned())
}

fn tokens(expression: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '#' => rest.find('\n').unwrap_or(rest.len()),
            '"' | '\'' => {
                let end = rest[1..].find(first).map_or(rest.len(), |end| end + 1);
                tokens.push(Token::Text(rest[1..end].to_owned()));
                (end + 1).min(rest.len())
            }
            // Numbers, spans of time, and the two spans of a subquery.
            c if c.is_ascii_digit() => run(rest, |c| c.is_ascii_alphanumeric() || ".:".contains(c)),
            c if is_name(c) => {
                let length = run(rest, |c| is_name(c) || c.is_ascii_digit());
                tokens.push(Token::Name(rest[..length].to_owned()));
                length
            }
            '=' | '!' | '<' | '>' => {
                let length = run(rest, |c| "=!<>~".contains(c));
                tokens.push(sign(&rest[..length]));
                length
            }
            c if c.is_whitespace() => c.len_utf8(),
            c => {
                tokens.push(sign(&rest[..c.len_utf8()]));
                c.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    tokens
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || c == ':'
}

fn run(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_matchers_and_labels_are_found_and_functions_are_not() {
        let asked = Asked::read(
            "sum by (queue, le) (rate(a_total{state=\"x\", queue=~'b.*'}[5m]) # not c\n * on (pod) \
             group_left (queue) q:info:max) > bool 600 * max(up) unless on () absent(d) and e == 1 and f(g[15m:1m])",
        );
        let names: Vec<&str> = asked.metrics.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a_total", "q:info:max", "up", "d", "e", "g"]);
        let matcher = |label: &str, operator: &str, value: &str| Matcher {
            label: label.into(),
            operator: operator.into(),
            value: value.into(),
        };
        assert_eq!(asked.metrics[0].1, [matcher("state", "=", "x"), matcher("queue", "=~", "b.*")]);
        assert_eq!(asked.labels.iter().collect::<Vec<_>>(), ["le", "pod", "queue"]);
    }
}
