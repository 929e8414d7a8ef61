//! What goes when a resource goes: the access that it gave, and what it declared.

use std::sync::Arc;

use super::{controller, controller_origin};
use crate::domain::access::Actor;
use crate::domain::audit::{Action, AuditEvent, Outcome};
use crate::domain::declaration::Deletion;
use crate::domain::names::{
    Namespace, ObjectName, OrganizationId, OrganizationSlug, ProjectId, ProjectSlug, StageId,
    StageSlug,
};
use crate::storage;
use crate::storage::projects::StageRow;
use crate::vault::credentials::store_revocation;
use crate::vault::projects::owner_text;
use crate::vault::records::Chain;
use crate::vault::writer::{Change, Verdict, Work};
use crate::vault::{Core, Unavailable, Vault};

impl Vault {
    /// Ends every access entry that a resource declared (the resource is gone). Repeatable.
    ///
    /// # Errors
    /// [`Unavailable`]; nothing is changed then, or only some stages.
    pub async fn withdraw_access(
        &self,
        namespace: &Namespace,
        resource: &ObjectName,
    ) -> Result<(), Unavailable> {
        self.withdraw(namespace, resource, None).await
    }

    /// The same for every stage but the one that the resource declares now: it declared another one before. Repeatable.
    ///
    /// # Errors
    /// [`Unavailable`]; nothing is changed then, or only some stages.
    pub async fn withdraw_access_elsewhere(
        &self,
        namespace: &Namespace,
        resource: &ObjectName,
        declared: &StageId,
    ) -> Result<(), Unavailable> {
        self.withdraw(namespace, resource, Some(declared)).await
    }

    async fn withdraw(
        &self,
        namespace: &Namespace,
        resource: &ObjectName,
        except: Option<&StageId>,
    ) -> Result<(), Unavailable> {
        let mut db = self.reader().await?;
        let stages = storage::projects::stages_of_resource(&mut db, namespace, resource)
            .await?
            .whole_or_told("stage");
        let mut organizations = Vec::new();
        for stage in stages {
            // A resource stays the owner of a stage that it left.
            if except == Some(&stage)
                || storage::projects::access_entries(&mut db, &stage)
                    .await?
                    .is_empty()
            {
                continue;
            }
            if let Some(stage) = storage::projects::stage_by_id(&mut db, &stage).await? {
                organizations.push((stage.organization, stage.id));
            }
        }
        drop(db);
        for (organization, stage) in organizations {
            let change = WithdrawAccess {
                organization,
                stage,
                namespace: namespace.clone(),
                resource: resource.clone(),
            };
            self.0.queue.change(change).await?;
        }
        Ok(())
    }

    /// Deletes a stage that the namespace owns; one with variables only when `confirmed`.
    ///
    /// # Errors
    /// [`Unavailable`]; nothing is deleted then.
    pub async fn delete_declared_stage(
        &self,
        namespace: &Namespace,
        organization: &OrganizationSlug,
        project: &ProjectSlug,
        slug: &StageSlug,
        confirmed: bool,
    ) -> Result<Deletion, Unavailable> {
        self.delete_declared(namespace, organization, project, Some(slug), confirmed)
            .await
    }

    /// Deletes a project that the namespace owns, with its stages; one with variables only when `confirmed`.
    ///
    /// # Errors
    /// [`Unavailable`]; nothing is deleted then.
    pub async fn delete_declared_project(
        &self,
        namespace: &Namespace,
        organization: &OrganizationSlug,
        slug: &ProjectSlug,
        confirmed: bool,
    ) -> Result<Deletion, Unavailable> {
        self.delete_declared(namespace, organization, slug, None, confirmed)
            .await
    }

    async fn delete_declared(
        &self,
        namespace: &Namespace,
        organization: &OrganizationSlug,
        project: &ProjectSlug,
        stage: Option<&StageSlug>,
        confirmed: bool,
    ) -> Result<Deletion, Unavailable> {
        let Some(organization) = self.organization(organization).await? else {
            return Ok(Deletion::Done);
        };
        let change = DeleteDeclared {
            core: Arc::clone(&self.0.core),
            organization: organization.id,
            namespace: namespace.clone(),
            project: project.clone(),
            stage: stage.cloned(),
            confirmed,
        };
        self.0.queue.change(change).await
    }
}

struct WithdrawAccess {
    organization: OrganizationId,
    stage: StageId,
    namespace: Namespace,
    resource: ObjectName,
}

impl Change for WithdrawAccess {
    type Answer = ();

    fn chain(&self) -> Chain {
        Chain::Organization(self.organization.clone())
    }

    async fn run(&self, work: &mut Work) -> Result<Verdict<()>, storage::Error> {
        let found = storage::projects::stage_by_id(&mut work.db, &self.stage).await?;
        let Some(stage) = found.filter(|stage| {
            stage.namespace.as_ref() == Some(&self.namespace)
                && stage.resource.as_ref() == Some(&self.resource)
        }) else {
            return Ok(Verdict::Keep(()));
        };
        let entries = storage::projects::access_entries(&mut work.db, &stage.id).await?;
        if entries.is_empty() {
            return Ok(Verdict::Keep(()));
        }
        storage::projects::raise_epoch(&mut work.db, &stage.id, work.now_ms).await?;
        let now = work.now_ms;
        storage::projects::replace_access_entries(&mut work.db, &stage.id, &[], now).await?;
        work.changed_stages.push(stage.id.clone());
        let event = AuditEvent {
            action: Action::AccessChanged,
            actor: controller(&self.namespace, &self.resource),
            project: Some(stage.project_slug.to_string()),
            stage: Some(stage.slug.to_string()),
            names: Vec::new(),
            origin: controller_origin(),
            outcome: Outcome::Allowed,
            detail: String::new(),
        };
        work.events.push((self.chain(), event));
        Ok(Verdict::Keep(()))
    }
}

struct DeleteDeclared {
    core: Arc<Core>,
    organization: OrganizationId,
    namespace: Namespace,
    project: ProjectSlug,
    /// `None` for the whole project.
    stage: Option<StageSlug>,
    confirmed: bool,
}

impl DeleteDeclared {
    fn event(
        &self,
        action: Action,
        stage: Option<&StageSlug>,
        detail: String,
    ) -> (Chain, AuditEvent) {
        (
            self.chain(),
            AuditEvent {
                action,
                actor: Actor {
                    kind: "controller",
                    id: self.namespace.to_string(),
                    name: self.namespace.to_string(),
                },
                project: Some(self.project.to_string()),
                stage: stage.map(ToString::to_string),
                names: Vec::new(),
                origin: controller_origin(),
                outcome: Outcome::Allowed,
                detail,
            },
        )
    }

    async fn delete(&self, work: &mut Work, stage: &StageRow) -> Result<(), storage::Error> {
        // Raised first: this is the lock of the stage.
        storage::projects::raise_epoch(&mut work.db, &stage.id, work.now_ms).await?;
        storage::projects::delete_stage(&mut work.db, &stage.id).await?;
        work.changed_stages.push(stage.id.clone());
        let detail = format!("variables={}", stage.variables);
        let event = self.event(Action::StageDeleted, Some(&stage.slug), detail);
        work.events.push(event);
        Ok(())
    }

    /// A token that is cut to what is gone is no credential any more.
    async fn revoke_tokens(
        &self,
        work: &mut Work,
        project: &ProjectId,
        stage: Option<&StageId>,
    ) -> Result<(), storage::Error> {
        let tokens = storage::credentials::tokens(&mut work.db, &self.organization).await?;
        // One that was altered is no credential.
        for token in tokens.whole_or_told("token") {
            let cut = match stage {
                Some(stage) => token.stage.as_ref() == Some(stage),
                None => token.project.as_ref() == Some(project),
            };
            if cut && token.revoked_at.is_none() {
                let (chain, mut event) = self.event(
                    Action::TokenRevoked,
                    None,
                    "its scope was deleted".to_owned(),
                );
                event.names = vec![token.id.to_string()];
                work.events.push((chain, event));
                store_revocation(&self.core, work, token).await?;
            }
        }
        Ok(())
    }
}

impl Change for DeleteDeclared {
    type Answer = Deletion;

    fn chain(&self) -> Chain {
        Chain::Organization(self.organization.clone())
    }

    async fn run(&self, work: &mut Work) -> Result<Verdict<Deletion>, storage::Error> {
        let done = Ok(Verdict::Keep(Deletion::Done));
        let found =
            storage::projects::project_by_slug(&mut work.db, &self.organization, &self.project)
                .await?;
        let Some(project) = found else {
            return done;
        };
        let stages = storage::projects::stages(&mut work.db, &project.id)
            .await?
            .whole_or_told("stage");
        let waits = |variables: i64| {
            (variables > 0 && !self.confirmed).then_some(Ok(Verdict::TakeBack(
                Deletion::NeedsConfirmation { variables },
            )))
        };
        let owned = |namespace: Option<&Namespace>| namespace == Some(&self.namespace);
        match &self.stage {
            Some(slug) => {
                let stage = stages
                    .iter()
                    .find(|stage| stage.slug == *slug && owned(stage.namespace.as_ref()));
                let Some(stage) = stage else {
                    return done;
                };
                if let Some(waits) = waits(stage.variables) {
                    return waits;
                }
                self.revoke_tokens(work, &project.id, Some(&stage.id))
                    .await?;
                self.delete(work, stage).await?;
            }
            None => {
                if !owned(project.namespace.as_ref()) {
                    return done;
                }
                if let Some(waits) = waits(project.variables) {
                    return waits;
                }
                self.revoke_tokens(work, &project.id, None).await?;
                for stage in &stages {
                    self.delete(work, stage).await?;
                }
                storage::projects::delete_project(&mut work.db, &project.id).await?;
                let detail = owner_text(project.namespace.as_ref());
                let event = self.event(Action::ProjectDeleted, None, detail);
                work.events.push(event);
            }
        }
        done
    }
}
