//! Schemas of bodies.

pub(super) const CREATE: &str = r#"{"type": "object", "required": ["volume"], "properties": {"volume": {
    "type": "object", "properties": {
        "name": {"type": ["string", "null"], "maxLength": 255},
        "display_name": {"type": ["string", "null"], "maxLength": 255},
        "description": {"type": ["string", "null"], "maxLength": 255},
        "display_description": {"type": ["string", "null"], "maxLength": 255},
        "size": {"type": ["integer", "string", "null"]},
        "imageRef": {"type": ["string", "null"], "maxLength": 255},
        "image_id": {"type": ["string", "null"], "maxLength": 255},
        "snapshot_id": {"type": ["string", "null"], "maxLength": 255},
        "source_volid": {"type": ["string", "null"], "maxLength": 255},
        "volume_type": {"type": ["string", "null"], "maxLength": 255},
        "availability_zone": {"type": ["string", "null"], "maxLength": 255},
        "metadata": {"type": ["object", "null"], "maxProperties": 128,
            "additionalProperties": {"type": "string", "maxLength": 255}},
        "multiattach": {"type": ["boolean", "null"]},
        "consistencygroup_id": {"type": "null"}}}}}"#;

pub(super) const UPDATE: &str = r#"{"type": "object", "required": ["volume"], "properties": {"volume": {
    "type": "object", "properties": {
        "name": {"type": ["string", "null"], "maxLength": 255},
        "description": {"type": ["string", "null"], "maxLength": 255},
        "metadata": {"type": ["object", "null"], "maxProperties": 128,
            "additionalProperties": {"type": "string", "maxLength": 255}}}}}}"#;

pub(super) const SNAPSHOT_CREATE: &str = r#"{"type": "object", "required": ["snapshot"], "properties": {"snapshot": {
    "type": "object", "required": ["volume_id"], "properties": {
        "volume_id": {"type": "string", "minLength": 1, "maxLength": 255},
        "name": {"type": ["string", "null"], "maxLength": 255},
        "description": {"type": ["string", "null"], "maxLength": 255},
        "force": {"type": ["boolean", "string", "null"]},
        "metadata": {"type": ["object", "null"], "maxProperties": 128,
            "additionalProperties": {"type": "string", "maxLength": 255}}}}}}"#;

pub(super) const SNAPSHOT_UPDATE: &str = r#"{"type": "object", "required": ["snapshot"], "properties": {"snapshot": {
    "type": "object", "properties": {
        "name": {"type": ["string", "null"], "maxLength": 255},
        "description": {"type": ["string", "null"], "maxLength": 255}}}}}"#;

pub(super) const METADATA: &str = r#"{"type": "object", "required": ["metadata"], "properties": {"metadata": {
    "type": "object", "maxProperties": 128, "propertyNames": {"minLength": 1, "maxLength": 255},
    "additionalProperties": {"type": "string", "maxLength": 255}}}}"#;

pub(super) const META: &str = r#"{"type": "object", "required": ["meta"], "properties": {"meta": {
    "type": "object", "minProperties": 1, "maxProperties": 1,
    "additionalProperties": {"type": "string", "maxLength": 255}}}}"#;

pub(super) const QUOTA: &str = r#"{"type": "object", "required": ["quota_set"], "properties": {"quota_set": {"type": "object", "maxProperties": 64}}}"#;

pub(super) const EXTEND: &str = r#"{"type": "object", "properties": {"os-extend": {"type": "object",
    "required": ["new_size"], "properties": {"new_size": {"type": ["integer", "string"]}}}}}"#;

pub(super) const BOOTABLE: &str = r#"{"type": "object", "properties": {"os-set_bootable": {"type": "object",
    "required": ["bootable"], "properties": {"bootable": {"type": ["boolean", "string"]}}}}}"#;

pub(super) const RESET: &str = r#"{"type": "object", "properties": {"os-reset_status": {"type": "object",
    "required": ["status"], "properties": {"status": {"enum":
        ["available", "error", "creating", "deleting", "in-use", "error_deleting", "error_extending", "maintenance"]}}}}}"#;

pub(super) const UPLOAD: &str = r#"{"type": "object", "properties": {"os-volume_upload_image": {"type": "object",
    "required": ["image_name"], "properties": {
        "image_name": {"type": "string", "minLength": 1, "maxLength": 255},
        "force": {"type": ["boolean", "string", "null"]},
        "disk_format": {"type": ["string", "null"]},
        "container_format": {"type": ["string", "null"]},
        "visibility": {"enum": ["private", "shared", "community", "public"]},
        "protected": {"type": ["boolean", "string", "null"]}}}}}"#;

pub(super) const ATTACHMENT: &str = r#"{"type": "object", "required": ["attachment"], "properties": {"attachment": {
    "type": "object", "required": ["volume_uuid", "instance_uuid"], "properties": {
        "volume_uuid": {"type": "string", "maxLength": 64},
        "instance_uuid": {"type": "string", "maxLength": 64},
        "connector": {"type": ["object", "null"]}}}}}"#;

pub(super) const TYPE: &str = r#"{"type": "object", "required": ["volume_type"], "properties": {"volume_type": {
    "type": "object", "required": ["name"], "additionalProperties": false, "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 255},
        "description": {"type": ["string", "null"], "maxLength": 255},
        "extra_specs": {"type": ["object", "null"], "maxProperties": 128,
            "propertyNames": {"pattern": "^[a-zA-Z0-9-_:. ]{1,255}$"},
            "additionalProperties": {"type": ["string", "null"], "maxLength": 255}},
        "os-volume-type-access:is_public": {"type": ["boolean", "string"]}}}}}"#;

pub(super) const TYPE_UPDATE: &str = r#"{"type": "object", "required": ["volume_type"], "properties": {"volume_type": {
    "type": "object", "minProperties": 1, "additionalProperties": false, "properties": {
        "name": {"type": ["string", "null"], "maxLength": 255},
        "description": {"type": ["string", "null"], "maxLength": 255},
        "is_public": {"type": ["boolean", "string"]},
        "os-volume-type-access:is_public": {"type": ["boolean", "string"]}}}}}"#;

pub(super) const TYPE_SPECS: &str = r#"{"type": "object", "required": ["extra_specs"], "properties": {"extra_specs": {
    "type": "object", "minProperties": 1, "maxProperties": 128,
    "propertyNames": {"pattern": "^[a-zA-Z0-9-_:. ]{1,255}$"},
    "additionalProperties": {"type": "string", "maxLength": 255}}}}"#;

pub(super) const TYPE_SPEC: &str = r#"{"type": "object", "minProperties": 1, "maxProperties": 1,
    "propertyNames": {"pattern": "^[a-zA-Z0-9-_:. ]{1,255}$"},
    "additionalProperties": {"type": "string", "maxLength": 255}}"#;

pub(super) const ADD_ACCESS: &str = r#"{"type": "object", "properties": {"addProjectAccess": {"type": "object",
    "required": ["project"], "properties": {"project": {"type": "string", "minLength": 1, "maxLength": 255}}}}}"#;

pub(super) const REMOVE_ACCESS: &str = r#"{"type": "object", "properties": {"removeProjectAccess": {"type": "object",
    "required": ["project"], "properties": {"project": {"type": "string", "minLength": 1, "maxLength": 255}}}}}"#;

pub(super) const QOS: &str = r#"{"type": "object", "required": ["qos_specs"], "properties": {"qos_specs": {
    "type": "object", "required": ["name"], "maxProperties": 64,
    "propertyNames": {"pattern": "^[a-zA-Z0-9-_:. ]{1,255}$"},
    "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 255}, "consumer": {"type": ["string", "null"]}},
    "additionalProperties": {"type": ["string", "integer"], "maxLength": 255}}}}"#;

pub(super) const QOS_UPDATE: &str = r#"{"type": "object", "required": ["qos_specs"], "properties": {"qos_specs": {
    "type": "object", "maxProperties": 64, "propertyNames": {"pattern": "^[a-zA-Z0-9-_:. ]{1,255}$"},
    "properties": {"consumer": {"type": ["string", "null"]}},
    "additionalProperties": {"type": ["string", "integer"], "maxLength": 255}}}}"#;

pub(super) const QOS_KEYS: &str = r#"{"type": "object", "required": ["keys"], "properties": {"keys": {
    "type": "array", "minItems": 1, "maxItems": 64, "items": {"type": "string", "minLength": 1, "maxLength": 255}}}}"#;
