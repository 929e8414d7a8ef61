//! What a check finds.

use std::fmt;
use std::path::{Path, PathBuf};

/// One thing that is not as it should be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) path: PathBuf,
    pub(super) line: usize,
    pub(super) problem: String,
}

impl Finding {
    pub(super) fn new(path: &Path, problem: &str) -> Self {
        Self::at(path, 0, problem.to_owned())
    }

    pub(super) fn at(path: &Path, line: usize, problem: String) -> Self {
        Self {
            path: path.to_owned(),
            line,
            problem,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.line {
            0 => write!(formatter, "{path}: {}", self.problem),
            line => write!(formatter, "{path}:{line}: {}", self.problem),
        }
    }
}

pub(super) fn report(found: &[Finding]) {
    let lines: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "\n{}\n", lines.join("\n"));
}

pub(super) fn problems(found: &[Finding]) -> Vec<String> {
    found
        .iter()
        .map(|finding| format!("{}: {}", finding.line, finding.problem))
        .collect()
}
