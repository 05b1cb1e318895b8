//! Lists: filters and sort keys are a table per resource; paging is by the sort keys' values of the marker's row, so
//! that a page never repeats or skips a row because others came or went.

use crate::call::truth;
use crate::{Call, Fault};
use base::store::{Query as StoreQuery, Row, Value, Where};

/// Direction of a sort key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dir {
    /// Smallest first.
    Asc,
    /// Largest first.
    Desc,
}

/// How a filter's value meets its column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// Equal; the parameter given several times means any of the values.
    Text,
    /// Equal, any of the values separated by commas (`status=a,b`) or given several times.
    Words,
    /// A truth in any of OpenStack's spellings, against 0 or 1.
    Truth,
    /// Equal, an integer.
    Int,
    /// Contains the text, case as it is.
    Contains,
    /// Starts with the text.
    Prefix,
    /// Not before (`changes-since`): an RFC 3339 time.
    Since,
    /// Declared, but the handler deals with it.
    Handler,
}

/// One filter: query parameter, column (or constant SQL expression), meaning.
#[derive(Debug, Clone, Copy)]
pub struct Filter {
    /// The query parameter.
    pub name: &'static str,
    /// The column.
    pub column: &'static str,
    /// How they meet.
    pub how: Match,
}

impl Filter {
    /// A filter.
    #[must_use]
    pub const fn new(name: &'static str, column: &'static str, how: Match) -> Self {
        Self { name, column, how }
    }
}

/// One key that a list may be sorted by.
#[derive(Debug, Clone, Copy)]
pub struct SortKey {
    /// As the API calls it.
    pub name: &'static str,
    /// A column or constant expression that is never NULL (`COALESCE(name, '')`).
    pub column: &'static str,
}

/// A resource's list.
#[derive(Debug, Clone, Copy)]
pub struct ListSpec {
    /// Table that the marker is looked up in.
    pub table: &'static str,
    /// Unique column that markers are values of, and the last sort key.
    pub key: &'static str,
    /// The filters.
    pub filters: &'static [Filter],
    /// The sort keys; `key` itself need not be among them.
    pub sorts: &'static [SortKey],
    /// Order when the client asks for none.
    pub default_sort: &'static [(&'static str, Dir)],
    /// Largest page, and the size when the client names none.
    pub max_limit: u32,
    /// `limit=0` means no limit (network) instead of no rows (compute).
    pub zero_is_all: bool,
}

/// Parameters that every list understands.
const PAGING: &[&str] = &["limit", "marker", "sort_key", "sort_dir", "sort", "page_reverse"];

impl ListSpec {
    /// All query parameters that the list declares.
    pub(crate) fn parameters(&'static self) -> impl Iterator<Item = &'static str> {
        self.filters.iter().map(|filter| filter.name).chain(PAGING.iter().copied())
    }
}

#[derive(Debug, Clone)]
struct Order {
    column: &'static str,
    dir: Dir,
}

/// The page that a client asked for.
#[derive(Debug, Clone)]
pub struct Page {
    filters: Vec<(&'static Filter, Vec<Value>)>,
    order: Vec<Order>,
    after: Option<Vec<Value>>,
    limit: u32,
}

impl<S> Call<S> {
    /// Reads paging, sorting and filters from the query, and looks up the marker.
    ///
    /// # Errors
    /// 400 naming the parameter that is wrong, also for a marker that does not exist.
    pub async fn list(&self, spec: &'static ListSpec, store: &impl StoreQuery) -> Result<Page, Fault> {
        Page::read(&self.query, spec, store).await
    }
}

impl Page {
    async fn read(
        query: &crate::Query,
        spec: &'static ListSpec,
        store: &impl StoreQuery,
    ) -> Result<Self, Fault> {
        let mut filters = Vec::new();
        for filter in spec.filters {
            let given: Vec<&str> = query.all(filter.name).collect();
            if given.is_empty() || filter.how == Match::Handler {
                continue;
            }
            filters.push((filter, values(filter, &given)?));
        }
        let reverse = query.truth("page_reverse")?.unwrap_or(false);
        let order = order(query, spec, reverse)?;
        let limit = limit(query, spec)?;
        let after = match query.get("marker").filter(|marker| !marker.is_empty()) {
            None => None,
            Some(marker) => Some(find(spec, &order, marker, store).await?),
        };
        Ok(Self { filters, order, after, limit })
    }

    /// Adds filters, the condition that starts after the marker, the order and a limit of one row more than asked for.
    pub fn apply(&self, select: &mut Where) {
        for (filter, values) in &self.filters {
            condition(select, filter, values);
        }
        if let Some(after) = &self.after {
            self.keyset(select, after);
        }
        select.end("ORDER BY", []);
        for (index, order) in self.order.iter().enumerate() {
            select.append(if index > 0 { ", " } else { " " }, []);
            select.append(order.column, []);
            select.append(if order.dir == Dir::Asc { " ASC" } else { " DESC" }, []);
        }
        select.end("LIMIT ?", [Value::Int(Some(i64::from(self.limit) + 1))]);
    }

    /// `a > x OR (a = x AND (b > y OR ...))`, each with the direction of its key.
    fn keyset(&self, select: &mut Where, after: &[Value]) {
        select.and("(", []);
        let mut open = 0;
        for (index, (order, value)) in self.order.iter().zip(after).enumerate() {
            select.append(order.column, []);
            select.append(if order.dir == Dir::Asc { " > ?" } else { " < ?" }, [value.clone()]);
            if index + 1 < self.order.len() {
                select.append(" OR (", []);
                select.append(order.column, []);
                select.append(" = ? AND (", [value.clone()]);
                open += 2;
            }
        }
        for _ in 0..=open {
            select.append(")", []);
        }
    }

    /// Cuts the extra row off; the marker of the next page when there is one.
    pub fn finish<T>(&self, mut rows: Vec<T>, id: impl Fn(&T) -> String) -> (Vec<T>, Option<String>) {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = if more { rows.last().map(id) } else { None };
        (rows, next)
    }

    /// URL of the next page: the same request with this marker.
    #[must_use]
    pub fn next_link<S>(&self, call: &Call<S>, marker: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, value) in call.query.iter().filter(|(name, _)| *name != "marker") {
            query.append_pair(name, value);
        }
        query.append_pair("marker", marker);
        let prefix = call.service.prefix;
        let path = call.uri.path().strip_prefix(prefix).unwrap_or(call.uri.path());
        format!("{}{path}?{}", call.base, query.finish())
    }
}

fn values(filter: &Filter, given: &[&str]) -> Result<Vec<Value>, Fault> {
    let mut out = Vec::new();
    for text in given {
        match filter.how {
            Match::Text => out.push((*text).into()),
            Match::Words => out.extend(text.split(',').map(|word| Value::from(word.trim()))),
            Match::Truth => out.push(truth(filter.name, text)?.into()),
            Match::Int => {
                let number: i64 = text.parse().map_err(|_| {
                    Fault::bad_request(format!(
                        "Invalid value for '{}': an integer is expected.",
                        filter.name
                    ))
                })?;
                out.push(number.into());
            }
            Match::Contains => out.push(format!("%{}%", escaped(text)).into()),
            Match::Prefix => out.push(format!("{}%", escaped(text)).into()),
            Match::Since => {
                let time = crate::time::parse_time(text).ok_or_else(|| {
                    Fault::bad_request(format!(
                        "Invalid value for '{}': a time like 2026-01-31T12:00:00Z is expected.",
                        filter.name
                    ))
                })?;
                out.push(time.into());
            }
            Match::Handler => (),
        }
    }
    Ok(out)
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_")
}

fn condition(select: &mut Where, filter: &Filter, values: &[Value]) {
    match filter.how {
        Match::Text | Match::Words | Match::Truth | Match::Int => {
            select.and_in(filter.column, values.iter().cloned());
        }
        Match::Contains | Match::Prefix | Match::Since => {
            for value in values {
                select.and(filter.column, []);
                let test = if filter.how == Match::Since { " >= ?" } else { " LIKE ? ESCAPE '\\'" };
                select.append(test, [value.clone()]);
            }
        }
        Match::Handler => (),
    }
}

fn limit(query: &crate::Query, spec: &ListSpec) -> Result<u32, Fault> {
    let Some(text) = query.get("limit").filter(|text| !text.is_empty()) else { return Ok(spec.max_limit) };
    let number: i64 = text.parse().map_err(|_| {
        let text: String = text.chars().take(64).collect();
        Fault::bad_request(format!(
            "Invalid input for query parameters limit. Value: {text}. An integer is expected."
        ))
    })?;
    if number < 0 {
        return Err(Fault::bad_request("Invalid input for query parameters limit: it must not be negative."));
    }
    if number == 0 && spec.zero_is_all {
        return Ok(spec.max_limit);
    }
    Ok(u32::try_from(number).unwrap_or(u32::MAX).min(spec.max_limit))
}

fn order(query: &crate::Query, spec: &'static ListSpec, reverse: bool) -> Result<Vec<Order>, Fault> {
    let mut asked: Vec<(String, Option<String>)> = Vec::new();
    let dirs: Vec<&str> = query.all("sort_dir").collect();
    for (index, key) in query.all("sort_key").enumerate() {
        asked.push((key.to_owned(), dirs.get(index).or(dirs.last()).map(|dir| (*dir).to_owned())));
    }
    for part in query.all("sort").flat_map(|text| text.split(',')).filter(|part| !part.is_empty()) {
        let (key, dir) = part.split_once(':').map_or((part, None), |(key, dir)| (key, Some(dir)));
        asked.push((key.to_owned(), dir.map(str::to_owned)));
    }
    let mut out: Vec<Order> = Vec::new();
    let fallback = spec.default_sort.first().map_or(Dir::Asc, |(_, dir)| *dir);
    for (key, dir) in &asked {
        let column = column(spec, key).ok_or_else(|| {
            let names: Vec<&str> = spec.sorts.iter().map(|sort| sort.name).collect();
            let key: String = key.chars().take(64).collect();
            Fault::bad_request(format!("Invalid sort key '{key}'. It must be one of: {}.", names.join(", ")))
        })?;
        let dir = match dir.as_deref() {
            Some("asc") => Dir::Asc,
            Some("desc") => Dir::Desc,
            None => fallback,
            Some(_) => return Err(Fault::bad_request("Invalid sort direction: it must be 'asc' or 'desc'.")),
        };
        if out.iter().all(|order| order.column != column) {
            out.push(Order { column, dir });
        }
    }
    if asked.is_empty() {
        let lone = query.get("sort_dir").map(|dir| if dir == "desc" { Dir::Desc } else { Dir::Asc });
        for (key, dir) in spec.default_sort {
            if let Some(column) = column(spec, key) {
                out.push(Order { column, dir: lone.unwrap_or(*dir) });
            }
        }
    }
    // A unique last key makes the order total, without which pages repeat and skip rows.
    if out.iter().all(|order| order.column != spec.key) {
        let dir = out.last().map_or(Dir::Asc, |order| order.dir);
        out.push(Order { column: spec.key, dir });
    }
    if reverse {
        for order in &mut out {
            order.dir = if order.dir == Dir::Asc { Dir::Desc } else { Dir::Asc };
        }
    }
    Ok(out)
}

fn column(spec: &'static ListSpec, name: &str) -> Option<&'static str> {
    spec.sorts
        .iter()
        .find(|sort| sort.name == name)
        .map(|sort| sort.column)
        .or_else(|| (name == "id" || name == spec.key).then_some(spec.key))
}

async fn find(
    spec: &'static ListSpec,
    order: &[Order],
    marker: &str,
    store: &impl StoreQuery,
) -> Result<Vec<Value>, Fault> {
    const NAMES: [&str; 8] = ["k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7"];
    const ALIASES: [&str; 8] =
        [" AS k0", " AS k1", " AS k2", " AS k3", " AS k4", " AS k5", " AS k6", " AS k7"];
    if order.len() > NAMES.len() {
        return Err(Fault::bad_request("Too many sort keys: at most seven are possible."));
    }
    let mut select = Where::new("SELECT ");
    for (index, (order, alias)) in order.iter().zip(ALIASES).enumerate() {
        select.append(if index > 0 { ", " } else { "" }, []);
        select.append(order.column, []);
        select.append(alias, []);
    }
    select.append(" FROM ", []);
    select.append(spec.table, []);
    select.and(spec.key, []);
    select.append(" = ?", [marker.into()]);
    let (sql, args) = select.build();
    let row: Row = store.row(sql, args).await?.ok_or_else(|| {
        let marker: String = marker.chars().take(64).collect();
        Fault::bad_request(format!("marker [{marker}] not found"))
    })?;
    NAMES.iter().take(order.len()).map(|name| Ok(row.value(name)?.clone())).collect()
}

#[cfg(test)]
mod tests;
