//! `barekey project list|create`, `barekey stage list|create`, `barekey whoami`.

use clap::Subcommand;

use crate::cli::output::{Output, instant, table};
use crate::cli::target::Target;
use crate::cli::{CliError, wait};
use crate::protocol::management::{
    ProjectCreateRequest, ProjectListRequest, StageCreateRequest, StageListRequest,
};
use crate::protocol::session::SessionResponse;

#[derive(Subcommand)]
pub(super) enum ProjectCommand {
    /// List the projects, newest first.
    List,
    /// Make a project, with the stages development, staging and production.
    Create {
        /// What people will call it.
        name: String,
        /// Its slug; by default made of the name, with a random number behind it.
        #[arg(long)]
        slug: Option<String>,
    },
}

#[derive(Subcommand)]
pub(super) enum StageCommand {
    /// List the stages of the project, oldest first.
    List,
    /// Make a stage in the project.
    Create {
        /// What people will call it.
        name: String,
        /// Its slug; by default made of the name.
        #[arg(long)]
        slug: Option<String>,
    },
}

pub(super) fn run_project(
    command: ProjectCommand,
    target: &Target,
    output: &Output,
) -> Result<(), CliError> {
    let client = target.client()?;
    let org_slug = target.organization();
    match command {
        ProjectCommand::List => {
            let listed = wait(client.list_projects(&ProjectListRequest { org_slug }))?;
            output.answer(&listed, |listed| {
                if listed.projects.is_empty() {
                    return "No projects found.\n".to_owned();
                }
                let rows: Vec<[String; 4]> = listed
                    .projects
                    .iter()
                    .map(|project| {
                        [
                            project.slug.clone(),
                            project.name.clone(),
                            project.secret_count.to_string(),
                            instant(project.created_at_ms),
                        ]
                    })
                    .collect();
                table(["SLUG", "NAME", "VARIABLES", "CREATED"], &rows)
            })
        }
        ProjectCommand::Create { name, slug } => {
            let created = wait(client.create_project(&ProjectCreateRequest {
                org_slug,
                name,
                slug,
            }))?;
            output.answer(&created, |created| {
                format!("created {}\n", created.project.slug)
            })
        }
    }
}

pub(super) fn run_stage(
    command: StageCommand,
    target: &Target,
    output: &Output,
) -> Result<(), CliError> {
    let project_slug = target.project()?;
    let client = target.client()?;
    let org_slug = target.organization();
    match command {
        StageCommand::List => {
            let listed = wait(client.list_stages(&StageListRequest {
                org_slug,
                project_slug,
            }))?;
            output.answer(&listed, |listed| {
                if listed.stages.is_empty() {
                    return "No stages found.\n".to_owned();
                }
                let rows: Vec<[String; 5]> = listed
                    .stages
                    .iter()
                    .map(|stage| {
                        [
                            stage.slug.clone(),
                            stage.name.clone(),
                            if stage.protected { "yes" } else { "no" }.to_owned(),
                            stage.variable_count.to_string(),
                            instant(stage.created_at_ms),
                        ]
                    })
                    .collect();
                table(["SLUG", "NAME", "PROTECTED", "VARIABLES", "CREATED"], &rows)
            })
        }
        StageCommand::Create { name, slug } => {
            let created = wait(client.create_stage(&StageCreateRequest {
                org_slug,
                project_slug,
                name,
                slug,
            }))?;
            output.answer(&created, |created| {
                format!("created {}\n", created.stage.slug)
            })
        }
    }
}

/// `barekey whoami`.
pub(super) fn whoami(target: &Target, output: &Output) -> Result<(), CliError> {
    let session = wait(target.client()?.session())?;
    output.answer(&session, described)
}

fn described(session: &SessionResponse) -> String {
    let never = || "never".to_owned();
    let scope = match (&session.project_id, &session.stage_id) {
        (_, Some(stage)) => format!("stage {stage}"),
        (Some(project), None) => format!("project {project}"),
        (None, None) => "the whole organization".to_owned(),
    };
    let identified = |name: &Option<String>, id: &Option<String>| match (name, id) {
        (Some(name), Some(id)) => Some(format!("{name} ({id})")),
        (name, id) => name.clone().or_else(|| id.clone()),
    };
    let is_token = session.source == "token";
    let lines = [
        ("credential", Some(session.source.clone())),
        ("name", identified(&session.name, &session.token_id)),
        (
            "organization",
            identified(&session.org_slug, &session.org_id),
        ),
        ("role", session.role.clone()),
        ("scope", is_token.then_some(scope)),
        (
            "expires",
            is_token.then(|| {
                session
                    .access_token_expires_at_ms
                    .map_or_else(never, instant)
            }),
        ),
        (
            "last used",
            is_token.then(|| session.last_used_at_ms.map_or_else(never, instant)),
        ),
        ("namespace", session.namespace.clone()),
        ("service account", session.service_account.clone()),
        ("pod", session.pod.clone()),
    ];
    lines
        .into_iter()
        .filter_map(|(what, value)| {
            value.map(|value| format!("{:<17}{value}\n", format!("{what}:")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_described_by_what_it_is_and_where_it_is_good() {
        let session = SessionResponse {
            source: "token".to_owned(),
            org_id: Some("org_1".to_owned()),
            org_slug: Some("acme".to_owned()),
            token_id: Some("tok_1".to_owned()),
            name: Some("ci".to_owned()),
            role: Some("developer".to_owned()),
            request_id: "req_1".to_owned(),
            ..SessionResponse::default()
        };
        assert_eq!(
            described(&session),
            "credential:      token\n\
             name:            ci (tok_1)\n\
             organization:    acme (org_1)\n\
             role:            developer\n\
             scope:           the whole organization\n\
             expires:         never\n\
             last used:       never\n"
        );
    }
}
