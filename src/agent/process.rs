//! Hiding this process's memory, finding a program and becoming it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};

use crate::domain::plaintext::Plaintext;
use crate::domain::reference::expansion::{Composed, Environment};

/// Where programs are looked for when there is no `PATH`, as execvp(3) has it.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The program is not there, or may not be executed.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// There is no such file.
    #[error("{}: no such program{}", program.display(), if *searched { " in PATH" } else { "" })]
    NotFound {
        /// The program, as it was asked for.
        program: OsString,
        /// Whether `PATH` was searched.
        searched: bool,
    },
    /// There is a file, and it cannot be executed.
    #[error("{}: cannot be executed: {why}", program.display())]
    NotExecutable {
        /// The file.
        program: PathBuf,
        /// Why.
        why: &'static str,
    },
}

impl LookupError {
    /// The exit code that shells give to it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound { .. } => 127,
            Self::NotExecutable { .. } => 126,
        }
    }

    /// The same, with the program named by `word`.
    fn naming(self, word: &OsStr) -> Self {
        match self {
            Self::NotFound { searched, .. } => Self::NotFound {
                program: word.to_owned(),
                searched,
            },
            Self::NotExecutable { why, .. } => Self::NotExecutable {
                program: PathBuf::from(word),
                why,
            },
        }
    }
}

/// Finds a program by the rules of execvp(3): a name with a slash is a path, another one is looked for in `path`.
///
/// # Errors
/// [`LookupError`].
pub fn find_program(program: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, LookupError> {
    let not_found = |searched| LookupError::NotFound {
        program: program.to_owned(),
        searched,
    };
    if program.as_bytes().contains(&b'/') {
        let program = PathBuf::from(program);
        return match check_program(&program) {
            Ok(()) => Ok(program),
            Err(None) => Err(not_found(false)),
            Err(Some(why)) => Err(LookupError::NotExecutable { program, why }),
        };
    }
    if program.is_empty() {
        return Err(not_found(false));
    }
    let mut unfit = None;
    let path = path.unwrap_or(OsStr::new(DEFAULT_PATH));
    for folder in path.as_bytes().split(|byte| *byte == b':') {
        // An empty entry is the working directory.
        let folder = if folder.is_empty() { b"." } else { folder };
        let candidate = Path::new(OsStr::from_bytes(folder)).join(program);
        match check_program(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(None) => {}
            Err(Some(why)) => {
                unfit.get_or_insert(LookupError::NotExecutable {
                    program: candidate,
                    why,
                });
            }
        }
    }
    Err(unfit.unwrap_or_else(|| not_found(true)))
}

/// Whether a file can be executed; `None` when there is no such file.
fn check_program(path: &Path) -> Result<(), Option<&'static str>> {
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(Some("this user may not reach it"));
        }
        Err(_) => return Err(None),
    };
    if !metadata.is_file() {
        return Err(Some("it is not a file"));
    }
    if accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).is_err() {
        return Err(Some("this user may not execute it"));
    }
    if is_bare_script(path) {
        return Err(Some(
            "it is neither a program for this machine nor a script that begins with #!",
        ));
    }
    Ok(())
}

/// Whether a file is text that names no interpreter. The C library would hand such a file to a shell; the container runtime,
/// whose place the agent takes, does not.
fn is_bare_script(path: &Path) -> bool {
    let mut start = Vec::new();
    // What may be executed but not read is not a script.
    let read = File::open(path).and_then(|file| file.take(256).read_to_end(&mut start));
    read.is_ok() && !start.starts_with(b"#!") && !start.contains(&0)
}

/// The limits that [`hide`] took away.
pub struct Hidden {
    core: Rlimit,
}

/// Makes this process unreadable for others of its user, and its core dumps empty.
///
/// # Errors
/// What the kernel says.
pub fn hide() -> io::Result<Hidden> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let core = getrlimit(Resource::Core);
    let none = Rlimit {
        current: Some(0),
        maximum: core.maximum,
    };
    setrlimit(Resource::Core, none)?;
    Ok(Hidden { core })
}

/// Why the program did not take this process's place.
#[derive(Debug, thiserror::Error)]
pub enum BecomeError {
    /// The program is gone, or only now known.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The environment and arguments are larger than the kernel takes.
    #[error("{}", .0)]
    TooLarge(String),
    /// The file is there, and what it needs to run is not.
    #[error("{}: what it asks to be run by (the interpreter after #!, or its dynamic loader) is not there", program.display())]
    NoInterpreter {
        /// The program, as it was written.
        program: OsString,
    },
    /// The kernel refused.
    #[error("{}: cannot be executed", program.display())]
    Refused {
        /// The program, as it was written.
        program: OsString,
        /// Why.
        source: io::Error,
    },
    /// The limits for core dumps cannot be given back.
    #[error("cannot give back the limit for core dumps")]
    Limits(#[source] io::Error),
}

impl BecomeError {
    /// The exit code that shells give to it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Lookup(error) => error.exit_code(),
            Self::NoInterpreter { .. } => 127,
            Self::Refused { .. } => 126,
            Self::TooLarge(_) | Self::Limits(_) => 1,
        }
    }
}

/// Becomes the program: same process, arguments as they are, no shell. Returns only on failure.
///
/// `written` is the program's word as it was written, before values came into it: the one that a failure names. The word that
/// is executed may be a value, and a folder of `PATH` too.
pub fn become_program(composed: Composed, written: &OsStr, hidden: Hidden) -> BecomeError {
    let mut command = match command(&composed, written) {
        Ok(command) => command,
        Err(error) => return error.into(),
    };
    // The process is dumpable again once the kernel has put the program in its place.
    if let Err(error) = setrlimit(Resource::Core, hidden.core) {
        return BecomeError::Limits(error.into());
    }
    let refused = command.exec();
    explain(refused, written, &composed)
}

/// The program's file with what it is started with.
fn command(composed: &Composed, written: &OsStr) -> Result<Command, LookupError> {
    let mut words = composed
        .command
        .iter()
        .map(|word| OsStr::from_bytes(word.reveal()));
    let name = words.next().unwrap_or_default();
    let path = composed
        .environment
        .get(b"PATH".as_slice())
        .map(|path| OsStr::from_bytes(path.reveal()));
    let program = find_program(name, path).map_err(|error| error.naming(written))?;
    let mut command = Command::new(program);
    command.arg0(name).args(words).env_clear().envs(
        composed
            .environment
            .iter()
            .map(|(name, value)| (OsStr::from_bytes(name), OsStr::from_bytes(value.reveal()))),
    );
    Ok(command)
}

fn explain(refused: io::Error, written: &OsStr, composed: &Composed) -> BecomeError {
    match refused.kind() {
        io::ErrorKind::ArgumentListTooLong => BecomeError::TooLarge(sizes(composed)),
        io::ErrorKind::NotFound => BecomeError::NoInterpreter {
            program: written.to_owned(),
        },
        _ => BecomeError::Refused {
            program: written.to_owned(),
            source: refused,
        },
    }
}

/// Linux takes no single entry that is longer, with its name, `=` and the byte that ends it: 32 pages of 4 KiB.
const ENTRY_BYTES_MAX: usize = 128 * 1024;

/// Which entries make the environment too large.
fn sizes(composed: &Composed) -> String {
    let entries = composed.environment.iter().map(|(name, value)| {
        (
            String::from_utf8_lossy(name).into_owned(),
            name.len() + 1 + value.len() + 1,
        )
    });
    let words = composed
        .command
        .iter()
        .enumerate()
        .map(|(at, word)| (format!("argument {at}"), word.len() + 1));
    let mut sizes: Vec<(String, usize)> = entries.chain(words).collect();
    let total: usize = sizes.iter().map(|(_, bytes)| bytes).sum();
    sizes.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let (too_long, rest): (Vec<_>, Vec<_>) = sizes
        .into_iter()
        .partition(|(_, bytes)| *bytes > ENTRY_BYTES_MAX);
    let named = |sizes: &[(String, usize)]| -> String {
        let named: Vec<String> = sizes
            .iter()
            .map(|(name, bytes)| format!("{name} has {bytes} bytes"))
            .collect();
        named.join(", ")
    };
    if too_long.is_empty() {
        let largest: Vec<_> = rest.into_iter().take(5).collect();
        format!(
            "environment and arguments have {total} bytes, more than the kernel takes; the largest: {}",
            named(&largest)
        )
    } else {
        format!(
            "too long for an environment, where one entry may have {ENTRY_BYTES_MAX} bytes with its name: {}",
            named(&too_long)
        )
    }
}

/// The environment of this process, in the form that it is composed in.
pub fn environment(entries: impl Iterator<Item = (OsString, OsString)>) -> Environment {
    let mut environment = Environment::new();
    for (name, value) in entries {
        // Where a name is there twice, getenv(3) finds the first.
        environment
            .entry(name.into_vec())
            .or_insert_with(|| Plaintext::new(value.into_vec()));
    }
    environment
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn composed(entries: &[(&str, &str)], command: &[&str]) -> Composed {
        Composed {
            environment: entries
                .iter()
                .map(|(name, value)| {
                    (
                        name.as_bytes().to_vec(),
                        Plaintext::from((*value).to_owned()),
                    )
                })
                .collect(),
            command: command
                .iter()
                .map(|word| Plaintext::from((*word).to_owned()))
                .collect(),
        }
    }

    fn put(folder: &Path, name: &str, text: &str, mode: u32) {
        let file = folder.join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_program_is_looked_for_as_execvp_does() {
        let first = tempfile::tempdir().unwrap();
        let second = tempfile::tempdir().unwrap();
        put(first.path(), "unfit", "#!/bin/sh\n", 0o644);
        put(first.path(), "shadow", "#!/bin/sh\n", 0o644);
        put(second.path(), "shadow", "#!/bin/sh\n", 0o755);
        fs::create_dir(first.path().join("folder")).unwrap();
        let path = std::env::join_paths([first.path(), second.path()]).unwrap();
        let find = |name: &str| find_program(OsStr::new(name), Some(&path));
        assert_eq!(find("shadow").unwrap(), second.path().join("shadow"));
        assert_eq!(find("unfit").unwrap_err().exit_code(), 126);
        assert_eq!(find("folder").unwrap_err().exit_code(), 126);
        assert_eq!(find("none").unwrap_err().exit_code(), 127);
        assert_eq!(find("").unwrap_err().exit_code(), 127);
        assert_eq!(find("/none/at/all").unwrap_err().exit_code(), 127);
        assert_eq!(find("/").unwrap_err().exit_code(), 126);
        assert!(find_program(OsStr::new("sh"), None).is_ok());
    }

    #[test]
    fn a_text_that_names_no_interpreter_is_not_handed_to_a_shell() {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), "bare", "echo ran\n", 0o755);
        put(folder.path(), "empty", "", 0o755);
        for name in ["bare", "empty"] {
            let refused = find_program(folder.path().join(name).as_os_str(), None).unwrap_err();
            assert_eq!(refused.exit_code(), 126, "{refused}");
        }
    }

    #[test]
    fn a_program_gets_exactly_the_environment_and_the_words_it_was_composed_with() {
        let composed = composed(
            &[("PATH", "/usr/bin:/bin"), ("A", "x y"), ("EMPTY", "")],
            &[
                "sh",
                "-c",
                "printf '%s|' \"$0\" \"$@\"; env -u PWD -u _ -u SHLVL -u OLDPWD",
                "zero",
                "",
                "$(id)",
                "*",
            ],
        );
        let mut command = command(&composed, OsStr::new("word")).unwrap();
        let printed = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let (words, environment) = printed.rsplit_once('|').unwrap();
        assert_eq!(words, "zero||$(id)|*");
        let mut environment: Vec<&str> = environment.lines().collect();
        environment.sort_unstable();
        assert_eq!(environment, ["A=x y", "EMPTY=", "PATH=/usr/bin:/bin"]);
    }

    #[test]
    fn an_entry_that_is_too_long_is_named_with_its_size_and_without_its_value() {
        let long = "v".repeat(ENTRY_BYTES_MAX);
        let composed = composed(&[("LONG", &long), ("SHORT", "s")], &["/bin/true"]);
        let mut command = command(&composed, OsStr::new("word")).unwrap();
        let error = explain(command.spawn().unwrap_err(), OsStr::new("word"), &composed);
        assert_eq!(error.exit_code(), 1);
        let text = error.to_string();
        assert!(text.contains("LONG has 131078 bytes"), "{text}");
        assert!(!text.contains("SHORT") && !text.contains("vv"), "{text}");
    }

    #[test]
    fn an_environment_that_is_too_large_as_a_whole_names_its_largest_entries() {
        let large = "v".repeat(100 * 1024);
        let names: Vec<String> = (0..100).map(|number| format!("LARGE_{number}")).collect();
        let entries: Vec<(&str, &str)> = names
            .iter()
            .map(|name| (name.as_str(), large.as_str()))
            .collect();
        let composed = composed(&entries, &["/bin/true"]);
        let mut command = command(&composed, OsStr::new("word")).unwrap();
        let text = explain(command.spawn().unwrap_err(), OsStr::new("word"), &composed).to_string();
        assert!(text.contains("LARGE_"), "{text}");
        assert!(text.contains("have 10241"), "{text}");
    }

    #[test]
    fn a_script_whose_interpreter_is_missing_says_so() {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), "script", "#!/none/at/all\n", 0o755);
        let script = folder.path().join("script");
        let composed = composed(&[], &[script.to_str().unwrap()]);
        let mut command = command(&composed, OsStr::new("word")).unwrap();
        let error = explain(command.spawn().unwrap_err(), OsStr::new("word"), &composed);
        assert!(
            matches!(error, BecomeError::NoInterpreter { .. }),
            "{error}"
        );
        assert_eq!(error.exit_code(), 127);
    }
    #[test]
    fn what_fails_is_named_as_it_was_written_and_never_by_a_value() {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), "s3cr3t-unfit", "#!/bin/sh\n", 0o644);
        put(folder.path(), "s3cr3t-script", "#!/none/at/all\n", 0o755);
        put(folder.path(), "s3cr3t-none", "\0", 0o755);
        let path = folder.path().join("s3cr3t");
        fs::create_dir(&path).unwrap();
        put(&path, "unfit", "#!/bin/sh\n", 0o644);
        let path = path.to_str().unwrap();
        let within = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let cases = [
            ("/none/psql postgres://app:s3cr3t@db".to_owned(), 127),
            ("psql postgres:s3cr3t".to_owned(), 127),
            (within("s3cr3t-unfit"), 126),
            (within("s3cr3t-script"), 127),
            (within("s3cr3t-none"), 126),
            ("unfit".to_owned(), 126),
        ];
        for (word, exit_code) in cases {
            let composed = composed(&[("PATH", path)], &[&word, "s3cr3t"]);
            let written = OsStr::new("$(START)");
            // Not by `exec`, which changes how this process takes signals even when it fails.
            let error = match command(&composed, written) {
                Ok(mut command) => explain(command.spawn().unwrap_err(), written, &composed),
                Err(error) => error.into(),
            };
            let text = crate::domain::causes::with_causes(&error);
            assert!(
                text.starts_with("$(START): ") && !text.contains("s3cr3t"),
                "{text}"
            );
            assert_eq!(error.exit_code(), exit_code, "{word}");
        }
    }
}
