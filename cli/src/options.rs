//! Flags that several commands share, and how their values are read.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use ebb_queue::{
    Address, INLINE_LIMIT, Missing, Moved, OpenOptions, Payloads, PayloadsUrl, Queue, QueueUrl,
    Results, TypedUrl, read_span,
};

use crate::exit::usage;
use crate::output::note;

/// Where the queue is.
#[derive(Debug, Clone, Args)]
pub(crate) struct QueueArgs {
    /// The queue: sqlite:PATH, nats://HOST, amqp://HOST/VHOST or redis://HOST/DATABASE, then
    /// [?queue=NAME&lease=30s&result_ttl=1d&key_ttl=1d&dead_ttl=SPAN&max_ready=N]; `ebb queue --help` tells all
    ///
    /// Default: an embedded queue in your data directory, the same one for all commands.
    #[arg(long, env = "EBB_QUEUE", hide_env_values = true, value_name = "URL")]
    pub(crate) queue: Option<TypedUrl>,

    /// Where answers are, when not where the jobs are: another such URL
    ///
    /// RabbitMQ keeps no answers, so its jobs need this.
    #[arg(long, env = "EBB_RESULTS", hide_env_values = true, value_name = "URL")]
    pub(crate) results: Option<TypedUrl>,

    /// Where large bodies and answers are, which travel by reference: file:///DIR,
    /// s3://BUCKET/PREFIX with the usual AWS_* variables, or `results` for the store of results
    ///
    /// In `results` a body lives as long as a result (result_ttl): a job whose delay is longer is
    /// refused, and a dead letter that is put back later has lost its body.
    #[arg(long, env = "EBB_PAYLOADS", hide_env_values = true, value_name = "URL")]
    pub(crate) payloads: Option<TypedUrl>,

    /// The largest body or answer, in bytes, that travels with its job when there is --payloads
    #[arg(long, env = "EBB_INLINE_LIMIT", hide_env_values = true, value_name = "BYTES")]
    #[arg(default_value_t = INLINE_LIMIT)]
    pub(crate) inline_limit: usize,

    /// How long the first connect to a broker may take
    #[arg(long, env = "EBB_CONNECT_TIMEOUT", hide_env_values = true, value_name = "SPAN")]
    #[arg(default_value = "10s", value_parser = parse_interval)]
    pub(crate) connect_timeout: Duration,
}

impl QueueArgs {
    /// The address of the queue.
    ///
    /// # Errors
    /// When it is not one; the words carry no password.
    pub(crate) fn url(&self) -> Result<QueueUrl> {
        match &self.queue {
            Some(typed) => Ok(typed.read("--queue")?),
            None => default_queue(),
        }
    }

    /// The address of the answers, when they are not where the jobs are.
    ///
    /// # Errors
    /// When it is not one; the words carry no password.
    pub(crate) fn results_url(&self) -> Result<Option<QueueUrl>> {
        Ok(self.results.as_ref().map(|typed| typed.read("--results")).transpose()?)
    }

    /// Makes sure that answers have a place, for who cannot do without.
    ///
    /// # Errors
    /// When the broker keeps none and no store is named.
    pub(crate) fn check_answers(&self) -> Result<()> {
        let apart = ebb_worker::store_apart(&self.url()?, self.results_url()?);
        apart.map(drop).map_err(|error| usage(error.to_string()))
    }

    /// The store of large bodies and answers, if there is one.
    ///
    /// # Errors
    /// When it is not one; the words carry no key.
    pub(crate) fn payloads_url(&self) -> Result<Option<PayloadsUrl>> {
        Ok(self.payloads.as_ref().map(|typed| typed.read_payloads("--payloads")).transpose()?)
    }

    /// Opens the queue, and the store of its answers where that is another.
    ///
    /// # Errors
    /// When it is not an address, or nothing answers there.
    pub(crate) async fn open(&self) -> Result<Queue> {
        self.open_at(&self.url()?, Missing::Create).await
    }

    /// The same for who only looks: what is missing stays so.
    ///
    /// # Errors
    /// When it is not an address, nothing answers there, or the queue is missing.
    pub(crate) async fn find(&self) -> Result<Queue> {
        self.open_at(&self.url()?, Missing::Refuse).await
    }

    /// The same for another queue on the broker.
    ///
    /// # Errors
    /// When nothing answers there, or it is missing and that is not allowed.
    pub(crate) async fn open_at(&self, url: &QueueUrl, missing: Missing) -> Result<Queue> {
        let results = self.results(url, missing).await?;
        self.open_over(url, missing, results).await
    }

    /// The same, and says so where it had to be made: its name may have a slip in it, and then nobody
    /// comes for what is put there.
    ///
    /// # Errors
    /// When nothing answers there, or it is missing and that is not allowed.
    pub(crate) async fn open_or_make(&self, url: &QueueUrl, missing: Missing) -> Result<Queue> {
        let results = self.results(url, missing).await?;
        let open = async |missing| self.open_over(url, missing, results.clone()).await;
        found_or_made(url, missing, open).await
    }

    /// The same with nothing but the queue itself, which shows the records of jobs that have gone on.
    ///
    /// # Errors
    /// When nothing answers there, or it is missing and that is not allowed.
    pub(crate) async fn records(&self, url: &QueueUrl, missing: Missing) -> Result<Queue> {
        let open = async |missing| {
            let options = OpenOptions { moved: Moved::Show, ..self.options(missing) };
            ebb_queue::open(url, options).await.context("cannot open the queue")
        };
        found_or_made(url, missing, open).await
    }

    /// The store of answers, where it is another than this queue.
    async fn results(&self, url: &QueueUrl, missing: Missing) -> Result<Option<Results>> {
        let Some(results) = self.results_url()?.filter(|results| results != url) else {
            return Ok(None);
        };
        let store = ebb_queue::open(&results, self.options(missing)).await;
        Ok(Some(Results(store.context("cannot open --results")?)))
    }

    fn options(&self, missing: Missing) -> OpenOptions {
        let connect_timeout = self.connect_timeout;
        OpenOptions { connect_timeout, missing, ..OpenOptions::default() }
    }

    async fn open_over(
        &self,
        url: &QueueUrl,
        missing: Missing,
        results: Option<Results>,
    ) -> Result<Queue> {
        let payloads = self.payloads_url()?;
        let payloads = match payloads {
            None => None,
            Some(url) => {
                let mut payloads = Payloads::open(&url).context("--payloads")?;
                payloads.inline = self.inline_limit;
                Some(payloads)
            }
        };
        let options = OpenOptions { results, payloads, ..self.options(missing) };
        ebb_queue::open(url, options).await.context("cannot open the queue")
    }
}

/// Opens a queue, and says so where it had to be made.
async fn found_or_made(
    url: &QueueUrl,
    missing: Missing,
    open: impl AsyncFn(Missing) -> Result<Queue>,
) -> Result<Queue> {
    let lacks_queue =
        |error: &anyhow::Error| error.downcast_ref().is_some_and(ebb_queue::Error::lacks_queue);
    let found = open(Missing::Refuse).await;
    let was_there = match &found {
        Err(error) if missing == Missing::Create && lacks_queue(error) => false,
        // RabbitMQ cannot be asked for all that a queue is made of: what it lacks is made unseen.
        Ok(_) if missing == Missing::Create && matches!(url.address, Address::Amqp(_)) => true,
        _ => return found,
    };
    drop(found);
    let made = open(missing).await?;
    if !was_there {
        note(format!("made queue {}, {}", url.queue, what_it_lacked(&url.address)));
    }
    Ok(made)
}

/// Why a queue was made, as far as its broker tells: where it is made of several parts, some may have been
/// there.
fn what_it_lacked(address: &Address) -> &'static str {
    match address {
        Address::Amqp(_) | Address::Nats(_) => "which was not there, or not all of it",
        _ => "which was not there",
    }
}

/// Opens the queue at this address.
///
/// # Errors
/// When nothing answers there.
pub(crate) async fn open(url: &QueueUrl) -> Result<Queue> {
    ebb_queue::open(url, OpenOptions::default()).await.context("cannot open the queue")
}

/// The embedded queue in the user's data directory.
///
/// # Errors
/// When there is no such directory.
pub(crate) fn default_queue() -> Result<QueueUrl> {
    Ok(QueueUrl::sqlite(data_directory()?.join("queue.db")))
}

/// Where data of this user lies, once somebody has made it.
///
/// # Errors
/// When there is no such directory.
pub(crate) fn data_directory() -> Result<PathBuf> {
    let found = directories::ProjectDirs::from("", "", "ebb");
    let found =
        found.ok_or_else(|| usage("you have no home directory; name a queue with --queue"))?;
    Ok(found.data_dir().to_owned())
}

/// Reads a span of time such as `250ms`, `15s`, `5m`, or plain seconds.
///
/// # Errors
/// When it is not one, or longer than a day.
pub(crate) fn parse_span(text: &str) -> Result<Duration, String> {
    const DAY: Duration = Duration::from_secs(86_400);
    read_span(text)
        .filter(|span| *span <= DAY)
        .ok_or_else(|| "use seconds, or a unit, such as 250ms, 15s or 5m, up to 24h".to_owned())
}

/// The same, but not zero: for intervals.
///
/// # Errors
/// When it is not one, or shorter than 10 ms.
pub(crate) fn parse_interval(text: &str) -> Result<Duration, String> {
    let span = parse_span(text)?;
    if span < Duration::from_millis(10) {
        return Err("use 10ms or more".to_owned());
    }
    Ok(span)
}

/// Reads a number of jobs that one replica is to have.
///
/// # Errors
/// When it is not a number above zero.
pub(crate) fn parse_target(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| (0.001..=1e9).contains(value));
    value.ok_or_else(|| "use a number of jobs from 0.001 to 1000000000".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct QueueCli {
        #[command(flatten)]
        args: QueueArgs,
    }

    #[test]
    fn spans_are_read_with_their_unit() {
        for (text, millis) in
            [("250ms", 250), ("15s", 15_000), ("15", 15_000), ("5m", 300_000), ("0s", 0)]
        {
            assert_eq!(parse_span(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "-1s", "2d2d", "25h", "soon"] {
            let told = parse_span(text).expect_err(text);
            assert!(told.contains("such as 250ms"), "{told}");
        }
        assert!(parse_interval("1ms").is_err());
        assert!(parse_target("0").is_err() && parse_target("NaN").is_err());
    }

    #[tokio::test]
    async fn who_only_looks_makes_no_queue() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("queue.db").display().to_string();
        let url = format!("sqlite:{file}?queue=alerts");
        let QueueCli { args } = clap::Parser::parse_from(["x", "--queue", &url]);
        let Err(error) = args.find().await else { panic!("nobody has made it") };
        let told = format!("{error:#}");
        let remedy = format!("alerts in {file}; make it by `ebb queue init --queue '{url}'`");
        assert!(told.contains(&remedy), "{told}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        args.open().await.unwrap();
        assert!(args.find().await.is_ok());

        let slip = url.replace("alerts", "alrets");
        let QueueCli { args } = clap::Parser::parse_from(["x", "--queue", &slip]);
        let Err(error) = args.find().await else { panic!("nobody has made it") };
        let told = format!("{error:#}");
        assert!(told.contains("queue.db, which has alerts; make it by"), "{told}");
    }

    #[test]
    fn who_needs_answers_needs_a_place_for_them() {
        let check = |more: &[&str]| {
            let QueueCli { args } = clap::Parser::parse_from([&["x"], more].concat());
            args.check_answers()
        };
        let error = check(&["--queue", "amqp://broker"]).unwrap_err();
        assert_eq!(crate::exit::Exit::of(&error), crate::exit::Exit::Usage);
        assert!(error.to_string().starts_with("--results is missing"), "{error}");
        check(&["--queue", "amqp://broker", "--results", "sqlite:r.db"]).unwrap();
        check(&["--queue", "redis://broker"]).unwrap();
    }

    #[test]
    fn a_wrong_queue_is_told_without_its_password() {
        for (flag, url) in [
            ("--queue", "nats://me:hunter2@broker:4222?colour=red"),
            ("--results", "nats://me:hunter2@broker:4222?colour=red"),
            ("--results", "redis://broker?password=hunter2"),
            ("--payloads", "s3://me:hunter2@bucket/x"),
        ] {
            let QueueCli { args } = clap::Parser::parse_from(["x", flag, url]);
            let told = args.url().err().or_else(|| args.results_url().err());
            let told = told.or_else(|| args.payloads_url().err()).expect("no URL is right");
            let told = format!("{told:#} {args:?}");
            assert!(told.contains(flag) && !told.contains("hunter2"), "{told}");
        }
    }
}
