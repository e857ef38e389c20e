//! Many rows in one statement. The text of the statement does not depend on their number, so it is prepared once.
//!
//! PostgreSQL gets one array for each column (`unnest`), `SQLite` one JSON document (`json_each`). In the statement
//! both are a table named `r`.

use std::borrow::Cow;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sea_orm::sea_query::ArrayType;
use sea_orm::{ConnectionTrait, FromQueryResult, Statement, Value};
use throughline_api::DeliveryState;
use throughline_messages::Origin;
use throughline_snowflake::RequestId;

use crate::dialect::{self, Dialect};
use crate::entity::delivery::State;
use crate::error::StoreError;

/// Rows built from items, column by column.
pub(crate) struct Rows<'a, T> {
    items: &'a [T],
    columns: Vec<Column>,
}

struct Column {
    name: &'static str,
    kind: Kind,
    cells: Vec<Cell>,
}

/// The type of a column.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Number,
    Text,
    Bytes,
    /// A short byte string that may be null.
    Digest,
    Time,
    Json,
}

pub(crate) enum Cell {
    Null,
    Number(i64),
    Text(String),
    Bytes(Bytes),
}

/// A value that fits in a column.
pub(crate) trait Field {
    const KIND: Kind;

    fn cell(self) -> Cell;
}

impl<'a, T> Rows<'a, T> {
    pub(crate) fn of(items: &'a [T]) -> Self {
        Self { items, columns: Vec::new() }
    }

    /// Adds a column.
    pub(crate) fn column<F: Field>(mut self, name: &'static str, field: impl Fn(&'a T) -> F) -> Self {
        let cells = self.items.iter().map(|item| field(item).cell()).collect();
        self.columns.push(Column { name, kind: F::KIND, cells });
        self
    }

    /// Inserts the rows into a table as they are. `ending` may say how to handle a conflict.
    pub(crate) async fn insert(
        self,
        connection: &impl ConnectionTrait,
        table: &str,
        ending: &str,
    ) -> Result<(), StoreError> {
        let names = self.names();
        // Without WHERE, SQLite parses an ON after FROM as that of a join.
        let sql = format!("INSERT INTO {table} ({names}) SELECT {names} FROM r WHERE true {ending}");
        self.execute(connection, Vec::new(), &sql).await?;
        Ok(())
    }

    /// Runs a statement that reads `r`, and returns how many rows it changed. The statement's own parameters are
    /// numbered first.
    pub(crate) async fn execute(
        self,
        connection: &impl ConnectionTrait,
        parameters: Vec<Value>,
        sql: &str,
    ) -> Result<u64, StoreError> {
        let statement = self.statement(Dialect::of(connection), parameters, sql);
        Ok(connection.execute_raw(statement).await?.rows_affected())
    }

    /// Runs a statement that reads `r`, and returns its rows.
    pub(crate) async fn query<M: FromQueryResult>(
        self,
        connection: &impl ConnectionTrait,
        parameters: Vec<Value>,
        sql: &str,
    ) -> Result<Vec<M>, StoreError> {
        let statement = self.statement(Dialect::of(connection), parameters, sql);
        Ok(M::find_by_statement(statement).all(connection).await?)
    }

    fn names(&self) -> String {
        self.columns.iter().map(|column| column.name).collect::<Vec<_>>().join(", ")
    }

    fn statement(self, dialect: Dialect, mut parameters: Vec<Value>, sql: &str) -> Statement {
        let names = self.names();
        let first = parameters.len() + 1;
        let source = match dialect {
            Dialect::Sqlite => {
                parameters.push(json_rows(self.items.len(), &self.columns).into());
                json_source(&self.columns, first)
            }
            Dialect::Postgres => {
                let source = array_source(&self.columns, first);
                parameters.extend(self.columns.into_iter().map(array));
                source
            }
        };
        dialect.statement(format!("WITH r ({names}) AS ({source}) {sql}"), parameters)
    }
}

fn array_source(columns: &[Column], first: usize) -> String {
    let array = |(column, number): (&Column, usize)| match column.kind {
        Kind::Bytes => format!("${number}::bytea[]"),
        kind => format!("${number}::text::{}[]", kind.sql_type()),
    };
    let arrays: Vec<_> = columns.iter().zip(first..).map(array).collect();
    format!("SELECT * FROM unnest({})", arrays.join(", "))
}

/// Converts a column to an array. Bytes are passed in binary form; other types in the text form of an array, because
/// sea-query's arrays cannot hold nulls.
fn array(column: Column) -> Value {
    if column.kind == Kind::Bytes {
        let bytes = column.cells.into_iter().map(|cell| match cell {
            Cell::Bytes(bytes) => Vec::from(bytes).into(),
            _ => Value::Bytes(None),
        });
        return Value::Array(ArrayType::Bytes, Some(Box::new(bytes.collect())));
    }
    let mut text = String::from("{");
    for (index, cell) in column.cells.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        match cell {
            Cell::Number(number) => text.push_str(&number.to_string()),
            Cell::Text(value) => {
                text.push('"');
                text.push_str(&value.replace('\\', r"\\").replace('"', r#"\""#));
                text.push('"');
            }
            Cell::Bytes(bytes) => {
                text.push_str(r#""\\x"#);
                text.push_str(&hex(bytes));
                text.push('"');
            }
            Cell::Null => text.push_str("NULL"),
        }
    }
    text.push('}');
    text.into()
}

fn json_source(columns: &[Column], parameter: usize) -> String {
    let field = |(index, column): (usize, &Column)| match column.kind {
        Kind::Bytes | Kind::Digest => format!("unhex(value ->> {index})"),
        _ => format!("value ->> {index}"),
    };
    let fields: Vec<_> = columns.iter().enumerate().map(field).collect();
    format!("SELECT {} FROM json_each(${parameter})", fields.join(", "))
}

fn json_rows(count: usize, columns: &[Column]) -> String {
    let cell = |cell: &Cell| match cell {
        Cell::Null => serde_json::Value::Null,
        Cell::Number(number) => (*number).into(),
        Cell::Text(text) => text.as_str().into(),
        Cell::Bytes(bytes) => hex(bytes).into(),
    };
    let row = |row: usize| columns.iter().map(|column| cell(&column.cells[row])).collect();
    serde_json::Value::Array((0..count).map(row).collect()).to_string()
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).collect()
}

impl Kind {
    fn sql_type(self) -> &'static str {
        match self {
            Self::Number => "bigint",
            Self::Text => "text",
            Self::Bytes | Self::Digest => "bytea",
            Self::Time => "timestamptz",
            Self::Json => "jsonb",
        }
    }
}

impl<F: Field> Field for Option<F> {
    const KIND: Kind = F::KIND;

    fn cell(self) -> Cell {
        self.map_or(Cell::Null, F::cell)
    }
}

impl Field for i64 {
    const KIND: Kind = Kind::Number;

    fn cell(self) -> Cell {
        Cell::Number(self)
    }
}

impl Field for i32 {
    const KIND: Kind = Kind::Number;

    fn cell(self) -> Cell {
        Cell::Number(self.into())
    }
}

impl Field for RequestId {
    const KIND: Kind = Kind::Number;

    fn cell(self) -> Cell {
        Cell::Number(self.as_i64())
    }
}

impl Field for &str {
    const KIND: Kind = Kind::Text;

    fn cell(self) -> Cell {
        Cell::Text(dialect::text(self))
    }
}

impl Field for Cow<'_, str> {
    const KIND: Kind = Kind::Text;

    fn cell(self) -> Cell {
        Cell::Text(dialect::text(&self))
    }
}

impl Field for &Origin {
    const KIND: Kind = Kind::Text;

    fn cell(self) -> Cell {
        Cell::Text(dialect::text(&self.to_string()))
    }
}

impl Field for State {
    const KIND: Kind = Kind::Text;

    fn cell(self) -> Cell {
        DeliveryState::from(self).as_str().cell()
    }
}

impl Field for Bytes {
    const KIND: Kind = Kind::Bytes;

    fn cell(self) -> Cell {
        Cell::Bytes(self)
    }
}

impl Field for &[u8; 32] {
    const KIND: Kind = Kind::Digest;

    fn cell(self) -> Cell {
        Cell::Bytes(Bytes::copy_from_slice(self))
    }
}

impl Field for DateTime<Utc> {
    const KIND: Kind = Kind::Time;

    fn cell(self) -> Cell {
        Cell::Text(dialect::time(self))
    }
}

impl Field for serde_json::Value {
    const KIND: Kind = Kind::Json;

    fn cell(self) -> Cell {
        Cell::Text(self.to_string())
    }
}
