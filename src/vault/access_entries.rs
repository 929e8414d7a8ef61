//! Access entries: as rows, as grants, and as the audit trail says them.

use crate::domain::access::AccessGrant;
use crate::storage::projects::AccessRow;

/// The access pattern for every variable.
const EVERY_VARIABLE: &str = "*";

/// Access entries as the domain knows them: each stored one is a grant of its own, and one that was altered into what is
/// none grants nothing.
pub(crate) fn access_grants(rows: Vec<AccessRow>) -> Vec<AccessGrant> {
    let grant = |row: AccessRow| {
        let variables = if row.pattern == EVERY_VARIABLE {
            None
        } else {
            Some(vec![row.pattern.parse().ok()?])
        };
        Some(AccessGrant {
            namespace: row.namespace.parse().ok()?,
            service_accounts: vec![row.service_account.parse().ok()?],
            variables,
        })
    };
    rows.into_iter().filter_map(grant).collect()
}

/// Grants as access entries, sorted, each once.
pub(crate) fn access_rows(grants: &[AccessGrant]) -> Vec<AccessRow> {
    let mut rows: Vec<AccessRow> = grants
        .iter()
        .flat_map(|grant| {
            let patterns: Vec<String> = match &grant.variables {
                None => vec![EVERY_VARIABLE.to_owned()],
                Some(patterns) => patterns.iter().map(ToString::to_string).collect(),
            };
            grant.service_accounts.iter().flat_map(move |account| {
                patterns.clone().into_iter().map(move |pattern| AccessRow {
                    namespace: grant.namespace.to_string(),
                    service_account: account.to_string(),
                    pattern,
                })
            })
        })
        .collect();
    rows.sort();
    rows.dedup();
    rows
}

/// Access entries for the audit trail, where they are held against the rows when the trail is verified.
pub(crate) fn access_text(rows: &[AccessRow]) -> String {
    let lines: Vec<String> = rows
        .iter()
        .map(|row| format!("{}/{} {}", row.namespace, row.service_account, row.pattern))
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_entries_and_grants_say_the_same() {
        let grants = [AccessGrant {
            namespace: "shop".parse().unwrap(),
            service_accounts: vec!["api".parse().unwrap(), "web".parse().unwrap()],
            variables: Some(vec!["DB_*".parse().unwrap(), "URL".parse().unwrap()]),
        }];
        let rows = access_rows(&grants);
        assert_eq!(rows.len(), 4);
        let again = access_grants(rows.clone());
        assert_eq!(access_rows(&again), rows);
    }

    #[test]
    fn an_access_entry_that_was_altered_grants_nothing_and_takes_no_other_with_it() {
        let entry = |namespace: &str, service_account: &str, pattern: &str| AccessRow {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pattern: pattern.to_owned(),
        };
        let grants = access_grants(vec![
            entry("not a namespace", "api", "*"),
            entry("shop", "not an account", "*"),
            entry("shop", "api", "not a pattern"),
            entry("shop", "api", "DB_*"),
        ]);
        assert_eq!(access_rows(&grants), [entry("shop", "api", "DB_*")]);
    }
}
