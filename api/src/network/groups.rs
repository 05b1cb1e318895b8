//! Security groups and their rules.

use super::input::{Attributes, bad, conflict, invalid, missing, range, text};
use super::records::{Common, Group, Record, Rule, all, by, delete, find, save};
use super::resource::{Resource, extend, view_of, visible};
use api_kit::list::Match;
use api_kit::{Caller, Dir, Fault, Filter, ListSpec, SortKey};
use base::args;
use base::store::{Query as _, Store, Tx, Where};
use serde_json::{Value, json};

/// Name of the group that every project has.
const DEFAULT: &str = "default";

static GROUPS: ListSpec = ListSpec {
    table: "network_groups",
    key: "id",
    filters: &[
        Filter::new("id", "id", Match::Text),
        Filter::new("name", "name", Match::Text),
        Filter::new("description", "description", Match::Text),
        Filter::new("project_id", "project_id", Match::Text),
        Filter::new("tenant_id", "project_id", Match::Text),
        Filter::new("revision_number", "revision", Match::Int),
    ],
    sorts: &[
        SortKey { name: "name", column: "name" },
        SortKey { name: "project_id", column: "project_id" },
        SortKey { name: "created_at", column: "created_at" },
        SortKey { name: "updated_at", column: "updated_at" },
    ],
    default_sort: &[("created_at", Dir::Asc)],
    max_limit: 10_000,
    zero_is_all: true,
};

static RULES: ListSpec = ListSpec {
    table: "network_rules",
    key: "id",
    filters: &[
        Filter::new("id", "id", Match::Text),
        Filter::new("description", "description", Match::Text),
        Filter::new("project_id", "project_id", Match::Text),
        Filter::new("tenant_id", "project_id", Match::Text),
        Filter::new("security_group_id", "group_id", Match::Text),
        Filter::new("direction", "direction", Match::Text),
        Filter::new("ethertype", "ethertype", Match::Text),
        Filter::new("protocol", "protocol", Match::Text),
        Filter::new("port_range_min", "port_min", Match::Int),
        Filter::new("port_range_max", "port_max", Match::Int),
        Filter::new("remote_group_id", "remote_group", Match::Text),
        Filter::new("remote_ip_prefix", "remote_ip", Match::Text),
        Filter::new("revision_number", "revision", Match::Int),
    ],
    sorts: &[
        SortKey { name: "security_group_id", column: "group_id" },
        SortKey { name: "direction", column: "direction" },
        SortKey { name: "ethertype", column: "ethertype" },
        SortKey { name: "created_at", column: "created_at" },
    ],
    default_sort: &[("created_at", Dir::Asc)],
    max_limit: 10_000,
    zero_is_all: true,
};

/// The project's default group, made when it is not there: everything out, and in only from each other.
///
/// # Errors
/// When the store does not answer.
pub async fn default_group(tx: &Tx, project: &str) -> Result<String, Fault> {
    let row = tx
        .row("SELECT id FROM network_groups WHERE project_id = $1 AND name = $2", args![project, DEFAULT])
        .await?;
    if let Some(row) = row {
        return Ok(row.text("id")?);
    }
    let group = Group { common: Common::new(project, DEFAULT, "Default security group") };
    save(tx, &group).await?;
    outgoing(tx, &group).await?;
    for ethertype in ["IPv4", "IPv6"] {
        let mut rule = blank(&group, "ingress", ethertype);
        rule.remote_group = Some(group.common.id.clone());
        save(tx, &rule).await?;
    }
    Ok(group.common.id)
}

fn blank(group: &Group, direction: &str, ethertype: &str) -> Rule {
    Rule {
        common: Common::new(&group.common.project_id, "", ""),
        group_id: group.common.id.clone(),
        direction: direction.to_owned(),
        ethertype: ethertype.to_owned(),
        protocol: None,
        port_min: None,
        port_max: None,
        remote_group: None,
        remote_ip: None,
    }
}

async fn outgoing(tx: &Tx, group: &Group) -> Result<(), Fault> {
    for ethertype in ["IPv4", "IPv6"] {
        save(tx, &blank(group, "egress", ethertype)).await?;
    }
    Ok(())
}

impl Resource for Group {
    const ONE: &'static str = "security_group";
    const MANY: &'static str = "security_groups";
    const MISSING: &'static str = "SecurityGroupNotFound";
    const LABEL: &'static str = "Security group";
    const LIST: &'static ListSpec = &GROUPS;

    async fn prepare(tx: &Tx, project: &str) -> Result<(), Fault> {
        default_group(tx, project).await.map(|_| ())
    }

    async fn views(query: &Store, rows: Vec<Self>, _: &Caller) -> Result<Vec<Value>, Fault> {
        let mut select = Where::new(Rule::SELECT);
        select.and_in("group_id", rows.iter().map(|row| (&row.common.id).into()));
        select.end("ORDER BY created_at, id", []);
        let rules: Vec<Rule> = all(query, select).await?;
        let view = |row: &Self| {
            let mut view = view_of(row);
            let mine = rules.iter().filter(|rule| rule.group_id == row.common.id);
            let mine: Vec<Value> = mine.map(rule_view).collect();
            extend(&mut view, json!({"security_group_rules": mine, "stateful": true, "shared": false}));
            Value::Object(view)
        };
        Ok(rows.iter().map(view).collect())
    }

    async fn create(tx: &Tx, _: &Caller, project: &str, body: &Attributes) -> Result<Self, Fault> {
        let name = text(body, "name").unwrap_or_default();
        if name == DEFAULT {
            return Err(conflict(
                "SecurityGroupDefaultAlreadyExists",
                "Default security group already exists.",
            ));
        }
        let group =
            Self { common: Common::new(project, name, text(body, "description").unwrap_or_default()) };
        save(tx, &group).await?;
        outgoing(tx, &group).await?;
        Ok(group)
    }

    async fn update(mut self, tx: &Tx, _: &Caller, body: &Attributes) -> Result<Self, Fault> {
        if let Some(name) = text(body, "name").filter(|name| *name != self.common.name) {
            if self.common.name == DEFAULT || name == DEFAULT {
                return Err(conflict(
                    "SecurityGroupCannotUpdateDefault",
                    "Updating default security group not allowed.",
                ));
            }
            name.clone_into(&mut self.common.name);
        }
        if let Some(description) = text(body, "description") {
            description.clone_into(&mut self.common.description);
        }
        self.common.changed();
        save(tx, &self).await?;
        Ok(self)
    }

    async fn remove(self, tx: &Tx) -> Result<(), Fault> {
        let id = &self.common.id;
        if self.common.name == DEFAULT {
            return Err(conflict(
                "SecurityGroupCannotRemoveDefault",
                "Insufficient rights for removing default security group.",
            ));
        }
        let used = tx.row("SELECT port_id FROM network_port_groups WHERE group_id = $1", args![id]).await?;
        if used.is_some() {
            return Err(conflict("SecurityGroupInUse", format!("Security Group {id} in use.")));
        }
        tx.exec("DELETE FROM network_rules WHERE group_id = $1 OR remote_group = $1", args![id]).await?;
        Ok(delete::<Self>(tx, id).await?)
    }
}

fn rule_view(rule: &Rule) -> Value {
    let mut view = view_of(rule);
    view.remove("name");
    extend(
        &mut view,
        json!({"security_group_id": rule.group_id, "direction": rule.direction, "ethertype": rule.ethertype,
            "protocol": rule.protocol, "port_range_min": rule.port_min, "port_range_max": rule.port_max,
            "remote_group_id": rule.remote_group, "remote_ip_prefix": rule.remote_ip}),
    );
    Value::Object(view)
}

/// Number of an IP protocol from its name or number.
#[must_use]
pub fn protocol_number(name: &str, v6: bool) -> Option<u8> {
    Some(match name {
        "icmp" if v6 => 58,
        "ah" => 51,
        "dccp" => 33,
        "egp" => 8,
        "esp" => 50,
        "gre" => 47,
        "icmp" => 1,
        "icmpv6" | "ipv6-icmp" => 58,
        "igmp" => 2,
        "ipip" => 4,
        "ospf" => 89,
        "pgm" => 113,
        "rsvp" => 46,
        "sctp" => 132,
        "tcp" => 6,
        "udp" => 17,
        "udplite" => 136,
        "vrrp" => 112,
        number => number.parse().ok()?,
    })
}

impl Resource for Rule {
    const ONE: &'static str = "security_group_rule";
    const MANY: &'static str = "security_group_rules";
    const MISSING: &'static str = "SecurityGroupRuleNotFound";
    const LABEL: &'static str = "Security group rule";
    const LIST: &'static ListSpec = &RULES;

    async fn prepare(tx: &Tx, project: &str) -> Result<(), Fault> {
        default_group(tx, project).await.map(|_| ())
    }

    async fn views(_: &Store, rows: Vec<Self>, _: &Caller) -> Result<Vec<Value>, Fault> {
        Ok(rows.iter().map(rule_view).collect())
    }

    async fn create(tx: &Tx, caller: &Caller, _: &str, body: &Attributes) -> Result<Self, Fault> {
        let group: Group = visible(tx, caller, text(body, "security_group_id").unwrap_or_default()).await?;
        let mut rule = blank(
            &group,
            text(body, "direction").unwrap_or("ingress"),
            text(body, "ethertype").unwrap_or("IPv4"),
        );
        text(body, "description").unwrap_or_default().clone_into(&mut rule.common.description);
        let protocol = match body.get("protocol") {
            Some(Value::String(name)) => Some(name.to_ascii_lowercase()),
            Some(Value::Number(number)) => Some(number.to_string()),
            Some(_) | None => None,
        };
        rule.protocol = protocol.filter(|name| name != "any" && !name.is_empty());
        let port = |key: &str| -> Result<Option<u16>, Fault> {
            let value = match body.get(key) {
                Some(Value::String(text)) => text.parse::<i64>().map_err(|_| {
                    bad(
                        "SecurityGroupInvalidPortValue",
                        format!("Invalid value for port {}", text.chars().take(32).collect::<String>()),
                    )
                })?,
                Some(Value::Number(number)) => number.as_i64().unwrap_or(-1),
                Some(_) | None => return Ok(None),
            };
            let port = u16::try_from(value);
            Ok(Some(port.map_err(|_| {
                bad("SecurityGroupInvalidPortValue", format!("Invalid value for port {value}"))
            })?))
        };
        (rule.port_min, rule.port_max) = (port("port_range_min")?, port("port_range_max")?);
        rule.remote_ip = text(body, "remote_ip_prefix")
            .map(|text| range("remote_ip_prefix", text))
            .transpose()?
            .map(|ip| ip.trunc());
        rule.remote_group = text(body, "remote_group_id").map(str::to_owned);
        rule.check()?;
        if let Some(remote) = &rule.remote_group
            && find::<Group>(tx, remote)
                .await?
                .is_none_or(|remote| !caller.is_admin && remote.common.project_id != group.common.project_id)
        {
            return Err(missing("SecurityGroupNotFound", "Security group", remote));
        }
        let same = |there: &Self| {
            let mut there = there.clone();
            there.common = rule.common.clone();
            there == rule
        };
        let there: Vec<Self> = by(tx, "group_id = ?", &group.common.id).await?;
        if let Some(there) = there.iter().find(|there| same(there)) {
            return Err(conflict(
                "SecurityGroupRuleExists",
                format!("Security group rule already exists. Rule id is {}.", there.common.id),
            ));
        }
        save(tx, &rule).await?;
        let mut group = group;
        group.common.changed();
        save(tx, &group).await?;
        Ok(rule)
    }

    async fn update(self, _: &Tx, _: &Caller, _: &Attributes) -> Result<Self, Fault> {
        Err(Fault::method_not_allowed())
    }

    async fn remove(self, tx: &Tx) -> Result<(), Fault> {
        Ok(delete::<Self>(tx, &self.common.id).await?)
    }
}

impl Rule {
    fn check(&self) -> Result<(), Fault> {
        let v6 = self.ethertype == "IPv6";
        if self.remote_group.is_some() && self.remote_ip.is_some() {
            return Err(bad(
                "SecurityGroupRemoteGroupAndRemoteIpPrefix",
                "Only remote_ip_prefix or remote_group_id may be provided.",
            ));
        }
        if let Some(ip) = self.remote_ip
            && ip.addr().is_ipv6() != v6
        {
            return Err(bad(
                "SecurityGroupRuleParameterConflict",
                format!("Conflicting value ethertype {} for CIDR {ip}", self.ethertype),
            ));
        }
        let number = match &self.protocol {
            None => None,
            Some(name) => Some(protocol_number(name, v6).ok_or_else(|| {
                let name: String = name.chars().take(32).collect();
                bad("SecurityGroupRuleInvalidProtocol", format!("Security group rule protocol {name} not supported. Only protocol values [None, 'ah', 'dccp', 'egp', 'esp', 'gre', 'icmp', 'icmpv6', 'igmp', 'ipip', 'ipv6-icmp', 'ospf', 'pgm', 'rsvp', 'sctp', 'tcp', 'udp', 'udplite', 'vrrp'] and integer representations [0 to 255] are supported."))
            })?),
        };
        match (number, self.port_min, self.port_max) {
            (_, None, None) => Ok(()),
            (Some(1 | 58), Some(kind), code) => {
                let over = [Some(kind), code].into_iter().flatten().find(|value| *value > 255);
                over.map_or(Ok(()), |value| {
                    Err(bad(
                        "SecurityGroupInvalidIcmpValue",
                        format!("Invalid value for ICMP type or code: {value}; it must be 0 to 255."),
                    ))
                })
            }
            (Some(1 | 58), None, Some(code)) => Err(bad(
                "SecurityGroupMissingIcmpType",
                format!(
                    "ICMP code (port-range-max) {code} is provided but ICMP type (port-range-min) is missing."
                ),
            )),
            (Some(6 | 17 | 33 | 132 | 136), Some(low), Some(high))
                if low <= high && (low > 0 || number == Some(6) || number == Some(17)) =>
            {
                Ok(())
            }
            (Some(6 | 17 | 33 | 132 | 136), _, _) => Err(bad(
                "SecurityGroupInvalidPortRange",
                "For TCP/UDP protocols, port_range_min must be <= port_range_max",
            )),
            (Some(_) | None, _, _) => Err(invalid(
                "port_range_min",
                "Port range can only be specified with a protocol that has ports: tcp, udp, udplite, sctp or dccp",
            )),
        }
    }
}
