//! `barekey env set|get|list`.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;

use clap::Subcommand;
use zeroize::Zeroizing;

use crate::cli::output::{Output, instant, table};
use crate::cli::target::Target;
use crate::cli::{CliError, wait};
use crate::domain::variable::{DeclaredType, Kind, VALUE_BYTES_MAX_CEILING, Visibility};
use crate::protocol::environment::{
    EvaluateRequest, ListRequest, Value, WriteEntry, WriteRequest, WriteResponse,
};

#[derive(Subcommand)]
pub(super) enum EnvCommand {
    /// Write a value, read from standard input: `printf %s "$VALUE" | barekey env set NAME`.
    ///
    /// Of standard input one line break at the end is left out; a file is taken byte for byte. An empty value is refused
    /// unless --allow-empty asks for it.
    Set {
        /// The variable's name.
        name: String,
        /// The value. Not for secrets: arguments are seen by everyone on this machine and stay in the shell's history.
        #[arg(conflicts_with = "value_file")]
        value: Option<String>,
        /// Read the value from this file.
        #[arg(long, value_name = "FILE")]
        value_file: Option<PathBuf>,
        /// Keep the line break at the end of standard input.
        #[arg(long, conflicts_with_all = ["value", "value_file"])]
        keep_newline: bool,
        /// Write an empty value too; without it that is taken for a value that got lost on its way.
        #[arg(long)]
        allow_empty: bool,
        /// string, boolean, int64, float, date or json; by default as it is, and string for a new variable.
        #[arg(long, value_name = "TYPE")]
        r#type: Option<DeclaredType>,
        /// private or public; by default as it is, and private for a new variable.
        #[arg(long)]
        visibility: Option<Visibility>,
    },
    /// Print a value, and nothing else.
    Get {
        /// The variable's name.
        name: String,
    },
    /// List the variables, without their values.
    List,
}

pub(super) fn run(command: EnvCommand, target: &Target, output: &Output) -> Result<(), CliError> {
    match command {
        EnvCommand::Set {
            name,
            value,
            value_file,
            keep_newline,
            allow_empty,
            r#type,
            visibility,
        } => {
            let (project_slug, stage_slug) = (target.project()?, target.stage()?);
            let client = target.client()?;
            let (value, from) = match (value, value_file) {
                (Some(value), _) => {
                    output.warn(
                        "a value in an argument is seen by everyone on this machine and stays in the shell's history; use \
                         standard input or --value-file",
                    );
                    (Value(value), "the argument".to_owned())
                }
                (None, Some(file)) => value_of_file(file)?,
                (None, None) => value_of_stdin(&name, keep_newline, output)?,
            };
            if value.0.is_empty() && !allow_empty {
                return Err(CliError::Empty { from });
            }
            let written = wait(client.write(&WriteRequest {
                org_slug: target.organization(),
                project_slug,
                stage_slug,
                mode: "upsert".to_owned(),
                entries: vec![WriteEntry {
                    name,
                    kind: Kind::Secret.to_string(),
                    value: Some(value),
                    declared_type: r#type.map(|declared| declared.to_string()),
                    visibility: visibility.map(|visibility| visibility.to_string()),
                }],
                deletes: Vec::new(),
            }))?;
            output.answer(&written, told)
        }
        EnvCommand::Get { name } => {
            let (project_slug, stage_slug) = (target.project()?, target.stage()?);
            let client = target.client()?;
            let evaluated = wait(client.evaluate(&EvaluateRequest {
                org_slug: target.organization(),
                project_slug,
                stage_slug,
                name,
                declared_type: None,
                seed: None,
                key: None,
            }))?;
            if output.json {
                output.answer(&evaluated, |_| String::new())
            } else {
                output.value(&evaluated.variable.value.0)
            }
        }
        EnvCommand::List => {
            let (project_slug, stage_slug) = (target.project()?, target.stage()?);
            let listed = wait(target.client()?.list(&ListRequest {
                org_slug: target.organization(),
                project_slug,
                stage_slug,
            }))?;
            output.answer(&listed, |listed| {
                if listed.variables.is_empty() {
                    return "No variables found.\n".to_owned();
                }
                let rows: Vec<[String; 6]> = listed
                    .variables
                    .iter()
                    .map(|variable| {
                        [
                            variable.name.clone(),
                            variable.visibility.clone(),
                            variable.kind.clone(),
                            variable.declared_type.clone(),
                            variable.version.to_string(),
                            instant(variable.updated_at_ms),
                        ]
                    })
                    .collect();
                table(
                    ["NAME", "VISIBILITY", "KIND", "TYPE", "VERSION", "UPDATED"],
                    &rows,
                )
            })
        }
    }
}

fn told(written: &WriteResponse) -> String {
    let line = |what: &str, names: &[String]| -> String {
        names
            .iter()
            .map(|name| format!("{what} {name}\n"))
            .collect()
    };
    [
        line("created", &written.created),
        line("updated", &written.updated),
        line("deleted", &written.deleted),
    ]
    .concat()
}

fn value_of_file(file: PathBuf) -> Result<(Value, String), CliError> {
    let from = file.display().to_string();
    let opened = File::open(&file).map_err(|source| CliError::ReadValue {
        from: from.clone(),
        source,
    })?;
    read_value(opened, from, false)
}

fn value_of_stdin(
    name: &str,
    keep_newline: bool,
    output: &Output,
) -> Result<(Value, String), CliError> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        output.prompt(name);
    }
    read_value(stdin.lock(), "standard input".to_owned(), !keep_newline)
}

/// Reads a value to its end; with `one_line_break_less`, without the line break that ends it. `from` comes back beside it.
fn read_value(
    source: impl Read,
    from: String,
    one_line_break_less: bool,
) -> Result<(Value, String), CliError> {
    let bytes_max = VALUE_BYTES_MAX_CEILING;
    // One more byte for a line break, one to see that there is more.
    let limit = u64::try_from(bytes_max)
        .unwrap_or(u64::MAX)
        .saturating_add(2);
    let mut bytes = Zeroizing::new(Vec::new());
    if let Err(source) = source.take(limit).read_to_end(&mut bytes) {
        return Err(CliError::ReadValue { from, source });
    }
    if one_line_break_less && bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    if bytes.len() > bytes_max {
        return Err(CliError::TooLong { from, bytes_max });
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok((Value(text.to_owned()), from)),
        Err(_) => Err(CliError::NotText { from }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], one_line_break_less: bool) -> Result<String, CliError> {
        read_value(bytes, "standard input".to_owned(), one_line_break_less)
            .map(|(value, _)| value.0.clone())
    }

    #[test]
    fn exactly_one_line_break_at_the_end_is_left_out() {
        assert_eq!(read(b"value\n", true).unwrap(), "value");
        assert_eq!(read(b"value\n\n", true).unwrap(), "value\n");
        assert_eq!(read(b"value", true).unwrap(), "value");
        assert_eq!(read(b"\n", true).unwrap(), "");
        assert_eq!(read(b"value\n", false).unwrap(), "value\n");
    }

    #[test]
    fn a_value_that_is_not_text_or_too_long_is_refused_without_being_shown() {
        let refused = read(b"secret\xff", true).unwrap_err().to_string();
        assert!(
            refused.contains("standard input") && !refused.contains("secret"),
            "{refused}"
        );
        let longest = vec![b'v'; VALUE_BYTES_MAX_CEILING];
        assert!(read(&longest, true).is_ok());
        assert!(read(&[&longest[..], b"\n"].concat(), true).is_ok());
        let refused = read(&[&longest[..], b"v"].concat(), true).unwrap_err();
        assert!(matches!(refused, CliError::TooLong { .. }), "{refused}");
    }
}
