//! `thermocline group`: who consumes what, and how far behind.

use clap::Subcommand;
use serde::Deserialize;
use serde_json::Value;

use super::BrokerArgs;
use super::client::{Client, NO_QUERY};
use super::output::Output;
use super::table::{self, Align, Table};

#[derive(Subcommand)]
pub enum GroupCommand {
    /// List all consumer groups and how far they are behind
    List {
        #[command(flatten)]
        broker: BrokerArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a group's members, committed offsets and lag
    Describe {
        name: String,
        #[command(flatten)]
        broker: BrokerArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete a group without members, and all that it committed
    Delete {
        name: String,
        #[command(flatten)]
        broker: BrokerArgs,
    },
}

#[derive(Deserialize)]
struct GroupList {
    groups: Vec<GroupRow>,
}

#[derive(Deserialize)]
struct GroupRow {
    group: String,
    state: String,
    protocol_type: String,
    lag: u64,
}

/// A group as `GET /v1/groups/{g}` answers it.
#[derive(Deserialize)]
struct GroupInfo {
    state: String,
    protocol: String,
    generation: i32,
    lag: u64,
    members: Vec<Member>,
    offsets: Vec<OffsetInfo>,
}

#[derive(Deserialize)]
struct Member {
    member_id: String,
    client_id: String,
    client_host: String,
    #[serde(default)]
    assignment: Vec<AssignedTopic>,
}

#[derive(Deserialize)]
struct AssignedTopic {
    topic: String,
    partitions: Vec<i32>,
}

#[derive(Deserialize)]
struct OffsetInfo {
    topic: String,
    partition: i32,
    committed_offset: i64,
    high_watermark: Option<i64>,
    lag: Option<u64>,
}

pub async fn run(command: GroupCommand) -> anyhow::Result<()> {
    let mut output = Output::new();
    match command {
        GroupCommand::List { broker, json } => {
            let groups: Value = Client::new(&broker.url)?.get(&["v1", "groups"], NO_QUERY).await?;
            if json {
                output.line(serde_json::to_string_pretty(&groups)?)?;
            } else {
                print(&list_table(&GroupList::deserialize(groups)?.groups), &mut output)?;
            }
        }
        GroupCommand::Describe { name, broker, json } => {
            let group: Value = Client::new(&broker.url)?.get(&["v1", "groups", &name], NO_QUERY).await?;
            if json {
                output.line(serde_json::to_string_pretty(&group)?)?;
            } else {
                describe(&GroupInfo::deserialize(group)?, &mut output)?;
            }
        }
        GroupCommand::Delete { name, broker } => {
            Client::new(&broker.url)?.delete(&["v1", "groups", &name]).await?;
            output.line(format!("deleted {name}"))?;
        }
    }
    output.flush()
}

fn print(table: &Table, output: &mut Output) -> anyhow::Result<()> {
    table.lines().into_iter().try_for_each(|line| output.line(line))
}

fn list_table(groups: &[GroupRow]) -> Table {
    let mut rows =
        Table::new(&[("GROUP", Align::Left), ("STATE", Align::Left), ("TYPE", Align::Left), ("LAG", Align::Right)]);
    for group in groups {
        let lag = table::count(group.lag);
        rows.row([group.group.clone(), group.state.clone(), group.protocol_type.clone(), lag]);
    }
    rows
}

fn describe(group: &GroupInfo, output: &mut Output) -> anyhow::Result<()> {
    let protocol = if group.protocol.is_empty() { "" } else { &format!(", assigned by {}", group.protocol) };
    let lag = table::count(group.lag);
    output.line(format!("{}, generation {}{protocol}, {lag} behind", group.state, group.generation))?;
    if !group.offsets.is_empty() {
        output.line("")?;
        print(&offsets_table(group), output)?;
    }
    if !group.members.is_empty() {
        output.line("")?;
        print(&members_table(&group.members), output)?;
    }
    Ok(())
}

fn offsets_table(group: &GroupInfo) -> Table {
    let mut rows = Table::new(&[
        ("TOPIC", Align::Left),
        ("PARTITION", Align::Right),
        ("COMMITTED", Align::Right),
        ("END", Align::Right),
        ("LAG", Align::Right),
        ("MEMBER", Align::Left),
    ]);
    for at in &group.offsets {
        let owns = |member: &&Member| {
            let mut topics = member.assignment.iter();
            topics.any(|assigned| assigned.topic == at.topic && assigned.partitions.contains(&at.partition))
        };
        let owner = group.members.iter().find(owns).map(|member| member.member_id.clone());
        let gone = || "-".to_owned();
        rows.row([
            at.topic.clone(),
            at.partition.to_string(),
            at.committed_offset.to_string(),
            at.high_watermark.map_or_else(gone, |end| end.to_string()),
            at.lag.map_or_else(gone, table::count),
            owner.unwrap_or_else(gone),
        ]);
    }
    rows
}

fn members_table(members: &[Member]) -> Table {
    let mut rows = Table::new(&[
        ("MEMBER", Align::Left),
        ("CLIENT", Align::Left),
        ("HOST", Align::Left),
        ("PARTITIONS", Align::Right),
    ]);
    for member in members {
        let partitions: usize = member.assignment.iter().map(|assigned| assigned.partitions.len()).sum();
        let (id, client, host) = (&member.member_id, &member.client_id, &member.client_host);
        rows.row([id.clone(), client.clone(), host.clone(), partitions.to_string()]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_their_lag_are_shown() {
        let list = r#"{"groups":[{"group":"readers","state":"Stable","protocol_type":"consumer","lag":1234}]}"#;
        let list: GroupList = serde_json::from_str(list).unwrap();
        assert_eq!(
            list_table(&list.groups).lines(),
            ["GROUP    STATE   TYPE        LAG", "readers  Stable  consumer  1 234"]
        );
    }

    #[test]
    fn partitions_are_shown_with_who_reads_them() {
        let group = r#"{"group":"readers","state":"Stable","protocol_type":"consumer","protocol":"range","generation":3,
            "lag":2,"members":[{"member_id":"m-1","client_id":"c","client_host":"127.0.0.1",
            "assignment":[{"topic":"orders","partitions":[1]}]}],
            "offsets":[{"topic":"gone","partition":0,"committed_offset":4,"metadata":""},
            {"topic":"orders","partition":1,"committed_offset":5,"high_watermark":7,"lag":2,"metadata":""}]}"#;
        let group: GroupInfo = serde_json::from_str(group).unwrap();
        assert_eq!(
            offsets_table(&group).lines(),
            [
                "TOPIC   PARTITION  COMMITTED  END  LAG  MEMBER",
                "gone            0          4    -    -  -",
                "orders          1          5    7    2  m-1",
            ]
        );
        assert_eq!(
            members_table(&group.members).lines(),
            ["MEMBER  CLIENT  HOST       PARTITIONS", "m-1     c       127.0.0.1           1"]
        );
    }
}
