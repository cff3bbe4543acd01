//! The settings of a broker under test.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use thermocline_config::{ByteSize, Config};

/// Everything in `data_dir`, ports of the system's choice, and no part of the disk set aside: the machine's may be
/// full.
pub fn config(data_dir: &Path) -> Config {
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut config = Config::default();
    config.broker.data_dir = data_dir.to_owned();
    config.kafka.listen = any_port;
    config.http.listen = any_port;
    config.log.disk_reserve = ByteSize::bytes(0);
    config
}
