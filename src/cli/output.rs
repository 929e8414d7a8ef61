//! Everything that the command prints. No other file does.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use serde::Serialize;
use zeroize::Zeroizing;

use crate::cli::CliError;
use crate::client::ClientError;
use crate::domain::causes::with_causes;
use crate::domain::names::is_unseen;

/// How the command prints.
pub(super) struct Output {
    /// Whether as JSON.
    pub(super) json: bool,
}

impl Output {
    /// An answer of the API: itself as JSON, or what `text` makes of it, which ends in a line break.
    pub(super) fn answer<A: Serialize>(
        &self,
        answer: &A,
        text: impl FnOnce(&A) -> String,
    ) -> Result<(), CliError> {
        if !self.json {
            return print(&Zeroizing::new(text(answer)));
        }
        let failed = |error| CliError::Print(io::Error::from(error));
        let mut text = Zeroizing::new(serde_json::to_string_pretty(answer).map_err(failed)?);
        text.push('\n');
        print(&text)
    }

    /// A value, as it is; on a terminal as it can be shown, with a line break behind it.
    pub(super) fn value(&self, value: &str) -> Result<(), CliError> {
        print(value)?;
        if io::stdout().is_terminal() {
            print("\n")?;
        }
        Ok(())
    }

    /// Something that is done all the same.
    pub(super) fn warn(&self, warning: &str) {
        if self.json {
            complain_as_json(&serde_json::json!({"warning": {"message": warning}}));
        } else {
            complain(&format!("barekey: warning: {warning}\n"));
        }
    }

    /// Asks for a value that will be typed.
    pub(super) fn prompt(&self, name: &str) {
        complain(&format!(
            "The value of {name}, shown as it is typed; end it with Ctrl-D on a line of its own:\n"
        ));
    }

    /// Why the command failed, and what to do.
    pub(super) fn error(&self, error: &CliError) {
        let message = with_causes(error);
        if self.json {
            let (code, request_id) = match error {
                CliError::Call(ClientError::Refused {
                    code, request_id, ..
                }) => (code.as_str(), Some(request_id)),
                _ => ("COMMAND_FAILED", None),
            };
            complain_as_json(&serde_json::json!({
                "error": {"code": code, "message": message, "requestId": request_id, "advice": error.advice()},
            }));
            return;
        }
        let mut text = format!("barekey: {message}\n");
        if let Some(advice) = error.advice() {
            text.push_str(&format!("  {advice}\n"));
        }
        complain(&text);
    }
}

/// The help, the version, or why the arguments are none.
pub(super) fn usage(usage: &clap::Error, json: bool) -> ExitCode {
    if usage.use_stderr() && json {
        let text = usage.render().to_string();
        let message = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
        complain_as_json(&serde_json::json!({
            "error": {"code": "USAGE", "message": message, "requestId": null, "advice": null},
        }));
        return ExitCode::FAILURE;
    }
    let printed = usage.print();
    if usage.use_stderr() || printed.is_err() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    let text = shown(text, stdout.is_terminal());
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(CliError::Print)
}

/// Writes to standard error; there is nowhere to say that it is closed.
fn complain(text: &str) {
    let mut stderr = io::stderr().lock();
    let text = shown(text, stderr.is_terminal());
    drop(stderr.write_all(text.as_bytes()));
}

/// What is printed of a text: itself, but on a terminal nothing that the terminal would obey or turn round. Values and names
/// come from whoever may write them.
fn shown(text: &str, is_terminal: bool) -> Zeroizing<String> {
    let obeyed = |it: char| is_unseen(it) && !matches!(it, '\n' | '\t');
    if !is_terminal || !text.contains(obeyed) {
        return Zeroizing::new(text.to_owned());
    }
    let mut shown = Zeroizing::new(String::with_capacity(text.len() * 2));
    for it in text.chars() {
        if obeyed(it) {
            shown.extend(it.escape_unicode());
        } else {
            shown.push(it);
        }
    }
    shown
}

/// One object on a line of its own.
fn complain_as_json(body: &serde_json::Value) {
    complain(&format!("{body}\n"));
}

/// Rows under a heading, in columns.
pub(super) fn table<const COLUMNS: usize>(
    heading: [&str; COLUMNS],
    rows: &[[String; COLUMNS]],
) -> String {
    let heading = heading.map(str::to_owned);
    let mut widths = [0; COLUMNS];
    for row in std::iter::once(&heading).chain(rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&heading).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(&format!("{cell:<width$}   "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// An instant, to the second, in UTC.
pub(super) fn instant(milliseconds: i64) -> String {
    match jiff::Timestamp::from_millisecond(milliseconds) {
        Ok(instant) => instant.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        Err(_) => milliseconds.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            ["A".to_owned(), "secret".to_owned()],
            ["LONG_ÄNAME".to_owned(), String::new()],
        ];
        assert_eq!(
            table(["NAME", "KIND"], &rows),
            "NAME         KIND\nA            secret\nLONG_ÄNAME\n"
        );
    }

    #[test]
    fn a_terminal_is_shown_nothing_that_it_would_obey_and_a_pipe_gets_every_byte() {
        let text = "a\u{1b}[2J\tä\n\u{202e}b\r\u{9b}c";
        assert_eq!(*shown(text, false), text);
        assert_eq!(
            *shown(text, true),
            "a\\u{1b}[2J\tä\n\\u{202e}b\\u{d}\\u{9b}c"
        );
    }

    #[test]
    fn an_instant_is_told_in_utc() {
        assert_eq!(instant(1_795_000_000_123), "2026-11-18T11:06:40Z");
    }
}
