//! Journeys of the vault alone: `barekey-operator serve` on loopback, without Kubernetes, on both databases.

mod access;
mod audit;
mod bad_input;
mod cli;
mod codes;
mod database;
mod durability;
mod faults;
mod first_value;
mod http;
mod server;
mod starting;
mod tampering;
mod tokens;

use self::database::Engine;
use crate::harness::Journey;

/// One journey, once on each database.
macro_rules! on_both {
    ($module:ident :: $name:ident) => {
        [
            Journey::alone(concat!("vault_on_sqlite::", stringify!($name)), || {
                $module::$name(Engine::Sqlite)
            }),
            Journey::alone(concat!("vault_on_postgres::", stringify!($name)), || {
                $module::$name(Engine::Postgres)
            })
            .by_root(),
        ]
    };
}

/// A journey of one database, or of none.
macro_rules! once {
    ($module:ident :: $name:ident) => {
        [Journey::alone(
            concat!("vault::", stringify!($name)),
            $module::$name,
        )]
    };
}

/// Every journey of the vault alone. Each makes what it needs by itself; all may run at once.
pub(crate) fn journeys() -> Vec<Journey> {
    let on_both = [
        on_both!(first_value::a_value_that_was_written_is_read_and_is_in_no_log),
        on_both!(first_value::every_route_answers_as_documented),
        on_both!(first_value::every_answer_has_its_headers),
        on_both!(access::every_route_refuses_no_malformed_foreign_and_small_credentials),
        on_both!(access::each_role_reads_and_writes_what_the_table_says),
        on_both!(access::outside_its_scope_a_token_learns_nothing),
        on_both!(bad_input::bad_input_is_refused_by_its_code_and_changes_nothing),
        on_both!(codes::each_code_has_its_status),
        on_both!(tokens::a_bootstrap_is_done_once),
        on_both!(tokens::a_token_ends_when_it_expires_and_when_it_is_revoked),
        on_both!(tokens::a_planted_token_row_is_no_credential),
        on_both!(audit::an_audit_trail_that_nobody_touched_is_whole),
        on_both!(audit::an_altered_cut_or_reordered_audit_trail_is_found_and_named),
        on_both!(audit::an_envelope_that_was_put_back_is_found),
        on_both!(audit::the_heads_of_the_last_records_are_published_on_a_stop),
        on_both!(tampering::an_altered_row_is_refused_and_its_neighbours_are_served),
        on_both!(tampering::an_altered_token_keeps_no_other_from_being_revoked),
        on_both!(tampering::an_altered_data_key_is_told_as_what_it_is),
        on_both!(durability::an_acknowledged_write_survives_a_kill),
        on_both!(durability::a_stop_answers_what_is_under_way),
        on_both!(starting::a_wrong_master_key_is_refused_by_both_ids),
        on_both!(faults::a_read_whose_record_cannot_be_written_is_refused),
    ];
    let once = [
        once!(codes::too_many_refused_tokens_wait_and_good_ones_do_not),
        once!(codes::a_body_that_never_ends_is_cut_off),
        once!(codes::a_connection_that_never_asks_is_closed),
        once!(starting::a_second_process_on_the_same_file_is_refused),
        once!(starting::without_a_master_key_nothing_starts),
        once!(starting::plain_http_stays_on_loopback),
        once!(starting::a_certificate_from_files_is_served),
        once!(starting::administration_works_without_a_server_on_a_file),
        once!(starting::an_administrator_speaks_to_the_server_of_that_database_alone),
        once!(faults::a_sqlite_disk_that_is_full_recovers).map(Journey::by_root),
        once!(faults::a_postgres_disk_that_is_full_recovers).map(Journey::by_root),
        once!(faults::a_sqlite_file_that_is_read_only_recovers).map(Journey::by_root),
        once!(faults::a_server_on_a_read_only_disk_says_so_and_starts_when_it_is_writable)
            .map(Journey::by_root),
        once!(faults::a_sqlite_file_that_another_writer_holds_recovers),
        once!(faults::a_postgres_that_was_away_recovers).map(Journey::by_root),
        once!(faults::a_postgres_that_was_read_only_recovers).map(Journey::by_root),
        once!(faults::a_postgres_that_may_lose_writes_or_is_not_proven_is_refused_by_name)
            .map(Journey::by_root),
    ];
    on_both
        .into_iter()
        .flatten()
        .chain(once.into_iter().flatten())
        .chain(cli::journeys())
        .collect()
}
