//! `ebb train`: makes a model from data of your own.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use ebb_model::sentinel::{Options, Reading, Report, generate, read_csv, train, write_csv};
use serde_json::json;

use crate::exit::{Exit, usage};
use crate::output::{Output, Progress, Unit, grouped, note};

/// Which model to make.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train the anomaly detector on readings of vibration, temperature and pressure
    #[command(after_help = HELP)]
    Sentinel(SentinelArgs),
}

/// On what, and how.
#[derive(Debug, Args)]
pub(crate) struct SentinelArgs {
    /// A CSV file with the columns vibration,temperature,pressure and perhaps label (0 or 1)
    #[arg(long, env = "EBB_TRAIN_DATA", hide_env_values = true, value_name = "FILE")]
    data: PathBuf,

    /// First write this many readings to --data: a simulated machine, with faults that are labelled
    #[arg(long, env = "EBB_TRAIN_GENERATE", hide_env_values = true, value_name = "READINGS")]
    generate: Option<usize>,

    /// Share of anomalous readings that --generate makes, from 0 to 0.5
    #[arg(long, env = "EBB_TRAIN_ANOMALIES", hide_env_values = true, value_name = "SHARE")]
    #[arg(default_value = "0.02")]
    anomalies: f64,

    /// Where the model goes: a directory for `ebb worker --model`; without it nothing is trained
    #[arg(long, env = "EBB_TRAIN_OUT", hide_env_values = true, value_name = "DIR")]
    #[arg(required_unless_present = "generate")]
    out: Option<PathBuf>,

    /// Seed of the training and of --generate: the same seed and data give the same model
    #[arg(long, env = "EBB_TRAIN_SEED", hide_env_values = true, default_value = "1")]
    seed: u64,

    /// Passes over the data
    #[arg(long, env = "EBB_TRAIN_EPOCHS", hide_env_values = true, default_value = "30")]
    epochs: usize,

    /// Readings in a window
    #[arg(long, env = "EBB_TRAIN_WINDOW", hide_env_values = true, default_value = "32")]
    window: usize,

    /// Share of sound windows that may raise an alarm: decides the threshold
    #[arg(long, env = "EBB_TRAIN_FALSE_ALARMS", hide_env_values = true, value_name = "SHARE")]
    #[arg(default_value = "0.005")]
    false_alarms: f64,
}

const HELP: &str = "\
Readings are in the order of time, oldest first: vibration in mm/s, temperature in degrees Celsius,
pressure in bar. The model learns from the first 70 %, its threshold is set on the next 15 %, and
the scores that are printed come from the last 15 %, which it never saw. Labels are used for the
scores, and to keep anomalous windows out of the training.

Examples:
  ebb train sentinel --data readings.csv --out my-sentinel
  ebb train sentinel --generate 20000 --data readings.csv --out my-sentinel --seed 7
  ebb worker --model my-sentinel";

/// Runs the command.
///
/// # Errors
/// When the data cannot be read, or is not enough.
pub(crate) async fn run(command: Command, output: Output) -> Result<Exit> {
    let Command::Sentinel(args) = command;
    // Training holds its thread for as long as it takes.
    tokio::task::spawn_blocking(move || sentinel(&args, output))
        .await
        .context("training panicked")?
}

fn sentinel(args: &SentinelArgs, output: Output) -> Result<Exit> {
    if let Some(n_readings) = args.generate {
        make_data(args, n_readings)?;
    }
    let Some(out) = &args.out else {
        if output.json {
            output.json(&json!({ "data": args.data }))?;
        }
        return Ok(Exit::Done);
    };
    let readings = read(args)?;
    let options = Options {
        window: args.window,
        epochs: args.epochs,
        false_alarms: args.false_alarms,
        seed: args.seed,
        ..Options::default()
    };
    let mut bar = Progress::new("train", Some(args.epochs as u64), Unit::Items);
    let trained = train(&readings, &options, &mut |at| {
        bar.set(at.epoch as u64, Some(at.epochs as u64), &format!("loss {:.4}", at.loss));
    });
    bar.end();
    let (sentinel, report) = trained.map_err(|error| usage(error.to_string()))?;
    sentinel.save(out).with_context(|| format!("cannot write the model to {}", out.display()))?;
    if output.json {
        let report = serde_json::to_value(&report)?;
        output.json(&json!({ "directory": out, "readings": readings.len(), "report": report }))?;
    } else {
        output.line(words(readings.len(), &report))?;
        output.line(format!("model       {}", out.display()))?;
    }
    Ok(Exit::Done)
}

fn make_data(args: &SentinelArgs, n_readings: usize) -> Result<()> {
    if !(0.0..=0.5).contains(&args.anomalies) {
        return Err(usage("--anomalies is a share from 0 to 0.5"));
    }
    let shown = args.data.display();
    // Readings of a real machine are not overwritten by simulated ones.
    let file = File::create_new(&args.data)
        .map_err(|error| usage(format!("--generate cannot create {shown}: {error}")))?;
    let readings = generate(args.seed, n_readings, args.anomalies);
    write_csv(&readings, file).with_context(|| format!("cannot write {shown}"))?;
    let n_anomalies = readings.iter().filter(|reading| reading.is_anomaly == Some(true)).count();
    note(format!("{n_readings} readings, {n_anomalies} of them anomalous, written to {shown}"));
    Ok(())
}

fn read(args: &SentinelArgs) -> Result<Vec<Reading>> {
    let shown = args.data.display();
    let file = File::open(&args.data)
        .map_err(|error| usage(format!("cannot read --data {shown}: {error}")))?;
    read_csv(file).map_err(|error| usage(format!("{shown}: {error}")))
}

fn words(n_readings: usize, report: &Report) -> String {
    let mut lines = vec![
        format!("readings    {}", grouped(n_readings as u64)),
        format!("learnt from {} windows, {} times", grouped(report.windows as u64), report.epochs),
        format!("validation  error {:.4}, threshold {:.3}", report.error, report.threshold),
    ];
    if let Some(scores) = &report.labelled {
        lines.push(format!(
            "            roc auc {:.3}, precision {:.3}, recall {:.3}, f1 {:.3}",
            scores.roc_auc, scores.precision, scores.recall, scores.f1
        ));
    }
    lines.join("\n")
}
