//! Request bodies.

macro_rules! text {
    () => {
        r#"{"type":"string","maxLength":255}"#
    };
}
macro_rules! id {
    () => {
        r#"{"type":"string","format":"uuid"}"#
    };
}
macro_rules! common {
    () => {
        r#""project_id":{"type":"string","maxLength":255},"tenant_id":{"type":"string","maxLength":255},"name":{"type":"string","maxLength":255},"description":{"type":["string","null"],"maxLength":255},"admin_state_up":{"type":"boolean"}"#
    };
}
/// Several under one key, or one under the other.
macro_rules! create {
    ($one:literal, $many:literal, $object:expr) => {
        concat!(
            r#"{"type":"object","minProperties":1,"maxProperties":1,"additionalProperties":false,"properties":{""#,
            $one, r#"":"#, $object, r#",""#, $many, r#"":{"type":"array","minItems":1,"maxItems":1000,"items":"#, $object, "}}}"
        )
    };
}
macro_rules! update {
    ($one:literal, $object:expr) => {
        concat!(
            r#"{"type":"object","required":[""#,
            $one,
            r#""],"additionalProperties":false,"properties":{""#,
            $one,
            r#"":"#,
            $object,
            "}}"
        )
    };
}
macro_rules! object {
    ($required:literal, $properties:expr) => {
        concat!(
            r#"{"type":"object","additionalProperties":false,"required":["#,
            $required,
            r#"],"properties":{"#,
            $properties,
            "}}"
        )
    };
}

macro_rules! network {
    () => {
        concat!(
            common!(),
            r#","shared":{"type":"boolean"},"router:external":{"type":"boolean"},"mtu":{"type":"integer"},"port_security_enabled":{"type":"boolean"},"#,
            r#""provider:network_type":{"type":["string","null"],"maxLength":32},"provider:physical_network":{"type":["string","null"],"maxLength":64},"provider:segmentation_id":{"type":["integer","string","null"]},"is_default":{"type":"boolean","enum":[false]}"#
        )
    };
}
/// `POST /v2.0/networks`
pub const NETWORK: &str = create!("network", "networks", object!("", network!()));
/// `PUT /v2.0/networks/{id}`
pub const NETWORK_UPDATE: &str = update!("network", object!("", network!()));

macro_rules! subnet_rest {
    () => {
        r#""project_id":{"type":"string","maxLength":255},"tenant_id":{"type":"string","maxLength":255},"name":{"type":"string","maxLength":255},"description":{"type":["string","null"],"maxLength":255},"gateway_ip":{"type":["string","null"],"maxLength":64},"enable_dhcp":{"type":"boolean"},"dns_nameservers":{"type":["array","null"],"maxItems":64,"items":{"type":"string","maxLength":64}},"host_routes":{"type":["array","null"],"maxItems":64,"items":{"type":"object","required":["destination","nexthop"],"additionalProperties":false,"properties":{"destination":{"type":"string","maxLength":64},"nexthop":{"type":"string","maxLength":64}}}},"allocation_pools":{"type":["array","null"],"maxItems":64,"items":{"type":"object","required":["start","end"],"additionalProperties":false,"properties":{"start":{"type":"string","maxLength":64},"end":{"type":"string","maxLength":64}}}}"#
    };
}
/// `POST /v2.0/subnets`
pub const SUBNET: &str = create!(
    "subnet",
    "subnets",
    object!(
        r#""network_id","cidr""#,
        concat!(
            subnet_rest!(),
            r#","cidr":{"type":"string","maxLength":64},"ip_version":{"type":"integer","enum":[4,6]},"ipv6_ra_mode":{"type":"null"},"ipv6_address_mode":{"type":"null"},"network_id":"#,
            id!()
        )
    )
);
/// `PUT /v2.0/subnets/{id}`
pub const SUBNET_UPDATE: &str = update!("subnet", object!("", subnet_rest!()));

macro_rules! port_rest {
    () => {
        concat!(
            common!(),
            r#","mac_address":{"type":"string","maxLength":64},"device_id":{"type":"string","maxLength":255},"device_owner":{"type":"string","maxLength":255},"port_security_enabled":{"type":"boolean"},"binding:host_id":{"type":["string","null"],"maxLength":255},"binding:vnic_type":{"type":["string","null"],"maxLength":64},"binding:profile":{"type":["object","null"],"maxProperties":0},"fixed_ips":{"type":["array","null"],"maxItems":16,"items":{"type":"object","additionalProperties":false,"properties":{"subnet_id":{"type":["string","null"],"maxLength":64},"ip_address":{"type":["string","null"],"maxLength":64}}}},"security_groups":{"type":["array","null"],"maxItems":100,"items":{"type":"string","maxLength":64}},"allowed_address_pairs":{"type":["array","null"],"maxItems":100,"items":{"type":"object","additionalProperties":false,"properties":{"ip_address":{"type":"string","maxLength":64},"mac_address":{"type":["string","null"],"maxLength":64}}}}"#
        )
    };
}
/// `POST /v2.0/ports`
pub const PORT: &str =
    create!("port", "ports", object!(r#""network_id""#, concat!(port_rest!(), r#","network_id":"#, id!())));
/// `PUT /v2.0/ports/{id}`
pub const PORT_UPDATE: &str = update!("port", object!("", port_rest!()));

macro_rules! router {
    () => {
        concat!(
            common!(),
            r#","external_gateway_info":{"type":["object","null"],"additionalProperties":false,"properties":{"network_id":{"type":"string","maxLength":64},"enable_snat":{"type":"boolean"},"external_fixed_ips":{"type":"array","maxItems":16,"items":{"type":"object","additionalProperties":false,"properties":{"subnet_id":{"type":["string","null"],"maxLength":64},"ip_address":{"type":["string","null"],"maxLength":64}}}}}},"routes":{"type":["array","null"],"maxItems":64,"items":{"type":"object","required":["destination","nexthop"],"additionalProperties":false,"properties":{"destination":{"type":"string","maxLength":64},"nexthop":{"type":"string","maxLength":64}}}}"#
        )
    };
}
/// `POST /v2.0/routers`
pub const ROUTER: &str = create!("router", "routers", object!("", router!()));
/// `PUT /v2.0/routers/{id}`
pub const ROUTER_UPDATE: &str = update!("router", object!("", router!()));
/// `PUT /v2.0/routers/{id}/add_router_interface` and its opposite
pub const INTERFACE: &str = concat!(
    r#"{"type":"object","additionalProperties":false,"properties":{"port_id":"#,
    id!(),
    r#","subnet_id":"#,
    id!(),
    "}}"
);

macro_rules! floating_rest {
    () => {
        r#""description":{"type":["string","null"],"maxLength":255},"port_id":{"type":["string","null"],"maxLength":64},"fixed_ip_address":{"type":["string","null"],"maxLength":64}"#
    };
}
/// `POST /v2.0/floatingips`
pub const FLOATING: &str = create!(
    "floatingip",
    "floatingips",
    object!(
        r#""floating_network_id""#,
        concat!(
            floating_rest!(),
            r#","project_id":{"type":"string","maxLength":255},"tenant_id":{"type":"string","maxLength":255},"floating_ip_address":{"type":["string","null"],"maxLength":64},"subnet_id":{"type":["string","null"],"maxLength":64},"floating_network_id":"#,
            id!()
        )
    )
);
/// `PUT /v2.0/floatingips/{id}`
pub const FLOATING_UPDATE: &str = update!("floatingip", object!("", floating_rest!()));

macro_rules! group {
    () => {
        concat!(
            r#""project_id":{"type":"string","maxLength":255},"tenant_id":{"type":"string","maxLength":255},"stateful":{"type":"boolean","enum":[true]},"description":{"type":["string","null"],"maxLength":255},"name":"#,
            text!()
        )
    };
}
/// `POST /v2.0/security-groups`
pub const GROUP: &str = create!("security_group", "security_groups", object!("", group!()));
/// `PUT /v2.0/security-groups/{id}`
pub const GROUP_UPDATE: &str = update!("security_group", object!("", group!()));
/// `POST /v2.0/security-group-rules`
pub const RULE: &str = create!(
    "security_group_rule",
    "security_group_rules",
    object!(
        r#""security_group_id","direction""#,
        concat!(
            r#""project_id":{"type":"string","maxLength":255},"tenant_id":{"type":"string","maxLength":255},"description":{"type":["string","null"],"maxLength":255},"direction":{"type":"string","enum":["ingress","egress"]},"ethertype":{"type":["string","null"],"enum":["IPv4","IPv6",null]},"protocol":{"type":["string","integer","null"],"maxLength":32},"port_range_min":{"type":["integer","string","null"],"maxLength":16},"port_range_max":{"type":["integer","string","null"],"maxLength":16},"remote_ip_prefix":{"type":["string","null"],"maxLength":64},"remote_group_id":{"type":["string","null"],"maxLength":64},"security_group_id":"#,
            id!()
        )
    )
);
/// `PUT /v2.0/quotas/{project_id}`
pub const QUOTA: &str = r#"{"type":"object","required":["quota"],"additionalProperties":false,"properties":{"quota":{"type":"object","additionalProperties":false,"patternProperties":{"^(network|subnet|port|router|floatingip|security_group|security_group_rule)$":{"type":"integer","minimum":-1,"maximum":2147483647}},"properties":{"project_id":{"type":"string"},"tenant_id":{"type":"string"},"force":{"type":"boolean"},"check_limit":{"type":"boolean"}}}}}"#;
