//! Resources as rows: one shape for domains, projects, users, groups, roles, regions, services and endpoints.
//!
//! A resource is a JSON object as the API shows it, without links. Clients may add attributes of their own, which are
//! kept, as upstream keeps them.

use api_kit::list::Match;
use api_kit::{Dir, Fault, Filter, ListSpec, SortKey};
use base::args;
use base::store::{Query, Row, StoreError, Tx, Value, Where};
use serde_json::{Map, Value as Json};

/// A resource's attributes.
pub type Entity = Map<String, Json>;

/// A kind of resource.
pub struct Kind {
    /// `project`
    pub one: &'static str,
    /// `projects`
    pub many: &'static str,
    /// Attributes that have a column, after `id`.
    pub columns: &'static [&'static str],
    /// `SELECT body FROM ... WHERE id = $1`
    pub get: &'static str,
    /// `SELECT body FROM ...`
    pub select: &'static str,
    /// Inserts or updates: id, the columns, body.
    pub put: &'static str,
    /// `DELETE FROM ... WHERE id = $1`
    pub delete: &'static str,
    /// Its list.
    pub list: ListSpec,
}

macro_rules! kind {
    ($name:ident, $table:literal, $one:literal, $many:literal, [$($column:literal),*], $put:literal, [$($filter:expr),*], $sort:literal) => {
        #[doc = concat!("`", $many, "`")]
        pub static $name: Kind = Kind {
            one: $one,
            many: $many,
            columns: &[$($column),*],
            get: concat!("SELECT body FROM ", $table, " WHERE id = $1"),
            select: concat!("SELECT body FROM ", $table),
            put: concat!("INSERT INTO ", $table, " (id, ", $put),
            delete: concat!("DELETE FROM ", $table, " WHERE id = $1"),
            list: ListSpec {
                table: $table,
                key: "id",
                filters: &[$($filter),*],
                sorts: &[SortKey { name: $sort, column: $sort }],
                default_sort: &[($sort, Dir::Asc)],
                max_limit: 10_000,
                zero_is_all: true,
            },
        };
    };
}

const NAME: Filter = Filter::new("name", "name", Match::Text);
const NAME_CONTAINS: Filter = Filter::new("name__contains", "name", Match::Contains);
const NAME_STARTS: Filter = Filter::new("name__startswith", "name", Match::Prefix);
const DOMAIN: Filter = Filter::new("domain_id", "domain_id", Match::Text);
const ENABLED: Filter = Filter::new("enabled", "enabled", Match::Truth);

kind!(
    DOMAINS,
    "identity_domains",
    "domain",
    "domains",
    ["name", "enabled"],
    "name, enabled, body) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO UPDATE SET name = excluded.name, enabled = excluded.enabled, body = excluded.body",
    [NAME, NAME_CONTAINS, NAME_STARTS, ENABLED],
    "name"
);
kind!(
    PROJECTS,
    "identity_projects",
    "project",
    "projects",
    ["domain_id", "name", "parent_id", "enabled"],
    "domain_id, name, parent_id, enabled, body) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (id) DO UPDATE SET name = excluded.name, enabled = excluded.enabled, body = excluded.body",
    [
        NAME,
        NAME_CONTAINS,
        NAME_STARTS,
        DOMAIN,
        ENABLED,
        Filter::new("parent_id", "parent_id", Match::Text),
        Filter::new("is_domain", "", Match::Handler),
        Filter::new("tags", "", Match::Handler),
        Filter::new("tags-any", "", Match::Handler),
        Filter::new("not-tags", "", Match::Handler),
        Filter::new("not-tags-any", "", Match::Handler)
    ],
    "name"
);
kind!(
    USERS,
    "identity_users",
    "user",
    "users",
    ["domain_id", "name", "enabled"],
    "domain_id, name, enabled, body) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (id) DO UPDATE SET name = excluded.name, enabled = excluded.enabled, body = excluded.body",
    [NAME, NAME_CONTAINS, NAME_STARTS, DOMAIN, ENABLED],
    "name"
);
kind!(
    GROUPS,
    "identity_groups",
    "group",
    "groups",
    ["domain_id", "name"],
    "domain_id, name, body) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO UPDATE SET name = excluded.name, body = excluded.body",
    [NAME, NAME_CONTAINS, NAME_STARTS, DOMAIN],
    "name"
);
kind!(
    ROLES,
    "identity_roles",
    "role",
    "roles",
    ["domain_id", "name"],
    "domain_id, name, body) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO UPDATE SET name = excluded.name, body = excluded.body",
    [NAME, NAME_CONTAINS, NAME_STARTS, Filter::new("domain_id", "", Match::Handler)],
    "name"
);
kind!(
    REGIONS,
    "identity_regions",
    "region",
    "regions",
    ["parent_region_id"],
    "parent_region_id, body) VALUES ($1, $2, $3) ON CONFLICT (id) DO UPDATE SET parent_region_id = excluded.parent_region_id, body = excluded.body",
    [Filter::new("parent_region_id", "parent_region_id", Match::Text)],
    "id"
);
kind!(
    SERVICES,
    "identity_services",
    "service",
    "services",
    ["type", "name", "enabled"],
    "type, name, enabled, body) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (id) DO UPDATE SET type = excluded.type, name = excluded.name, enabled = excluded.enabled, body = excluded.body",
    [NAME, Filter::new("type", "type", Match::Text)],
    "type"
);
kind!(
    ENDPOINTS,
    "identity_endpoints",
    "endpoint",
    "endpoints",
    ["service_id", "interface", "region_id", "enabled"],
    "service_id, interface, region_id, enabled, body) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (id) DO UPDATE SET service_id = excluded.service_id, interface = excluded.interface, region_id = excluded.region_id, enabled = excluded.enabled, body = excluded.body",
    [
        Filter::new("interface", "interface", Match::Text),
        Filter::new("service_id", "service_id", Match::Text),
        Filter::new("region_id", "region_id", Match::Text),
        Filter::new("region", "region_id", Match::Text)
    ],
    "interface"
);

impl Kind {
    /// 404 in upstream's words.
    #[must_use]
    pub fn missing(&self, id: &str) -> Fault {
        let id: String = id.chars().take(64).collect();
        Fault::not_found(format!("Could not find {}: {id}.", self.one))
    }

    /// One of them, if it is there.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn find(&self, query: &impl Query, id: &str) -> Result<Option<Entity>, StoreError> {
        query.row(self.get, args![id]).await?.map(|row| row.json("body")).transpose()
    }

    /// One of them.
    ///
    /// # Errors
    /// 404
    pub async fn get(&self, query: &impl Query, id: &str) -> Result<Entity, Fault> {
        self.find(query, id).await?.ok_or_else(|| self.missing(id))
    }

    /// Writes one, new or changed.
    ///
    /// # Errors
    /// 409 when its name is taken.
    pub async fn put(&self, tx: &Tx, entity: &Entity) -> Result<(), Fault> {
        let column = |name: &str| -> Value {
            match entity.get(name) {
                Some(Json::Bool(truth)) => (*truth).into(),
                Some(Json::String(text)) => text.into(),
                Some(Json::Null | Json::Number(_) | Json::Array(_) | Json::Object(_)) | None => {
                    // Only these may be NULL; roles of no domain and services without a name have the empty text.
                    let null = matches!(name, "parent_region_id" | "region_id");
                    Value::Text((!null).then(String::new))
                }
            }
        };
        let mut values = vec![column("id")];
        values.extend(self.columns.iter().map(|name| column(name)));
        values.push((&Json::Object(entity.clone())).into());
        match tx.exec(self.put, values).await {
            Ok(_) => Ok(()),
            Err(StoreError::Duplicate(_)) => Err(Fault::conflict(format!(
                "Conflict occurred attempting to store {0} - it is not permitted to have two {1} with the same name in the same domain: {2}.",
                self.one,
                self.many,
                text(entity, "name")
            ))),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes one.
    ///
    /// # Errors
    /// 404
    pub async fn remove(&self, tx: &Tx, id: &str) -> Result<(), Fault> {
        match tx.exec(self.delete, args![id]).await? {
            0 => Err(self.missing(id)),
            _ => Ok(()),
        }
    }

    /// All rows of a select that gives bodies.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn rows(&self, query: &impl Query, select: Where) -> Result<Vec<Entity>, StoreError> {
        let (sql, args) = select.build();
        query.rows(sql, args).await?.iter().map(|row: &Row| row.json("body")).collect()
    }
}

/// A text attribute; empty when it is missing.
#[must_use]
pub fn text<'a>(entity: &'a Entity, name: &str) -> &'a str {
    entity.get(name).and_then(Json::as_str).unwrap_or_default()
}

/// Whether it is enabled; what has no such attribute is.
#[must_use]
pub fn enabled(entity: &Entity) -> bool {
    entity.get("enabled").and_then(Json::as_bool).unwrap_or(true)
}

/// A new id, 32 hex digits.
#[must_use]
pub fn new_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}
