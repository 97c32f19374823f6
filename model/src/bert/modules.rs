//! `modules.json` and what it leads to: how an encoder makes one vector of many.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::LoadError;
use crate::checkpoint::SINGLE;
use crate::json::{is_there, read_json};

/// The file that lists the parts of an encoder.
pub(crate) const MODULES: &str = "modules.json";

/// Dense layers that a model may have: each is held in memory, and a file lists any number in a few bytes.
const MAX_DENSE: usize = 8;

/// How the vectors of the tokens become one vector of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The average of all tokens.
    Mean,
    /// The first token.
    Cls,
    /// The largest value of any token, per dimension.
    Max,
    /// The last token.
    LastToken,
}

impl std::fmt::Display for Pooling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Max => "max",
            Self::LastToken => "last token",
        })
    }
}

#[derive(Deserialize)]
struct ModuleEntry {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

/// `pooling_mode` is the newer form, a name or a list of names; the flags are the older.
#[derive(Deserialize)]
struct PoolingFile {
    pooling_mode: Option<PoolingMode>,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
    #[serde(default = "yes")]
    include_prompt: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PoolingMode {
    One(String),
    Several(Vec<String>),
}

fn yes() -> bool {
    true
}

/// What `modules.json` lists: the transformer, a pooling, perhaps dense layers and a normalisation.
pub(crate) struct Modules {
    pub(crate) transformer: PathBuf,
    pub(crate) pooling: Pooling,
    /// The file that says so, in the directory.
    pub(crate) pooling_file: Option<String>,
    pub(crate) include_prompt: bool,
    /// The folders of the dense layers, in their order.
    pub(crate) dense: Vec<String>,
    pub(crate) normalize: bool,
}

impl Modules {
    /// A bare transformer is averaged, as sentence-transformers does.
    pub(crate) fn none(dir: &Path) -> Self {
        Self {
            transformer: dir.to_owned(),
            pooling: Pooling::Mean,
            pooling_file: None,
            include_prompt: true,
            dense: Vec::new(),
            normalize: false,
        }
    }

    /// Reads `modules.json`, where there is one, and the pooling that it names.
    pub(crate) fn read(dir: &Path) -> Result<Self, LoadError> {
        let mut modules = Self::listed(dir)?;
        if let Some(name) = &modules.pooling_file {
            let path = dir.join(name);
            if !is_there(&path)? {
                let found = format!("a Pooling of {name}");
                let remedy = "that file is missing; fetch it to the same directory";
                return Err(LoadError::unsupported(&dir.join(MODULES), "module 1", found, remedy));
            }
            let file: PoolingFile = read_json(&path)?;
            modules.include_prompt = file.include_prompt;
            modules.pooling = file.mode(&path)?;
        }
        Ok(modules)
    }

    /// Those of a model with a head, which is part of its transformer.
    pub(crate) fn of_head(dir: &Path) -> Result<Self, LoadError> {
        const REMEDY: &str = "known beside a head, which architectures in config.json tells of, is \
                              Transformer in \"\" alone";
        for (place, entry) in entries(&dir.join(MODULES))?.iter().enumerate() {
            match (entry.class(), place, folder_of(&entry.path).as_deref()) {
                ("Transformer", 0, Some("")) => {}
                _ => return Err(entry.unknown(place, dir, REMEDY)),
            }
        }
        Ok(Self::none(dir))
    }

    /// The files that the modules behind the transformer are read from, in the directory.
    pub(crate) fn files(&self) -> Vec<String> {
        let layer = |folder| ["config.json", SINGLE].map(|name| format!("{folder}/{name}"));
        self.pooling_file.iter().cloned().chain(self.dense.iter().flat_map(layer)).collect()
    }

    /// Reads `modules.json` alone.
    fn listed(dir: &Path) -> Result<Self, LoadError> {
        const REMEDY: &str = "known are Transformer in \"\", Pooling in a folder of this directory, \
                              Dense in folders of it, and Normalize, in this order";
        const DENSE: &str = "known are up to 8 Dense, each in a folder of its own";
        let mut modules = Self::none(dir);
        for (place, entry) in entries(&dir.join(MODULES))?.iter().enumerate() {
            match (entry.class(), place, folder_of(&entry.path).as_deref()) {
                ("Transformer", 0, Some("")) => {}
                ("Pooling", 1, Some("")) => modules.pooling_file = Some("config.json".into()),
                ("Pooling", 1, Some(folder)) => {
                    modules.pooling_file = Some(format!("{folder}/config.json"));
                }
                ("Dense", 2.., Some(folder)) if !folder.is_empty() && !modules.normalize => {
                    if modules.dense.iter().any(|it| it == folder)
                        || modules.dense.len() == MAX_DENSE
                    {
                        return Err(entry.unknown(place, dir, DENSE));
                    }
                    modules.dense.push(folder.to_owned());
                }
                ("Normalize", 2.., _) if !modules.normalize => modules.normalize = true,
                _ => return Err(entry.unknown(place, dir, REMEDY)),
            }
        }
        Ok(modules)
    }
}

/// What the file lists, where there is one.
fn entries(path: &Path) -> Result<Vec<ModuleEntry>, LoadError> {
    if is_there(path)? { read_json(path) } else { Ok(Vec::new()) }
}

impl ModuleEntry {
    /// The package path differs between versions, the class name does not.
    fn class(&self) -> &str {
        self.kind.rsplit('.').next().unwrap_or(&self.kind)
    }

    fn unknown(&self, place: usize, dir: &Path, remedy: &str) -> LoadError {
        let found = format!("{} in {:?}", self.kind, self.path);
        LoadError::unsupported(&dir.join(MODULES), &format!("module {place}"), found, remedy)
    }
}

/// The files that an encoder's modules behind the transformer will be read from, in its directory.
pub(crate) fn module_files(dir: &Path) -> Result<Vec<String>, LoadError> {
    Ok(Modules::listed(dir)?.files())
}

/// The folder of a module, without what says nothing: "" for the model's own, or one below it.
fn folder_of(path: &str) -> Option<String> {
    let parts = Path::new(path).components().filter(|part| *part != Component::CurDir);
    let names = parts.map(|part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    Some(names.collect::<Option<Vec<_>>>()?.join("/"))
}

impl PoolingFile {
    fn mode(&self, path: &Path) -> Result<Pooling, LoadError> {
        let flags = [
            ("cls", self.pooling_mode_cls_token),
            ("max", self.pooling_mode_max_tokens),
            ("mean", self.pooling_mode_mean_tokens),
            ("mean_sqrt_len_tokens", self.pooling_mode_mean_sqrt_len_tokens),
            ("weightedmean", self.pooling_mode_weightedmean_tokens),
            ("lasttoken", self.pooling_mode_lasttoken),
        ];
        let mut names: Vec<String> = match &self.pooling_mode {
            Some(PoolingMode::One(name)) => vec![name.clone()],
            Some(PoolingMode::Several(names)) => names.clone(),
            None => {
                flags.iter().filter(|(_, on)| *on).map(|(name, _)| (*name).to_owned()).collect()
            }
        };
        if names.is_empty() {
            names.push("mean".into());
        }
        match names.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["mean"] => Ok(Pooling::Mean),
            ["cls"] => Ok(Pooling::Cls),
            ["max"] => Ok(Pooling::Max),
            ["lasttoken"] => Ok(Pooling::LastToken),
            _ => {
                let remedy = "one of mean, cls, max and lasttoken is known";
                Err(LoadError::unsupported(path, "pooling_mode", names.join("+"), remedy))
            }
        }
    }
}
