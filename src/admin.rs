//! `barekey-operator admin …`: organizations, tokens and the audit trail, over a Unix socket of the running server.
//!
//! One connection is one request and one reply, each a JSON document; the caller closes its half when it has asked. The
//! socket is the credential: its mode is 0600, so whoever may open it is the server's own user. Where no server runs, the
//! program opens a SQLite file itself and calls [`perform`] directly; the file's lock keeps two from doing so at once.

pub mod socket;

use serde::{Deserialize, Serialize};

use crate::domain::access::Role;
use crate::domain::audit::{Origin, Source};
use crate::domain::causes::with_causes;
use crate::domain::names::{OrganizationSlug, ProjectSlug, StageSlug, TokenId};
use crate::domain::plaintext::Plaintext;
use crate::protocol::environment::Value;
use crate::vault::Vault;
use crate::vault::audit::AuditHead;
use crate::vault::credentials::{RevokeTokenError, TokenRequest};
use crate::vault::tokens::TokenSummary;

/// How many tokens one message lists.
const TOKENS_SHOWN_MAX: usize = 1000;

/// What an administrator asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "ask")]
pub enum Request {
    /// Make one organization and its owner's token.
    Bootstrap {
        /// Its slug.
        organization: OrganizationSlug,
    },
    /// Make a token.
    CreateToken {
        /// The organization.
        organization: OrganizationSlug,
        /// The word of its role.
        role: String,
        /// What people call it.
        name: String,
        /// The project that it is cut to.
        project: Option<ProjectSlug>,
        /// The stage that it is cut to.
        stage: Option<StageSlug>,
        /// When it ends, in milliseconds since 1970.
        expires_at_ms: Option<i64>,
    },
    /// Revoke a token.
    RevokeToken {
        /// The organization.
        organization: OrganizationSlug,
        /// The token's id.
        token: TokenId,
    },
    /// Check the audit trail.
    VerifyAudit {
        /// Heads that were published outside the database.
        published: Vec<PublishedHead>,
    },
}

/// A head of an audit chain, as it was published.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PublishedHead {
    /// The organization's id, or `installation`.
    pub chain: String,
    /// The epoch.
    pub epoch: i64,
    /// The sequence of the newest record.
    pub sequence: i64,
    /// Its MAC, in hex.
    pub mac: String,
}

/// What the administrator is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    tag = "reply"
)]
pub enum Reply {
    /// A token was made.
    Token {
        /// Its id.
        id: String,
        /// The token itself; nobody sees it again.
        token: Value,
        /// The organization.
        organization: String,
    },
    /// A token was revoked.
    Revoked {
        /// Its id.
        id: String,
    },
    /// The trail was read.
    Audit {
        /// How many records there are.
        records: u64,
        /// What is wrong; empty when it is whole.
        findings: Vec<String>,
    },
    /// Nothing was done.
    Refused {
        /// Why, and what would pass.
        message: String,
    },
}

/// The origin of what an administrator does, for the audit trail; `who` is what is known of the caller.
pub fn origin(who: String) -> Origin {
    Origin {
        source: Source::Admin,
        ip: String::new(),
        user_agent: who,
        request_id: format!("req_{}", uuid::Uuid::new_v4().simple()),
    }
}

/// Does what is asked. A failure is a reply too.
pub async fn perform(vault: &Vault, origin: &Origin, request: Request) -> Reply {
    match attempt(vault, origin, request).await {
        Ok(reply) => reply,
        Err(error) => Reply::Refused {
            message: with_causes(error.as_ref()),
        },
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

async fn attempt(vault: &Vault, origin: &Origin, request: Request) -> Result<Reply, AnyError> {
    match request {
        Request::Bootstrap { organization } => {
            let (organization, made) = vault.bootstrap(origin, &organization).await?;
            Ok(Reply::Token {
                id: made.id.into(),
                token: text(&made.token),
                organization: organization.slug.into(),
            })
        }
        Request::CreateToken {
            organization,
            role,
            name,
            project,
            stage,
            expires_at_ms,
        } => {
            let request = TokenRequest {
                organization,
                name,
                role: role.parse::<Role>()?,
                project,
                stage,
                expires_at_ms,
            };
            let made = vault.create_token(origin, &request).await?;
            Ok(Reply::Token {
                id: made.id.into(),
                token: text(&made.token),
                organization: request.organization.into(),
            })
        }
        Request::RevokeToken {
            organization,
            token,
        } => {
            match vault.revoke_token(origin, &organization, &token).await {
                Ok(()) => Ok(Reply::Revoked { id: token.into() }),
                // Whoever lost a token has often lost its id too.
                Err(error @ RevokeTokenError::NoToken(_)) => Ok(Reply::Refused {
                    message: format!("{error}{}", listed(&vault.tokens(&organization).await?)),
                }),
                Err(error) => Err(error.into()),
            }
        }
        Request::VerifyAudit { published } => {
            let published: Vec<_> = published
                .into_iter()
                .map(|head| AuditHead {
                    chain: head.chain,
                    epoch: head.epoch,
                    sequence: head.sequence,
                    mac: head.mac,
                })
                .collect();
            let report = vault.verify_audit(&published).await?;
            Ok(Reply::Audit {
                records: report.records,
                findings: report.findings,
            })
        }
    }
}

/// The tokens that there are, one a line, without the tokens themselves.
fn listed(tokens: &[TokenSummary]) -> String {
    let line = |token: &TokenSummary| {
        let used = token
            .last_used_at_ms
            .and_then(|at| jiff::Timestamp::from_millisecond(at).ok())
            .map_or_else(
                || "never used".to_owned(),
                |at| format!("last used {}", at.strftime("%Y-%m-%dT%H:%M:%SZ")),
            );
        let (id, name, description) = (&token.id, &token.name, &token.description);
        format!("\n  {id}  {name:?}  {description}  {used}")
    };
    if tokens.is_empty() {
        return "; no token of this organization is left that could be revoked".to_owned();
    }
    let mut text = "; these are not revoked:".to_owned();
    text.extend(tokens.iter().take(TOKENS_SHOWN_MAX).map(line));
    if let Some(more) = tokens.len().checked_sub(TOKENS_SHOWN_MAX + 1) {
        text.push_str(&format!("\n  and {} older ones", more + 1));
    }
    text
}

fn text(token: &Plaintext) -> Value {
    Value(token.reveal_text().unwrap_or_default().to_owned())
}

/// Prints a reply: what a script wants on standard output (a token, the findings), the rest on standard error.
/// Returns whether all is well.
#[allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the command line of administrators: this is its output"
)]
pub fn tell(reply: &Reply) -> bool {
    match reply {
        Reply::Token {
            id,
            token,
            organization,
        } => {
            println!("{}", token.0);
            eprintln!(
                "This is the only time that the token is shown. It belongs to the organization {organization}.\n\
                 Use it:    export BAREKEY_ACCESS_TOKEN=…, or the header `Authorization: Bearer …`\n\
                 Revoke it: barekey-operator admin token revoke --organization {organization} {id}"
            );
            true
        }
        Reply::Revoked { id } => {
            eprintln!("The token {id} is revoked.");
            true
        }
        Reply::Audit { records, findings } => {
            for finding in findings {
                println!("{finding}");
            }
            if findings.is_empty() {
                eprintln!("The audit trail is whole: {records} records.");
            } else {
                eprintln!(
                    "The audit trail is NOT whole: {} findings in {records} records.",
                    findings.len()
                );
            }
            findings.is_empty()
        }
        Reply::Refused { message } => {
            eprintln!("{message}");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_and_a_reply_come_back_as_they_went() {
        let request = Request::CreateToken {
            organization: "acme".parse().unwrap(),
            role: "viewer".to_owned(),
            name: "ci".to_owned(),
            project: Some("shop".parse().unwrap()),
            stage: None,
            expires_at_ms: Some(1),
        };
        let json = serde_json::to_string(&request).unwrap();
        assert!(json.contains("\"expiresAtMs\":1"), "{json}");
        let back: Request = serde_json::from_str(&json).unwrap();
        assert!(matches!(back, Request::CreateToken { role, .. } if role == "viewer"));
    }

    #[test]
    fn a_reply_with_a_token_prints_no_token_in_debug() {
        let reply = Reply::Token {
            id: "tok_1".to_owned(),
            token: Value("bk_api_hunter2".to_owned()),
            organization: "acme".to_owned(),
        };
        assert!(!format!("{reply:?}").contains("hunter2"));
    }
}
