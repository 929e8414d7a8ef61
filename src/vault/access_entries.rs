//! Access entries: as rows, as grants, and as the audit trail says them.

use crate::domain::access::AccessGrant;
use crate::storage;
use crate::storage::projects::AccessRow;

/// The access pattern for every variable.
const EVERY_VARIABLE: &str = "*";

/// Access entries as the domain knows them: each stored one is a grant of its own.
pub(crate) fn access_grants(rows: Vec<AccessRow>) -> Result<Vec<AccessGrant>, storage::Error> {
    rows.into_iter()
        .map(|row| {
            let unexpected = || storage::Error::Unexpected {
                what: "an access entry that does not parse".to_owned(),
            };
            let variables = if row.pattern == EVERY_VARIABLE {
                None
            } else {
                Some(vec![row.pattern.parse().map_err(|_| unexpected())?])
            };
            Ok(AccessGrant {
                namespace: row.namespace.parse().map_err(|_| unexpected())?,
                service_accounts: vec![row.service_account.parse().map_err(|_| unexpected())?],
                variables,
            })
        })
        .collect()
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
        let again = access_grants(rows.clone()).unwrap();
        assert_eq!(access_rows(&again), rows);
    }
}
