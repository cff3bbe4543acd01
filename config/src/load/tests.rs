use super::*;
use crate::units::{ByteSize, HumanDuration};

const DEFAULTS_FILE: &str = include_str!("../../thermocline.toml");

fn env(variables: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
}

fn load_text(text: &str, variables: &[(&str, &str)], flags: &[Flag]) -> Result<Config, ConfigError> {
    let mut layers = Layers::default();
    layers.add_file(Path::new("test.toml"), text)?;
    layers.add_environment(env(variables));
    layers.add_flags(flags);
    layers.finish()
}

fn refusal(text: &str) -> String {
    load_text(text, &[], &[]).map_or_else(|e| e.to_string(), |_| "accepted".to_owned())
}

#[test]
fn the_commented_file_is_the_default() {
    let config = load_text(DEFAULTS_FILE, &[], &[]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(config, Config::default());
}

#[test]
fn the_commented_file_has_every_key_with_a_comment() {
    let written: toml::Table = DEFAULTS_FILE.parse().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(written, default_table());
    let lines: Vec<&str> = DEFAULTS_FILE.lines().collect();
    for (above, line) in lines.iter().zip(&lines[1..]) {
        if line.starts_with('[') || line.contains(" = ") && !line.starts_with('#') {
            assert!(above.starts_with('#'), "{line} stands without a comment");
        }
    }
}

#[test]
fn nothing_given_means_the_defaults() {
    assert_eq!(load(None, env(&[]), &[]).unwrap_or_else(|e| panic!("{e}")), Config::default());
}

#[test]
fn later_layers_win() {
    let text =
        "[log]\nsegment_bytes = \"1MiB\"\nmessage_max_bytes = 65536\nsegment_age = \"2h\"\n[broker]\nnode_id = 7\n";
    let variables = [
        ("THERMOCLINE_LOG__SEGMENT_BYTES", "2MiB"),
        ("THERMOCLINE_BROKER__NODE_ID", "8"),
        ("THERMOCLINE_BROKER__AUTO_CREATE_TOPICS_ENABLE", "false"),
        ("THERMOCLINE_URL", "not a setting"),
        ("THERMOCLINE_SERVICE_HOST", "not a setting either"),
        ("PATH", "/bin"),
    ];
    let flags = [Flag { name: "--node-id", key: "broker.node_id", value: "9".to_owned() }];
    let config = load_text(text, &variables, &flags).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(config.log.segment_age, HumanDuration::secs(7200));
    assert_eq!(config.log.message_max_bytes, ByteSize::kib(64));
    assert_eq!(config.log.segment_bytes, ByteSize::mib(2));
    assert_eq!(config.broker.node_id, 9);
    assert!(!config.broker.auto_create_topics_enable);
    assert_eq!(config.kafka, Config::default().kafka);
}

#[test]
fn unknown_names_are_refused_with_the_nearest_one() {
    assert_eq!(
        refusal("[log]\nsegmnt_bytes = \"1MiB\"\n"),
        "config file test.toml line 2: log.segmnt_bytes is not a setting; did you mean log.segment_bytes?"
    );
    assert_eq!(
        refusal("\n\n[tierin]\nworkers = 2\n"),
        "config file test.toml line 3: tierin is not a setting; did you mean [tiering]?"
    );
    assert_eq!(
        refusal("data_dir = \"x\"\n"),
        "config file test.toml line 1: data_dir is not a setting; did you mean broker.data_dir?"
    );
    assert_eq!(
        refusal("log = 5\n"),
        "config file test.toml line 1: log is not a setting; write its keys below a line [log]"
    );
    assert!(
        refusal("[colours]\nred = 1\n").ends_with(
            "the sections are broker, cache, groups, http, kafka, log, search, store, tiering, transactions"
        )
    );
    assert!(refusal("[http]\ncolour = 1\n").ends_with("[http] has listen, max_concurrent_requests, request_max_bytes"));
    let unknown = load(None, env(&[("THERMOCLINE_LOG__SEGMENT_BYTE", "1MiB")]), &[]).map_err(|e| e.to_string());
    assert_eq!(
        unknown.err().as_deref(),
        Some(
            "environment variable THERMOCLINE_LOG__SEGMENT_BYTE: log.segment_byte is not a setting; did you mean log.segment_bytes?"
        )
    );
}

#[test]
fn values_of_the_wrong_kind_are_refused_with_what_is_allowed() {
    for (text, expected) in [
        (
            "[broker]\nnode_id = \"one\"",
            "line 2: broker.node_id = \"one\" is refused: write a whole number without quotes",
        ),
        (
            "[broker]\nnode_id = 3000000000",
            "broker.node_id = 3000000000 is refused: write a whole number that is neither",
        ),
        (
            "[cache]\nmax_concurrent_reads = -1",
            "cache.max_concurrent_reads = -1 is refused: write a whole number that is",
        ),
        ("[broker]\nauto_create_topics_enable = 1", "= 1 is refused: write true or false without quotes"),
        ("[http]\nlisten = \"localhost\"", "http.listen = \"localhost\" is refused: write an IP address and a port"),
        ("[log]\nsegment_bytes = \"1 EB\"", "is not a byte size; write it like 512, 64KiB, 128MiB or 2GiB"),
        ("[log]\nsegment_age = 3600", "log.segment_age = 3600 is refused: write one text in quotes"),
        ("[log]\nsegment_age = \"3600\"", "\"3600\" is not a duration; write it like 250ms, 30s, 1h30m or 7d"),
        ("[log]\nsegment_age = [1]", "log.segment_age = a list is refused: write one text in quotes"),
        ("[tiering]\nzstd_level = 1.5", "tiering.zstd_level = 1.5 is refused: write a whole number without quotes"),
    ] {
        let message = refusal(text);
        assert!(message.starts_with("config file test.toml line 2: "), "{message}");
        assert!(message.contains(expected), "{message} does not contain {expected}");
    }
}

#[test]
fn every_problem_is_reported_at_once_with_its_origin() {
    let text = "[log]\nsegment_bytes = \"1KiB\"\nsegmentbytes = 1\n";
    let flags = [Flag { name: "--kafka-listen", key: "kafka.listen", value: "here".to_owned() }];
    let message = load_text(text, &[("THERMOCLINE_TIERING__ZSTD_LEVEL", "99")], &flags).map_err(|e| e.to_string());
    let message = message.err().unwrap_or_default();
    let lines: Vec<&str> = message.lines().collect();
    assert_eq!(lines.len(), 5, "{message}");
    assert!(lines[0].starts_with("config file test.toml line 3: log.segmentbytes is not a setting"));
    assert!(lines[1].starts_with("flag --kafka-listen: kafka.listen = \"here\" is refused"));
    assert_eq!(
        lines[2],
        "config file test.toml line 2: log.segment_bytes = 1KiB is refused: it must be 64KiB to 2147483647"
    );
    assert!(lines[3].starts_with("configuration: log.message_max_bytes = 1048588 is refused"));
    assert_eq!(
        lines[4],
        "environment variable THERMOCLINE_TIERING__ZSTD_LEVEL: tiering.zstd_level = 99 is refused: it must be 1 to 22"
    );
}

#[test]
fn broken_files_say_where() {
    assert!(refusal("[log]\nsegment_bytes = \n").starts_with("config file test.toml line 2: "));
    assert!(
        refusal("[log]\nsegment_age = \"1h\"\nsegment_age = \"2h\"\n").starts_with("config file test.toml line 3: ")
    );
    let missing = load(Some(Path::new("/nonexistent/thermocline.toml")), env(&[]), &[]).map_err(|e| e.to_string());
    assert!(missing.is_err_and(|message| message.starts_with("config file /nonexistent/thermocline.toml: ")));
}

#[test]
fn what_is_shown_loads_to_the_same() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = Config::default();
    config.broker.node_id = 42;
    config.store.url = "s3://bucket/prefix".to_owned();
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), config.to_toml()?)?;
    let loaded = load(Some(file.path()), env(&[]), &[])?;
    assert_eq!(loaded, config);
    Ok(())
}
