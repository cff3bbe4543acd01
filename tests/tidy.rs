//! Style that can be checked is checked here: file and function length, dead files, forbidden calls, the purity of
//! the vocabulary and the direction of dependencies.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};

/// Lines a file may have before its `#[cfg(test)]`.
const FILE_LINES_MAX: usize = 600;
/// Lines of the longest function. A ratchet: lower it when the longest one gets shorter, never raise it.
const FUNCTION_LINES_MAX: usize = 100;

const CRATES: [&str; 5] = [".", "config", "ingest", "tiering", "query"];

struct Source {
    path: PathBuf,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path, into: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(Source { text: fs::read_to_string(&path).unwrap(), path });
        }
    }
}

/// Every Rust file below the `src` folders.
fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    for name in CRATES {
        rust_files(&root().join(name).join("src"), &mut sources);
    }
    assert!(sources.len() > 40, "only {} source files found: is the layout still as it was?", sources.len());
    sources
}

/// The part of a file before its inline tests, none for a file of tests.
fn code(source: &Source) -> &str {
    if source.path.file_name().is_some_and(|name| name == "tests.rs")
        || source.path.components().any(|part| part.as_os_str() == "tests")
    {
        return "";
    }
    source.text.split("#[cfg(test)]\nmod ").next().unwrap_or_default()
}

fn refuse(what: &str, offenders: Vec<String>) {
    assert!(offenders.is_empty(), "{what}:\n  {}", offenders.join("\n  "));
}

#[test]
fn files_stay_short() {
    let sources = sources();
    let long = sources.iter().filter_map(|source| {
        let lines = code(source).lines().count();
        (lines > FILE_LINES_MAX).then(|| format!("{}: {lines} lines", source.path.display()))
    });
    refuse(&format!("files over {FILE_LINES_MAX} lines; split them by station"), long.collect());
}

#[test]
fn functions_stay_short() {
    let mut long = Vec::new();
    for source in sources() {
        let mut open: Option<(usize, usize, String)> = None;
        for (number, line) in code(&source).lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let is_head = line.trim_start().split("fn ").next().is_some_and(|before| {
                line.contains("fn ")
                    && before.split_whitespace().all(|word| {
                        matches!(word, "pub" | "pub(crate)" | "pub(super)" | "async" | "const" | "unsafe" | "extern")
                    })
            });
            match &open {
                None if is_head && !line.trim_end().ends_with([';', '}']) => {
                    open = Some((indent, number, line.trim().to_owned()));
                }
                Some((at, start, head)) if indent == *at && (line.trim() == "}" || line.trim_end().ends_with(';')) => {
                    let lines = number - start + 1;
                    if lines > FUNCTION_LINES_MAX {
                        long.push(format!("{}:{}: {lines} lines: {head}", source.path.display(), start + 1));
                    }
                    open = None;
                }
                _ => {}
            }
        }
    }
    refuse(&format!("functions over {FUNCTION_LINES_MAX} lines"), long);
}

#[test]
fn no_file_is_dead() {
    let sources = sources();
    let dead = sources.iter().filter_map(|source| {
        let stem = source.path.file_stem()?.to_str()?;
        if matches!(stem, "lib" | "main") {
            return None;
        }
        let (module, dir) = if stem == "mod" {
            (source.path.parent()?.file_name()?.to_str()?, source.path.parent()?.parent()?)
        } else {
            (stem, source.path.parent()?)
        };
        let parents = [dir.join("mod.rs"), dir.join("lib.rs"), dir.join("main.rs"), dir.with_extension("rs")];
        let declared = sources
            .iter()
            .filter(|parent| parents.contains(&parent.path))
            .any(|parent| parent.text.lines().any(|line| line.trim().ends_with(&format!("mod {module};"))));
        (!declared).then(|| source.path.display().to_string())
    });
    refuse("files no module declares", dead.collect());
}

#[test]
fn forbidden_calls_are_absent() {
    let forbidden = ["todo!(", "unimplemented!(", "dbg!(", "println!(\"DEBUG"];
    let offenders = sources()
        .iter()
        .flat_map(|source| {
            forbidden
                .iter()
                .filter(|call| source.text.contains(*call))
                .map(|call| format!("{}: {call}", source.path.display()))
                .collect::<Vec<_>>()
        })
        .collect();
    refuse("forbidden calls", offenders);
}

/// Deleting from the cold tier is the janitor's alone.
#[test]
fn only_the_janitor_deletes_objects() {
    let offenders = sources()
        .iter()
        .filter(|source| {
            let name = source.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let in_janitor = name == "janitor.rs" || source.path.components().any(|part| part.as_os_str() == "janitor");
            source.path.starts_with(root().join("tiering"))
                && !in_janitor
                && name != "store.rs"
                && !source.path.components().any(|part| part.as_os_str() == "store")
                && (code(source).contains("store.delete") || code(source).contains("store().delete"))
        })
        .map(|source| source.path.display().to_string())
        .collect();
    refuse("objects are deleted outside tiering/src/janitor.rs", offenders);
}

#[test]
fn the_vocabulary_is_pure() {
    let model = fs::read_to_string(root().join("ingest/src/model.rs")).unwrap();
    let model: String = model.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    for impure in ["tokio", "std::fs", "std::io", "std::net", "async "] {
        assert!(!model.contains(impure), "ingest/src/model.rs mentions {impure}: it is vocabulary, without I/O");
    }
}

/// config <- ingest <- tiering <- query <- root.
#[test]
fn dependencies_point_one_way() {
    let order = ["config", "ingest", "tiering", "query"];
    for (position, name) in order.iter().enumerate() {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        for later in &order[position + 1..] {
            assert!(!manifest.contains(&format!("thermocline-{later}")), "{name} must not depend on {later}");
        }
    }
}

/// A crash that nobody tests is a promise.
#[test]
fn every_row_of_the_crash_table_names_a_test() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, section) = text.split_once("## Crashes").unwrap();
    let table = section.split("\n## ").next().unwrap();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 10, "{} rows", rows.len());
    let mut sources = sources();
    for name in [""].iter().chain(&CRATES) {
        rust_files(&root().join(name).join("tests"), &mut sources);
    }
    let untested = rows.iter().filter(|row| {
        let name = row.rsplit('`').nth(1).unwrap_or_default();
        let test = format!("fn {name}(");
        name.is_empty() || !sources.iter().any(|source| source.text.contains(&test))
    });
    refuse("rows of the crash table without a test of that name", untested.map(|row| row.to_string()).collect());
}
