//! Makes `weights/sentinel` again, and the readings it is made from.
//!
//! `cargo run --release -p ebb-model --example sentinel_weights -- DIR [FILE.csv]` writes the
//! model to `DIR` and, where a file is named, the readings to it.

use std::error::Error;
use std::io::Write;
use std::path::Path;

use ebb_model::sentinel::{Options, generate, train, write_csv};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let dir = arguments.first().ok_or("name the directory to write to")?;
    let readings = generate(7, 60_000, 0.03);
    if let Some(file) = arguments.get(1) {
        write_csv(&readings, std::fs::File::create(file)?)?;
    }
    let mut out = std::io::stdout();
    let mut line = String::new();
    let (sentinel, report) = train(&readings, &Options::default(), &mut |epoch| {
        line = format!("epoch {} of {}, loss {}", epoch.epoch, epoch.epochs, epoch.loss);
    })?;
    sentinel.save(Path::new(dir))?;
    writeln!(out, "{line}\n{report:#?}")?;
    Ok(())
}
