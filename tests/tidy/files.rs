//! The files of this repository.

use std::fs;
use std::path::{Path, PathBuf};

/// A source file, with its path from the repository's root.
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

impl Source {
    /// Its place among the modules: `["kubernetes", "plan"]`, or `["bin", …]`; empty for `lib.rs`.
    pub(super) fn module(&self) -> Vec<String> {
        let inner = self.path.strip_prefix("src").unwrap().with_extension("");
        let parts: Vec<String> = inner
            .iter()
            .map(|part| part.to_str().unwrap().to_owned())
            .collect();
        if parts == ["lib"] { Vec::new() } else { parts }
    }
}

pub(super) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub(super) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub(super) fn sources(folder: &str) -> Vec<Source> {
    files_below(Path::new(folder), &|_| true)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| Source {
            text: read(path.to_str().unwrap()),
            path,
        })
        .collect()
}

/// Every file below `folder` that `wanted` lets through, folders included, sorted.
pub(super) fn files_below(folder: &Path, wanted: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(root().join(folder)) else {
        return found;
    };
    for entry in entries {
        let entry = entry.unwrap();
        let path = match folder.to_str() {
            Some(".") => PathBuf::from(entry.file_name()),
            _ => folder.join(entry.file_name()),
        };
        if !wanted(&path) {
            continue;
        }
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files_below(&path, wanted));
        } else if kind.is_file() {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What nobody here wrote: build output, version control, lock files.
pub(super) fn is_foreign(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    matches!(
        name,
        "target" | ".git" | "Cargo.lock" | "go.sum" | "go.mod" | "LICENSE"
    )
}

pub(super) fn planted(path: &str, text: &str) -> Source {
    Source {
        path: PathBuf::from(path),
        text: text.to_owned(),
    }
}
