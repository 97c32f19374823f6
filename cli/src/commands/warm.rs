//! `ebb worker warm`: compiled and tuned kernels, kept before the first worker needs them.

use anyhow::Result;
use clap::Subcommand;
use ebb_model::pull::here;
use ebb_worker::{WarmArgs, Warmed, WarmedShape};

use crate::exit::{Exit, of_service};
use crate::output::{Output, note, seconds, table};

/// What a worker does besides work.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run every shape that the batches of a worker may have, so that a GPU's kernels are compiled,
    /// tuned and kept: for an image, or a volume that workers share
    Warm(Box<WarmArgs>),
}

/// Runs the command.
///
/// # Errors
/// When a flag is wrong, the device cannot be had, or a shape does not run.
pub(crate) async fn run(mut args: WarmArgs, output: Output) -> Result<Exit> {
    // As a worker finds its model.
    if let Some(model) = args.model.as_deref().filter(|model| !model.exists())
        && let Some(dir) = model.to_str().map(here).transpose()?.flatten()
    {
        args.model = Some(dir);
    }
    let warm = move || ebb_worker::warm(&args, &mut |shape| note(line(shape)));
    let warmed = tokio::task::spawn_blocking(warm).await?.map_err(of_service)?;
    if output.json {
        output.json(&warmed)?;
    } else {
        output.line(words(&warmed))?;
    }
    Ok(Exit::Done)
}

fn line(shape: &WarmedShape) -> String {
    let WarmedShape { rows, tokens, seen, first_s, again_s } = shape;
    let (first, again) = (seconds(*first_s), seconds(*again_s));
    let of = if seen > tokens { format!(" of {seen}") } else { String::new() };
    format!("{rows} x {tokens} tokens{of}: {first}, then {again}")
}

fn words(warmed: &Warmed) -> String {
    let Warmed { device, kernel_cache, load_s, shapes, total_s } = warmed;
    let rows: Vec<[String; 5]> = shapes
        .iter()
        .map(|shape| {
            let [texts, tokens, seen] =
                [shape.rows, shape.tokens, shape.seen].map(|n| n.to_string());
            [texts, tokens, seen, seconds(shape.first_s), seconds(shape.again_s)]
        })
        .collect();
    let table = table(["texts", "tokens", "seen", "first", "then"], &rows);
    let kept = match kernel_cache {
        Some(dir) => format!("kernels are kept in {}", dir.display()),
        None => "there is nothing to keep: this device compiles no kernels".to_owned(),
    };
    let n_shapes = shapes.len();
    let (load, total) = (seconds(*load_s), seconds(*total_s));
    format!("{table}\n{device}: ready after {load}, {n_shapes} shapes, {total} in all; {kept}")
}
