//! Statements: constant text, or text put together from constant pieces only, so that no input ever becomes SQL.

use super::Value;
use std::borrow::Cow;

/// A statement's text.
#[derive(Debug, Clone)]
pub struct Sql(pub(super) Cow<'static, str>);

impl From<&'static str> for Sql {
    fn from(text: &'static str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

/// Builds `SELECT ... WHERE a AND b ORDER BY ...` from constant pieces, in which each `?` becomes the next placeholder.
///
/// ```
/// use base::store::Where;
/// let mut select = Where::new("SELECT id FROM servers");
/// select.and("project_id = ?", ["p1".into()]);
/// select.and("(name, id) > (?, ?)", ["a".into(), "b".into()]);
/// select.end("ORDER BY name, id LIMIT ?", [3.into()]);
/// let (sql, args) = select.build();
/// assert_eq!(args.len(), 4);
/// # let _ = sql;
/// ```
#[derive(Debug, Clone)]
pub struct Where {
    text: String,
    args: Vec<Value>,
    any: bool,
}

impl Where {
    /// Starts with everything before `WHERE`.
    #[must_use]
    pub fn new(head: &'static str) -> Self {
        Self { text: head.to_owned(), args: Vec::new(), any: false }
    }

    /// Starts with everything before `WHERE`, with values.
    #[must_use]
    pub fn with(head: &'static str, values: impl IntoIterator<Item = Value>) -> Self {
        let mut this = Self { text: String::new(), args: Vec::new(), any: false };
        this.piece(head, values);
        this
    }

    /// Adds a condition.
    pub fn and(&mut self, condition: &'static str, values: impl IntoIterator<Item = Value>) -> &mut Self {
        self.text.push_str(if self.any { " AND " } else { " WHERE " });
        self.any = true;
        self.piece(condition, values);
        self
    }

    /// Adds `column IN (...)`; an empty list matches nothing.
    pub fn and_in(&mut self, column: &'static str, values: impl IntoIterator<Item = Value>) -> &mut Self {
        self.text.push_str(if self.any { " AND " } else { " WHERE " });
        self.any = true;
        let mut first = true;
        for value in values {
            if first {
                self.text.push_str(column);
            }
            self.text.push_str(if first { " IN (" } else { ", " });
            first = false;
            self.piece("?", [value]);
        }
        self.text.push_str(if first { "1 = 0" } else { ")" });
        self
    }

    /// Adds what follows the conditions.
    pub fn end(&mut self, tail: &'static str, values: impl IntoIterator<Item = Value>) -> &mut Self {
        self.text.push(' ');
        self.piece(tail, values);
        self
    }

    /// Adds a piece as it is, without a space or `AND` before it: for conditions put together from several pieces.
    pub fn append(&mut self, text: &'static str, values: impl IntoIterator<Item = Value>) -> &mut Self {
        self.piece(text, values);
        self
    }

    fn piece(&mut self, text: &'static str, values: impl IntoIterator<Item = Value>) {
        let mut values = values.into_iter();
        for (index, part) in text.split('?').enumerate() {
            if index > 0 {
                self.args.extend(values.next());
                self.text.push_str(&format!("${}", self.args.len()));
            }
            self.text.push_str(part);
        }
    }

    /// The statement and its values.
    #[must_use]
    pub fn build(self) -> (Sql, Vec<Value>) {
        (Sql(Cow::Owned(self.text)), self.args)
    }
}
