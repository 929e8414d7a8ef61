//! Statements that go to the database together: texts with their arguments, made for either database.

use super::Cell;

/// How many rows of a bulk insert a file takes in one trip.
const TRIP_ROWS_MAX: usize = 64;

/// Statements that run one after the other. A server takes them one by one. A file takes them in as few trips as it may to
/// the thread that serves it, since a trip costs more than most statements do.
#[derive(Default)]
pub(crate) struct Batch(Vec<Step>);

enum Step {
    Begin,
    Statement {
        sql: &'static str,
        arguments: Vec<Cell>,
    },
    Rows {
        into: &'static str,
        columns: usize,
        cells: Vec<Cell>,
        ending: &'static str,
    },
}

impl Batch {
    /// Begins a transaction that will write.
    pub(crate) fn begin(&mut self) {
        self.0.push(Step::Begin);
    }

    /// Makes the transaction durable.
    pub(crate) fn commit(&mut self) {
        self.add("COMMIT", vec![]);
    }

    /// Adds a statement.
    pub(crate) fn add(&mut self, sql: &'static str, arguments: Vec<Cell>) {
        self.0.push(Step::Statement { sql, arguments });
    }

    /// Inserts many rows of the same shape: `into` is `INSERT INTO table (columns) VALUES`, `cells` are those of all rows.
    pub(crate) fn insert_rows(&mut self, into: &'static str, columns: usize, cells: Vec<Cell>) {
        self.insert_rows_or(into, columns, cells, "");
    }

    /// The same, with an `ending` behind the rows: `ON CONFLICT …`. No two of the rows may be in conflict with each other.
    pub(crate) fn insert_rows_or(
        &mut self,
        into: &'static str,
        columns: usize,
        cells: Vec<Cell>,
        ending: &'static str,
    ) {
        self.0.push(Step::Rows {
            into,
            columns,
            cells,
            ending,
        });
    }

    /// A text for each statement, with numbered parameters.
    pub(super) fn one_by_one(self) -> Vec<(String, Vec<Cell>)> {
        let mut trips = Vec::new();
        for step in self.0 {
            match step {
                Step::Begin => trips.push((String::from("BEGIN"), Vec::new())),
                Step::Statement { sql, arguments } => trips.push((sql.to_owned(), arguments)),
                Step::Rows {
                    into,
                    columns,
                    cells,
                    ending,
                } => {
                    let mut rows = cells.len() / columns;
                    let mut cells = cells.into_iter();
                    while rows > 0 {
                        // Few lengths, so that few statements are prepared.
                        let length = match rows {
                            64.. => 64,
                            16.. => 16,
                            4.. => 4,
                            _ => 1,
                        };
                        let mut sql = String::new();
                        push_insert(&mut sql, into, columns, length, true);
                        sql.push_str(ending);
                        trips.push((sql, cells.by_ref().take(length * columns).collect()));
                        rows -= length;
                    }
                }
            }
        }
        trips
    }

    /// All statements in one text, with plain parameters, which are counted through; a trip of its own for each
    /// [`TRIP_ROWS_MAX`] rows of a bulk insert but the last, so that few texts are prepared.
    pub(super) fn together(self) -> Vec<(String, Vec<Cell>)> {
        let mut trips = Vec::new();
        let (mut text, mut all) = (String::new(), Vec::new());
        for step in self.0 {
            match step {
                Step::Begin => text.push_str("BEGIN IMMEDIATE;"),
                Step::Statement { sql, arguments } => {
                    push_plain(&mut text, &mut all, sql, &arguments);
                    text.push(';');
                }
                Step::Rows {
                    into,
                    columns,
                    cells,
                    ending,
                } => {
                    let mut rows = cells.len() / columns;
                    let mut cells = cells.into_iter();
                    while rows > 0 {
                        let length = rows.min(TRIP_ROWS_MAX);
                        push_insert(&mut text, into, columns, length, false);
                        text.push_str(ending);
                        text.push(';');
                        all.extend(cells.by_ref().take(length * columns));
                        rows -= length;
                        if rows > 0 {
                            trips.push((std::mem::take(&mut text), std::mem::take(&mut all)));
                        }
                    }
                }
            }
        }
        if !text.is_empty() {
            trips.push((text, all));
        }
        trips
    }
}

/// Adds a statement with its numbered parameters made plain, and its arguments in the order in which they stand there.
fn push_plain(text: &mut String, all: &mut Vec<Cell>, sql: &str, arguments: &[Cell]) {
    let mut parts = sql.split('$');
    text.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        let number: Option<usize> = part
            .get(..part.len() - rest.len())
            .and_then(|digits| digits.parse().ok());
        let argument = number.and_then(|number| arguments.get(number.checked_sub(1)?));
        all.push(argument.cloned().unwrap_or(Cell::Integer(None)));
        text.push('?');
        text.push_str(rest);
    }
}

/// Adds the text of a bulk insert. SQLite looks a numbered parameter up by walking all of them, so it gets plain ones.
fn push_insert(sql: &mut String, into: &str, columns: usize, rows: usize, numbered: bool) {
    sql.reserve(into.len() + rows * columns * 6);
    sql.push_str(into);
    for row in 0..rows {
        sql.push_str(if row == 0 { " (" } else { ",(" });
        for column in 0..columns {
            if column > 0 {
                sql.push(',');
            }
            if numbered {
                sql.push('$');
                sql.push_str(&(row * columns + column + 1).to_string());
            } else {
                sql.push('?');
            }
        }
        sql.push(')');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::cells;

    fn group(rows: i64) -> Batch {
        let mut batch = Batch::default();
        batch.begin();
        let cells = (0..rows).flat_map(|row| cells![row, "a"]).collect();
        batch.insert_rows("INSERT INTO t (n, x) VALUES", 2, cells);
        batch.add(
            "UPDATE h SET n = $2, x = $3 WHERE c = $1 OR d = $1",
            cells!["c", 2, "x"],
        );
        batch.commit();
        batch
    }

    fn plain(cells: &[Cell]) -> String {
        let texts = cells.iter().map(|cell| match cell {
            Cell::Integer(value) => value.map(|value| value.to_string()),
            Cell::Text(value) => value.clone(),
            Cell::Bytes(_) => None,
        });
        texts.flatten().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_file_takes_a_small_group_in_one_trip_with_the_arguments_in_the_order_of_the_text() {
        let trips = group(2).together();
        let [(text, arguments)] = trips.as_slice() else {
            panic!("{} trips", trips.len());
        };
        assert_eq!(
            text,
            "BEGIN IMMEDIATE;INSERT INTO t (n, x) VALUES (?,?),(?,?);\
             UPDATE h SET n = ?, x = ? WHERE c = ? OR d = ?;COMMIT;"
        );
        assert_eq!(plain(arguments), "0 a 1 a 2 x c c");
    }

    #[test]
    fn a_large_group_takes_a_trip_for_each_bulk_of_rows_and_loses_none() {
        let trips = group(150).together();
        let rows = |text: &str| text.matches("(?,?)").count();
        let seen: Vec<_> = trips.iter().map(|(text, _)| rows(text)).collect();
        assert_eq!(seen, [64, 64, 22]);
        assert!(trips[0].0.starts_with("BEGIN IMMEDIATE;INSERT"));
        assert!(trips[2].0.ends_with("COMMIT;"));
        for (text, arguments) in &trips {
            assert_eq!(text.matches('?').count(), arguments.len());
        }
        assert_eq!(plain(&trips[2].1[..2]), "128 a");
    }

    #[test]
    fn a_server_takes_each_statement_by_itself_in_few_lengths() {
        let trips = group(70).one_by_one();
        let first_words: Vec<_> = trips
            .iter()
            .map(|(text, arguments)| (text.split(' ').next().unwrap(), arguments.len()))
            .collect();
        assert_eq!(
            first_words,
            [
                ("BEGIN", 0),
                ("INSERT", 128),
                ("INSERT", 8),
                ("INSERT", 2),
                ("INSERT", 2),
                ("UPDATE", 3),
                ("COMMIT", 0)
            ]
        );
        assert!(trips[2].0.ends_with("($1,$2),($3,$4),($5,$6),($7,$8)"));
    }

    #[test]
    fn a_group_without_rows_is_still_a_whole_transaction() {
        let mut batch = Batch::default();
        batch.begin();
        batch.insert_rows("INSERT INTO t (n, x) VALUES", 2, vec![]);
        batch.commit();
        let trips = batch.together();
        assert_eq!(trips.len(), 1);
        assert_eq!(trips[0].0, "BEGIN IMMEDIATE;COMMIT;");
    }
}
