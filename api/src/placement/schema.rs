//! Request bodies of placement.

pub const PROVIDER: &str = r#"{"type":"object","properties":{"name":{"type":"string","minLength":1,"maxLength":200},
"uuid":{"type":"string","format":"uuid"}},"required":["name"],"additionalProperties":false}"#;

pub const PROVIDER_UPDATE: &str = r#"{"type":"object","properties":{"name":{"type":"string","minLength":1,"maxLength":200}},
"required":["name"],"additionalProperties":false}"#;

macro_rules! inventory_fields {
    () => {
        r#""total":{"type":"integer","minimum":1,"maximum":2147483647},
"reserved":{"type":"integer","minimum":0,"maximum":2147483647},
"min_unit":{"type":"integer","minimum":1,"maximum":2147483647},
"max_unit":{"type":"integer","minimum":1,"maximum":2147483647},
"step_size":{"type":"integer","minimum":1,"maximum":2147483647},
"allocation_ratio":{"type":"number","minimum":0,"maximum":3.4e38}"#
    };
}

pub const INVENTORIES: &str = concat!(
    r#"{"type":"object","properties":{"resource_provider_generation":{"type":"integer"},"inventories":{"type":"object",
"patternProperties":{"^[A-Z0-9_]+$":{"type":"object","properties":{"#,
    inventory_fields!(),
    r#"},"required":["total"],"additionalProperties":false}},"additionalProperties":false}},
"required":["resource_provider_generation","inventories"],"additionalProperties":false}"#
);

pub const INVENTORY: &str = concat!(
    r#"{"type":"object","properties":{"resource_provider_generation":{"type":"integer"},"#,
    inventory_fields!(),
    r#"},"required":["total","resource_provider_generation"],"additionalProperties":false}"#
);

macro_rules! resources {
    () => {
        r#"{"type":"object","minProperties":1,"patternProperties":{"^[0-9A-Z_]+$":{"type":"integer","minimum":1}},
"additionalProperties":false}"#
    };
}

macro_rules! list_form {
    () => {
        r#""allocations":{"type":"array","minItems":1,"items":{"type":"object","properties":{
"resource_provider":{"type":"object","properties":{"uuid":{"type":"string","format":"uuid"}},
"required":["uuid"],"additionalProperties":false},"resources":"#
    };
}

pub const ALLOCATIONS: &str = concat!(
    r#"{"type":"object","properties":{"#,
    list_form!(),
    resources!(),
    r#"},"required":["resource_provider","resources"],"additionalProperties":false}}},
"required":["allocations"],"additionalProperties":false}"#
);

pub const ALLOCATIONS_1_8: &str = concat!(
    r#"{"type":"object","properties":{"project_id":{"type":"string","minLength":1,"maxLength":255},
"user_id":{"type":"string","minLength":1,"maxLength":255},"#,
    list_form!(),
    resources!(),
    r#"},"required":["resource_provider","resources"],"additionalProperties":false}}},
"required":["allocations","project_id","user_id"],"additionalProperties":false}"#
);

pub const ALLOCATIONS_1_12: &str = concat!(
    r#"{"type":"object","properties":{"project_id":{"type":"string","minLength":1,"maxLength":255},
"user_id":{"type":"string","minLength":1,"maxLength":255},
"allocations":{"type":"object","minProperties":1,"patternProperties":{
"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$":{"type":"object","properties":{
"generation":{"type":"integer"},"resources":"#,
    resources!(),
    r#"},"required":["resources"],"additionalProperties":false}},"additionalProperties":false}},
"required":["allocations","project_id","user_id"],"additionalProperties":false}"#
);

pub const CLASS: &str = r#"{"type":"object","properties":{"name":{"type":"string","pattern":"^CUSTOM_[A-Z0-9_]+$",
"maxLength":255}},"required":["name"],"additionalProperties":false}"#;

pub const PROVIDER_TRAITS: &str = r#"{"type":"object","properties":{"resource_provider_generation":{"type":"integer"},
"traits":{"type":"array","items":{"type":"string","pattern":"^[A-Z0-9_]+$","maxLength":255},"uniqueItems":true}},
"required":["traits","resource_provider_generation"],"additionalProperties":false}"#;

pub const AGGREGATES: &str =
    r#"{"type":"array","items":{"type":"string","format":"uuid"},"uniqueItems":true}"#;
