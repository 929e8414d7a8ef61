//! Searches places for secrets in every encoding that we produce. Findings name the secret and the place, never the bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use aho_corasick::AhoCorasick;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::json;
use tempfile::TempDir;

use crate::harness::secrets;

/// What to look for: many spellings of many secrets, in one pass.
pub(crate) struct Needles {
    automaton: AhoCorasick,
    /// For each pattern: which secret, and how it is spelled.
    labels: Vec<(String, &'static str)>,
    tokens: Option<Tokens>,
}

/// How each API token of ours begins.
const TOKEN_PREFIX: &str = "bk_api_";
/// How many characters follow, at the least, in every spelling.
const TOKEN_REST: usize = 43;
/// More than any spelling of the prefix has, and what follows.
const TOKEN_BYTES_MAX: usize = 64;

/// Any API token of ours, told by its form alone: the spellings of how each begins.
struct Tokens {
    automaton: AhoCorasick,
    spellings: Vec<&'static str>,
}

impl Tokens {
    fn new() -> Self {
        let (names, patterns): (Vec<_>, Vec<_>) =
            spellings(TOKEN_PREFIX.as_bytes()).into_iter().unzip();
        Self {
            automaton: AhoCorasick::new(patterns).unwrap(),
            spellings: names,
        }
    }

    /// How the tokens in `bytes` are spelled. A text that speaks of the prefix alone is none.
    fn within(&self, bytes: &[u8]) -> impl Iterator<Item = (String, &'static str)> {
        let part_of_one = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_+/".contains(byte);
        self.automaton
            .find_iter(bytes)
            .filter(move |hit| {
                let rest = bytes.get(hit.end()..hit.end() + TOKEN_REST);
                rest.is_some_and(|rest| rest.iter().all(part_of_one))
            })
            .map(|hit| {
                let spelling = self.spellings[hit.pattern().as_usize()];
                ("a token, by its form".to_owned(), spelling)
            })
    }

    /// The same in a file, a piece at a time; each begins with the end of the one before.
    fn in_file(&self, mut file: impl Read) -> io::Result<Vec<(String, &'static str)>> {
        let mut found = Vec::new();
        let mut piece = vec![0; 1 << 20];
        let mut kept = 0;
        loop {
            let read = file.read(&mut piece[kept..])?;
            if read == 0 {
                return Ok(found);
            }
            let end = kept + read;
            found.extend(self.within(&piece[..end]));
            kept = end.min(TOKEN_BYTES_MAX);
            piece.copy_within(end - kept..end, 0);
        }
    }
}

impl Needles {
    /// Spells each secret in every way that a program of ours could.
    pub(crate) fn new<'a>(secrets: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut patterns = Vec::new();
        let mut labels = Vec::new();
        for (label, secret) in secrets {
            assert!(
                secret.len() >= 12,
                "{label} is too short to be told from chance"
            );
            for (spelling, pattern) in spellings(secret) {
                patterns.push(pattern);
                labels.push((label.to_owned(), spelling));
            }
        }
        Self {
            automaton: AhoCorasick::new(patterns).unwrap(),
            labels,
            tokens: None,
        }
    }

    /// What this run has remembered, and every token.
    pub(crate) fn of_this_run() -> Self {
        let all = secrets::remembered();
        let all = all
            .iter()
            .map(|(label, secret)| (label.as_str(), secret.as_slice()));
        Self::new(all).and_every_token()
    }

    /// And every API token of ours, told by its form.
    pub(crate) fn and_every_token(self) -> Self {
        Self {
            tokens: Some(Tokens::new()),
            ..self
        }
    }

    /// Which secrets are in `bytes`, and how they are spelled there.
    pub(crate) fn within(&self, bytes: &[u8]) -> Vec<(String, &'static str)> {
        let mut found: Vec<_> = self
            .automaton
            .find_overlapping_iter(bytes)
            .map(|hit| self.labels[hit.pattern().as_usize()].clone())
            .collect();
        found.extend(self.tokens.iter().flat_map(|tokens| tokens.within(bytes)));
        found.sort();
        found.dedup();
        found
    }

    /// Which secrets are in the files below `folder`, on the disk that it is on (memory file systems below it are other
    /// disks): path → secrets. Files that vanish meanwhile are passed over.
    pub(crate) fn below(&self, folder: &Path) -> Searched {
        let mut searched = Searched::default();
        let disk = std::fs::symlink_metadata(folder)
            .unwrap_or_else(|error| panic!("{} cannot be searched: {error}", folder.display()))
            .dev();
        self.walk(folder, disk, &mut searched);
        searched
    }

    fn walk(&self, path: &Path, disk: u64, searched: &mut Searched) {
        let Some(metadata) = unless_gone(path, std::fs::symlink_metadata(path)) else {
            return;
        };
        if metadata.dev() != disk {
            return;
        }
        if metadata.is_dir() {
            let entries = unless_gone(path, std::fs::read_dir(path)).into_iter();
            for entry in entries.flatten() {
                if let Some(entry) = unless_gone(path, entry) {
                    self.walk(&entry.path(), disk, searched);
                }
            }
        } else if metadata.is_file() {
            // One file may have hundreds of names: busybox has.
            let linked = (metadata.nlink() > 1).then(|| metadata.ino());
            let known = linked.and_then(|file| searched.linked.get(&file));
            let labels = if let Some(labels) = known {
                labels.clone()
            } else {
                let Some(file) = unless_gone(path, File::open(path)) else {
                    return;
                };
                searched.files += 1;
                searched.bytes += metadata.len();
                let mut labels = unless_gone(path, self.in_file(file)).unwrap_or_default();
                labels.sort();
                labels.dedup();
                if let Some(file) = linked {
                    searched.linked.insert(file, labels.clone());
                }
                labels
            };
            if !labels.is_empty() {
                searched.found.insert(path.display().to_string(), labels);
            }
        }
    }

    /// Which secrets are in a file.
    fn in_file(&self, mut file: File) -> io::Result<Vec<(String, &'static str)>> {
        let mut found = Vec::new();
        let reader = BufReader::with_capacity(1 << 20, &file);
        for hit in self.automaton.stream_find_iter(reader) {
            found.push(self.labels[hit?.pattern().as_usize()].clone());
        }
        if let Some(tokens) = &self.tokens {
            file.rewind()?;
            found.extend(tokens.in_file(&file)?);
        }
        Ok(found)
    }
}

/// What a file system said, or nothing when the file vanished meanwhile. What is there and cannot be read was not searched,
/// so it ends the test.
fn unless_gone<T>(path: &Path, said: io::Result<T>) -> Option<T> {
    match said {
        Ok(said) => Some(said),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => panic!("{} cannot be searched: {error}", path.display()),
    }
}

/// What a search of files saw.
#[derive(Default)]
pub(crate) struct Searched {
    /// How many files were read.
    pub(crate) files: u64,
    /// How many bytes they had.
    pub(crate) bytes: u64,
    /// The files of more than one name, and what is in them: each is read once.
    linked: BTreeMap<u64, Vec<(String, &'static str)>>,
    /// Path → which secrets, and how they are spelled.
    pub(crate) found: BTreeMap<String, Vec<(String, &'static str)>>,
}

/// A secret as text, base64 (at each of the three places that it can have in a longer text), hex, JSON and URL.
fn spellings(secret: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut all = vec![
        ("as it is", secret.to_vec()),
        ("hex", hex::encode(secret).into_bytes()),
        ("upper-case hex", hex::encode_upper(secret).into_bytes()),
    ];
    for shift in 0..3 {
        let mut padded = vec![0_u8; shift];
        padded.extend_from_slice(secret);
        // The characters that no neighbour has a bit in.
        let whole = (8 * shift).div_ceil(6)..(8 * padded.len()) / 6;
        all.push((
            "base64",
            STANDARD.encode(&padded).as_bytes()[whole.clone()].to_vec(),
        ));
        all.push((
            "base64url",
            URL_SAFE.encode(&padded).as_bytes()[whole].to_vec(),
        ));
    }
    if let Ok(text) = std::str::from_utf8(secret) {
        let json = serde_json::to_string(text).unwrap();
        let json = &json[1..json.len() - 1];
        all.push(("JSON", json.as_bytes().to_vec()));
        // As Go writes it: the API server, its audit log, custom resources in etcd, kubectl.
        let go = json
            .replace('&', "\\u0026")
            .replace('<', "\\u003c")
            .replace('>', "\\u003e");
        all.push(("JSON by Go", go.into_bytes()));
        let escaped: String = text
            .bytes()
            .map(|byte| match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                    char::from(byte).to_string()
                }
                other => format!("%{other:02X}"),
            })
            .collect();
        all.push(("URL", escaped.into_bytes()));
    }
    all.sort_by(|one, other| one.1.cmp(&other.1));
    all.dedup_by(|one, other| one.1 == other.1);
    all
}

/// A text in both kinds of base64, at each of the three places that it can have in a longer one.
fn in_base64(text: &str) -> impl Iterator<Item = (&'static str, String)> {
    ["", "x", "xy"].into_iter().flat_map(move |before| {
        let longer = format!("{before}{text}z");
        [
            ("base64", STANDARD.encode(&longer)),
            ("base64url", URL_SAFE.encode(&longer)),
        ]
    })
}

/// The search itself is proven before it is believed: each spelling of a secret is found in a longer text.
pub(crate) fn every_spelling_of_a_secret_is_found() {
    let secret = "pass\"word/with+odd & letters é ~~~~??????";
    let needles = Needles::new([("the secret", secret.as_bytes())]);
    let url: String = secret
        .bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect();
    let mut planted = vec![
        ("as it is", format!("before {secret} after")),
        ("JSON", json!({ "value": secret }).to_string()),
        (
            "JSON by Go",
            json!({ "value": secret })
                .to_string()
                .replace('&', "\\u0026"),
        ),
        ("URL", format!("/path?value={url}&more")),
        ("hex", hex::encode(format!("ab{secret}"))),
        ("upper-case hex", hex::encode_upper(format!("ab{secret}"))),
    ];
    planted.extend(in_base64(secret));
    let seen: BTreeSet<_> = planted.iter().map(|(spelling, _)| *spelling).collect();
    let all: BTreeSet<_> = needles
        .labels
        .iter()
        .map(|(_, spelling)| *spelling)
        .collect();
    assert_eq!(seen, all, "each spelling is planted");
    for (spelling, text) in planted {
        let found = needles.within(text.as_bytes());
        let wanted = ("the secret".to_owned(), spelling);
        assert!(found.contains(&wanted), "not found: {spelling} in {text}");
    }
    assert!(needles.within(b"nothing of the kind").is_empty());

    // A file of two names is read once and found under both.
    let folder = TempDir::new().unwrap();
    let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
    std::fs::write(&one, hex::encode(secret)).unwrap();
    std::fs::hard_link(&one, &other).unwrap();
    let searched = needles.below(folder.path());
    assert_eq!((searched.files, searched.found.len()), (1, 2));

    let needles = needles.and_every_token();
    let token = format!("{TOKEN_PREFIX}{}", "aZ-_9".repeat(9));
    // In JSON and in a URL it is as it is; and its beginning is the same in both kinds of base64.
    let mut planted = vec![
        ("as it is", format!("Bearer {token}\n")),
        ("as it is", json!({ "token": token }).to_string()),
        ("as it is", format!("/path?token={token}&more")),
        ("hex", hex::encode(&token)),
        ("upper-case hex", hex::encode_upper(&token)),
    ];
    planted.extend(in_base64(&token).map(|(_, text)| ("base64", text)));
    let seen: BTreeSet<_> = planted.iter().map(|(spelling, _)| *spelling).collect();
    let all = needles.tokens.as_ref().unwrap().spellings.iter().copied();
    assert_eq!(seen, all.collect(), "each spelling is planted");
    for (spelling, text) in planted {
        let found = needles.within(text.as_bytes());
        let wanted = ("a token, by its form".to_owned(), spelling);
        assert!(found.contains(&wanted), "not found: {spelling}");
        // On the border of two pieces of a file.
        let file = ["?".repeat((1 << 20) - 20), text].concat();
        let tokens = needles.tokens.as_ref().unwrap();
        let found = tokens.in_file(file.as_bytes()).unwrap();
        assert!(found.contains(&wanted), "not found: {spelling}");
    }
    assert!(needles.within(b"send a token (bk_api_...)").is_empty());
}
