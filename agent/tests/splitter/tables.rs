//! The two tables of this folder, RFC9113.md and PROMISES.md: each row has tests, each test that a row names is there, and no
//! section or promise is left out. In: the tables and the sources as text.

use std::fs;
use std::path::{Path, PathBuf};

struct Row {
    /// The first cell: a section or a number.
    about: String,
    tests: Vec<String>,
}

/// Lines that begin with `| ` and a digit or §; the last cell holds tests in backticks.
fn rows(table: &str) -> Vec<Row> {
    let is_row = |line: &&str| line.starts_with("| ") && line[2..].starts_with(|c: char| c.is_ascii_digit());
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let tests = cells.last().expect("a row has cells").split('`').skip(1).step_by(2);
        Row { about: cells[0].to_owned(), tests: tests.map(str::to_owned).collect() }
    };
    table.lines().filter(is_row).map(row).collect()
}

fn sources() -> Vec<(String, String)> {
    let agent = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders = vec![agent.join("src"), agent.join("tests"), agent.join("../tests/tests")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                found.push((path.to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

/// Whether a file holds this test, and not only a function of its name.
fn holds(source: &str, test: &str) -> bool {
    let head = [format!("fn {test}("), format!("async fn {test}(")];
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    lines.windows(2).any(|pair| {
        let marked = pair[0].starts_with("#[test]") || pair[0].starts_with("#[tokio::test");
        marked && head.iter().any(|head| pair[1].starts_with(head.as_str()))
    })
}

/// Every row names tests, as `file::test`, that exist.
fn check(rows: &[Row]) {
    let sources = sources();
    let mut missing = Vec::new();
    for row in rows {
        assert!(!row.tests.is_empty(), "no test for {}", row.about);
        for name in &row.tests {
            let (file, test) = name.split_once("::").unwrap_or_else(|| panic!("{name}: not file::test"));
            let file = format!("/{file}.rs");
            if !sources.iter().any(|(path, source)| path.ends_with(&file) && holds(source, test)) {
                missing.push(name);
            }
        }
    }
    assert!(missing.is_empty(), "named in a table, but not there: {missing:#?}");
}

#[test]
fn every_rule_of_the_rfcs_has_tests_that_exist() {
    let rows = rows(include_str!("RFC9113.md"));
    check(&rows);
    let of_9113 = [
        "3.4", "4.1", "4.2", "4.3", "5.1", "5.1.1", "5.1.2", "5.2", "5.3", "5.4.1", "5.4.2", "5.4.3", "5.5", "6.1",
        "6.2", "6.3", "6.4", "6.5", "6.5.2", "6.5.3", "6.6", "6.7", "6.8", "6.9", "6.9.1", "6.9.2", "6.10", "7", "8.1",
        "8.1.1", "8.2.1", "8.2.2", "8.3", "8.3.1", "8.3.2", "8.4", "8.5", "8.6", "8.7",
    ];
    let of_7541 = ["2.2", "2.3.3", "4.1", "4.2", "4.3", "4.4", "5.1", "5.2", "6.1", "6.2", "6.3", "7.1.3"];
    for section in of_9113.map(|s| format!("9113 {s}")).into_iter().chain(of_7541.map(|s| format!("7541 {s}"))) {
        assert!(rows.iter().any(|row| row.about == section), "RFC {section} is left out");
    }
}

#[test]
fn every_promise_of_a_balancer_has_tests_that_exist() {
    let rows = rows(include_str!("PROMISES.md"));
    check(&rows);
    for number in 1..=19 {
        assert!(rows.iter().any(|row| row.about == number.to_string()), "promise {number} is left out");
    }
}

#[test]
fn a_row_is_read_and_a_test_is_told_from_a_function() {
    let rows = rows("| rule | tests |\n| --- | --- |\n| 9113 4.1 | a \\| b | both | `a::b`, `c/d::e` |\n");
    assert_eq!((rows.len(), rows[0].about.as_str()), (1, "9113 4.1"));
    assert_eq!(rows[0].tests, ["a::b", "c/d::e"]);
    assert!(holds("#[test]\n    fn b() {}", "b") && holds("#[tokio::test]\nasync fn b() {}", "b"));
    assert!(!holds("fn b() {}", "b") && !holds("#[test]\nfn bc() {}", "b"));
}
