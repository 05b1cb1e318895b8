//! `hostd --purge`: ends every guest of this instance and removes what is left of them on the host.
//!
//! What is wanted of the servers stays in the state directory, with their console logs: that is data. To them it is as
//! if the host had been switched off, so those that should run start again with the next `hostd`.

use crate::config::Config;
use crate::hypervisor::Seat;
use crate::server::record::Record;
use crate::server::registry;
use crate::server::wanted::Wanted;
use crate::{cgroup, durable, process};
use std::collections::BTreeSet;
use std::io;
use wire::ids::ServerId;

/// Ends every guest of this instance and removes their sockets and control groups; tells how many servers there were.
/// The daemon must not run.
///
/// # Errors
/// When something cannot be removed.
pub async fn purge(config: &Config) -> io::Result<usize> {
    let owner = match config.state_dir.canonicalize() {
        Ok(owner) => owner,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let known: BTreeSet<ServerId> = if owner.join("servers").exists() {
        registry::known(&owner)?.into_iter().collect()
    } else {
        BTreeSet::new()
    };
    let mut servers: BTreeSet<ServerId> = process::find(&owner).into_keys().collect();
    servers.extend(&known);
    for id in &servers {
        process::sweep(&owner, *id).await;
        cgroup::remove(&config.cgroup_parent, *id)?;
    }
    cgroup::remove_parent(&config.cgroup_parent);
    for id in &known {
        switch_off(&registry::seat(config, &owner, *id, 0))?;
    }
    durable::remove_dir(&config.run_dir.join("servers"))?;
    durable::remove_file(&config.run_dir.join("hostd.sock"))?;
    Ok(servers.len())
}

fn switch_off(seat: &Seat) -> io::Result<()> {
    let wanted: Option<Wanted> = durable::read(&registry::wanted_path(seat))?;
    if wanted.is_none_or(|wanted| wanted.forget) {
        return durable::remove_dir(&seat.state);
    }
    match Record::read(seat)? {
        // Another boot of the host is what ends machines without anyone's doing.
        Some(record) => Record { boot: "ended with all others".into(), ..record }.write(seat),
        None => Ok(()),
    }
}
