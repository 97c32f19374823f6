//! `ebb dlq`: the jobs that failed for good. Read them, put them back, or delete them.

mod which;

use std::io::IsTerminal;

use anyhow::{Result, anyhow};
use clap::Subcommand;
use ebb_queue::{DeadLetter, JobId, Queue};

use crate::exit::{Exit, missing, usage};
use crate::options::QueueArgs;
use crate::output::{Output, grouped, note, printable, shortened, table};
use which::{Done, Filter, Which};

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List dead letters, the newest first
    #[command(
        after_help = "Examples:\n  ebb dlq list\n  ebb dlq list --max 10 --json\n  ebb dlq list --kind model,attempts --newer-than 36h"
    )]
    List {
        /// Where the queue is.
        #[command(flatten)]
        queue: QueueArgs,
        /// The most that are listed
        #[arg(long, env = "EBB_DLQ_MAX", hide_env_values = true, value_name = "N")]
        #[arg(default_value = "100")]
        max: usize,
        /// Which ones, if not all.
        #[command(flatten)]
        filter: Filter,
    },
    /// Show one dead letter: the job, its body, and what became of each attempt
    #[command(
        after_help = "An id that is no dead letter exits with 66.\n\nExamples:\n  ebb dlq show 0199c0de-7aa1-7bd2-9f3a-1f2e3d4c5b6a"
    )]
    Show {
        /// The job's id
        id: JobId,
        /// Where the queue is.
        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Put dead letters back on the queue, with fresh attempts and their history kept
    #[command(after_help = REDRIVE_HELP)]
    Redrive {
        /// Which ones.
        #[command(flatten)]
        which: Which,
        /// Where the queue is.
        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Delete dead letters for good
    #[command(after_help = PURGE_HELP)]
    Purge {
        /// Which ones.
        #[command(flatten)]
        which: Which,
        /// Really delete them; there is no way back
        #[arg(long)]
        yes: bool,
        /// Where the queue is.
        #[command(flatten)]
        queue: QueueArgs,
    },
}

const REDRIVE_HELP: &str = "\
A deadline that has passed is cleared, else the job would die again at once. An id that is no dead
letter exits with 66; the others are put back all the same. One that cannot be put back stays, a
warning says why, and the exit code is 1. Where there are more dead letters than --look, those found
among the newest are put back, and the exit code is 1.

Examples:
  ebb dlq redrive 0199c0de-7aa1-7bd2-9f3a-1f2e3d4c5b6a
  ebb dlq redrive --kind attempts --newer-than 2h
  ebb dlq redrive --kind model --reason 'not finite'
  ebb dlq redrive --all";

const PURGE_HELP: &str = "\
An id that is no dead letter exits with 66; the others are deleted all the same. One that is not
deleted, such as one in the queue that its job went on to, stays, a warning says why, and the exit
code is 1. Where there are more dead letters than --look, those found among the newest are deleted,
and the exit code is 1.

Examples:
  ebb dlq purge 0199c0de-7aa1-7bd2-9f3a-1f2e3d4c5b6a --yes
  ebb dlq purge --kind expired --older-than 168h --yes
  ebb dlq purge --all --yes";

/// Runs the command.
///
/// # Errors
/// When the queue does not answer, or an id is not a dead letter.
pub(crate) async fn run(command: Command, output: Output) -> Result<Exit> {
    match command {
        Command::List { queue, max, filter } => {
            let queue = queue.find().await?;
            let (letters, unseen) = filter.newest(&queue, max).await?;
            unseen.iter().for_each(note);
            match letters.as_slice() {
                letters if output.json => output.json(&letters)?,
                [] => output.line("no dead letters")?,
                letters => output.line(list_table(letters, Widths::of_stdout()))?,
            }
            if letters.len() == max && !filter.is_any() {
                let (listed, all) = (max as u64, queue.depth().await?.dead);
                if all > listed {
                    let (listed, of) = (grouped(listed), grouped(all));
                    note(format!(
                        "the newest {listed} of {of} dead letters; see more with --max N"
                    ));
                }
            }
        }
        Command::Show { queue, id } => {
            let letter = queue.find().await?.show(&id).await?;
            let letter = letter.ok_or_else(|| {
                missing(format!("{id} is no dead letter; `ebb dlq list` tells which there are"))
            })?;
            if output.json { output.json(&letter)? } else { output.line(letter_words(&letter))? }
        }
        Command::Redrive { queue, which } => {
            let queue = queue.find().await?;
            let done = which.each(&queue, async |ids| queue.redrive(ids).await).await?;
            told(output, &queue, ["redriven", "put back"], done).await?;
        }
        Command::Purge { queue, which, yes } => {
            if !yes {
                return Err(usage("purge deletes jobs for good; add --yes if you mean it"));
            }
            let queue = queue.find().await?;
            let done = which.each(&queue, async |ids| queue.purge(ids).await).await?;
            told(output, &queue, ["purged", "deleted"], done).await?;
        }
    }
    Ok(Exit::Done)
}

async fn told(output: Output, queue: &Queue, words: [&str; 2], done: Done) -> Result<()> {
    // What was done stays done, whatever becomes of this look.
    let left = match queue.depth().await {
        Ok(depth) => Some(depth.dead),
        Err(error) => {
            note(format!("how many dead letters are left is not known: {error}"));
            None
        }
    };
    output.line(done_words(output.json, words, done.n, left))?;
    end_of(words[1], done)
}

/// What went wrong, the gravest first: a job that is there and was not put back, then one that is not
/// there, then what nobody looked at.
fn end_of(verb: &str, Done { stayed, unknown, unseen, .. }: Done) -> Result<()> {
    let words = match (stayed, unknown, unseen) {
        (0, None, None) => return Ok(()),
        (0, Some(unknown), _) => return Err(missing(unknown)),
        (0, None, Some(unseen)) => unseen,
        (n, unknown, unseen) => {
            let words = [Some(stayed_words(verb, n)), unknown, unseen];
            words.into_iter().flatten().collect::<Vec<_>>().join("; ")
        }
    };
    Err(anyhow!(words))
}

/// That letters are where they were.
fn stayed_words(verb: &str, n: u64) -> String {
    let (letters, stay) = if n == 1 { ("letter was", "stays") } else { ("letters were", "stay") };
    format!("{} dead {letters} not {verb}, and {stay}; a warning says why", grouped(n))
}

/// What was done, and how many dead letters are left, where that is known.
fn done_words(json: bool, [key, verb]: [&str; 2], n: u64, left: Option<u64>) -> String {
    if json {
        return serde_json::json!({ key: n, "dead": left }).to_string();
    }
    let left = left.map(|left| format!(", {} dead letters left", grouped(left)));
    format!("{} {verb}{}", grouped(n), left.unwrap_or_default())
}

/// The most characters of a reason and of a body that a list shows.
#[derive(Debug, Clone, Copy)]
struct Widths {
    reason: usize,
    body: usize,
}

impl Widths {
    const TERMINAL: Self = Self { reason: 60, body: 40 };
    const WHOLE: Self = Self { reason: usize::MAX, body: usize::MAX };

    /// A pipe has no edge: whoever reads it searches, or cuts by themselves.
    fn of_stdout() -> Self {
        if std::io::stdout().is_terminal() { Self::TERMINAL } else { Self::WHOLE }
    }
}

fn list_table(letters: &[DeadLetter], widths: Widths) -> String {
    let row = |letter: &DeadLetter| {
        [
            letter.job.id.to_string(),
            format!("{:.0}", letter.died_at),
            letter.attempts.to_string(),
            letter.kind.word().to_owned(),
            shortened(&letter.reason, widths.reason),
            shortened(&String::from_utf8_lossy(&letter.job.body), widths.body),
        ]
    };
    let rows: Vec<_> = letters.iter().map(row).collect();
    table(["id", "died", "attempts", "kind", "reason", "body"], &rows)
}

fn letter_words(letter: &DeadLetter) -> String {
    let mut lines = vec![
        format!("id        {}", letter.job.id),
        format!("reason    {}", letter.reason),
        format!("kind      {}", letter.kind.word()),
        format!("died      {:.0}", letter.died_at),
        format!("enqueued  {:.0}", letter.job.enqueued_at),
        format!("attempts  {}", letter.attempts),
    ];
    let headers = serde_json::to_value(&letter.job.headers).unwrap_or_default();
    for (name, value) in headers.as_object().into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        lines.push(format!("{name:<9} {text}"));
    }
    lines.push("history".to_owned());
    for attempt in &letter.history {
        lines.push(format!("  {}  {:.0}  {}", attempt.attempt, attempt.at, attempt.what));
    }
    lines.push("body".to_owned());
    lines.push(format!("  {}", String::from_utf8_lossy(&letter.job.body)));
    printable(&lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use ebb_queue::{Attempt, FailureKind, Job, Timestamp};

    use super::*;

    fn letter() -> DeadLetter {
        let at = Timestamp::UNIX_EPOCH + std::time::Duration::from_secs(86_400);
        let mut job = Job::new(r#"{"input":"a text that is rather longer than the column"}"#, at);
        job.id = "job-1".parse().unwrap();
        job.set("ebb-tenant", "acme").unwrap();
        let attempt = |attempt, what: &str| Attempt { attempt, at, what: what.to_owned() };
        let history = vec![attempt(1, "lease expired"), attempt(2, "not finite")];
        let (kind, reason) = (FailureKind::Model, "not finite".into());
        DeadLetter { job, attempts: 2, kind, reason, died_at: at, history }
    }

    #[test]
    fn dead_letters_are_listed_one_a_line() {
        insta::assert_snapshot!(list_table(&[letter()], Widths::TERMINAL), @r#"
        id     died                  attempts  kind   reason      body
        job-1  1970-01-02T00:00:00Z         2  model  not finite  {"input":"a text that is rather longer …
        "#);
    }

    #[test]
    fn what_was_done_is_told_though_nobody_knows_what_is_left() {
        for (json, left, told) in [
            (false, Some(1000), "2 deleted, 1,000 dead letters left"),
            (false, None, "2 deleted"),
            (true, Some(1000), r#"{"dead":1000,"purged":2}"#),
            (true, None, r#"{"dead":null,"purged":2}"#),
        ] {
            assert_eq!(done_words(json, ["purged", "deleted"], 2, left), told);
        }
    }

    #[test]
    fn letters_that_stayed_are_counted_in_words() {
        for (n, told) in [
            (1, "1 dead letter was not put back, and stays; a warning says why"),
            (2000, "2,000 dead letters were not put back, and stay; a warning says why"),
        ] {
            assert_eq!(stayed_words("put back", n), told);
        }
    }

    #[test]
    fn a_letter_that_stayed_ends_the_command_as_a_failure() {
        let done = |stayed, unknown: Option<&str>, unseen: Option<&str>| {
            let [unknown, unseen] = [unknown, unseen].map(|words| words.map(str::to_owned));
            Done { n: 1, stayed, unknown, unseen }
        };
        end_of("deleted", done(0, None, None)).unwrap();
        for (done, exit, told) in [
            (done(1, None, None), Exit::Failed, "1 dead letter was not deleted"),
            (done(1, Some("x is none"), None), Exit::Failed, "x is none"),
            (done(0, Some("x is none"), None), Exit::Missing, "x is none"),
            (done(1, None, Some("only the newest")), Exit::Failed, "only the newest"),
            (done(0, None, Some("only the newest")), Exit::Failed, "only the newest"),
        ] {
            let error = end_of("deleted", done).unwrap_err();
            assert_eq!(Exit::of(&error), exit, "{error}");
            assert!(error.to_string().contains(told), "{error}");
        }
    }

    #[test]
    fn a_list_that_no_terminal_shows_is_whole() {
        let reason = "lorem ipsum ".repeat(20);
        let letter = DeadLetter { reason: reason.clone(), ..letter() };
        let list = list_table(&[letter], Widths::WHOLE);
        assert!(list.contains(&reason) && list.ends_with("longer than the column\"}"), "{list}");
    }

    #[test]
    fn a_dead_letter_tells_its_history() {
        insta::assert_snapshot!(letter_words(&letter()), @r#"
        id        job-1
        reason    not finite
        kind      model
        died      1970-01-02T00:00:00Z
        enqueued  1970-01-02T00:00:00Z
        attempts  2
        priority  normal
        tenant    acme
        history
          1  1970-01-02T00:00:00Z  lease expired
          2  1970-01-02T00:00:00Z  not finite
        body
          {"input":"a text that is rather longer than the column"}
        "#);
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown_and_not_done() {
        let mut letter = letter();
        letter.job.body = "a\u{1b}[2Jb\r\n\tc\u{9b}\u{7} é".into();
        letter.reason = "bad\u{1b}]0;title".into();
        let words = letter_words(&letter);
        assert!(words.contains(r"bad\u{1b}]0;title"), "{words}");
        assert!(words.ends_with("  a\\u{1b}[2Jb\\r\n\tc\\u{9b}\\u{7} é"), "{words}");
    }
}
