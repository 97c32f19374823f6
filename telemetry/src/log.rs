//! Logs on standard error, for people or as JSON.

use std::ffi::OsStr;
use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Clients of brokers that log as errors what is asked on purpose, and each try of an outage. Our
/// own lines tell the same, with the remedy.
const LOUD: [&str; 2] = ["lapin", "async_nats"];

/// How a process logs.
#[derive(Debug, Clone, clap::Args)]
pub struct LogArgs {
    /// Lowest level logged: error, warn, info, debug, trace or off, or a filter such as
    /// `info,ebb_worker=debug`; what the clients of brokers say themselves, only by `lapin=debug` or
    /// `async_nats=debug`.
    #[arg(
        long = "log-level",
        env = "EBB_LOG_LEVEL",
        hide_env_values = true,
        default_value = "info",
        global = true
    )]
    #[arg(value_name = "LEVEL", help_heading = "Logging")]
    pub level: String,

    /// Form of the log lines on standard error.
    #[arg(
        long = "log-format",
        env = "EBB_LOG_FORMAT",
        hide_env_values = true,
        default_value = "text",
        global = true
    )]
    #[arg(value_name = "FORMAT", help_heading = "Logging")]
    pub format: LogFormat,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging for the whole process; a second call changes nothing.
///
/// # Errors
/// When the level is not a filter, in words.
pub fn init_logging(args: &LogArgs) -> Result<(), String> {
    let filter = filter(&args.level)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let no_color = std::env::var_os("NO_COLOR");
    let done = match args.format {
        LogFormat::Text => builder.with_ansi(colours(no_color.as_deref())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    // An error means that logging was started before, by a test or by the caller.
    drop(done);
    Ok(())
}

fn filter(level: &str) -> Result<EnvFilter, String> {
    let directives: Vec<&str> = level.split(',').map(str::trim).collect();
    for word in &directives {
        // Else it would be the name of a module, and everything else would be silent.
        let is_bare = !word.contains(['=', '[']);
        if is_bare && word.parse::<LevelFilter>().is_err() {
            return Err(format!(
                "log level {word:?} is not valid; use error, warn, info, debug, trace or off, or \
                 MODULE=LEVEL for a part"
            ));
        }
    }
    let names = |target| directives.iter().any(|directive| directive.starts_with(target));
    let muted =
        LOUD.iter().filter(|target| !names(**target)).map(|target| format!(",{target}=off"));
    EnvFilter::try_new(directives.join(",") + &muted.collect::<String>())
        .map_err(|error| format!("log level {level:?} is not valid: {error}"))
}

/// Whether to colour, by the terminal and by <https://no-color.org>.
fn colours(no_color: Option<&OsStr>) -> bool {
    std::io::stderr().is_terminal() && no_color.is_none_or(OsStr::is_empty)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What is logged with this level, of a line of each target.
    fn logged(level: &str) -> String {
        let page = Page::default();
        let writer = page.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter(level).expect(level))
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(target: "lapin::channel", "Channel closed");
            tracing::info!(target: "async_nats", "event: client error");
            tracing::warn!(target: "ebb_worker", "the broker does not answer");
        });
        let bytes = page.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        let target = |line: &str| line.split_whitespace().nth(2).unwrap().to_owned();
        text.lines().map(target).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_clients_of_brokers_are_silent_unless_they_are_named() {
        for (level, expected) in [
            ("info", "ebb_worker:"),
            ("trace", "ebb_worker:"),
            ("error", ""),
            ("off", ""),
            ("info,lapin=error", "lapin::channel: ebb_worker:"),
            ("warn, async_nats=info", "async_nats: ebb_worker:"),
            ("lapin::channel=warn,async_nats=info", "lapin::channel: async_nats:"),
        ] {
            assert_eq!(logged(level), expected, "{level}");
        }
    }

    #[test]
    fn a_misspelt_level_is_told_with_the_levels_that_there_are() {
        for level in ["verbose", "debg", "info,ebb_worker", "ebb_worker=verbose"] {
            let told = filter(level).expect_err(level);
            assert!(told.contains("is not valid"), "{told}");
        }
        let told = filter("info,debg").unwrap_err();
        assert!(told.contains("\"debg\"") && told.contains("warn, info, debug"), "{told}");
        for level in ["INFO", "off", "info,ebb_worker=debug", "[settle]=trace", "ebb_queue=off"] {
            assert!(filter(level).is_ok(), "{level}");
        }
    }

    #[test]
    fn no_color_is_obeyed() {
        assert!(!colours(Some(OsStr::new("1"))));
        assert_eq!(colours(Some(OsStr::new(""))), colours(None));
    }
}
