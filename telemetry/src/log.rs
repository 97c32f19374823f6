//! Logs on standard error, for people or as JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How a process logs.
#[derive(Debug, Clone, clap::Args)]
pub struct LogArgs {
    /// Lowest level logged: error, warn, info, debug, trace, or a filter such as `ebb_worker=debug`.
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
    let filter = EnvFilter::try_new(&args.level)
        .map_err(|error| format!("log level {:?} is not valid: {error}", args.level))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let done = match args.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    // An error means that logging was started before, by a test or by the caller.
    drop(done);
    Ok(())
}
