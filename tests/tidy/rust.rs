//! Rust read as text: code, paths, words.

use std::path::{Path, PathBuf};

use super::files::{Source, planted};

/// `text` with comments and the insides of literals blanked; lines stay where they are.
pub(super) fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    let blank = |out: &mut String, from: usize, to: usize| {
        for character in &chars[from..to.min(chars.len())] {
            out.push(if *character == '\n' { '\n' } else { ' ' });
        }
    };
    while at < chars.len() {
        let rest = &chars[at..];
        let end = if rest.starts_with(&['/', '/']) {
            at + rest.iter().position(|c| *c == '\n').unwrap_or(rest.len())
        } else if rest.starts_with(&['/', '*']) {
            at + block_comment(rest)
        } else if let Some(length) = raw_string(rest).filter(|_| !ends_in_word(&out)) {
            at + length
        } else if rest[0] == '"' {
            at + quoted(rest, '"')
        } else if let Some(length) = character_literal(rest) {
            at + length
        } else {
            out.push(rest[0]);
            at += 1;
            continue;
        };
        blank(&mut out, at, end);
        at = end;
    }
    out
}

fn ends_in_word(text: &str) -> bool {
    text.chars().next_back().is_some_and(is_word)
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// How long the block comment is that `text` starts with; they nest.
fn block_comment(text: &[char]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        if text[at..].starts_with(&['/', '*']) {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with(&['*', '/']) {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// How long the raw string is that `text` starts with.
fn raw_string(text: &[char]) -> Option<usize> {
    let start = usize::from(matches!(text.first(), Some('b' | 'c')));
    if text.get(start) != Some(&'r') {
        return None;
    }
    let hashes = text[start + 1..].iter().take_while(|c| **c == '#').count();
    let open = start + 1 + hashes;
    if text.get(open) != Some(&'"') {
        return None;
    }
    let mut close = vec!['"'];
    close.extend(std::iter::repeat_n('#', hashes));
    let inner = text[open + 1..]
        .windows(close.len())
        .position(|window| window == close)?;
    Some(open + 1 + inner + close.len())
}

/// How long the literal is that `text` starts with, up to the next `quote` without a backslash.
fn quoted(text: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != quote {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// How long the character is that `text` starts with; a lifetime is none.
fn character_literal(text: &[char]) -> Option<usize> {
    match text {
        ['\'', '\\', ..] => Some(quoted(text, '\'')),
        ['\'', _, '\'', ..] => Some(3),
        _ => None,
    }
}

/// `code` without its unit tests: from `#[cfg(test)]` on to the end of what follows; nothing of a file that says
/// `#![cfg(test)]` of itself.
pub(super) fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    const WHOLE: &str = "#![cfg(test)]";
    if code.contains(WHOLE) {
        return String::new();
    }
    let mut out = String::new();
    let mut rest = code;
    while let Some(at) = rest.find(MARK) {
        out.push_str(&rest[..at]);
        let tail = &rest[at + MARK.len()..];
        let end = item_end(tail);
        out.extend(tail[..end].chars().filter(|character| *character == '\n'));
        rest = &tail[end..];
    }
    out.push_str(rest);
    out
}

/// Files that are declared for unit tests alone: `#[cfg(test)] mod name;`.
pub(super) fn test_files(sources: &[Source]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for source in sources {
        let tokens = tokens(&code(&source.text));
        let words: Vec<&str> = tokens.iter().map(|(token, _)| token.as_str()).collect();
        for window in words.windows(10) {
            if let ["#", "[", "cfg", "(", "test", ")", "]", "mod", name, ";"] = window {
                found.push(children_folder(&source.path).join(format!("{name}.rs")));
            }
        }
    }
    found
}

/// Whether `path` is one of `files`, or below one.
pub(super) fn is_in(path: &Path, files: &[PathBuf]) -> bool {
    files
        .iter()
        .any(|file| path == file || path.starts_with(file.with_extension("")))
}

/// Where the modules are that a file declares.
fn children_folder(path: &Path) -> PathBuf {
    let is_root = path == Path::new("src/lib.rs") || path.parent() == Some(Path::new("src/bin"));
    if is_root {
        path.parent().unwrap_or(Path::new("")).to_owned()
    } else {
        path.with_extension("")
    }
}

/// Where the item that `code` starts with ends: at its closing brace, or at a semicolon before any.
fn item_end(code: &str) -> usize {
    let mut depth = 0_usize;
    for (at, character) in code.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// A path somewhere in code: its parts, and the line it starts on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) parts: Vec<String>,
    pub(super) line: usize,
    /// Whether it ends in `::*`, or gives what it names another name: what it leads to is then named without it.
    pub(super) opens: bool,
}

/// Every path of at least two parts in `code`, and every `use`; groups are taken apart.
pub(super) fn paths(code: &str) -> Vec<Named> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let starts = is_ident(&tokens[at].0)
            && (at == 0 || !matches!(tokens[at - 1].0.as_str(), "::" | "."))
            && (tokens.get(at + 1).is_some_and(|(next, _)| next == "::")
                || at > 0 && tokens[at - 1].0 == "use");
        if starts {
            let line = tokens[at].1;
            let mut all = Vec::new();
            at = tree(&tokens, at, &[], &mut all);
            let named = |(parts, opens)| Named { parts, line, opens };
            found.extend(all.into_iter().map(named));
        } else {
            at += 1;
        }
    }
    found
}

/// Words, `::`, and single characters, each with its line.
pub(super) fn tokens(code: &str) -> Vec<(String, usize)> {
    let mut found: Vec<(String, usize)> = Vec::new();
    let mut line = 1;
    let mut word = String::new();
    for character in code.chars().chain(['\n']) {
        if is_word(character) {
            word.push(character);
            continue;
        }
        if !word.is_empty() {
            found.push((std::mem::take(&mut word), line));
        }
        match character {
            '\n' => line += 1,
            ':' if found.last().is_some_and(|(last, _)| last == ":") => {
                found.pop();
                found.push(("::".to_owned(), line));
            }
            other if other.is_whitespace() => {}
            other => found.push((other.to_string(), line)),
        }
    }
    found
}

pub(super) fn is_ident(token: &str) -> bool {
    token
        .chars()
        .next()
        .is_some_and(|first| first.is_alphabetic() || first == '_')
}

/// Reads a path or a `use` tree at `at`; returns where it ends.
fn tree(
    tokens: &[(String, usize)],
    mut at: usize,
    before: &[String],
    found: &mut Vec<(Vec<String>, bool)>,
) -> usize {
    let mut parts = before.to_vec();
    let text = |at: usize| tokens.get(at).map_or("", |(token, _)| token.as_str());
    loop {
        if text(at) == "{" {
            at += 1;
            while !matches!(text(at), "}" | "") {
                at = if text(at) == "," {
                    at + 1
                } else {
                    tree(tokens, at, &parts, found)
                };
            }
            return at + 1;
        }
        if !is_ident(text(at)) {
            // `*`, or the `<` of `name::<…>`.
            found.push((parts, text(at) == "*"));
            return at + 1;
        }
        parts.push(text(at).to_owned());
        at += 1;
        if text(at) != "::" {
            // `as name`.
            let renamed = text(at) == "as";
            found.push((parts, renamed));
            return if renamed { at + 2 } else { at };
        }
        at += 1;
    }
}

#[test]
fn files_of_unit_tests_are_told_from_others() {
    let all = [
        planted(
            "src/client.rs",
            "mod wire;\n#[cfg(test)]\nmod test_server;\n#[cfg(feature = \"a\")]\nmod other;\n",
        ),
        planted("src/lib.rs", "#[cfg(test)]\nmod samples;\n"),
    ];
    let tests = test_files(&all);
    assert_eq!(
        tests,
        [
            PathBuf::from("src/client/test_server.rs"),
            PathBuf::from("src/samples.rs")
        ]
    );
    assert!(is_in(Path::new("src/samples/one.rs"), &tests));
    assert!(!is_in(Path::new("src/client/wire.rs"), &tests));
}
