//! Bodies of requests.

/// POST /auth/tokens
pub const AUTHENTICATE: &str = r#"{"type": "object", "required": ["auth"], "properties": {"auth": {"type": "object",
  "required": ["identity"], "properties": {
    "identity": {"type": "object", "required": ["methods"], "properties": {
      "methods": {"type": "array", "minItems": 1, "maxItems": 8, "items": {"type": "string"}},
      "password": {"type": "object", "properties": {"user": {"type": "object", "required": ["password"], "properties": {
        "id": {"type": "string"}, "name": {"type": "string"}, "password": {"type": "string"},
        "domain": {"type": "object", "properties": {"id": {"type": "string"}, "name": {"type": "string"}}}}}}},
      "token": {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}},
      "application_credential": {"type": "object", "required": ["secret"], "properties": {
        "id": {"type": "string"}, "name": {"type": "string"}, "secret": {"type": "string"},
        "user": {"type": "object", "properties": {"id": {"type": "string"}, "name": {"type": "string"},
          "domain": {"type": "object", "properties": {"id": {"type": "string"}, "name": {"type": "string"}}}}}}}}},
    "scope": {"anyOf": [{"enum": ["unscoped"]}, {"type": "object", "properties": {
      "project": {"type": "object", "properties": {"id": {"type": "string"}, "name": {"type": "string"},
        "domain": {"type": "object", "properties": {"id": {"type": "string"}, "name": {"type": "string"}}}}},
      "domain": {"type": "object", "properties": {"id": {"type": "string"}, "name": {"type": "string"}}},
      "system": {"type": "object", "properties": {"all": {"type": "boolean"}}},
      "unscoped": {"type": "object"}}}]}}}}}"#;

macro_rules! entity {
    ($one:literal, $required:literal, $properties:literal) => {
        concat!(
            r#"{"type": "object", "required": [""#, $one, r#""], "properties": {""#, $one,
            r#"": {"type": "object", "maxProperties": 64, "required": ["#, $required, r#"], "properties": {"#, $properties,
            r#", "id": {"type": "string", "pattern": "^[a-zA-Z0-9._-]{1,255}$"},
            "description": {"type": ["string", "null"], "maxLength": 65535}, "enabled": {"type": "boolean"},
            "options": {"type": "object"}}}}}"#
        )
    };
}
macro_rules! both {
    ($create:ident, $update:ident, $one:literal, $required:literal, $properties:literal) => {
        #[doc = concat!("Creating a ", $one, ".")]
        pub const $create: &str = entity!($one, $required, $properties);
        #[doc = concat!("Changing a ", $one, ".")]
        pub const $update: &str = entity!($one, "", $properties);
    };
}

both!(
    DOMAIN_CREATE,
    DOMAIN_UPDATE,
    "domain",
    r#""name""#,
    r#""name": {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "\\S"}"#
);
both!(
    PROJECT_CREATE,
    PROJECT_UPDATE,
    "project",
    r#""name""#,
    r#""name": {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "\\S"}, "domain_id": {"type": ["string", "null"]},
    "parent_id": {"type": ["string", "null"]}, "is_domain": {"type": "boolean"},
    "tags": {"type": "array", "maxItems": 80, "uniqueItems": true, "items": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[^,/]*$"}}"#
);
both!(
    USER_CREATE,
    USER_UPDATE,
    "user",
    r#""name""#,
    r#""name": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "\\S"}, "domain_id": {"type": "string"},
    "default_project_id": {"type": ["string", "null"]}, "password": {"type": ["string", "null"], "minLength": 1}"#
);
both!(
    GROUP_CREATE,
    GROUP_UPDATE,
    "group",
    r#""name""#,
    r#""name": {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "\\S"}, "domain_id": {"type": "string"}"#
);
both!(
    ROLE_CREATE,
    ROLE_UPDATE,
    "role",
    r#""name""#,
    r#""name": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "\\S"}, "domain_id": {"type": ["string", "null"]}"#
);
both!(REGION_CREATE, REGION_UPDATE, "region", "", r#""parent_region_id": {"type": ["string", "null"]}"#);
both!(
    SERVICE_CREATE,
    SERVICE_UPDATE,
    "service",
    r#""type""#,
    r#""type": {"type": "string", "minLength": 1, "maxLength": 255}, "name": {"type": ["string", "null"], "maxLength": 255}"#
);
both!(
    ENDPOINT_CREATE,
    ENDPOINT_UPDATE,
    "endpoint",
    r#""service_id", "interface", "url""#,
    r#""service_id": {"type": "string"}, "interface": {"enum": ["admin", "internal", "public"]},
    "url": {"type": "string", "minLength": 1, "maxLength": 2048}, "region": {"type": ["string", "null"], "maxLength": 255},
    "region_id": {"type": ["string", "null"], "maxLength": 255}"#
);

/// POST /users/ID/password
pub const PASSWORD: &str = r#"{"type": "object", "required": ["user"], "properties": {"user": {"type": "object",
  "required": ["original_password", "password"], "properties": {
    "original_password": {"type": "string"}, "password": {"type": "string", "minLength": 1}}}}}"#;

/// PUT /projects/ID/tags
pub const TAGS: &str = r#"{"type": "object", "required": ["tags"], "properties": {"tags": {"type": "array", "maxItems": 80,
  "uniqueItems": true, "items": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[^,/]*$"}}}}"#;

/// POST /users/ID/application_credentials
pub const APPCRED: &str = r#"{"type": "object", "required": ["application_credential"], "properties": {
  "application_credential": {"type": "object", "required": ["name"], "additionalProperties": false, "properties": {
    "name": {"type": "string", "minLength": 1, "maxLength": 255}, "description": {"type": ["string", "null"], "maxLength": 65535},
    "secret": {"type": ["string", "null"], "minLength": 1, "maxLength": 4096}, "expires_at": {"type": ["string", "null"]},
    "unrestricted": {"type": "boolean"}, "access_rules": {"type": ["array", "null"], "maxItems": 0}, "project_id": {"type": "string"},
    "roles": {"type": "array", "maxItems": 64, "items": {"type": "object", "properties": {"id": {"type": "string"}, "name": {"type": "string"}}}}}}}}"#;
