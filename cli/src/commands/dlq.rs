//! `ebb dlq`: the jobs that failed for good. Read them, put them back, or delete them.

use std::collections::BTreeSet;
use std::io::IsTerminal;

use anyhow::Result;
use clap::{Args, Subcommand};
use ebb_queue::{DeadLetter, JobId, Queue};

use crate::exit::{Exit, missing, usage};
use crate::options::QueueArgs;
use crate::output::{Output, grouped, note, table};

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List dead letters, the newest first
    #[command(after_help = "Examples:\n  ebb dlq list\n  ebb dlq list --max 10 --json")]
    List {
        /// Where the queue is.
        #[command(flatten)]
        queue: QueueArgs,
        /// The most that are listed
        #[arg(long, env = "EBB_DLQ_MAX", hide_env_values = true, value_name = "N")]
        #[arg(default_value = "100")]
        max: usize,
    },
    /// Show one dead letter: the job, its body, and what became of each attempt
    #[command(after_help = "Examples:\n  ebb dlq show 0199c0de-7aa1-7bd2-9f3a-1f2e3d4c5b6a")]
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

/// One or more dead letters, or all.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// The ids of the jobs
    #[arg(value_name = "ID")]
    ids: Vec<JobId>,
    /// All dead letters of the queue
    #[arg(long)]
    all: bool,
}

const REDRIVE_HELP: &str = "\
A deadline that has passed is cleared, else the job would die again at once.

Examples:
  ebb dlq redrive 0199c0de-7aa1-7bd2-9f3a-1f2e3d4c5b6a
  ebb dlq redrive --all";

const PURGE_HELP: &str = "\
Examples:
  ebb dlq purge 0199c0de-7aa1-7bd2-9f3a-1f2e3d4c5b6a --yes
  ebb dlq purge --all --yes";

/// Runs the command.
///
/// # Errors
/// When the queue does not answer, or an id is not a dead letter.
pub(crate) async fn run(command: Command, output: Output) -> Result<Exit> {
    match command {
        Command::List { queue, max } => {
            let queue = queue.open().await?;
            let letters = queue.list(max).await?;
            match letters.as_slice() {
                letters if output.json => output.json(&letters)?,
                [] => output.line("no dead letters")?,
                letters => output.line(list_table(letters, Widths::of_stdout()))?,
            }
            if letters.len() == max {
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
            let letter = queue.open().await?.show(&id).await?;
            let letter = letter.ok_or_else(|| missing(format!("no dead letter {id}")))?;
            if output.json { output.json(&letter)? } else { output.line(letter_words(&letter))? }
        }
        Command::Redrive { queue, which } => {
            let queue = queue.open().await?;
            let unknown = which.unknown(&queue).await?;
            let n = queue.redrive(which.ids()).await?;
            told(output, &queue, "redriven", "put back", n, &unknown).await?;
        }
        Command::Purge { queue, which, yes } => {
            if !yes {
                return Err(usage("purge deletes jobs for good; add --yes if you mean it"));
            }
            let queue = queue.open().await?;
            let unknown = which.unknown(&queue).await?;
            let n = queue.purge(which.ids()).await?;
            told(output, &queue, "purged", "deleted", n, &unknown).await?;
        }
    }
    Ok(Exit::Done)
}

/// So many ids are asked for one by one; on RabbitMQ each look goes through all letters.
const A_FEW: usize = 4;

impl Which {
    fn ids(&self) -> Option<&[JobId]> {
        if self.all { None } else { Some(&self.ids) }
    }

    /// Those that are no dead letters.
    async fn unknown(&self, queue: &Queue) -> Result<Vec<&str>> {
        if self.ids.len() > A_FEW {
            let max = usize::try_from(queue.depth().await?.dead).unwrap_or(usize::MAX);
            let letters = queue.list(max).await?;
            let known: BTreeSet<_> = letters.iter().map(|letter| letter.job.id.as_str()).collect();
            let ids = self.ids.iter().map(JobId::as_str);
            return Ok(ids.filter(|id| !known.contains(id)).collect());
        }
        let mut unknown = Vec::new();
        for id in &self.ids {
            if queue.show(id).await?.is_none() {
                unknown.push(id.as_str());
            }
        }
        Ok(unknown)
    }
}

async fn told(
    output: Output,
    queue: &Queue,
    key: &str,
    verb: &str,
    n: u64,
    unknown: &[&str],
) -> Result<()> {
    let left = queue.depth().await?.dead;
    if output.json {
        output.json(&serde_json::json!({ key: n, "dead": left }))?;
    } else {
        output.line(format!("{} {verb}, {} dead letters left", grouped(n), grouped(left)))?;
    }
    if unknown.is_empty() { Ok(()) } else { Err(missing(no_letters(unknown))) }
}

fn no_letters(unknown: &[&str]) -> String {
    match unknown {
        [id] => format!("{id} is no dead letter"),
        ids => format!("{} are no dead letters", ids.join(", ")),
    }
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
            shortened(&letter.reason, widths.reason),
            shortened(&String::from_utf8_lossy(&letter.job.body), widths.body),
        ]
    };
    let rows: Vec<_> = letters.iter().map(row).collect();
    table(["id", "died", "attempts", "reason", "body"], &rows)
}

fn letter_words(letter: &DeadLetter) -> String {
    let mut lines = vec![
        format!("id        {}", letter.job.id),
        format!("reason    {}", letter.reason),
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
    lines.join("\n")
}

/// On one line and no longer than this.
fn shortened(text: &str, longest: usize) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.chars().count() <= longest {
        return line;
    }
    line.chars().take(longest - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use ebb_queue::{Attempt, Job, Timestamp};

    use super::*;

    fn letter() -> DeadLetter {
        let at = Timestamp::UNIX_EPOCH + std::time::Duration::from_secs(86_400);
        let mut job = Job::new(r#"{"input":"a text that is rather longer than the column"}"#, at);
        job.id = "job-1".parse().unwrap();
        job.set("ebb-tenant", "acme").unwrap();
        let attempt = |attempt, what: &str| Attempt { attempt, at, what: what.to_owned() };
        let history = vec![attempt(1, "lease expired"), attempt(2, "not finite")];
        DeadLetter { job, attempts: 2, reason: "not finite".into(), died_at: at, history }
    }

    #[test]
    fn dead_letters_are_listed_one_a_line() {
        insta::assert_snapshot!(list_table(&[letter()], Widths::TERMINAL), @r#"
        id     died                  attempts  reason      body
        job-1  1970-01-02T00:00:00Z         2  not finite  {"input":"a text that is rather longer …
        "#);
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
    fn a_long_text_ends_in_an_ellipsis() {
        assert_eq!(shortened("one\ntwo", 9), "one two");
        assert_eq!(shortened("äöüß and more", 5), "äöüß…");
    }
}
