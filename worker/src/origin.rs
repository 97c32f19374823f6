//! The files that a model was made of, so that a reload notices that they are others.

use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A directory of a model, as it was when it was first looked at.
///
/// A model is loaded again from its path after an error of the device, but what reads its requests
/// was made once, at the start. Weights of one version beside the tokenizer and the labels of another
/// would give answers that look right.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    dir: PathBuf,
    files: Vec<File>,
}

/// A file, and what changes with its contents. Not its inode: where a bucket is mounted, a file may
/// get another one at any time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct File {
    path: PathBuf,
    n_bytes: u64,
    modified: Option<SystemTime>,
}

/// A model's directory holds other files than at the start.
#[derive(Debug, thiserror::Error)]
#[error(
    "the files in {} are not those of the start: they, or where the path leads, were changed; start \
     the worker anew to serve what is there now", .0.display()
)]
pub(crate) struct Changed(PathBuf);

impl Origin {
    pub(crate) fn of(dir: &Path) -> io::Result<Self> {
        Ok(Self { dir: dir.to_owned(), files: files_of(dir)? })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the files are still the same.
    pub(crate) fn check(&self) -> Result<(), Changed> {
        let now = files_of(&self.dir);
        if now.is_ok_and(|now| now == self.files) { Ok(()) } else { Err(Changed(self.dir.clone())) }
    }
}

/// The files of a model: those of its directory, and of the directories in that, such as
/// `1_Pooling`. Whatever else lies there, such as the locks of who pulled it, does not count.
fn files_of(dir: &Path) -> io::Result<Vec<File>> {
    let dir = dir.canonicalize()?;
    let (mut files, mut folders) = (Vec::new(), vec![dir.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let path = entry.path();
            // Links are followed from the model's own folder alone: they may lead in circles.
            if entry.file_type()?.is_dir() || (folder == dir && path.is_dir()) {
                folders.push(path);
            } else {
                add(&mut files, path)?;
            }
        }
    }
    files.sort();
    Ok(files)
}

fn add(files: &mut Vec<File>, path: PathBuf) -> io::Result<()> {
    let is_of_model = path.extension().is_some_and(|ending| {
        ["json", "safetensors", "txt", "model", "jinja"].iter().any(|one| ending == *one)
    });
    if !is_of_model {
        return Ok(());
    }
    // Where a link leads counts, not the link.
    let of: Metadata = path.metadata()?;
    if of.is_file() {
        files.push(File { path, n_bytes: of.len(), modified: of.modified().ok() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::Origin;

    #[test]
    fn other_files_and_another_way_are_noticed_and_what_is_no_file_of_the_model_is_not() {
        let root = tempfile::tempdir().unwrap();
        let place = |name: &str| root.path().join(name);
        for version in ["v1", "v2"] {
            fs::create_dir_all(place(version).join("1_Pooling")).unwrap();
            for name in ["config.json", "model.safetensors", "1_Pooling/config.json"] {
                fs::write(place(version).join(name), "{}").unwrap();
            }
        }
        symlink(place("v1"), place("current")).unwrap();
        let origin = Origin::of(&place("current")).unwrap();
        fs::write(place("v1").join(".lock"), "").unwrap();
        fs::write(place("v1").join("README.md"), "").unwrap();
        origin.check().unwrap();
        fs::remove_file(place("current")).unwrap();
        assert!(origin.check().is_err(), "it is gone");
        symlink(place("v2"), place("current")).unwrap();
        let told = origin.check().unwrap_err().to_string();
        assert!(told.contains("current") && told.contains("start the worker anew"), "{told}");

        let origin = Origin::of(&place("v1")).unwrap();
        fs::write(place("v1").join("1_Pooling/config.json"), "{ }").unwrap();
        assert!(origin.check().is_err());
        let origin = Origin::of(&place("v1")).unwrap();
        let weights = place("v1").join("model.safetensors");
        let modified = fs::metadata(&weights).unwrap().modified().unwrap();
        fs::copy(&weights, place("copy")).unwrap();
        fs::File::options()
            .write(true)
            .open(place("copy"))
            .unwrap()
            .set_modified(modified)
            .unwrap();
        fs::rename(place("copy"), &weights).unwrap();
        assert!(origin.check().is_ok(), "another inode, and nothing else");
        fs::File::options()
            .write(true)
            .open(&weights)
            .unwrap()
            .set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
        assert!(origin.check().is_err(), "another version of the same length");
        let origin = Origin::of(&place("v1")).unwrap();
        fs::write(place("v1").join("vocab.txt"), "a").unwrap();
        assert!(origin.check().is_err());
        let origin = Origin::of(&place("v1")).unwrap();
        fs::write(place("v1").join("chat_template.jinja"), "a").unwrap();
        assert!(origin.check().is_err(), "conversations are written otherwise");
        let below = place("v1").join("modules/pooling");
        fs::create_dir_all(&below).unwrap();
        symlink(place("v1"), below.join("circle")).unwrap();
        let origin = Origin::of(&place("v1")).unwrap();
        fs::write(below.join("config.json"), "{}").unwrap();
        assert!(origin.check().is_err(), "a pooling may lie deeper");
        assert!(Origin::of(&place("none")).is_err());
    }

    #[test]
    fn another_shard_or_index_is_another_model() {
        let root = tempfile::tempdir().unwrap();
        let place = |name: &str| root.path().join(name);
        let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let index = "model.safetensors.index.json";
        for name in shards.into_iter().chain([index]) {
            fs::write(place(name), "{}").unwrap();
        }
        for name in shards.into_iter().chain([index]) {
            let origin = Origin::of(root.path()).unwrap();
            origin.check().unwrap();
            fs::write(place("new"), "{ }").unwrap();
            fs::rename(place("new"), place(name)).unwrap();
            assert!(origin.check().is_err(), "{name}");
        }
        // It would be used instead of the shards.
        let origin = Origin::of(root.path()).unwrap();
        fs::write(place("model.safetensors"), "{}").unwrap();
        assert!(origin.check().is_err());
    }
}
