//! Request bodies, as upstream's schemas allow them.

macro_rules! name {
    () => {
        r#"{"type":"string","minLength":1,"maxLength":255,"pattern":"^[^\\x00-\\x1f]*$"}"#
    };
}
macro_rules! truth {
    () => {
        r#"{"enum":[true,false,"True","TRUE","true","1","ON","On","on","YES","Yes","yes","False","FALSE","false","0","OFF","Off","off","NO","No","no"]}"#
    };
}
macro_rules! count {
    () => {
        r#"{"type":["integer","string"],"pattern":"^[0-9]+$","minimum":1,"minLength":1,"maxLength":9}"#
    };
}
macro_rules! metadata {
    () => {
        r#"{"type":"object","patternProperties":{"^[a-zA-Z0-9-_:. ]{1,255}$":{"type":"string","maxLength":255}},"additionalProperties":false}"#
    };
}
macro_rules! tag {
    () => {
        r#"{"type":"string","minLength":1,"maxLength":60,"pattern":"^[^,/]*$"}"#
    };
}
macro_rules! tags {
    () => {
        concat!(r#"{"type":"array","items":"#, tag!(), r#","maxItems":50}"#)
    };
}
macro_rules! hostname {
    () => {
        r#"{"type":["string"],"minLength":2,"maxLength":63,"pattern":"^[a-zA-Z0-9]+[a-zA-Z0-9-]*[a-zA-Z0-9]+$"}"#
    };
}
macro_rules! network_item {
    () => {
        r#"{"type":"object","properties":{"fixed_ip":{"type":"string","anyOf":[{"format":"ipv4"},{"format":"ipv6"}]},
"port":{"type":["string","null"],"format":"uuid"},"uuid":{"type":"string","format":"uuid"},
"tag":{"type":"string","minLength":1,"maxLength":60,"pattern":"^[^,/]*$"}},"additionalProperties":false}"#
    };
}
macro_rules! networks {
    () => {
        concat!(r#"{"type":["array","null"],"maxItems":64,"items":"#, network_item!(), r#"}"#)
    };
}
macro_rules! networks_2_37 {
    () => {
        concat!(
            r#"{"oneOf":[{"type":"array","maxItems":64,"items":"#,
            network_item!(),
            r#"},{"type":"string","enum":["auto","none"]}]}"#
        )
    };
}
macro_rules! server {
    () => {
        concat!(
            r#""name":"#,
            name!(),
            r#","flavorRef":{"type":["string","integer"],"minLength":1,"maxLength":2048},
"imageRef":{"type":"string","maxLength":2048},"adminPass":{"type":"string","maxLength":255},"metadata":"#,
            metadata!(),
            r#","security_groups":{"type":"array","maxItems":100,"items":{"type":"object","properties":{"name":{"type":"string",
"minLength":1,"maxLength":255}},"additionalProperties":false}},
"user_data":{"type":"string"},"key_name":{"type":["string","null"],"minLength":1,"maxLength":255},
"availability_zone":{"type":["string","null"],"minLength":0,"maxLength":255},"config_drive":{"anyOf":["#,
            truth!(),
            r#",{"type":"null"},{"const":""}]},"min_count":"#,
            count!(),
            r#","max_count":"#,
            count!(),
            r#","return_reservation_id":"#,
            truth!(),
            r#","OS-DCF:diskConfig":{"type":"string","enum":["AUTO","MANUAL"]},
"accessIPv4":{"type":["string","null"],"maxLength":45},"accessIPv6":{"type":["string","null"],"maxLength":45},
"block_device_mapping_v2":{"type":"array","maxItems":20,"items":{"type":"object","properties":{
"source_type":{"type":"string","enum":["volume","image","snapshot","blank"]},
"destination_type":{"type":["string","null"],"enum":["volume","local",null]},
"uuid":{"type":["string","null"],"minLength":1,"maxLength":255},
"boot_index":{"type":["integer","string","null"],"pattern":"^-?[0-9]+$"},
"volume_size":{"type":["integer","string","null"],"pattern":"^[0-9]+$","minimum":0},
"delete_on_termination":"#,
            truth!(),
            r#","device_name":{"type":["string","null"],"maxLength":255},"device_type":{"type":["string","null"],"maxLength":255},
"disk_bus":{"type":["string","null"],"maxLength":255},"guest_format":{"type":["string","null"],"maxLength":255},
"no_device":{},"volume_type":{"type":["string","null"],"maxLength":255},"tag":"#,
            tag!(),
            r#"},"required":["source_type"],"additionalProperties":false}}"#
        )
    };
}
macro_rules! create {
    ($networks:expr, $more:expr, $required:expr) => {
        concat!(
            r#"{"type":"object","properties":{"server":{"type":"object","properties":{"#,
            server!(),
            r#","networks":"#,
            $networks,
            $more,
            r#"},"required":["name","flavorRef""#,
            $required,
            r#"],"additionalProperties":false},"os:scheduler_hints":{"type":"object"},
"OS-SCH-HNT:scheduler_hints":{"type":"object"}},"required":["server"],"additionalProperties":false}"#
        )
    };
}
macro_rules! description {
    () => {
        r#","description":{"type":["string","null"],"maxLength":255}"#
    };
}
macro_rules! certificates {
    () => {
        r#","trusted_image_certificates":{"type":["array","null"]}"#
    };
}
macro_rules! host {
    () => {
        r#","host":{"type":"string","maxLength":255},"hypervisor_hostname":{"type":"string","maxLength":255}"#
    };
}
/// No files were ever injected here; an empty list is what clients send without thinking.
macro_rules! personality {
    () => {
        r#","personality":{"type":"array","maxItems":0}"#
    };
}

pub const CREATE: &str = create!(networks!(), personality!(), "");
pub const CREATE_2_19: &str = create!(networks!(), concat!(personality!(), description!()), "");
pub const CREATE_2_37: &str =
    create!(networks_2_37!(), concat!(personality!(), description!()), r#","networks""#);
pub const CREATE_2_52: &str = create!(
    networks_2_37!(),
    concat!(personality!(), description!(), r#","tags":"#, tags!()),
    r#","networks""#
);
pub const CREATE_2_57: &str =
    create!(networks_2_37!(), concat!(description!(), r#","tags":"#, tags!()), r#","networks""#);
pub const CREATE_2_63: &str = create!(
    networks_2_37!(),
    concat!(description!(), r#","tags":"#, tags!(), certificates!()),
    r#","networks""#
);
pub const CREATE_2_74: &str = create!(
    networks_2_37!(),
    concat!(description!(), r#","tags":"#, tags!(), certificates!(), host!()),
    r#","networks""#
);
pub const CREATE_2_90: &str = create!(
    networks_2_37!(),
    concat!(description!(), r#","tags":"#, tags!(), certificates!(), host!(), r#","hostname":"#, hostname!()),
    r#","networks""#
);
pub const CREATE_2_94: &str = create!(
    networks_2_37!(),
    concat!(
        description!(),
        r#","tags":"#,
        tags!(),
        certificates!(),
        host!(),
        r#","hostname":{"type":"string","minLength":2,"maxLength":255,"pattern":"^[a-zA-Z0-9]+[a-zA-Z0-9-.]*[a-zA-Z0-9]+$"}"#
    ),
    r#","networks""#
);

macro_rules! update {
    ($more:expr) => {
        concat!(
            r#"{"type":"object","properties":{"server":{"type":"object","minProperties":1,"properties":{"name":"#,
            name!(),
            r#","OS-DCF:diskConfig":{"type":"string","enum":["AUTO","MANUAL"]},
"accessIPv4":{"type":["string","null"],"maxLength":45},"accessIPv6":{"type":["string","null"],"maxLength":45}"#,
            $more,
            r#"},"additionalProperties":false}},"required":["server"],"additionalProperties":false}"#
        )
    };
}
pub const UPDATE: &str = update!("");
pub const UPDATE_2_19: &str = update!(description!());
pub const UPDATE_2_90: &str = update!(concat!(description!(), r#","hostname":"#, hostname!()));

pub const METADATA: &str = concat!(
    r#"{"type":"object","properties":{"metadata":"#,
    metadata!(),
    r#"},"required":["metadata"],"additionalProperties":false}"#
);
pub const META: &str = concat!(
    r#"{"type":"object","properties":{"meta":{"allOf":["#,
    metadata!(),
    r#",{"minProperties":1,"maxProperties":1}]}},"required":["meta"],"additionalProperties":false}"#
);
pub const TAGS: &str = concat!(
    r#"{"type":"object","properties":{"tags":"#,
    tags!(),
    r#"},"required":["tags"],"additionalProperties":false}"#
);

macro_rules! action {
    ($key:expr, $value:expr) => {
        concat!(
            r#"{"type":"object","properties":{""#,
            $key,
            r#"":"#,
            $value,
            r#"},"required":[""#,
            $key,
            r#""],"additionalProperties":false}"#
        )
    };
}
pub const START: &str = action!("os-start", "{}");
pub const STOP: &str = action!("os-stop", "{}");
pub const PAUSE: &str = action!("pause", "{}");
pub const SUSPEND: &str = action!("suspend", "{}");
pub const RESUME: &str = action!("resume", "{}");
pub const UNPAUSE: &str = action!("unpause", "{}");
pub const UNLOCK: &str = action!("unlock", "{}");
pub const LOCK: &str = action!("lock", "{}");
pub const LOCK_2_73: &str = action!(
    "lock",
    r#"{"type":["object","null"],"properties":{"locked_reason":{"type":"string","minLength":1,"maxLength":255}},"additionalProperties":false}"#
);
pub const REBOOT: &str = action!(
    "reboot",
    r#"{"type":"object","properties":{"type":{"type":"string","enum":["HARD","Hard","hard","SOFT","Soft","soft"]}},"required":["type"],"additionalProperties":false}"#
);
pub const CREATE_IMAGE: &str = action!(
    "createImage",
    concat!(
        r#"{"type":"object","properties":{"name":"#,
        name!(),
        r#","metadata":"#,
        metadata!(),
        r#"},"required":["name"],"additionalProperties":false}"#
    )
);
macro_rules! rebuild {
    ($more:expr) => {
        action!(
            "rebuild",
            concat!(
                r#"{"type":"object","properties":{"name":"#,
                name!(),
                r#","imageRef":{"type":"string","minLength":1,"maxLength":2048},"adminPass":{"type":"string","maxLength":255},"metadata":"#,
                metadata!(),
                r#","preserve_ephemeral":"#,
                truth!(),
                r#","OS-DCF:diskConfig":{"type":"string","enum":["AUTO","MANUAL"]},
"accessIPv4":{"type":["string","null"],"maxLength":45},"accessIPv6":{"type":["string","null"],"maxLength":45}"#,
                $more,
                r#"},"required":["imageRef"],"additionalProperties":false}"#
            )
        )
    };
}
macro_rules! rebuild_key {
    () => {
        concat!(
            r#","key_name":{"type":["string","null"],"minLength":1,"maxLength":255}"#,
            r#","description":{"type":["string","null"],"maxLength":255}"#
        )
    };
}
macro_rules! rebuild_data {
    () => {
        concat!(rebuild_key!(), r#","user_data":{"type":["string","null"],"maxLength":65535}"#)
    };
}
pub const REBUILD: &str = rebuild!(personality!());
pub const REBUILD_2_19: &str = rebuild!(concat!(personality!(), description!()));
pub const REBUILD_2_54: &str = rebuild!(concat!(personality!(), rebuild_key!()));
pub const REBUILD_2_57: &str = rebuild!(rebuild_data!());
pub const REBUILD_2_63: &str = rebuild!(concat!(rebuild_data!(), certificates!()));
pub const REBUILD_2_90: &str =
    rebuild!(concat!(rebuild_data!(), certificates!(), r#","hostname":"#, hostname!()));
pub const REBUILD_2_94: &str = rebuild!(concat!(
    rebuild_data!(),
    certificates!(),
    r#","hostname":{"type":"string","minLength":2,"maxLength":255,"pattern":"^[a-zA-Z0-9]+[a-zA-Z0-9-.]*[a-zA-Z0-9]+$"}"#
));
pub const RESIZE: &str = action!(
    "resize",
    r#"{"type":"object","properties":{"flavorRef":{"type":["string","integer"],"minLength":1,"maxLength":2048},
"OS-DCF:diskConfig":{"type":"string","enum":["AUTO","MANUAL"]}},"required":["flavorRef"],"additionalProperties":false}"#
);
pub const CONFIRM_RESIZE: &str = action!("confirmResize", "{}");
pub const REVERT_RESIZE: &str = action!("revertResize", "{}");
pub const RESCUE: &str = action!(
    "rescue",
    r#"{"type":["object","null"],"properties":{"adminPass":{"type":"string","maxLength":255},
"rescue_image_ref":{"type":"string","minLength":1,"maxLength":2048}},"additionalProperties":false}"#
);
pub const CHANGE_PASSWORD: &str = action!(
    "changePassword",
    r#"{"type":"object","properties":{"adminPass":{"type":"string","maxLength":255}},"required":["adminPass"],"additionalProperties":false}"#
);
pub const SHELVE: &str = action!("shelve", "{}");
pub const SHELVE_OFFLOAD: &str = action!("shelveOffload", "{}");
pub const UNSHELVE: &str = action!("unshelve", "{}");
pub const UNSHELVE_2_77: &str = action!(
    "unshelve",
    r#"{"type":["object","null"],"properties":{"availability_zone":{"type":["string","null"],"maxLength":255}},"additionalProperties":false}"#
);
pub const UNRESCUE: &str = action!("unrescue", "{}");
pub const CONSOLE: &str = action!(
    "os-getConsoleOutput",
    r#"{"type":"object","properties":{"length":{"type":["integer","string","null"],"minimum":-1,"pattern":"^-?[0-9]+$"}},"additionalProperties":false}"#
);
macro_rules! group {
    () => {
        r#"{"type":"object","properties":{"name":{"type":"string","minLength":1,"maxLength":255}},"required":["name"],"additionalProperties":false}"#
    };
}
pub const ADD_GROUP: &str = action!("addSecurityGroup", group!());
pub const REMOVE_GROUP: &str = action!("removeSecurityGroup", group!());

macro_rules! attach_volume {
    ($more:expr) => {
        concat!(
            r#"{"type":"object","properties":{"volumeAttachment":{"type":"object","properties":{
"volumeId":{"type":"string","format":"uuid"},
"device":{"type":["string","null"],"pattern":"(^/dev/x{0,1}[a-z]{0,1}d{0,1})([a-z]+)[0-9]*$"}"#,
            $more,
            r#"},"required":["volumeId"],"additionalProperties":false}},"required":["volumeAttachment"],"additionalProperties":false}"#
        )
    };
}
pub const ATTACH_VOLUME: &str = attach_volume!("");
pub const ATTACH_VOLUME_2_49: &str = attach_volume!(concat!(r#","tag":"#, tag!()));
pub const ATTACH_VOLUME_2_79: &str =
    attach_volume!(concat!(r#","tag":"#, tag!(), r#","delete_on_termination":"#, truth!()));
pub const UPDATE_ATTACHMENT: &str = concat!(
    r#"{"type":"object","properties":{"volumeAttachment":{"type":"object","properties":{
"volumeId":{"type":"string","format":"uuid"},"device":{"type":["string","null"]},
"tag":{"type":["string","null"]},"serverId":{"type":"string"},"id":{"type":"string"},"delete_on_termination":"#,
    truth!(),
    r#"},"required":["volumeId"],"additionalProperties":false}},"required":["volumeAttachment"],"additionalProperties":false}"#
);
pub const ATTACH_INTERFACE: &str = r#"{"type":"object","properties":{"interfaceAttachment":{"type":"object","properties":{
"net_id":{"type":"string","format":"uuid"},"port_id":{"type":"string","format":"uuid"},
"fixed_ips":{"type":"array","minItems":1,"maxItems":1,"items":{"type":"object","properties":{"ip_address":{"type":"string",
"anyOf":[{"format":"ipv4"},{"format":"ipv6"}]}},"required":["ip_address"],"additionalProperties":false}},
"tag":{"type":"string","minLength":1,"maxLength":60,"pattern":"^[^,/]*$"}},"additionalProperties":false}},
"additionalProperties":false}"#;

macro_rules! flavor {
    ($more:expr) => {
        concat!(
            r#"{"type":"object","properties":{"flavor":{"type":"object","properties":{"name":{"type":"string","minLength":1,
"maxLength":255,"pattern":"^[^\\x00-\\x1f]*\\S[^\\x00-\\x1f]*$"},"id":{"type":["string","integer","null"],"minLength":1,"maxLength":255,
"pattern":"^[a-zA-Z0-9. _-]*$"},
"ram":{"type":["integer","string"],"pattern":"^[0-9]+$","minimum":1,"maximum":2147483647,"maxLength":10},
"vcpus":{"type":["integer","string"],"pattern":"^[0-9]+$","minimum":1,"maximum":64,"maxLength":10},
"disk":{"type":["integer","string"],"pattern":"^[0-9]+$","minimum":0,"maximum":1048576,"maxLength":10},
"OS-FLV-EXT-DATA:ephemeral":{"type":["integer","string"],"pattern":"^[0-9]+$","minimum":0,"maximum":1048576,"maxLength":10},
"swap":{"type":["integer","string"],"pattern":"^[0-9]*$","minimum":0,"maximum":1073741824,"maxLength":10},
"rxtx_factor":{"type":["number","string"],"pattern":"^[0-9]+(\\.[0-9]+)?$","minimum":0,"maxLength":20},
"os-flavor-access:is_public":"#,
            truth!(),
            $more,
            r#"},"required":["name","ram","vcpus","disk"],"additionalProperties":false}},"required":["flavor"],"additionalProperties":false}"#
        )
    };
}
pub const FLAVOR: &str = flavor!("");
pub const FLAVOR_2_55: &str = flavor!(r#","description":{"type":["string","null"],"maxLength":65535}"#);
pub const FLAVOR_UPDATE: &str = r#"{"type":"object","properties":{"flavor":{"type":"object","properties":{
"description":{"type":["string","null"],"maxLength":65535}},"required":["description"],"additionalProperties":false}},
"required":["flavor"],"additionalProperties":false}"#;
pub const EXTRA_SPECS: &str = r#"{"type":"object","properties":{"extra_specs":{"type":"object","patternProperties":{
"^[a-zA-Z0-9-_:. ]{1,255}$":{"type":["string","number"],"maxLength":255}},"additionalProperties":false}},
"required":["extra_specs"],"additionalProperties":false}"#;
pub const EXTRA_SPEC: &str = r#"{"type":"object","patternProperties":{"^[a-zA-Z0-9-_:. ]{1,255}$":{"type":["string","number"],
"maxLength":255}},"minProperties":1,"maxProperties":1,"additionalProperties":false}"#;
macro_rules! access {
    () => {
        r#"{"type":"object","properties":{"tenant":{"type":"string","minLength":1,"maxLength":255,"pattern":"^[a-zA-Z0-9-]*$"}},"required":["tenant"],"additionalProperties":false}"#
    };
}
pub const ADD_ACCESS: &str = action!("addTenantAccess", access!());
pub const REMOVE_ACCESS: &str = action!("removeTenantAccess", access!());

macro_rules! keypair {
    ($name:expr, $more:expr, $required:expr) => {
        concat!(
            r#"{"type":"object","properties":{"keypair":{"type":"object","properties":{"name":"#,
            $name,
            r#","public_key":{"type":"string"}"#,
            $more,
            r#"},"required":["name""#,
            $required,
            r#"],"additionalProperties":false}},"required":["keypair"],"additionalProperties":false}"#
        )
    };
}
macro_rules! kind {
    () => {
        r#","type":{"type":"string","enum":["ssh","x509"]}"#
    };
}
macro_rules! plain_name {
    () => {
        r#"{"type":"string","minLength":1,"maxLength":255,"pattern":"^[a-zA-Z0-9 _-]+$"}"#
    };
}
pub const KEYPAIR: &str = keypair!(plain_name!(), "", "");
pub const KEYPAIR_2_2: &str = keypair!(plain_name!(), kind!(), "");
pub const KEYPAIR_2_10: &str = keypair!(
    plain_name!(),
    concat!(kind!(), r#","user_id":{"type":"string","minLength":1,"maxLength":255}"#),
    ""
);
pub const KEYPAIR_2_92: &str = keypair!(
    r#"{"type":"string","minLength":1,"maxLength":255,"pattern":"^[a-zA-Z0-9 _@.-]+$"}"#,
    concat!(kind!(), r#","user_id":{"type":"string","minLength":1,"maxLength":255}"#),
    r#","public_key""#
);

macro_rules! zone {
    () => {
        r#""availability_zone":{"type":["string","null"],"minLength":1,"maxLength":255}"#
    };
}
macro_rules! aggregate {
    ($required:expr) => {
        concat!(
            r#"{"type":"object","properties":{"aggregate":{"type":"object","properties":{"name":"#,
            name!(),
            ",",
            zone!(),
            r#"},"#,
            $required,
            r#","additionalProperties":false}},"required":["aggregate"],"additionalProperties":false}"#
        )
    };
}
pub const AGGREGATE: &str = aggregate!(r#""required":["name"]"#);
pub const AGGREGATE_UPDATE: &str = aggregate!(r#""minProperties":1"#);
macro_rules! one_host {
    () => {
        r#"{"type":"object","properties":{"host":{"type":"string","minLength":1,"maxLength":255}},"required":["host"],"additionalProperties":false}"#
    };
}
pub const AGGREGATE_ADD: &str = action!("add_host", one_host!());
pub const AGGREGATE_REMOVE: &str = action!("remove_host", one_host!());
pub const AGGREGATE_METADATA: &str = action!(
    "set_metadata",
    r#"{"type":"object","properties":{"metadata":{"type":"object","patternProperties":{"^[a-zA-Z0-9-_:. ]{1,255}$":
{"type":["string","null"],"maxLength":255}},"additionalProperties":false}},"required":["metadata"],"additionalProperties":false}"#
);

macro_rules! group_body {
    ($more:expr, $required:expr) => {
        concat!(
            r#"{"type":"object","properties":{"server_group":{"type":"object","properties":{"name":"#,
            name!(),
            $more,
            r#"},"required":["name",""#,
            $required,
            r#""],"additionalProperties":false}},"required":["server_group"],"additionalProperties":false}"#
        )
    };
}
pub const GROUP: &str = group_body!(
    r#","policies":{"type":"array","items":{"type":"string","enum":["anti-affinity","affinity"]},"minItems":1,"maxItems":1}"#,
    "policies"
);
pub const GROUP_2_15: &str = group_body!(
    r#","policies":{"type":"array","items":{"type":"string","enum":["anti-affinity","affinity","soft-anti-affinity","soft-affinity"]},"minItems":1,"maxItems":1}"#,
    "policies"
);
pub const GROUP_2_64: &str = group_body!(
    r#","policy":{"type":"string","enum":["anti-affinity","affinity","soft-anti-affinity","soft-affinity"]},
"rules":{"type":"object","properties":{"max_server_per_host":{"type":["integer","string"],"pattern":"^[0-9]+$","minimum":1,
"minLength":1,"maxLength":9}},"additionalProperties":false}"#,
    "policy"
);

pub const QUOTA: &str = r#"{"type":"object","properties":{"quota_set":{"type":"object","properties":{"tenant_id":{"type":"string"},
"force":{}},"patternProperties":{"^[a-z_]+$":{"type":["integer","string","boolean"],"pattern":"^-?[0-9]+$","minimum":-1,
"maximum":2147483647}},"additionalProperties":false}},"required":["quota_set"],"additionalProperties":false}"#;
